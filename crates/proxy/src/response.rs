//! A response on its way back to the caller.

use crate::accept::LAST_WORDS_DEADLINE;
use crate::clock;
use crate::connection::Connection;
use crate::exchange::{Downstream, Exchange, Fallen, Stuck, poll_download};
use crate::facts::{self, Hop};
use crate::http1::Length;
use crate::reply::DECISION_HEADER;
use crate::shadow::Pending;
use crate::standing::{Admitted, Standing};
use crate::state::Active;
use crate::telemetry::access_log::{Direction, Entry};
use crate::upgrade::{Asked, Granted};
use crate::upstream::Sent;
use message::Head;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::time::timeout;

/// An answer on its way back; its head is in the exchange.
#[derive(Debug)]
pub struct Received {
    /// What it comes from, and what is still to go there.
    pub sent: Sent,
    /// The other protocol that the request asked for.
    pub asked: Option<Box<Asked>>,
    /// The nonce that the caller is given for its next DPoP proof (RFC 9449 §8.2).
    pub nonce: Option<Box<str>>,
    /// The configuration that let the request through.
    pub active: Arc<Active>,
    /// The second decision, with policies in shadow mode, that waits for the request's body.
    pub shadow: Option<Box<Pending>>,
    /// What let the request in; `None` for one of the application.
    pub admitted: Option<Admitted>,
}

/// Makes the answer's head ready for the caller: removes what is meant for this hop only and names the decision. Gives what the
/// other side granted, if the connection is to go on in another protocol.
pub fn prepare(received: &Received, head: &mut Head, entry: &mut Entry, connection: &Connection) -> Option<Granted> {
    let is_granted = received.asked.as_ref().is_some_and(|asked| asked.is_granted(head.status));
    let granted = is_granted.then(|| Granted { protocol: head.fields.first(b"upgrade").map(<[u8]>::to_vec) });
    entry.status = head.status;
    // An application may pass on a refusal that it met further on, and who made it. What it did not fail with, nobody refused.
    let hop = match connection.direction() {
        Direction::Inbound if head.status < 400 => Hop::Answer,
        Direction::Inbound | Direction::Outbound => Hop::Response,
    };
    facts::forward_headers(&mut head.fields, hop);
    if let Some(nonce) = &received.nonce {
        head.fields.retain(|name, _| name != b"dpop-nonce");
        head.fields.push(b"dpop-nonce", nonce.as_bytes());
    }
    complete(head, entry);
    granted
}

/// Carries an answer, whose head was made ready, to its end, which the access log tells.
pub async fn carry(
    Received { mut sent, asked, shadow, admitted, .. }: Received,
    Exchange { request, facts, answer: head }: &Exchange,
    down: &mut Downstream<'_>,
    entry: &mut Entry,
    connection: &Connection,
) {
    if connection.is_asked_to_end() || asked.is_some_and(|asked| asked.ends_connection()) {
        down.close();
    }
    let length = sent.upstream.body_length().map_or(Length::Unknown, Length::Known);
    down.respond(head, length);
    let mut over = false;
    let ended = {
        let moving = pin!(poll_fn(|cx| {
            if down.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Fallen::Caller));
            }
            // What is still to come of the request goes up meanwhile. If the other side does not take it, it may still answer.
            if !sent.stuck && !sent.upload.has_left() {
                match sent.upload.poll(down, &mut sent.upstream, cx) {
                    Poll::Ready(Err(Stuck::Caller(_))) => return Poll::Ready(Err(Fallen::Caller)),
                    Poll::Ready(Err(Stuck::Upstream(_))) => sent.stuck = true,
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
            }
            poll_download(&mut sent.upstream, down, &mut over, cx)
        }));
        Standing::of(connection, request, facts, entry, admitted.as_ref()).hold(moving).await
    };
    if let Some(shadow) = shadow {
        shadow.finish(sent.upload.copied());
    }
    match ended {
        Ok(Ok(())) => {
            entry.ended();
            sent.give_back();
        }
        // An entry that did not end says that the caller has gone.
        Ok(Err(Fallen::Caller)) => down.close(),
        Err(denied) => {
            let _told = entry.denied_again(*denied);
            // What came of it goes on as far as it is taken at once, and does not look whole.
            let _gone = timeout(LAST_WORDS_DEADLINE, poll_fn(|cx| down.poll_flush(cx))).await;
            down.abort();
        }
        Ok(Err(Fallen::Upstream(fault))) => {
            entry.reason = Some(sent.reset());
            entry.detail = Some(fault.to_string());
            // What came of it goes on, as far as it is taken at once.
            let _gone = timeout(LAST_WORDS_DEADLINE, poll_fn(|cx| down.poll_flush(cx))).await;
            down.abort();
        }
    }
}

/// What every response says: which decision it followed, and when (RFC 9110 §6.6.1).
fn complete(head: &mut Head, entry: &Entry) {
    // A decision that was made further on stays named: it is the one that the caller wants explained.
    if head.fields.first(DECISION_HEADER.as_bytes()).is_none() {
        head.fields.push(DECISION_HEADER.as_bytes(), entry.decision.text().as_bytes());
    }
    if head.fields.first(b"date").is_none() {
        clock::with_http_date(entry.at(), |date| head.fields.push(b"date", date.as_bytes()));
    }
}
