//! A response on its way back to the caller.

use crate::body::Body;
use crate::connection::Connection;
use crate::facts::{self, Hop};
use crate::reply::DECISION_HEADER;
use crate::state::Active;
use crate::telemetry::access_log::Entry;
use crate::upgrade::Asked;
use crate::upstream::pool::Lease;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, Version};
use hyper::body::Incoming;
use std::sync::Arc;

/// An answer on its way back.
#[derive(Debug)]
pub struct Received {
    /// Its head; its body is still to come.
    pub response: Response<Incoming>,
    /// The connection that the body comes from.
    pub lease: Lease,
    /// The other protocol that the request asked for.
    pub asked: Option<Asked>,
    /// The configuration that let the request through.
    pub active: Arc<Active>,
}

/// Removes what is meant for this hop only, names the decision, and binds the access log entry to the body's end.
pub fn finish(received: Received, mut entry: Entry, connection: &Arc<Connection>) -> Response<Body> {
    let Received { mut response, lease, asked, active } = received;
    let far = asked.as_ref().filter(|asked| asked.is_granted(&response)).map(|_| hyper::upgrade::on(&mut response));
    let protocol = response.headers().get(UPGRADE).cloned();
    let (mut head, incoming) = response.into_parts();
    entry.status = head.status.as_u16();
    facts::forward_headers(&mut head.headers, Hop::Response);
    // A decision that was made further on stays named: it is the one that the caller wants explained.
    if !head.headers.contains_key(DECISION_HEADER)
        && let Ok(value) = HeaderValue::from_str(&entry.decision.to_string())
    {
        head.headers.insert(DECISION_HEADER, value);
    }
    match (asked, far) {
        (Some(asked), Some(far)) => {
            if let Some(protocol) = protocol.filter(|_| head.version != Version::HTTP_2) {
                head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                head.headers.insert(UPGRADE, protocol);
            }
            asked.grant(far, entry, lease, connection, active);
            Response::from_parts(head, Body::empty())
        }
        (asked, _) => {
            if asked.is_some_and(|asked| asked.ends_connection()) {
                head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Response::from_parts(head, Body::answer(Body::Streaming(incoming), entry, Some(lease)))
        }
    }
}
