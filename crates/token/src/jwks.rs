//! What to fetch from an issuer, and when. Fetching itself is the program's: `GET`, no redirects, within limits `jwksFetchMs` and `jwksBytes`.

use crate::json::{Json, Object};
use crate::key_set::document;
use model::ids::printable;
use model::snapshot::{KeySource, TokenIssuer};
use model::{Limit, Limits, Timestamp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The first wait after a failed fetch; it doubles with each further one.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// How often a file with keys is looked at.
const FILE_LOOK: Duration = Duration::from_secs(1);
/// The longest wait after a failed fetch.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// Why an issuer's key set cannot be used. The issuer's operator, or who configured it, must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The document is larger than limit `jwksBytes`.
    #[error("the document has {bytes} bytes, more than limit `jwksBytes` ({limit})")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit in force.
        limit: usize,
    },
    /// The document is not an unambiguous JSON object.
    #[error("the document is not a JSON object: {rule}")]
    NotJson {
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The document has no list `keys`.
    #[error("the document is not a key set: it has no list `keys`")]
    NotKeySet,
    /// No key of the set can be used.
    #[error("the key set has no usable key; {ignored} were left out")]
    NoUsableKey {
        /// How many keys were left out.
        ignored: usize,
    },
    /// Two usable keys for the same algorithm have the same id.
    #[error("the key set has two keys with the id `{id}`")]
    KeyIdTwice {
        /// The id, cut to a printable length.
        id: String,
    },
    /// The discovery document speaks for another issuer.
    #[error("the discovery document is that of issuer `{got}`, not of `{expected}`")]
    IssuerMismatch {
        /// The configured issuer.
        expected: String,
        /// What the document says, cut to a printable length; empty if it says nothing.
        got: String,
    },
    /// The discovery document does not say where something is.
    #[error("the discovery document has no `{what}`")]
    AddressMissing {
        /// The member that it lacks.
        what: &'static str,
    },
    /// An address that must not be fetched from.
    #[error("`{url}` must not be fetched from: {rule}")]
    Address {
        /// The address, cut to a printable length.
        url: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

/// Where an issuer's metadata may be, in the order in which they are tried: below its `iss` (OpenID Connect Discovery §4), and between its
/// host and its path (RFC 8414 §3.1).
pub fn metadata_urls(issuer: &TokenIssuer) -> [String; 2] {
    let iss = issuer.issuer.strip_suffix('/').unwrap_or(&issuer.issuer);
    let host_at = iss.find("://").map_or(0, |scheme| scheme + 3);
    let (host, path) = iss.split_at(iss.get(host_at..).and_then(|rest| rest.find('/')).map_or(iss.len(), |path| host_at + path));
    [format!("{iss}/.well-known/openid-configuration"), format!("{host}/.well-known/oauth-authorization-server{path}")]
}

/// What an issuer says of itself (RFC 8414 §2, OpenID Connect Discovery §3). Only [`Metadata::parse`] makes it: it is that issuer's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    jwks_uri: Option<String>,
    introspection: Option<String>,
    introspection_mtls: Option<String>,
}

impl Metadata {
    /// Reads a metadata document.
    ///
    /// # Errors
    /// - [`KeySetError::TooLarge`], [`KeySetError::NotJson`] as for a key set.
    /// - [`KeySetError::IssuerMismatch`] unless its `issuer` is exactly the configured one (OpenID Connect Discovery §4.3, RFC 8414 §3.3).
    /// - [`KeySetError::Address`] if [`fetchable`] refuses an address in it, or it is plaintext although the issuer's own is not.
    pub fn parse(json: &[u8], issuer: &TokenIssuer, limits: &Limits) -> Result<Self, KeySetError> {
        let document = document(json, limits)?;
        let said = document.get("issuer").and_then(Json::text).unwrap_or_default();
        if said != issuer.issuer {
            return Err(KeySetError::IssuerMismatch { expected: issuer.issuer.clone(), got: printable(said) });
        }
        let address =
            |object: &Object, name: &str| object.get(name).and_then(Json::text).map(|url| sound(url, issuer)).transpose();
        let aliases = match document.get("mtls_endpoint_aliases") {
            Some(Json::Object(aliases)) => address(aliases, "introspection_endpoint")?,
            Some(_) | None => None,
        };
        Ok(Self {
            jwks_uri: address(&document, "jwks_uri")?,
            introspection: address(&document, "introspection_endpoint")?,
            introspection_mtls: aliases,
        })
    }

    /// Where the keys are. That address may be fetched from.
    ///
    /// # Errors
    /// - [`KeySetError::AddressMissing`] without `jwks_uri`.
    pub fn jwks_uri(&self) -> Result<&str, KeySetError> {
        self.jwks_uri.as_deref().ok_or(KeySetError::AddressMissing { what: "jwks_uri" })
    }

    /// Where the issuer is asked about a token; for a client that authenticates by mutual TLS the address that is meant for it (RFC 8705
    /// §5), if there is one.
    ///
    /// # Errors
    /// - [`KeySetError::AddressMissing`] without `introspection_endpoint`.
    pub fn introspection_endpoint(&self, is_mutual_tls: bool) -> Result<&str, KeySetError> {
        let alias = self.introspection_mtls.as_deref().filter(|_| is_mutual_tls);
        alias.or(self.introspection.as_deref()).ok_or(KeySetError::AddressMissing { what: "introspection_endpoint" })
    }
}

fn sound(url: &str, issuer: &TokenIssuer) -> Result<String, KeySetError> {
    fetchable(url)?;
    // A remote issuer must not point the sidecar at a plaintext port of the sidecar's own machine.
    if url.starts_with("http://") && !issuer.issuer.starts_with("http://") {
        return Err(KeySetError::Address { url: printable(url), rule: "it is plaintext, and the issuer's own address is not" });
    }
    Ok(url.to_owned())
}

/// Whether an address may be fetched from: `https` anywhere, `http` only to a literal loopback address or `localhost`, never
/// to a link-local or metadata address, no user name, no fragment.
///
/// What a name resolves to must be held to [`fetchable_address`] when it is connected to.
///
/// # Errors
/// - [`KeySetError::Address`], naming the rule that the address breaks.
pub fn fetchable(url: &str) -> Result<(), KeySetError> {
    check_address(url).map_err(|rule| KeySetError::Address { url: printable(url), rule })
}

/// The literal address and port of an `http` URL: how an issuer that is a workload of the mesh is written.
pub fn plaintext_address(url: &str) -> Option<SocketAddr> {
    url.strip_prefix("http://")?.split(['/', '?']).next()?.parse().ok()
}

/// Whether a resolved address may be fetched from: not link-local, multicast, unspecified, nor where a cloud's machines ask for
/// their own credentials.
pub fn fetchable_address(ip: IpAddr) -> bool {
    // Outside the link-local range, where most clouds have theirs: Azure's, Alibaba's, and Oracle's older one.
    const METADATA: [Ipv4Addr; 3] =
        [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let is_special = ip.is_link_local() || ip.is_broadcast() || ip.is_multicast() || ip.octets().starts_with(&[0]);
            !is_special && !METADATA.contains(&ip)
        }
        IpAddr::V6(ip) => {
            let is_special = ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast();
            // Amazon's (all of its services for machines), Google's and Oracle's.
            let is_metadata =
                matches!(ip.segments(), [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] | [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]);
            !is_special && !is_metadata && within(ip).is_none_or(|ip| fetchable_address(ip.into()))
        }
    }
}

