//! Which headers are forwarded (RFC 9110 §7.6.1), and which are ours alone.

use message::Fields;
use model::authz::is_spelt;
use model::{Header, HeaderRead};
use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A request from a peer to the application.
    Inbound,
    /// A request from the application to a peer.
    Outbound,
    /// A response in which nobody can have told a decision or a reason: the application's, and no failure.
    Answer,
    /// A response in which the decision and reason stay that a sidecar further on has told.
    Response,
}

impl Hop {
    const fn is_request(self) -> bool {
        matches!(self, Self::Inbound | Self::Outbound)
    }
}

/// Headers that we decide or frame by: `Connection` may not make them vanish on the way.
const DECIDED_BY: [&str; 7] = ["authorization", "content-encoding", "content-length", "content-type", "cookie", "dpop", "host"];

/// Removes what was meant for this hop only, and every claim to an identity that the sender had no right to make. In every
/// spelling: names are compared in lower case, and whatever is no letter or digit is taken for `-`, as applications do that read
/// headers as CGI variables.
///
/// Call it before headers of our own are set.
pub fn forward_headers(fields: &mut Fields, hop: Hop) {
    let (mut trailers_welcome, mut announced, mut nominated) = (false, None, Vec::new());
    for (name, value) in fields.iter() {
        match name {
            b"te" => trailers_welcome |= hop.is_request() && elements(value).any(is_trailers),
            b"trailer" => announced = announce(announced, value),
            b"connection" => nominated.extend(elements(value).filter(|name| !is_usual(name)).map(<[u8]>::to_ascii_lowercase)),
            _ => {}
        }
    }
    // A response to an application that reads it may name the decision; nothing else of ours comes from outside.
    let told = |name: &[u8]| hop == Hop::Response && matches!(name, b"x-rondel-decision" | b"x-rondel-reason");
    fields.retain(|name, _| {
        let is_nominated = !nominated.is_empty() && nominated.iter().any(|each| each == name) && !is_decided_by(name);
        !is_nominated && !is_hop_by_hop(name, hop) && (!claims_identity(name) || told(name))
    });
    if trailers_welcome {
        fields.push(b"te", b"trailers");
    }
    if let Some(announced) = announced {
        fields.push(b"trailer", &announced);
    }
}

/// What `Connection` usually says, and what is removed in any case: no names of headers that would have to be looked for.
fn is_usual(element: &[u8]) -> bool {
    element.is_empty() || [&b"keep-alive"[..], b"upgrade", b"te"].iter().any(|usual| usual.eq_ignore_ascii_case(element))
}

fn is_decided_by(name: &[u8]) -> bool {
    DECIDED_BY.iter().any(|known| known.as_bytes() == name)
}

/// Says from where the call came, as the application reads it. What the caller says of earlier hops is believed from a forwarder
/// only; from others it is removed, in every spelling, and the list begins anew.
pub fn forwarded_for(fields: &mut Fields, remote: IpAddr, is_forwarder: bool) {
    let mut room = [0; ADDRESS_BYTES_MAX];
    let left = {
        let mut rest = room.as_mut_slice();
        // The longest address has room.
        let _ok = write!(rest, "{remote}");
        rest.len()
    };
    let remote = room.get(..ADDRESS_BYTES_MAX - left).unwrap_or_default();
    if !is_forwarder {
        fields.retain(|name, _| !claims_origin(name));
        return fields.push(FORWARDED_FOR.as_bytes(), remote);
    }
    let mut chain = Vec::new();
    for line in fields.values(FORWARDED_FOR.as_bytes()) {
        chain.extend_from_slice(line);
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(remote);
    // What it says is believed in the spelling that everybody reads, and no other.
    let is_other = |name: &[u8]| claims_origin(name) && !ORIGINS.iter().any(|known| known.as_bytes() == name);
    fields.retain(|name, _| name != FORWARDED_FOR.as_bytes() && !is_other(name));
    fields.push(FORWARDED_FOR.as_bytes(), &chain);
}

/// Bytes of the longest IP address as text (RFC 4291 §2.2, an IPv4 address within).
const ADDRESS_BYTES_MAX: usize = 45;

/// The header that lists the hops of a call.
pub(crate) const FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers by which a caller says where a call came from (RFC 7239, and what came before it).
const ORIGINS: [&str; 3] = [FORWARDED_FOR, "forwarded", "x-real-ip"];

fn claims_origin(name: &[u8]) -> bool {
    ORIGINS.iter().any(|known| is_spelt(name, known))
}

/// Removes from trailers what may only stand in a head (RFC 9110 §6.5.1) or is ours alone. Some applications merge trailers into
/// the headers, so that a claim made here would be believed there.
pub fn forward_trailers(trailers: &mut Fields) {
    trailers.retain(|name, _| may_trail(name));
}

/// The header that `Connection` names although a decision rests on it.
pub(super) fn nominated_in_vain(fields: &Fields) -> Option<&'static str> {
    let mut named = fields.values(b"connection").flat_map(elements).filter(|element| !is_usual(element));
    named.find_map(|element| DECIDED_BY.into_iter().find(|known| known.as_bytes().eq_ignore_ascii_case(element)))
}

