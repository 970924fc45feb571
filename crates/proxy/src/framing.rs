//! The grammar of HTTP/1: where a message begins and ends, read so that no reader could see another message in its bytes.
//!
//! Read [`Framing::step`] and [`FramingRefusal`] first. A head is taken only when it is complete and sound, and a body is followed
//! to its end, so that the place of the next head is certain. What a request *means* is not decided here but in `facts`.

mod answer;
mod chunked;
mod head;

pub use answer::{Answering, Part};
use chunked::{Chunk, Chunked};
pub(crate) use head::upgrade_offers;
use head::{BodyLength, HeadScan};
use message::{Fields, Head};
use model::{Limit, Reason};
use std::time::Duration;

/// The bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes of a head, from its first byte to the end of the empty line (`requestHeadBytes`). No more than this is read ahead.
    pub head_bytes_max: usize,
    /// Header lines of a head, and trailer lines of a body (`requestHeaders`).
    pub headers_max: usize,
    /// From the first byte of a head to its last (`requestHeadMs`).
    pub head_deadline: Duration,
}

/// Why the bytes of a caller are not handed to the parser. The caller must mend it, unless a limit is too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingRefusal {
    /// The head is larger than the limit. The caller must send less, or the operator raise the limit.
    #[error("head of {seen} or more bytes is over limit `{}` ({limit})", Limit::RequestHeadBytes.name())]
    HeadTooLarge {
        /// The limit, in bytes.
        limit: usize,
        /// The least that the head would have been, in bytes.
        seen: usize,
    },
    /// The head has more lines than the limit.
    #[error("{seen} or more header lines are over limit `{}` ({limit})", Limit::RequestHeaders.name())]
    TooManyHeaders {
        /// The limit, in lines.
        limit: usize,
        /// The least that the head would have had, in lines.
        seen: usize,
    },
    /// The head did not arrive in time.
    #[error("head was not complete within limit `{}` ({} ms): {seen} bytes came", Limit::RequestHeadMs.name(), .limit.as_millis())]
    HeadTimeout {
        /// The limit.
        limit: Duration,
        /// The bytes that came.
        seen: usize,
    },
    /// Two readers could see two different requests in the head.
    #[error("ambiguous head: {rule}")]
    Ambiguous {
        /// What makes it ambiguous.
        rule: &'static str,
    },
    /// Two readers could see two different ends of the body. The head was let through already, so the request is under way.
    #[error("ambiguous body: {rule}")]
    AmbiguousBody {
        /// What makes it ambiguous.
        rule: &'static str,
    },
    /// The head is not one of HTTP/1.0 or HTTP/1.1.
    #[error("malformed head: {rule}")]
    Malformed {
        /// What is wrong with it.
        rule: &'static str,
    },
    /// An HTTP/1.1 request without `Host` (RFC 9112 §3.2).
    #[error("no `Host` line")]
    HostMissing,
    /// More than one `Host` line (RFC 9112 §3.2).
    #[error("more than one `Host` line")]
    HostTwice,
}

impl FramingRefusal {
    /// The stable word.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::HeadTooLarge { .. } | Self::TooManyHeaders { .. } => Reason::HeadTooLarge,
            Self::HeadTimeout { .. } => Reason::HeadTimeout,
            Self::Ambiguous { .. } | Self::AmbiguousBody { .. } => Reason::FramingAmbiguous,
            Self::Malformed { .. } => Reason::RequestMalformed,
            Self::HostMissing | Self::HostTwice => Reason::HostInvalid,
        }
    }

    /// Whether it ended a body. Then the request was handed on already and whoever reads the body answers it; any other
    /// refusal is of a request that nobody has seen, and is answered by whoever owns the connection.
    pub const fn ends_body(&self) -> bool {
        matches!(self, Self::AmbiguousBody { .. })
    }

    /// The same, found in a trailer section.
    const fn in_body(self) -> Self {
        match self {
            Self::Ambiguous { rule } | Self::Malformed { rule } => Self::AmbiguousBody { rule },
            Self::TooManyHeaders { .. } => Self::AmbiguousBody { rule: "more trailer lines than `requestHeaders`" },
            Self::HeadTooLarge { .. }
            | Self::HeadTimeout { .. }
            | Self::AmbiguousBody { .. }
            | Self::HostMissing
            | Self::HostTwice => self,
        }
    }
}

/// Where in a stream of requests we are. Pure: bytes in, what they are out.
#[derive(Debug)]
pub struct Framing {
    rules: Rules,
    phase: Phase,
    /// The message under way asks for another protocol after it.
    switches: bool,
}

