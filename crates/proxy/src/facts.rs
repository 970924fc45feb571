//! What a request says, read once. The facts that are decided on are the facts that are forwarded.
//!
//! Read [`collect`] and [`Facts`] first; [`forward_headers`] makes a head ready for its next hop. Whether the bytes of a
//! request were unambiguous is not asked here: `framing` saw to it before they were parsed.

mod headers;
mod host;
mod path;

pub use headers::{Hop, forward_headers, forward_trailers, forwarded_for, only_value, read_headers};

use crate::framing::upgrade_offers;
use host::Host;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use model::Reason;
use model::ids::printable;

/// What a request says, each thing in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    scheme: Scheme,
}

/// How the caller asks for another protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// The `Upgrade` line of HTTP/1.1 (RFC 9110 §7.8): one protocol, as it was written.
    Line(HeaderValue),
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
        header: HeaderName,
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

/// Reads the facts of a request of HTTP/1 or HTTP/2.
///
/// # Errors
/// - [`FactsRefusal`], naming what is not carried or could be read in two ways.
pub fn collect(head: &Parts) -> Result<Facts, FactsRefusal> {
    let upgrade = upgrade(head)?;
    let method = match head.method {
        Method::CONNECT if upgrade == Some(Upgrade::ExtendedConnect) => Method::GET,
        Method::CONNECT => return Err(FactsRefusal::Method { method: "CONNECT" }),
        Method::TRACE => return Err(FactsRefusal::Method { method: "TRACE" }),
        _ => head.method.clone(),
    };
    if let Some(header) = headers::nominated_in_vain(&head.headers) {
        return Err(FactsRefusal::Nominated { header });
    }
    let scheme = scheme(&head.uri)?;
    let host = host(&head.uri, &head.headers)?;
    let (path, path_and_query) = target(&method, &head.uri)?;
    let authority = host.authority();
    Ok(Facts { method, upgrade, path, path_and_query, host: host.name, authority, scheme })
}

impl Facts {
    /// The request target of the next hop, of the same HTTP version: origin form for HTTP/1; scheme, authority and path for HTTP/2.
    ///
    /// # Errors
    /// - [`FactsRefusal::Path`] if it is longer than an HTTP library can hold.
    pub fn target(&self, version: Version) -> Result<Uri, FactsRefusal> {
        let too_long = || FactsRefusal::Path { path: printable(&self.path), rule: "is too long once normalised" };
        if version != Version::HTTP_2 {
            return PathAndQuery::try_from(self.path_and_query.as_str()).map(Uri::from).map_err(|_| too_long());
        }
        let target = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.as_str());
        target.path_and_query(self.path_and_query.as_str()).build().map_err(|_| too_long())
    }
}

/// What the caller wants to go on with. An offer that `Connection` does not name is none (RFC 9110 §7.8), and neither is HTTP/2.
fn upgrade(head: &Parts) -> Result<Option<Upgrade>, FactsRefusal> {
    if head.version == Version::HTTP_2 {
        let extended = head.method == Method::CONNECT && head.extensions.get::<hyper::ext::Protocol>().is_some();
        return Ok(extended.then_some(Upgrade::ExtendedConnect));
    }
    let lines = || head.headers.get_all(UPGRADE).iter();
    let mut offers = lines().flat_map(|line| upgrade_offers(line.as_bytes()));
    let Some(offer) = offers.next() else { return Ok(None) };
    if offers.next().is_some() {
        return Err(FactsRefusal::Upgrade);
    }
    let named =
        |line: &HeaderValue| line.as_bytes().split(|b| *b == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let is_named = head.version == Version::HTTP_11 && head.headers.get_all(CONNECTION).iter().any(named);
    let value = HeaderValue::from_bytes(offer).map_err(|_| FactsRefusal::Upgrade)?;
    Ok(is_named.then_some(Upgrade::Line(value)))
}

/// The target's scheme; `http` where it has none. It is forwarded and says nothing about this connection.
fn scheme(uri: &Uri) -> Result<Scheme, FactsRefusal> {
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => Ok(scheme.clone()),
        Some(_) => Err(FactsRefusal::Target { rule: "has a scheme other than `http` and `https`" }),
        None => Ok(Scheme::HTTP),
    }
}

/// The one host of a request: `Host`, the target's authority (`:authority` in HTTP/2), or both if they agree.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<Host, FactsRefusal> {
    let parse = |text: &str| Host::parse(text).map_err(|rule| FactsRefusal::Host { host: printable(text), rule });
    let mut lines = headers.get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(FactsRefusal::HostTwice);
    }
    let line = line.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let line = line.as_deref().map(|text| text.trim_matches([' ', '\t']));
    let authority = uri.authority().map(http::uri::Authority::as_str);
    match (line, authority) {
        (None, None) => Err(FactsRefusal::HostMissing),
        (Some(text), None) | (None, Some(text)) => parse(text),
        (Some(line), Some(authority)) => {
            let host = parse(line)?;
            if host == parse(authority)? {
                Ok(host)
            } else {
                Err(FactsRefusal::HostMismatch { host: printable(line), target: printable(authority) })
            }
        }
    }
}

/// The normalised path, and it with the query.
fn target(method: &Method, uri: &Uri) -> Result<(String, String), FactsRefusal> {
    let Some(target) = uri.path_and_query() else {
        return Err(FactsRefusal::Target { rule: "is neither a path, an absolute URI nor `*`" });
    };
    let wrong = |rule| FactsRefusal::Path { path: printable(target.path()), rule };
    if target.as_str() == "*" {
        return if *method == Method::OPTIONS { Ok(("*".into(), "*".into())) } else { Err(wrong("is for `OPTIONS` alone")) };
    }
    let path = path::normalise(target.path()).map_err(wrong)?;
    let Some(query) = target.query() else {
        return Ok((path.clone(), path));
    };
    if !query.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(FactsRefusal::Query { rule: "holds a character that must be escaped" });
    }
    let path_and_query = format!("{path}?{query}");
    Ok((path, path_and_query))
}

#[cfg(test)]
mod tests;
