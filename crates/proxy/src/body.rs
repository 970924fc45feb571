//! A request's body that a policy reads. Every other one streams, and nothing of it is held back.

use crate::exchange::Downstream;
use crate::framing::FramingRefusal;
use crate::http1::{Body, BodyFault};
use message::{Head, Version};
use model::{AttributeValue, Limit, Limits};
use policy::BodyFacts;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, ready};

/// A body that a policy reads was refused.
#[derive(Debug, thiserror::Error)]
pub enum HeldRefusal {
    /// It is larger than the limit. The caller must send less, or the operator raise the limit.
    #[error("body of {seen} or more bytes is over limit `policyBodyBytes` ({limit})")]
    TooLarge {
        /// Bytes declared or seen.
        seen: u64,
        /// The limit.
        limit: u64,
    },
    /// It did not arrive in time.
    #[error("{seen} bytes of the body arrived within limit `policyBodyMs` ({limit} ms), and not its end")]
    Timeout {
        /// Bytes that arrived.
        seen: usize,
        /// The limit.
        limit: u64,
    },
    /// Its framing could be read in two ways.
    #[error("{0}")]
    Framing(FramingRefusal),
    /// It ended early.
    #[error("body ended early: {0}")]
    Broken(BodyFault),
}

impl From<BodyFault> for HeldRefusal {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Framing(refusal) => Self::Framing(refusal),
            fault => Self::Broken(fault),
        }
    }
}

/// Reads a whole body for the policies, bounded in size and time. A caller that waits for a word before it sends is told to go on.
///
/// # Errors
/// - [`HeldRefusal`] naming the limit, or that the caller ended early.
pub async fn hold(down: &mut Downstream<'_>, head: &mut Head, limits: &Limits) -> Result<Vec<u8>, HeldRefusal> {
    let limit = limits.of(Limit::PolicyBodyBytes);
    let declared = down.body_length().unwrap_or(0);
    if declared > limit {
        return Err(HeldRefusal::TooLarge { seen: declared, limit });
    }
    go_ahead(down, head).await;
    let mut bytes = Vec::with_capacity(usize::try_from(declared).unwrap_or(0));
    let read = poll_fn(|cx| {
        loop {
            match ready!(down.poll_body(cx))? {
                Body::Ended => return Poll::Ready(Ok(())),
                Body::Data => {
                    let seen = u64::try_from(bytes.len() + down.data().len()).unwrap_or(u64::MAX);
                    if seen > limit {
                        return Poll::Ready(Err(HeldRefusal::TooLarge { seen, limit }));
                    }
                    bytes.extend_from_slice(down.data());
                    down.consume(usize::MAX);
                }
            }
        }
    });
    match tokio::time::timeout(limits.duration(Limit::PolicyBodyMs), read).await {
        Ok(outcome) => outcome.map(|()| bytes),
        Err(_) => Err(HeldRefusal::Timeout { seen: bytes.len(), limit: limits.of(Limit::PolicyBodyMs) }),
    }
}

/// A body that was read as the policies see it, and why they see none.
pub fn seen(read: Option<&BodyFacts>) -> (Option<&BTreeMap<String, AttributeValue>>, Option<&str>) {
    match read {
        Some(BodyFacts::Fields(fields)) => (Some(fields), None),
        Some(BodyFacts::Unreadable { why }) => (None, Some(why)),
        None => (None, None),
    }
}

/// Tells a caller that waits for a word before it sends its body: to go on. The application need not say so once more.
pub async fn go_ahead(down: &mut Downstream<'_>, head: &mut Head) {
    if !expects_a_word(head) {
        return;
    }
    head.fields.retain(|name, _| name != b"expect");
    down.inform(&Head { status: 100, ..Head::default() });
    // A caller that does not take it is noticed when its body is read.
    let _gone = poll_fn(|cx| down.poll_flush(cx)).await;
}

/// RFC 9110 §10.1.1.
fn expects_a_word(head: &Head) -> bool {
    head.version == Version::Http11 && head.fields.values(b"expect").any(|value| value.eq_ignore_ascii_case(b"100-continue"))
}