/// The IPv4 address that an IPv6 address leads to through a translator or a tunnel: NAT64 (RFC 6052 §2.1, RFC 8215), 6to4 (RFC 3056
/// §2), and the form of RFC 4291 §2.5.5.1.
fn within(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => None,
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => {
            Some(of(high, low))
        }
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

fn check_address(url: &str) -> Result<(), &'static str> {
    let (is_tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err("it begins with neither `https://` nor `http://`"),
    };
    if !url.bytes().all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'#') {
        return Err("it has a space, a backslash, a fragment, or a character that is not ASCII");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("it has a user name");
    }
    let host = host_of(authority).ok_or("its host or port is not valid")?;
    let is_loopback = match host {
        Host::Address(ip) if !fetchable_address(ip) => return Err("it is a link-local, metadata or other special address"),
        Host::Address(ip) => ip.to_canonical().is_loopback(),
        Host::Name(name) if is_metadata_name(name) => return Err("it is a link-local, metadata or other special address"),
        Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
    };
    if is_tls || is_loopback { Ok(()) } else { Err("it is plaintext, and not to this machine") }
}

fn is_metadata_name(name: &str) -> bool {
    ["metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"]
        .iter()
        .any(|each| name.eq_ignore_ascii_case(each))
}

enum Host<'a> {
    Address(IpAddr),
    Name(&'a str),
}

