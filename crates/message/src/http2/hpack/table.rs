//! The dynamic table: lines in the order in which they came, the oldest leave first.

use std::collections::VecDeque;

use super::{Class, LINE_OVERHEAD};

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) class: Class,
    /// The value holds nothing that is forbidden: looked at once, when the line came.
    pub(super) sound: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Counted from the first byte that ever was in the table, modulo 2^32.
    start: u32,
    name: u32,
    value: u32,
    class: Class,
    sound: bool,
}

impl Place {
    fn cost(self) -> usize {
        wide(self.name) + wide(self.value) + LINE_OVERHEAD
    }
}

/// Dynamic table. RFC 7541 §2.3.2. Texts lie behind each other in one buffer that is moved to its front now and then.
#[derive(Debug)]
pub(super) struct Table {
    bytes: Vec<u8>,
    /// What the first of `bytes` is counted as.
    base: u32,
    places: VecDeque<Place>,
    size: usize,
    limit: usize,
    /// How many lines ever came, modulo 2^32.
    inserted: u32,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), base: 0, places: VecDeque::new(), size: 0, limit, inserted: 0 }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Lines ever added, modulo 2^32: the number that the next line will have.
    pub(super) fn inserted(&self) -> u32 {
        self.inserted
    }

    /// RFC 7541 §4.3.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(limit);
    }

    /// A line by its age, 0 for the newest.
    #[inline]
    pub(super) fn by_age(&self, age: usize) -> Option<Entry<'_>> {
        let place = self.places.get(self.places.len().checked_sub(age + 1)?)?;
        let start = wide(place.start.wrapping_sub(self.base));
        let text = self.bytes.get(start..start + wide(place.name) + wide(place.value))?;
        let (name, value) = text.split_at_checked(wide(place.name))?;
        Some(Entry { name, value, class: place.class, sound: place.sound })
    }

    /// A line by its number (see [`Table::inserted`]) with its age, if it is still there.
    #[inline]
    pub(super) fn by_number(&self, number: u32) -> Option<(usize, Entry<'_>)> {
        let age = wide(self.inserted.wrapping_sub(number).wrapping_sub(1));
        self.by_age(age).map(|entry| (age, entry))
    }

    /// Adds a line, `text` being its name and behind it its value. One that is larger than the table empties it. RFC 7541 §4.4.
    pub(super) fn insert(&mut self, text: &[u8], name: usize, class: Class, sound: bool) {
        let cost = text.len() + LINE_OVERHEAD;
        self.evict(self.limit.saturating_sub(cost));
        if cost > self.limit {
            return;
        }
        self.compact();
        let start = self.base.wrapping_add(narrow(self.bytes.len()));
        self.bytes.extend_from_slice(text);
        self.places.push_back(Place { start, name: narrow(name), value: narrow(text.len() - name), class, sound });
        self.size += cost;
        self.inserted = self.inserted.wrapping_add(1);
    }

    fn evict(&mut self, size_max: usize) {
        while self.size > size_max
            && let Some(oldest) = self.places.pop_front()
        {
            self.size -= oldest.cost();
        }
    }

    /// Moves the living text to the front once there is more dead text than a whole table: the cost per line is constant.
    fn compact(&mut self) {
        let dead = match self.places.front() {
            Some(oldest) => wide(oldest.start.wrapping_sub(self.base)),
            None => self.bytes.len(),
        };
        if dead > self.limit {
            self.bytes.drain(..dead.min(self.bytes.len()));
            self.base = self.base.wrapping_add(narrow(dead));
        }
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// INVARIANT: lengths in the table are below the size of a field block, which is bounded far below 4 GiB.
fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn wide(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