/// The one value of a header, if there is exactly one and it is visible ASCII. White space around it is not part of it.
pub fn only_value<'a>(fields: &'a Fields, name: &'a str) -> Option<&'a str> {
    let mut values = fields.values(name.as_bytes());
    match (values.next(), values.next()) {
        (Some(value), None) if value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) => {
            std::str::from_utf8(value.trim_ascii()).ok()
        }
        _ => None,
    }
}

/// Whether a text can be the value of a header.
pub fn is_readable(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

/// What a request says under the names that policies read: [`policy::Policies::header_names`].
///
/// A name is looked for in every spelling, as in [`forward_headers`], and must reach the application. Allocates nothing for no names.
pub fn read_headers<'a>(fields: &'a Fields, names: &'a [String]) -> Vec<Header<'a>> {
    let read = |name: &'a String| Header { name: Cow::Borrowed(name), read: HeaderRead::among(fields.iter(), name) };
    names.iter().map(read).collect()
}

/// The elements of a list.
pub(crate) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn is_trailers(element: &[u8]) -> bool {
    element.eq_ignore_ascii_case(b"trailers")
}

/// `Trailer` with only the names that may trail.
fn announce(announced: Option<Vec<u8>>, list: &[u8]) -> Option<Vec<u8>> {
    let is_name = |name: &&[u8]| !name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic());
    let names = elements(list).filter(is_name).map(<[u8]>::to_ascii_lowercase).filter(|name| may_trail(name));
    let mut all = announced.unwrap_or_default();
    for name in names {
        if !all.is_empty() {
            all.extend_from_slice(b", ");
        }
        all.extend_from_slice(&name);
    }
    (!all.is_empty()).then_some(all)
}

fn may_trail(name: &[u8]) -> bool {
    !is_hop_by_hop(name, Hop::Inbound) && !claims_identity(name) && !claims_origin(name) && !is_decided_by(name)
}

fn is_hop_by_hop(name: &[u8], hop: Hop) -> bool {
    match name {
        b"connection" | b"te" | b"trailer" | b"transfer-encoding" | b"upgrade" | b"keep-alive" | b"http2-settings" => true,
        // A request header of this name becomes the proxy setting of a CGI program.
        b"proxy" => hop.is_request(),
        // RFC 9209: meant for everybody.
        b"proxy-status" => false,
        name => name.starts_with(b"proxy-"),
    }
}

/// Whether a header of this name, in lower case, is set by sidecars only.
fn claims_identity(name: &[u8]) -> bool {
    const PREFIX: &str = "x-rondel-";
    name.starts_with(b"x")
        && (name.get(..PREFIX.len()).is_some_and(|start| is_spelt(start, PREFIX)) || is_spelt(name, "x-forwarded-client-cert"))
}
