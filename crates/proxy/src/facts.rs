//! What a request says, read once. The facts that are decided on are the facts that are forwarded.
//!
//! Read [`Facts::collect`] and [`Facts`] first; [`forward_headers`] makes a head ready for its next hop. Whether the bytes of a
//! request were unambiguous is not asked here: `framing` saw to it before they were parsed.

mod headers;
mod host;

pub(crate) use headers::{FORWARDED_FOR, elements};
pub use headers::{Hop, forward_headers, forward_trailers, forwarded_for, is_readable, only_value, read_headers};
pub(crate) use model::authz::is_spelt;

use crate::framing::upgrade_offers;
use host::Host;
use http::Method;
use message::{Head, Version};
use model::Reason;
use model::ids::printable;
use model::path;

/// What a request says, each thing in one form. Used again for the next request, so that once warm it costs no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The method that is decided: as sent, and never `CONNECT` or `TRACE`. A WebSocket that is opened by an extended `CONNECT`
    /// (RFC 8441 §4) is the `GET` that it replaces, so that a policy says the same of every version of HTTP.
    pub method: Method,
    /// The protocol that the caller wants to go on with on this connection or stream.
    pub upgrade: Option<Upgrade>,
    /// The normalised path: begins with `/` and has no dot segments; `*` for a server-wide `OPTIONS`.
    pub path: String,
    /// `path`, and the query as it came: what is forwarded.
    pub path_and_query: String,
    /// The host in lower case, without its port; an IPv6 address in brackets.
    pub host: String,
    /// `host`, and the port if it was said: what is forwarded as `Host` or `:authority`.
    pub authority: String,
    /// `http` or `https`, as the request target says; it is forwarded and says nothing about this connection.
    pub scheme: &'static str,
}

/// How the caller asks for another protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// The `Upgrade` line of HTTP/1.1 (RFC 9110 §7.8): one protocol, as it was written.
    Line(Vec<u8>),
    /// The `:protocol` of HTTP/2's extended `CONNECT` (RFC 8441 §4).
    ExtendedConnect,
}

/// Why a request does not say one thing. The caller must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactsRefusal {
    /// A method that makes a tunnel (`CONNECT`) or echoes credentials (`TRACE`).
    #[error("method `{method}` is not carried")]
    Method {
        /// The method.
        method: &'static str,
    },
    /// The request offers more than one protocol to go on with.
    #[error("`Upgrade` offers more than one protocol")]
    Upgrade,
    /// The path could be read in two ways.
    #[error("path `{path}` {rule}")]
    Path {
        /// The path, cut to a printable length.
        path: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// The query could be read in two ways.
    #[error("query {rule}")]
    Query {
        /// What is wrong with it.
        rule: &'static str,
    },
    /// The request target is of no form that this port serves (RFC 9112 §3.2).
    #[error("request target {rule}")]
    Target {
        /// What is wrong with it.
        rule: &'static str,
    },
    /// The request names no host.
    #[error("no host is named")]
    HostMissing,
    /// More than one `Host` line.
    #[error("more than one `Host` line")]
    HostTwice,
    /// The host is not one.
    #[error("host `{host}`: {rule}")]
    Host {
        /// The host, cut to a printable length.
        host: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// `Host` and the request target name two hosts.
    #[error("`Host` says `{host}` and the request target `{target}`")]
    HostMismatch {
        /// What `Host` says, cut to a printable length.
        host: String,
        /// What the target says, cut to a printable length.
        target: String,
    },
    /// `Connection` asks for the removal of a header that the decision rests on.
    #[error("`Connection` names `{header}`")]
    Nominated {
        /// The header.
        header: &'static str,
    },
}

impl FactsRefusal {
    /// The stable word.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Method { .. } | Self::Upgrade => Reason::MethodNotSupported,
            Self::Path { .. } | Self::Query { .. } => Reason::PathInvalid,
            Self::Target { .. } | Self::Nominated { .. } => Reason::RequestMalformed,
            Self::HostMissing | Self::HostTwice | Self::Host { .. } | Self::HostMismatch { .. } => Reason::HostInvalid,
        }
    }
}

