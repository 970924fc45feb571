//! Refusals as answers.

use crate::body::HeldRefusal;
use crate::clock;
use crate::connection::Connection;
use crate::exchange::Downstream;
use crate::facts::FactsRefusal;
use crate::gate::GateFull;
use crate::http1::Length;
use crate::response::Received;
use crate::state::Active;
use crate::telemetry::access_log::Entry;
use crate::upstream::Failed;
use http::StatusCode;
use message::{Fields, Head, Version};
use model::{DecisionId, Reason};
use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};

/// The response header that names the decision.
pub const DECISION_HEADER: &str = "x-rondel-decision";
/// The response header that says why not.
pub const REASON_HEADER: &str = "x-rondel-reason";

/// Why a request is not answered by its destination.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The head is too large.
    #[error(
        "the head of an HTTP/2 request is over limit `requestHeadBytes` ({bytes}) or `requestHeaders` ({lines}); how far is not known, as it is not read on"
    )]
    HeadTooLarge {
        /// The limit in bytes.
        bytes: u64,
        /// The limit in header lines.
        lines: u64,
    },
    /// The head does not say one thing.
    #[error("{0}")]
    Facts(#[from] FactsRefusal),
    /// The token is not good.
    #[error("{0}")]
    Token(#[from] token::Refusal),
    /// The body that a policy reads did not come whole.
    #[error("{0}")]
    Held(#[from] HeldRefusal),
    /// The body that a policy reads says two things.
    #[error("{0}")]
    Body(#[from] policy::BodyRefusal),
    /// The policies say no.
    #[error("{}", denied_text(.0))]
    Denied(Box<policy::Denied>),
    /// The destination failed.
    #[error("{0}")]
    Failed(#[from] Failed),
    /// Too many requests are under way.
    #[error("{0}")]
    Full(#[from] GateFull),
    /// The port became strict after this plaintext caller connected.
    #[error("the port is strict now, and this connection is plaintext")]
    Plaintext,
    /// There is no configuration for this port.
    #[error("no configuration was applied for this port yet")]
    NotReady,
}

fn denied_text(denied: &policy::Denied) -> String {
    if denied.errors.is_empty() { "denied by policy".to_owned() } else { denied.errors.join("; ") }
}

impl Refusal {
    /// That the policies in force say no, told without what is sensitive.
    pub fn denied(denied: policy::Denied, active: &Active) -> Self {
        Self::Denied(Box::new(active.policies.conceal(denied)))
    }

    /// The stable word.
    pub fn reason(&self) -> Reason {
        match self {
            Self::HeadTooLarge { .. } => Reason::HeadTooLarge,
            Self::Facts(refusal) => refusal.reason(),
            Self::Token(refusal) => refusal.reason(),
            Self::Held(HeldRefusal::TooLarge { .. }) => Reason::BodyTooLarge,
            Self::Held(HeldRefusal::Timeout { .. } | HeldRefusal::Broken(_)) => Reason::BodyIncomplete,
            Self::Held(HeldRefusal::Framing(refusal)) => refusal.reason(),
            Self::Body(refusal) => refusal.reason(),
            Self::Denied(denied) if denied.user_could_be_allowed => Reason::TokenMissing,
            Self::Denied(denied) => denied.decision.reason.unwrap_or(Reason::NotPermitted),
            Self::Failed(failed) => failed.reason(),
            Self::Full(_) => Reason::Overloaded,
            Self::Plaintext => Reason::PlaintextRefused,
            Self::NotReady => Reason::NotReady,
        }
    }
}

/// The status of a refusal.
pub fn status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What a caller is told beyond the reason: only of limits on size, where it must know which, and how far it went beyond.
fn told(reason: Reason, detail: &str) -> Option<&str> {
    matches!(reason, Reason::HeadTooLarge | Reason::BodyTooLarge).then_some(detail)
}

/// In which form a refusal is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A problem document (RFC 9457) under the status of the reason.
    Problem,
    /// A status of gRPC, in a head that is all there is: an answer of gRPC has the status 200 whatever it says.
    Grpc,
}

impl Form {
    /// The form that whoever sent this request reads.
    pub fn of(head: &Head) -> Self {
        let is_grpc = head.fields.first(b"content-type").is_some_and(|kind| kind.starts_with(b"application/grpc"));
        if is_grpc && head.version == Version::Http2 { Self::Grpc } else { Self::Problem }
    }
}

/// The status of gRPC for one of HTTP, as gRPC maps them where it meets one.
const fn grpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "16",
        403 => "7",
        413 => "8",
        501 => "12",
        502..=504 => "14",
        400 | 408 | 431 | 500 => "13",
        _ => "2",
    }
}

/// The head and the body of a refusal; nothing in them helps an attacker.
fn parts(reason: Reason, detail: &str, decision: DecisionId, form: Form, more: &[(&str, String)]) -> (Head, String) {
    let mut body = String::new();
    let mut head = Head { status: status(reason).as_u16(), ..Head::default() };
    let mut line = |name: &str, value: &str| head.fields.push(name.as_bytes(), value.as_bytes());
    match form {
        Form::Problem => {
            let mut problem = serde_json::json!({
                "type": format!("urn:rondel:reason:{reason}"),
                "title": reason.public_text(),
                "status": status(reason).as_u16(),
                "reason": reason.as_str(),
                "decision": decision.to_string(),
            });
            if let (Some(detail), Some(members)) = (told(reason, detail), problem.as_object_mut()) {
                members.insert("detail".to_owned(), detail.into());
            }
            body = problem.to_string();
            line("content-type", "application/problem+json");
            line("content-length", &body.len().to_string());
        }
        Form::Grpc => {
            line("content-type", "application/grpc");
            line("grpc-status", grpc_status(status(reason)));
            line("grpc-message", reason.public_text());
        }
    }
    line(REASON_HEADER, reason.as_str());
    line(DECISION_HEADER, &decision.to_string());
    clock::with_http_date(clock::now(), |date| line("date", date));
    more.iter().for_each(|(name, value)| line(name, value));
    if form == Form::Grpc {
        head.status = StatusCode::OK.as_u16();
    }
    (head, body)
}

/// Answers a refused request. Status and reason are noted in the entry, which ends before the answer: it tells how long the refusal took.
pub async fn refuse(refusal: Refusal, form: Form, mut entry: Entry, down: &mut Downstream<'_>, connection: &Connection) {
    let reason = refusal.reason();
    entry.reason = Some(reason);
    entry.status = status(reason).as_u16();
    let detail = refusal.to_string();
    let active = connection.shared.active();
    let resource = active.as_ref().and_then(|active| active.resource.as_ref());
    let snapshot = active.as_ref().map(|active| &active.snapshot);
    let challenges = match &refusal {
        Refusal::Token(refusal) => token::challenges(Some(refusal), snapshot, resource),
        // A token could be what is missing.
        _ if reason == Reason::TokenMissing => token::challenges(None, snapshot, resource),
        _ => Vec::new(),
    };
    let mut more: Vec<(&str, String)> = challenges.into_iter().map(|value| ("www-authenticate", value)).collect();
    if let Refusal::Token(token::Refusal::ProofNonce { nonce }) = &refusal {
        more.push(("dpop-nonce", nonce.clone()));
    }
    let (head, text) = parts(reason, &detail, entry.decision, form, &more);
    entry.detail = Some(detail);
    // Whether the caller ever reads the answer is up to the caller: it must not hold what others wait for.
    (entry.place, entry.under_way) = (None, None);
    drop(entry);
    write(&head, &text, down).await;
}

/// Answers with a JSON document of our own, which may be kept for a while. Nothing was received from anywhere then.
pub async fn document(json: &str, entry: &mut Entry, down: &mut Downstream<'_>) -> Option<Received> {
    let mut head = Head { status: StatusCode::OK.as_u16(), ..Head::default() };
    let mut line = |name: &str, value: &str| head.fields.push(name.as_bytes(), value.as_bytes());
    line("content-type", "application/json");
    line("content-length", &json.len().to_string());
    line("cache-control", "max-age=300");
    line(DECISION_HEADER, &entry.decision.to_string());
    clock::with_http_date(clock::now(), |date| line("date", date));
    entry.status = head.status;
    write(&head, json, down).await;
    entry.ended();
    None
}

/// Writes a whole answer; one to a `HEAD` goes without its body.
async fn write(head: &Head, text: &str, down: &mut Downstream<'_>) {
    let length = match u64::try_from(text.len()) {
        Ok(0) => Length::None,
        Ok(length) => Length::Known(length),
        Err(_) => Length::Unknown,
    };
    down.respond(head, length);
    let mut rest = text.as_bytes();
    let written: io::Result<()> = poll_fn(|cx| {
        while !rest.is_empty() {
            if down.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let count = ready!(down.poll_write(cx, rest))?;
            rest = rest.get(count..).unwrap_or_default();
        }
        down.finish(&Fields::default());
        down.poll_flush(cx)
    })
    .await;
    if written.is_err() {
        down.close();
    }
}

/// The bytes of an HTTP/1.1 answer for a connection on which nothing more can be answered; it is closed after it.
pub fn raw(reason: Reason, detail: &str, decision: DecisionId) -> Vec<u8> {
    let (mut head, body) = parts(reason, detail, decision, Form::Problem, &[]);
    head.fields.push(b"connection", b"close");
    let mut out = format!("HTTP/1.1 {}\r\n", status(reason)).into_bytes();
    for (name, value) in head.fields.iter() {
        for part in [name, b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_status_of_a_refusal_and_grpc_tells_who_and_whether() {
        for reason in Reason::ALL {
            assert!(status(reason).is_client_error() || status(reason).is_server_error(), "{reason}");
        }
        for (reason, expected) in [
            (Reason::TokenMissing, "16"),
            (Reason::TokenStepUp, "16"),
            (Reason::DpopNonce, "16"),
            (Reason::TokenScope, "7"),
            (Reason::NotPermitted, "7"),
            (Reason::IssuerUnavailable, "14"),
            (Reason::BodyTooLarge, "8"),
            (Reason::RequestMalformed, "13"),
        ] {
            let (head, body) = parts(reason, "", DecisionId::from_random([1; 16]), Form::Grpc, &[]);
            assert_eq!(head.fields.first(b"grpc-status"), Some(expected.as_bytes()), "{reason}");
            assert!(head.status == 200 && body.is_empty(), "{reason}");
        }
    }

    #[test]
    fn a_raw_answer_is_a_whole_http_message() {
        let text = String::from_utf8(raw(Reason::FramingAmbiguous, "", DecisionId::from_random([1; 16]))).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains("x-rondel-reason: framing_ambiguous"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
    }
}
