//! A response on its way back to the caller.

use crate::body::Body;
use crate::facts::{self, Hop};
use crate::reply::DECISION_HEADER;
use crate::telemetry::access_log::Entry;
use crate::upstream::pool::Lease;
use http::{HeaderValue, Response};
use hyper::body::Incoming;

/// The head of a response, and the connection that its body still comes from.
pub type Received = (Response<Incoming>, Lease);

/// Removes what is meant for this hop only, names the decision, and binds the access log entry to the body's end.
pub fn finish(response: Response<Incoming>, mut entry: Entry, lease: Lease) -> Response<Body> {
    let (mut head, incoming) = response.into_parts();
    entry.status = head.status.as_u16();
    facts::forward_headers(&mut head.headers, Hop::Response);
    // A decision that was made further on stays named: it is the one that the caller wants explained.
    if !head.headers.contains_key(DECISION_HEADER)
        && let Ok(value) = HeaderValue::from_str(&entry.decision.to_string())
    {
        head.headers.insert(DECISION_HEADER, value);
    }
    Response::from_parts(head, Body::answer(Body::Streaming(incoming), entry, Some(lease)))
}