#[derive(Debug)]
enum Phase {
    /// In or before a head.
    Head(HeadScan),
    /// In a body of which so many bytes are to come; never 0.
    Length(u64),
    /// In a chunked body.
    Chunked(Chunked),
    /// Behind a `CONNECT` or `Upgrade` request: what follows may not be HTTP, and is not looked at.
    Switched,
    /// Nothing more is taken.
    Refused(FramingRefusal),
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet: more must come.
    More,
    /// So many bytes of a whole head, which was written down.
    Head(usize),
    /// So many bytes of a body's data.
    Data(usize),
    /// So many bytes that only frame a body.
    Between(usize),
    /// So many sound bytes, and what makes the next one unsound.
    Refused(usize, FramingRefusal),
    /// They belong to another protocol.
    Switched,
}

impl Framing {
    /// Before the first request of a connection.
    pub fn new(rules: Rules) -> Self {
        Self { rules, phase: Phase::Head(HeadScan::default()), switches: false }
    }

    /// Whether no message is under way.
    pub const fn is_between(&self) -> bool {
        matches!(self.phase, Phase::Head(_) | Phase::Switched)
    }

    /// Whether a head was begun and is not whole; an empty line before it does not count (RFC 9112 §2.2).
    pub const fn is_in_head(&self) -> bool {
        matches!(&self.phase, Phase::Head(head) if head.is_begun())
    }

    /// Whether the message under way asks for another protocol after it.
    pub const fn switches(&self) -> bool {
        self.switches
    }

    /// The length of the body that is to come, where its head said it.
    pub const fn length(&self) -> Option<u64> {
        match self.phase {
            Phase::Length(length) => Some(length),
            Phase::Chunked(_) | Phase::Refused(_) => None,
            Phase::Head(_) | Phase::Switched => Some(0),
        }
    }

    /// Looks at `bytes`, of which the first is the first that was not taken yet. A head is written into `head`, which is clear at
    /// its beginning, and trailers into `trailers`.
    pub fn step(&mut self, bytes: &[u8], head: &mut Head, trailers: &mut Fields) -> Step {
        match &mut self.phase {
            Phase::Switched => Step::Switched,
            Phase::Refused(refusal) => Step::Refused(0, *refusal),
            _ if bytes.is_empty() => Step::More,
            Phase::Head(scan) => match scan.scan(bytes, &self.rules, head) {
                Ok(None) => Step::More,
                Ok(Some(complete)) => {
                    self.switches = complete.switches;
                    trailers.clear();
                    match complete.body {
                        BodyLength::Fixed(0) => self.message_ended(),
                        BodyLength::Fixed(length) => self.phase = Phase::Length(length),
                        BodyLength::Chunked => self.phase = Phase::Chunked(Chunked::default()),
                    }
                    Step::Head(complete.length)
                }
                Err(refusal) => self.refuse(0, refusal),
            },
            Phase::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
                if *left == 0 {
                    self.message_ended();
                }
                Step::Data(count)
            }
            Phase::Chunked(chunked) => match chunked.next(bytes, &self.rules, trailers) {
                Chunk::Data(count) => Step::Data(count),
                Chunk::Framing(0) => Step::More,
                Chunk::Framing(count) => Step::Between(count),
                Chunk::Ended(count) => {
                    self.message_ended();
                    Step::Between(count)
                }
                Chunk::Refused(count, refusal) => self.refuse(count, refusal),
            },
        }
    }

    /// The connection ended where `step` asked for more: what that says of a head that was begun.
    pub fn ended(&mut self) -> Option<FramingRefusal> {
        let refusal = FramingRefusal::Malformed { rule: "the connection ended inside the head" };
        self.is_in_head().then(|| {
            self.phase = Phase::Refused(refusal);
            refusal
        })
    }

    /// The head was not complete within its deadline; `seen` bytes of it came.
    pub fn late(&mut self, seen: usize) -> FramingRefusal {
        let refusal = FramingRefusal::HeadTimeout { limit: self.rules.head_deadline, seen };
        self.phase = Phase::Refused(refusal);
        refusal
    }

    /// The bounds of its heads.
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    fn message_ended(&mut self) {
        self.phase = if self.switches { Phase::Switched } else { Phase::Head(HeadScan::default()) };
    }

    fn refuse(&mut self, count: usize, refusal: FramingRefusal) -> Step {
        self.phase = Phase::Refused(refusal);
        Step::Refused(count, refusal)
    }
}

#[cfg(test)]
mod tests;