impl Facts {
    /// Whether the caller wants to read something, and nothing else.
    pub fn is_read(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD) && self.upgrade.is_none()
    }

    /// Reads the facts of a request of HTTP/1 or HTTP/2.
    ///
    /// # Errors
    /// - [`FactsRefusal`], naming what is not carried or could be read in two ways.
    pub fn collect(&mut self, head: &Head) -> Result<(), FactsRefusal> {
        self.upgrade = upgrade(head)?;
        self.method = match head.method.as_slice() {
            b"CONNECT" if self.upgrade == Some(Upgrade::ExtendedConnect) => Method::GET,
            b"CONNECT" => return Err(FactsRefusal::Method { method: "CONNECT" }),
            b"TRACE" => return Err(FactsRefusal::Method { method: "TRACE" }),
            method => {
                Method::from_bytes(method).map_err(|_| FactsRefusal::Target { rule: "follows a method that is no token" })?
            }
        };
        if let Some(header) = headers::nominated_in_vain(&head.fields) {
            return Err(FactsRefusal::Nominated { header });
        }
        self.scheme = scheme(head)?;
        let host = host(head, std::mem::take(&mut self.host))?;
        host.write_authority(&mut self.authority);
        self.host = host.name;
        self.target(&head.path)
    }

    /// The normalised path, and it with the query.
    fn target(&mut self, target: &[u8]) -> Result<(), FactsRefusal> {
        let question = target.iter().position(|byte| *byte == b'?');
        let (path, query) = question.map_or((target, None), |at| (target.get(..at).unwrap_or_default(), target.get(at..)));
        let wrong = |rule| FactsRefusal::Path { path: printable(&String::from_utf8_lossy(path)), rule };
        self.path_and_query.clear();
        if target.is_empty() {
            return Err(FactsRefusal::Target { rule: "is neither a path, an absolute URI nor `*`" });
        }
        if target == b"*" {
            "*".clone_into(&mut self.path);
            self.path_and_query.push('*');
            return if self.method == Method::OPTIONS { Ok(()) } else { Err(wrong("is for `OPTIONS` alone")) };
        }
        path::normalise(path, &mut self.path).map_err(wrong)?;
        self.path_and_query.push_str(&self.path);
        if let Some(query) = query {
            let readable =
                std::str::from_utf8(query).ok().filter(|_| query.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#'));
            self.path_and_query.push_str(readable.ok_or(FactsRefusal::Query { rule: "holds a character that must be escaped" })?);
        }
        if self.path_and_query.len() > TARGET_BYTES_MAX { Err(wrong("is too long once normalised")) } else { Ok(()) }
    }
}

/// LIMIT: bytes of a request target that HTTP libraries can hold.
const TARGET_BYTES_MAX: usize = 65_534;

/// What the caller wants to go on with. An offer that `Connection` does not name is none (RFC 9110 §7.8), and neither is HTTP/2.
fn upgrade(head: &Head) -> Result<Option<Upgrade>, FactsRefusal> {
    if head.version == Version::Http2 {
        let extended = head.method == b"CONNECT" && !head.protocol.is_empty();
        return Ok(extended.then_some(Upgrade::ExtendedConnect));
    }
    let mut offers = head.fields.values(b"upgrade").flat_map(upgrade_offers);
    let Some(offer) = offers.next() else { return Ok(None) };
    if offers.next().is_some() {
        return Err(FactsRefusal::Upgrade);
    }
    let mut named = head.fields.values(b"connection").flat_map(elements);
    let is_named = head.version == Version::Http11 && named.any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    Ok(is_named.then(|| Upgrade::Line(offer.to_vec())))
}

/// The target's scheme; `http` where it has none.
fn scheme(head: &Head) -> Result<&'static str, FactsRefusal> {
    match head.scheme.as_slice() {
        scheme if scheme.eq_ignore_ascii_case(b"http") || scheme.is_empty() => Ok("http"),
        scheme if scheme.eq_ignore_ascii_case(b"https") => Ok("https"),
        _ => Err(FactsRefusal::Target { rule: "has a scheme other than `http` and `https`" }),
    }
}

/// The one host of a request: `Host`, the target's authority (`:authority` in HTTP/2), or both if they agree. Written into `room`.
fn host(head: &Head, room: String) -> Result<Host, FactsRefusal> {
    let parse = |text: &str, room| Host::parse(text, room).map_err(|rule| FactsRefusal::Host { host: printable(text), rule });
    let mut lines = head.fields.values(b"host");
    let line = lines.next();
    if lines.next().is_some() {
        return Err(FactsRefusal::HostTwice);
    }
    let line = line.map(String::from_utf8_lossy);
    let line = line.as_deref().map(|text| text.trim_matches([' ', '\t']));
    let authority = (!head.authority.is_empty()).then(|| String::from_utf8_lossy(&head.authority));
    match (line, authority.as_deref()) {
        (None, None) => Err(FactsRefusal::HostMissing),
        (Some(text), None) | (None, Some(text)) => parse(text, room),
        (Some(line), Some(authority)) => {
            let host = parse(line, room)?;
            if host == parse(authority, String::new())? {
                Ok(host)
            } else {
                Err(FactsRefusal::HostMismatch { host: printable(line), target: printable(authority) })
            }
        }
    }
}

#[cfg(test)]
mod tests;
