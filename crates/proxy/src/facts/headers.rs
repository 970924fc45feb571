//! Which headers are forwarded (RFC 9110 §7.6.1), and which are ours alone.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use model::{Header, HeaderRead};
use std::borrow::Cow;
use std::net::IpAddr;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A request from a peer to the application.
    Inbound,
    /// A request from the application to a peer.
    Outbound,
    /// A response, on its way back. The decision and reason that a sidecar further on told stay in it.
    Response,
}

/// Headers that we decide or frame by: `Connection` may not make them vanish on the way.
const DECIDED_BY: [HeaderName; 6] = [AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST];

/// Removes what was meant for this hop only, and every claim to an identity that the sender had no right to make. In every
/// spelling: names are compared in lower case, and `_` is taken for `-`, as applications do that read headers as CGI variables.
///
/// Call it before headers of our own are set.
pub fn forward_headers(headers: &mut HeaderMap, hop: Hop) {
    let trailers_welcome = hop != Hop::Response && headers.get_all(TE).iter().flat_map(elements).any(is_trailers);
    let announced = announced_trailers(headers);
    let mut unwanted: Vec<HeaderName> = nominated(headers).filter(|name| !DECIDED_BY.contains(name)).collect();
    // A response to an application that reads it may name the decision; nothing else of ours comes from outside.
    let told = |name: &str| hop == Hop::Response && matches!(name, "x-rondel-decision" | "x-rondel-reason");
    let ours = |name: &HeaderName| claims_identity(name.as_str()) && !told(name.as_str());
    unwanted.extend(headers.keys().filter(|name| is_hop_by_hop(name, hop) || ours(name)).cloned());
    for name in unwanted {
        headers.remove(name);
    }
    if trailers_welcome {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(announced) = announced {
        headers.insert(TRAILER, announced);
    }
}

/// Says from where the call came, as the application reads it. What the caller says of earlier hops is believed from a forwarder
/// only; from others it is removed, in every spelling, and the list begins anew.
pub fn forwarded_for(headers: &mut HeaderMap, remote: IpAddr, is_forwarder: bool) {
    let mut chain = String::new();
    if is_forwarder {
        for line in headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()) {
            chain.push_str(line);
            chain.push_str(", ");
        }
    } else {
        let folded = |name: &HeaderName| name.as_str().replace('_', "-");
        let claims = |name: &&HeaderName| ORIGINS.contains(&folded(name).as_str());
        let unwanted: Vec<HeaderName> = headers.keys().filter(claims).cloned().collect();
        for name in unwanted {
            headers.remove(name);
        }
    }
    chain.push_str(&remote.to_string());
    if let Ok(value) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// The header that lists the hops of a call.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers by which a caller says where a call came from (RFC 7239, and what came before it).
const ORIGINS: [&str; 3] = [FORWARDED_FOR, "forwarded", "x-real-ip"];

/// Removes from trailers what may only stand in a head (RFC 9110 §6.5.1) or is ours alone. Some applications merge trailers into
/// the headers, so that a claim made here would be believed there.
pub fn forward_trailers(trailers: &mut HeaderMap) {
    let unwanted: Vec<HeaderName> = trailers.keys().filter(|name| !may_trail(name)).cloned().collect();
    for name in unwanted {
        trailers.remove(name);
    }
}

/// The header that `Connection` names although a decision rests on it.
pub(super) fn nominated_in_vain(headers: &HeaderMap) -> Option<HeaderName> {
    nominated(headers).find(|name| DECIDED_BY.contains(name))
}

/// The one value of a header, if there is exactly one and it is visible ASCII. White space around it is not part of it.
pub fn only_value(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(|text| text.trim_matches([' ', '\t']).to_owned()),
        _ => None,
    }
}

/// What a request says under the names that policies read: [`policy::Policies::header_names`].
///
/// A name is looked for in every spelling, as in [`forward_headers`], and must reach the application. Allocates nothing for no names.
pub fn read_headers<'a>(headers: &'a HeaderMap, names: &'a [String]) -> Vec<Header<'a>> {
    let read = |name: &'a String| Header { name: Cow::Borrowed(name), read: read_header(headers, name) };
    names.iter().map(read).collect()
}

fn read_header<'a>(headers: &'a HeaderMap, name: &str) -> HeaderRead<'a> {
    let spelled_alike = |other: &&HeaderName| other.as_str() != name && is_alike(other.as_str(), name);
    if headers.keys().any(|other| spelled_alike(&other)) {
        return HeaderRead::OtherSpelling;
    }
    if headers.contains_key(CONNECTION) && nominated(headers).any(|other| is_alike(other.as_str(), name)) {
        return HeaderRead::Nominated;
    }
    HeaderRead::of(headers.get_all(name).iter().map(HeaderValue::as_bytes))
}

/// Whether two names, in lower case, are the same if `_` is taken for `-`.
fn is_alike(one: &str, other: &str) -> bool {
    let folded = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.len() == other.len() && one.bytes().map(folded).eq(other.bytes().map(folded))
}

/// The header names that `Connection` lists. What is no header name is skipped: it can name no header.
fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> + '_ {
    let lists = headers.get_all(CONNECTION).iter().flat_map(elements);
    lists.filter_map(|element| HeaderName::from_bytes(element).ok())
}

fn elements(list: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    list.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn is_trailers(element: &[u8]) -> bool {
    element.eq_ignore_ascii_case(b"trailers")
}

/// `Trailer` with only the names that may trail. It is kept because the HTTP library sends no trailer that is not announced.
fn announced_trailers(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = headers.get_all(TRAILER).iter().flat_map(elements);
    let names = names.filter_map(|element| HeaderName::from_bytes(element).ok()).filter(may_trail);
    let list = names.map(|name| name.as_str().to_owned()).collect::<Vec<_>>().join(", ");
    if list.is_empty() { None } else { HeaderValue::from_str(&list).ok() }
}

fn may_trail(name: &HeaderName) -> bool {
    let claims_origin = ORIGINS.contains(&name.as_str().replace('_', "-").as_str());
    !is_hop_by_hop(name, Hop::Inbound) && !claims_identity(name.as_str()) && !claims_origin && !DECIDED_BY.contains(name)
}

fn is_hop_by_hop(name: &HeaderName, hop: Hop) -> bool {
    if [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name) {
        return true;
    }
    match name.as_str() {
        "keep-alive" | "http2-settings" => true,
        // A request header of this name becomes the proxy setting of a CGI program.
        "proxy" => hop != Hop::Response,
        // RFC 9209: meant for everybody.
        "proxy-status" => false,
        name => name.starts_with("proxy-"),
    }
}

/// Whether a header of this name, in lower case, is set by sidecars only.
fn claims_identity(name: &str) -> bool {
    const PREFIX: &str = "x-rondel-";
    const CERTIFICATE: &str = "x-forwarded-client-cert";
    let folded = |length: usize| name.bytes().take(length).map(|byte| if byte == b'_' { b'-' } else { byte });
    folded(PREFIX.len()).eq(PREFIX.bytes()) || folded(usize::MAX).eq(CERTIFICATE.bytes())
}
