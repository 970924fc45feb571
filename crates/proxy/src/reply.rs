//! Refusals as answers. The only file that knows HTTP status codes.

use crate::body::HeldRefusal;
use crate::clock;
use crate::connection::Connection;
use crate::exchange::Downstream;
use crate::facts::FactsRefusal;
use crate::gate::GateFull;
use crate::http1::Length;
use crate::state::Active;
use crate::telemetry::access_log::Entry;
use crate::upstream::Failed;
use http::StatusCode;
use message::{Fields, Head};
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

/// The status of a refusal (RFC 9110 §15). Total, so that a new reason must be given one.
pub const fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::RequestMalformed
        | Reason::FramingAmbiguous
        | Reason::HostInvalid
        | Reason::PathInvalid
        | Reason::BodyIncomplete
        | Reason::BodyAmbiguous
        | Reason::PlaintextRefused
        | Reason::PortUnknown
        | Reason::RedirectLoop
        | Reason::HandshakeFailed
        | Reason::CallerGone
        | Reason::Flooding
        | Reason::IdleTimeout => StatusCode::BAD_REQUEST,
        Reason::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::MethodNotSupported => StatusCode::NOT_IMPLEMENTED,
        Reason::TokenMissing
        | Reason::TokenMalformed
        | Reason::TokenAlgorithm
        | Reason::TokenIssuerUnknown
        | Reason::TokenKeyUnknown
        | Reason::TokenSignature
        | Reason::TokenAudience
        | Reason::TokenInactive
        | Reason::TokenExpired
        | Reason::TokenNotYetValid
        | Reason::TokenClaim => StatusCode::UNAUTHORIZED,
        Reason::DeniedByPolicy | Reason::NotPermitted | Reason::PolicyError | Reason::EgressRefused => StatusCode::FORBIDDEN,
        Reason::PeerCertificateMissing
        | Reason::PeerUntrusted
        | Reason::PeerRevoked
        | Reason::PeerExpired
        | Reason::PeerNotYetValid
        | Reason::PeerProfile
        | Reason::PeerUnexpected
        | Reason::HandshakeTimeout
        | Reason::UpstreamConnect
        | Reason::UpstreamHandshake
        | Reason::IdentityRefused
        | Reason::UpstreamReset
        | Reason::UpstreamMalformed
        | Reason::ApplicationConnect
        | Reason::ApplicationReset
        | Reason::ApplicationMalformed => StatusCode::BAD_GATEWAY,
        Reason::UpstreamTimeout | Reason::ApplicationTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::IssuerUnavailable
        | Reason::UpstreamNoEndpoint
        | Reason::NotReady
        | Reason::Draining
        | Reason::Overloaded
        | Reason::ConnectionAge => StatusCode::SERVICE_UNAVAILABLE,
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The challenge of a 401 (RFC 6750 §3): without an error code where no token came (§3.1), else `invalid_token`.
fn challenge(reason: Reason, realm: &str) -> Option<String> {
    if status(reason) != StatusCode::UNAUTHORIZED {
        return None;
    }
    if reason == Reason::TokenMissing {
        return Some(format!("Bearer realm=\"{realm}\""));
    }
    let text = reason.public_text();
    Some(format!("Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{text}\""))
}

/// What a caller is told beyond the reason: only of limits on size, where it must know which, and how far it went beyond.
fn told(reason: Reason, detail: &str) -> Option<&str> {
    matches!(reason, Reason::HeadTooLarge | Reason::BodyTooLarge).then_some(detail)
}

/// The head and the body (RFC 9457) of a refusal; nothing in them helps an attacker.
fn parts(reason: Reason, detail: &str, decision: DecisionId, realm: &str) -> (Head, String) {
    let mut body = serde_json::json!({
        "type": format!("urn:rondel:reason:{reason}"),
        "title": reason.public_text(),
        "status": status(reason).as_u16(),
        "reason": reason.as_str(),
        "decision": decision.to_string(),
    });
    if let (Some(detail), Some(members)) = (told(reason, detail), body.as_object_mut()) {
        members.insert("detail".to_owned(), detail.into());
    }
    let body = body.to_string();
    let mut head = Head { status: status(reason).as_u16(), ..Head::default() };
    let mut line = |name: &str, value: &str| head.fields.push(name.as_bytes(), value.as_bytes());
    line("content-type", "application/problem+json");
    line("content-length", &body.len().to_string());
    line(REASON_HEADER, reason.as_str());
    line(DECISION_HEADER, &decision.to_string());
    clock::with_http_date(clock::now(), |date| line("date", date));
    if let Some(value) = challenge(reason, realm) {
        line("www-authenticate", &value);
    }
    (head, body)
}

/// Answers a refused request. Status and reason are noted in the entry, which ends before the answer: it tells how long the refusal took.
pub async fn refuse(refusal: Refusal, mut entry: Entry, down: &mut Downstream<'_>, connection: &Connection) {
    let reason = refusal.reason();
    entry.reason = Some(reason);
    entry.status = status(reason).as_u16();
    let detail = refusal.to_string();
    let (head, text) = parts(reason, &detail, entry.decision, &connection.realm());
    entry.detail = Some(detail);
    // Whether the caller ever reads the answer is up to the caller: it must not hold what others wait for.
    (entry.place, entry.under_way) = (None, None);
    drop(entry);
    down.respond(&head, Length::Known(u64::try_from(text.len()).unwrap_or(u64::MAX)));
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
pub fn raw(reason: Reason, detail: &str, decision: DecisionId, realm: &str) -> Vec<u8> {
    let (mut head, body) = parts(reason, detail, decision, realm);
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
    fn every_401_carries_a_challenge_and_nothing_else_does() {
        for reason in Reason::ALL {
            let challenged = challenge(reason, "bank.example").is_some();
            assert_eq!(challenged, status(reason) == StatusCode::UNAUTHORIZED, "{reason}");
            assert!(status(reason).is_client_error() || status(reason).is_server_error(), "{reason}");
        }
        assert_eq!(challenge(Reason::TokenMissing, "r").as_deref(), Some("Bearer realm=\"r\""));
    }

    #[test]
    fn a_raw_answer_is_a_whole_http_message() {
        let text = String::from_utf8(raw(Reason::FramingAmbiguous, "", DecisionId::from_random([1; 16]), "r")).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains("x-rondel-reason: framing_ambiguous"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
    }
}
