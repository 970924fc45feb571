//! The streams that somebody still holds: places that are used again, found by number.

use crate::Fields;

use super::error::ErrorCode;
use super::frame::wide;

/// One direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// The (final) head is still to come.
    Waiting,
    /// Head came, end did not.
    Open,
    Ended,
}

/// How a stream was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) code: ErrorCode,
    pub(super) by_peer: bool,
}

/// A stream. RFC 9113 §5.1.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) sending: Half,
    pub(super) receiving: Half,
    pub(super) broken: Option<Broken>,
    /// Client: the server has answered in full and does not want the rest of the request. RFC 9113 §8.1.
    pub(super) unwanted: Option<ErrorCode>,
    /// Seconds of the connection's life as it was opened.
    pub(super) born: u32,
    /// Counts towards the limit of concurrent streams.
    pub(super) counted: bool,
    /// A Readable lies in the queue of events.
    pub(super) readable_queued: bool,
    /// Wanted to send more than there was room for.
    pub(super) refused_room: bool,
    /// Lies in the queue of those that wait for room of the connection.
    pub(super) in_line: bool,
    /// The answer says how long a body would be and has none: its request was HEAD. RFC 9110 §9.3.2.
    pub(super) answer_without_body: bool,
    /// Heads that came and were not taken.
    pub(super) heads: u8,
    /// Bytes that we may send; negative after the peer made its windows smaller. RFC 9113 §6.9.2.
    pub(super) send_window: i64,
    /// Bytes that the peer may send.
    pub(super) receive_window: i64,
    /// Bytes that the application took and that the peer may not send again yet.
    pub(super) due: u32,
    /// Bytes of body that content-length says are still to come.
    pub(super) expected: Option<u64>,
    pub(super) inbox: Vec<u8>,
    /// Bytes of the inbox that the application took.
    pub(super) taken: usize,
    pub(super) trailers: Option<Fields>,
}

impl Stream {
    pub(super) fn new(id: u32, send_window: i64, receive_window: i64) -> Self {
        Self {
            id,
            sending: Half::Waiting,
            receiving: Half::Waiting,
            broken: None,
            unwanted: None,
            born: 0,
            counted: true,
            readable_queued: false,
            refused_room: false,
            in_line: false,
            answer_without_body: false,
            heads: 0,
            send_window,
            receive_window,
            due: 0,
            expected: None,
            inbox: Vec::new(),
            taken: 0,
            trailers: None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.broken.is_some() || self.sending == Half::Ended && self.receiving == Half::Ended
    }

    #[inline]
    pub(super) fn unread(&self) -> &[u8] {
        self.inbox.get(self.taken..).unwrap_or_default()
    }
}

/// All streams of a connection. Places in a list, and an index of their numbers with open addressing: numbers of neighbours in
/// time are neighbours, so that one step nearly always finds them.
#[derive(Debug, Default)]
pub(super) struct Streams {
    places: Vec<Stream>,
    free: Vec<u32>,
    /// Number and place; number 0 is an empty slot. Its size is a power of two, at most half of it is full.
    index: Vec<(u32, u32)>,
    live: usize,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.live
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&Stream> {
        let (_, place) = self.find(id)?;
        self.places.get(place)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let (_, place) = self.find(id)?;
        self.places.get_mut(place)
    }

    /// Those that are held, in no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.places.iter_mut().filter(|stream| stream.id != 0)
    }

    pub(super) fn insert(&mut self, stream: Stream) {
        if (self.live + 1) * 2 > self.index.len() {
            self.grow();
        }
        let id = stream.id;
        let place = match self.free.pop() {
            Some(place) => place,
            None => super::frame::narrow(self.places.len()),
        };
        match self.places.get_mut(wide(place)) {
            Some(held) => *held = stream,
            None => self.places.push(stream),
        }
        self.index_insert(id, place);
        self.live += 1;
    }

    /// Forgets a stream and returns what it held.
    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let (mut gap, place) = self.find(id)?;
        let held = self.places.get_mut(place)?;
        let stream = std::mem::replace(held, Stream::new(0, 0, 0));
        self.free.push(super::frame::narrow(place));
        self.live -= 1;
        // Moves back those that came after and would not be found over the gap.
        let mask = self.index.len() - 1;
        let mut slot = gap;
        loop {
            slot = (slot + 1) & mask;
            let Some(entry) = self.index.get(slot).copied().filter(|(number, _)| *number != 0) else { break };
            let distance = slot.wrapping_sub(home(entry.0)) & mask;
            if distance >= slot.wrapping_sub(gap) & mask {
                if let Some(empty) = self.index.get_mut(gap) {
                    *empty = entry;
                }
                gap = slot;
            }
        }
        if let Some(empty) = self.index.get_mut(gap) {
            *empty = (0, 0);
        }
        Some(stream)
    }

    /// Gives the memory back if no stream is held.
    pub(super) fn trim(&mut self) {
        if self.live == 0 {
            *self = Self::default();
        }
    }

    /// Slot in the index, and place.
    #[inline]
    fn find(&self, id: u32) -> Option<(usize, usize)> {
        let mask = self.index.len().checked_sub(1)?;
        let mut slot = home(id) & mask;
        loop {
            let (number, place) = *self.index.get(slot)?;
            if number == id && id != 0 {
                return Some((slot, wide(place)));
            }
            if number == 0 {
                return None;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn index_insert(&mut self, id: u32, place: u32) {
        let mask = self.index.len() - 1;
        let mut slot = home(id) & mask;
        while let Some(entry) = self.index.get_mut(slot) {
            if entry.0 == 0 {
                *entry = (id, place);
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let size = (self.index.len() * 2).max(16);
        let before = std::mem::replace(&mut self.index, vec![(0, 0); size]);
        for (id, place) in before.into_iter().filter(|(id, _)| *id != 0) {
            self.index_insert(id, place);
        }
    }
}

/// Numbers of one side are all odd or all even.
#[inline]
fn home(id: u32) -> usize {
    wide(id >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_whatever_was_removed_between() {
        let mut streams = Streams::default();
        let mut model = std::collections::BTreeMap::new();
        let mut state = 7_u64;
        for step in 0..20_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Numbers with equal low bits collide on purpose.
            let id = ((state >> 40) as u32 % 300) * 64 + 1;
            if state >> 63 == 0 {
                if model.insert(id, step).is_none() {
                    streams.insert(Stream::new(id, i64::from(step), 0));
                } else {
                    streams.get_mut(id).unwrap().send_window = i64::from(step);
                }
            } else {
                assert_eq!(streams.remove(id).map(|stream| stream.send_window), model.remove(&id).map(i64::from));
            }
            assert_eq!(streams.len(), model.len());
        }
        for (id, step) in &model {
            assert_eq!(streams.get(*id).unwrap().send_window, i64::from(*step));
        }
        assert_eq!(streams.iter_mut().count(), model.len());
    }
}
