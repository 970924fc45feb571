//! The one body type of the data path. Nothing is held back unless a policy reads it.

use crate::facts;
use crate::framing::FramingRefusal;
use crate::telemetry::access_log::Entry;
use crate::upstream::pool::Lease;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use model::{Limit, Limits};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// A request's or a response's body.
#[derive(Debug)]
pub enum Body {
    /// Bytes that we have: a reply of our own, or nothing.
    Full(Option<Bytes>),
    /// A request's body on its way through.
    Streaming(Incoming),
    /// The same, noting when something was last taken of it.
    Watched(Incoming, Arc<Taken>),
    /// A request's body that a policy has read.
    Held(Option<Bytes>, Option<HeaderMap>),
    /// A response's body on its way through.
    Answer(Box<Answer>),
}

/// When the next hop last took something of a request's body. Whoever takes is not silent yet.
#[derive(Debug)]
pub struct Taken {
    begun: Instant,
    after_ms: AtomicU64,
}

impl Taken {
    /// The moment.
    pub fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.after_ms.load(Ordering::Relaxed))
    }

    fn now(&self) {
        let after = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.after_ms.store(after, Ordering::Relaxed);
    }
}

/// A response on its way to the caller, with what must happen when it ends.
#[derive(Debug)]
pub struct Answer {
    body: Box<Body>,
    entry: Entry,
    lease: Option<Lease>,
}

/// A body could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("the body ended early: {0}")]
pub struct BodyError(#[from] hyper::Error);

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
    #[error("body did not arrive within limit `policyBodyMs` ({limit} ms)")]
    Timeout {
        /// The limit.
        limit: u64,
    },
    /// Its framing could be read in two ways.
    #[error("{0}")]
    Framing(FramingRefusal),
    /// It ended early.
    #[error("body ended early: {0}")]
    Broken(hyper::Error),
}

impl From<hyper::Error> for HeldRefusal {
    fn from(error: hyper::Error) -> Self {
        match FramingRefusal::found_in(&error) {
            Some(refusal) => Self::Framing(refusal),
            None => Self::Broken(error),
        }
    }
}

impl Body {
    /// A body of our own.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    /// Notes from here on when something is taken of it; `None` if all of it is here already.
    pub fn watch(&mut self) -> Option<Arc<Taken>> {
        match std::mem::replace(self, Self::empty()) {
            Self::Streaming(incoming) if !http_body::Body::is_end_stream(&incoming) => {
                let taken = Arc::new(Taken { begun: Instant::now(), after_ms: AtomicU64::new(0) });
                *self = Self::Watched(incoming, Arc::clone(&taken));
                Some(taken)
            }
            whole => {
                *self = whole;
                None
            }
        }
    }

    /// Without a byte.
    pub const fn empty() -> Self {
        Self::Full(None)
    }

    /// The response's body, bound to the access log entry and to the connection that it comes from.
    pub fn answer(body: Self, entry: Entry, lease: Option<Lease>) -> Self {
        Self::Answer(Box::new(Answer { body: Box::new(body), entry, lease }))
    }
}

/// Reads a whole body for the policies, bounded in size and time, and gives it back for forwarding.
///
/// # Errors
/// - [`HeldRefusal`] naming the limit, or that the caller ended early.
pub async fn hold(incoming: Incoming, limits: &Limits) -> Result<(Bytes, Body), HeldRefusal> {
    let limit = limits.of(Limit::PolicyBodyBytes);
    let declared = http_body::Body::size_hint(&incoming).lower();
    if declared > limit {
        return Err(HeldRefusal::TooLarge { seen: declared, limit });
    }
    let read = tokio::time::timeout(limits.duration(Limit::PolicyBodyMs), collect(incoming, limit));
    let Ok(outcome) = read.await else {
        return Err(HeldRefusal::Timeout { limit: limits.of(Limit::PolicyBodyMs) });
    };
    let (bytes, trailers) = outcome?;
    let held = Body::Held((!bytes.is_empty()).then(|| bytes.clone()), trailers);
    Ok((bytes, held))
}

async fn collect(mut incoming: Incoming, limit: u64) -> Result<(Bytes, Option<HeaderMap>), HeldRefusal> {
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = incoming.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                let seen = u64::try_from(bytes.len() + data.len()).unwrap_or(u64::MAX);
                if seen > limit {
                    return Err(HeldRefusal::TooLarge { seen, limit });
                }
                bytes.extend_from_slice(&data);
            }
            Err(frame) => trailers = without_claims(frame).into_trailers().ok(),
        }
    }
    Ok((bytes.freeze(), trailers))
}

/// Trailers go on without what may only stand in a head: a claim made there would be believed by an application that merges them.
fn without_claims(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            facts::forward_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        // Not trailers: data passes untouched.
        Err(frame) => frame,
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Held(bytes, trailers) => {
                let data = bytes.take().map(Frame::data);
                Poll::Ready(data.or_else(|| trailers.take().map(Frame::trailers)).map(Ok))
            }
            Self::Streaming(incoming) => Pin::new(incoming).poll_frame(cx).map_ok(without_claims).map_err(BodyError),
            Self::Watched(incoming, taken) => {
                let polled = Pin::new(incoming).poll_frame(cx);
                if polled.is_ready() {
                    taken.now();
                }
                polled.map_ok(without_claims).map_err(BodyError)
            }
            Self::Answer(answer) => {
                let polled = Pin::new(answer.body.as_mut()).poll_frame(cx);
                match &polled {
                    Poll::Ready(None) => answer.delivered(),
                    Poll::Ready(Some(Err(error))) => {
                        answer.entry.reason = Some(answer.lease.as_ref().map_or(model::Reason::UpstreamReset, Lease::reset));
                        answer.entry.detail = Some(error.to_string());
                        answer.lease = None;
                    }
                    Poll::Ready(Some(Ok(_))) if answer.body.is_end_stream() => answer.delivered(),
                    Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Held(bytes, trailers) => bytes.is_none() && trailers.is_none(),
            Self::Streaming(incoming) | Self::Watched(incoming, _) => incoming.is_end_stream(),
            Self::Answer(answer) => answer.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) | Self::Held(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)))
            }
            Self::Streaming(incoming) | Self::Watched(incoming, _) => incoming.size_hint(),
            Self::Answer(answer) => answer.body.size_hint(),
        }
    }
}

impl Answer {
    /// The last byte was handed on: the connection may serve another request, and the log line is complete.
    fn delivered(&mut self) {
        self.entry.ended();
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // A body without a byte is never polled.
        if http_body::Body::is_end_stream(self.body.as_ref()) {
            self.delivered();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn trailers_go_on_without_a_claimed_identity() {
        let mut trailers = HeaderMap::new();
        for name in ["x-rondel-principal", "x-rondel-user", "grpc-status"] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        let left = without_claims(Frame::trailers(trailers)).into_trailers().expect("trailers");
        assert_eq!(left.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
        let data = without_claims(Frame::data(Bytes::from_static(b"x"))).into_data().expect("data");
        assert_eq!(data, "x");
    }
}