/// The host of `host[:port]`; `None` if either is malformed.
fn host_of(authority: &str) -> Option<Host<'_>> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            (Host::Address(IpAddr::V6(inside.parse().ok()?)), after)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (name, after) = authority.split_at_checked(end)?;
            (name_or_ipv4(name)?, after)
        }
    };
    if port.is_empty() {
        return Some(host);
    }
    let digits = port.strip_prefix(':')?;
    let is_port = digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok_and(|number| number > 0);
    is_port.then_some(host)
}

fn name_or_ipv4(name: &str) -> Option<Host<'_>> {
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        return Some(Host::Address(IpAddr::V4(ip)));
    }
    let is_label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // `2130706433`, `127.1` and `0x7f.1` are addresses to a resolver: a name that ends in a number is not a name.
    let last = name.rsplit('.').next()?;
    let is_number = last.bytes().next().is_some_and(|first| first.is_ascii_digit());
    (name.len() <= 253 && name.split('.').all(is_label) && !is_number).then_some(Host::Name(name))
}

/// What is known of the fetches for one issuer. A new issuer starts with the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchState {
    /// When the key set in use came.
    pub fetched_at: Option<Timestamp>,
    /// When the last fetch began, whatever became of it.
    pub attempted_at: Option<Timestamp>,
    /// How many fetches failed since the last that did not.
    pub failures: u32,
    /// When a token asked for a key that is not there.
    pub wanted_at: Option<Timestamp>,
    /// When the last fetch began that a token had asked for.
    pub demanded_at: Option<Timestamp>,
}

/// What to do for one issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchStep {
    /// Fetch now.
    Fetch,
    /// Nothing before this moment, unless a token asks for an unknown key.
    WaitUntil(Timestamp),
}

/// Says whether an issuer's keys are to be fetched.
///
/// At once if they never were; again after limit `jwksRefreshMs`, but in good time before `jwksMaxAgeMs`; earlier if a token asked
/// for an unknown key, with limit `jwksRefetchFloorMs` between two fetches that tokens asked for: a refresh just before an issuer began to
/// sign with a new key must not keep that key unknown. After a failure the wait is 1 s and doubles up to 1 min. A
/// file is looked at every second.
pub fn next(state: &FetchState, keys: &KeySource, limits: &Limits, now: Timestamp) -> FetchStep {
    let Some(attempted_at) = state.attempted_at else {
        return FetchStep::Fetch;
    };
    // The clock was set back: a memory from the future would hold fetches up for as long as it was set back.
    if attempted_at > now {
        return FetchStep::Fetch;
    }
    if let KeySource::File(_) = keys {
        let due = attempted_at.plus(FILE_LOOK);
        return if now >= due { FetchStep::Fetch } else { FetchStep::WaitUntil(due) };
    }
    let refresh = limits.duration(Limit::JwksRefreshMs).min(limits.duration(Limit::JwksMaxAgeMs) / 2);
    // A key set from the future says nothing about its age: fetch, as if there were none.
    let scheduled = state.fetched_at.filter(|at| *at <= now).map_or(attempted_at, |at| at.plus(refresh));
    // An ask from before the last attempt has had its answer.
    let wanted = state.wanted_at.filter(|at| *at >= attempted_at);
    let floor = limits.duration(Limit::JwksRefetchFloorMs);
    let floored = wanted.map(|_| state.demanded_at.filter(|at| *at <= now).map_or(attempted_at, |at| at.plus(floor)));
    let due = floored.map_or(scheduled, |at| at.min(scheduled));
    let earliest = attempted_at.plus(back_off(state));
    let due = due.max(earliest);
    if now >= due { FetchStep::Fetch } else { FetchStep::WaitUntil(due) }
}

/// The shortest wait since the last attempt. A first fetch whose end was never noted counts as failed.
fn back_off(state: &FetchState) -> Duration {
    let failures = if state.fetched_at.is_none() { state.failures.max(1) } else { state.failures };
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => BACK_OFF_MIN.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(BACK_OFF_MAX),
    }
}

#[cfg(test)]
mod tests;
