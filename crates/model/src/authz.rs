//! What an authorization policy is asked about: plain facts, already verified by whoever collected them.

use crate::country::Country;
use crate::ids::{ServiceName, SpiffeId};
use crate::time::Timestamp;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The type of an attribute that a token claim or a body field must have. The words are Cedar's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum AttributeType {
    /// A whole number that fits 64 bits, signed.
    Long,
    /// Unicode text.
    String,
    /// `true` or `false`.
    Boolean,
    /// A set of texts; in JSON an array of strings.
    StringSet,
}

impl AttributeType {
    /// Every type, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Long, Self::String, Self::Boolean, Self::StringSet];

    /// The word that a user writes: `Long`, `String`, `Boolean`, `StringSet`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Long => "Long",
            Self::String => "String",
            Self::Boolean => "Boolean",
            Self::StringSet => "StringSet",
        }
    }
}

/// A typed value of a token claim or of a body field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// A whole number.
    Long(i64),
    /// `true` or `false`.
    Boolean(bool),
    /// Unicode text.
    String(String),
    /// A set of texts.
    StringSet(Vec<String>),
}

/// The end user of a verified token: on whose behalf the principal calls.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct User {
    /// The `name` of the `TokenIssuer` resource that vouched for the token. With `subject` it identifies the user.
    pub issuer: String,
    /// The token's `sub`.
    pub subject: String,
    /// Role names, from the claim that the issuer's mapping says.
    pub roles: Vec<String>,
    /// OAuth scopes.
    pub scopes: Vec<String>,
    /// Typed claims, by the attribute name of the mapping. A claim that the token lacks is absent.
    pub attributes: BTreeMap<String, AttributeValue>,
}

/// Who holds the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A workload, proven by its SVID.
    Workload(SpiffeId),
    /// A plaintext caller at a permissive port: nobody who proved anything.
    Unauthenticated,
}

impl Principal {
    /// The id of the policies' entity: the whole SPIFFE ID, or `unauthenticated`, which no SPIFFE ID can be.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Workload(id) => id.as_str(),
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// The workload, if one was proven.
    pub const fn workload(&self) -> Option<&SpiffeId> {
        match self {
            Self::Workload(id) => Some(id),
            Self::Unauthenticated => None,
        }
    }
}

impl From<SpiffeId> for Principal {
    fn from(id: SpiffeId) -> Self {
        Self::Workload(id)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Principal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Where a call comes from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Source {
    /// The address of the connection's other end.
    pub address: IpAddr,
    /// The country.
    pub country: Country,
}

/// One request header that the policies read, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Header<'a> {
    /// The name, in lower case.
    pub name: Cow<'a, str>,
    /// What the request says under this name.
    pub read: HeaderRead<'a>,
}

impl Header<'_> {
    /// The same, borrowing nothing.
    pub fn into_owned(self) -> Header<'static> {
        Header { name: Cow::Owned(self.name.into_owned()), read: self.read.into_owned() }
    }
}

/// What a request says under the name of one header.
///
/// All but [`HeaderRead::Value`] and [`HeaderRead::Absent`] can be read in two ways: a call whose policies read such a header is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum HeaderRead<'a> {
    /// One line: visible ASCII and spaces, none of them at either end; perhaps empty.
    Value(Cow<'a, str>),
    /// No line.
    Absent,
    /// More than one line.
    Twice,
    /// A line that is not visible ASCII, or longer than [`HeaderRead::BYTES_MAX`].
    Unreadable,
    /// A line whose name has `_` where the policies have `-`, or the other way round: some applications take one for the other.
    OtherSpelling,
    /// `Connection` names it, so that it would be removed before the application sees it.
    Nominated,
}

impl<'a> HeaderRead<'a> {
    /// LIMIT: bytes of a value that policies read. It is compared with texts that somebody wrote, and kept in records.
    pub const BYTES_MAX: usize = 4096;

    /// Reads the lines of one header, as many as came. White space around a value is not part of it (RFC 9110 §5.5).
    pub fn of(mut lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let line = match (lines.next(), lines.next()) {
            (None, _) => return Self::Absent,
            (Some(_), Some(_)) => return Self::Twice,
            (Some(line), None) => line.trim_ascii(),
        };
        let is_visible = line.len() <= Self::BYTES_MAX && line.iter().all(|byte| matches!(byte, b' '..=b'~'));
        match std::str::from_utf8(line) {
            Ok(text) if is_visible => Self::Value(Cow::Borrowed(text)),
            _ => Self::Unreadable,
        }
    }

    /// What all the header lines of a request say under one name. A name is looked for in every spelling, and must reach the application.
    ///
    /// `fields`: names, which need not be in lower case, with their values.
    pub fn among(fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone, name: &str) -> Self {
        let is_it = |other: &[u8]| other.eq_ignore_ascii_case(name.as_bytes());
        if fields.clone().any(|(other, _)| !is_it(other) && is_spelt(other, name)) {
            return Self::OtherSpelling;
        }
        let connection = fields.clone().filter(|(other, _)| other.eq_ignore_ascii_case(b"connection"));
        let mut nominated = connection.flat_map(|(_, list)| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        if nominated.any(|other| is_spelt(other, name)) {
            return Self::Nominated;
        }
        Self::of(fields.filter(|(other, _)| is_it(other)).map(|(_, value)| value))
    }

    /// The value, if there is one that can be read in one way.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Twice | Self::Unreadable | Self::OtherSpelling | Self::Nominated => None,
        }
    }

    /// Why it cannot be decided by, in words that follow the header's name; `None` for a value and for none.
    pub const fn flaw(&self) -> Option<&'static str> {
        match self {
            Self::Value(_) | Self::Absent => None,
            Self::Twice => Some("stands more than once"),
            Self::Unreadable => Some("is not visible ASCII of at most 4096 bytes"),
            Self::OtherSpelling => Some("comes in another spelling, with `_` for `-` or `-` for `_`"),
            Self::Nominated => Some("is named by `Connection`, and would not reach the application"),
        }
    }

    /// The same, borrowing nothing.
    pub fn into_owned(self) -> HeaderRead<'static> {
        match self {
            Self::Value(value) => HeaderRead::Value(Cow::Owned(value.into_owned())),
            Self::Absent => HeaderRead::Absent,
            Self::Twice => HeaderRead::Twice,
            Self::Unreadable => HeaderRead::Unreadable,
            Self::OtherSpelling => HeaderRead::OtherSpelling,
            Self::Nominated => HeaderRead::Nominated,
        }
    }
}

/// Whether a header's name is `known` to some application, whatever stands where `known` has a `-`: servers are known to read `_`, and some
/// every character that is no letter or digit, as `-`.
pub fn is_spelt(name: &[u8], known: &str) -> bool {
    const fn fold(byte: u8) -> u8 {
        if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
    }
    name.len() == known.len() && name.iter().zip(known.bytes()).all(|(byte, known)| fold(*byte) == fold(known))
}

/// One question to the policies: may `principal`, for `user`, do `action` on `resource`? Borrows everything, and copies cheaply.
///
/// For opaque TCP `action` is `connect`, `path` is `/`, `host` is empty, and there are neither headers nor user nor body.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The calling workload, proven by its SVID, or nobody who proved anything.
    pub principal: &'a Principal,
    /// The user of the verified token, if the request carried one.
    pub user: Option<&'a Arc<User>>,
    /// The HTTP method as sent, or `connect`.
    pub action: &'a str,
    /// The called service.
    pub resource: &'a ServiceName,
    /// The normalised path: percent-decoded once, no dot segments, begins with `/`.
    pub path: &'a str,
    /// The host that the request names, without a port, in lower case.
    pub host: &'a str,
    /// The headers that the policies read for this action, each once, also those that are absent. One that they read and that is not
    /// among these is a denial.
    pub headers: &'a [Header<'a>],
    /// The declared body fields that were there with the declared type; `None` if there is no such body (see `body_note`).
    pub body: Option<&'a BTreeMap<String, AttributeValue>>,
    /// Why `body` is `None` although the policies read it. For the explanation only.
    pub body_note: Option<&'a str>,
    /// The address of the connection's other end.
    pub address: IpAddr,
    /// The country: from the trusted header of a trusted caller, or from the database.
    pub country: Country,
    /// The moment of the decision.
    pub now: Timestamp,
}

impl Question<'_> {
    /// What the header of this name says; `None` if nobody looked.
    pub fn header(&self, name: &str) -> Option<&HeaderRead<'_>> {
        self.headers.iter().find(|header| header.name == name).map(|header| &header.read)
    }

    /// The same as a value of its own, for records and explanations. Allocates.
    pub fn to_request(&self) -> AuthzRequest {
        AuthzRequest {
            principal: self.principal.clone(),
            user: self.user.cloned(),
            action: self.action.to_owned(),
            resource: self.resource.clone(),
            path: self.path.to_owned(),
            host: self.host.to_owned(),
            headers: self.headers.iter().cloned().map(Header::into_owned).collect(),
            body: self.body.cloned(),
            body_note: self.body_note.map(str::to_owned),
            source: Source { address: self.address, country: self.country },
            now: self.now,
        }
    }
}

/// A [`Question`] that is kept: for records, explanations, and connections that are decided again.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuthzRequest {
    /// As [`Question::principal`].
    pub principal: Principal,
    /// As [`Question::user`].
    pub user: Option<Arc<User>>,
    /// As [`Question::action`].
    pub action: String,
    /// As [`Question::resource`].
    pub resource: ServiceName,
    /// As [`Question::path`].
    pub path: String,
    /// As [`Question::host`].
    pub host: String,
    /// As [`Question::headers`].
    pub headers: Vec<Header<'static>>,
    /// As [`Question::body`].
    pub body: Option<BTreeMap<String, AttributeValue>>,
    /// As [`Question::body_note`].
    pub body_note: Option<String>,
    /// Where the call comes from.
    pub source: Source,
    /// As [`Question::now`].
    pub now: Timestamp,
}

impl AuthzRequest {
    /// The question that this is.
    pub fn as_question(&self) -> Question<'_> {
        Question {
            principal: &self.principal,
            user: self.user.as_ref(),
            action: &self.action,
            resource: &self.resource,
            path: &self.path,
            host: &self.host,
            headers: &self.headers,
            body: self.body.as_ref(),
            body_note: self.body_note.as_deref(),
            address: self.source.address,
            country: self.source.country,
            now: self.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_looked_for_in_every_spelling_and_must_reach_the_application() {
        let acme = || HeaderRead::Value("acme".into());
        for (lines, expected) in [
            (&[("host", "a")][..], HeaderRead::Absent),
            (&[("x-tenant", "acme")], acme()),
            (&[("X-Tenant", " acme ")], acme()),
            (&[("x-tenant", "acme"), ("X-TENANT", "acme")], HeaderRead::Twice),
            (&[("x_tenant", "acme")], HeaderRead::OtherSpelling),
            (&[("x-tenant", "acme"), ("X_Tenant", "evil")], HeaderRead::OtherSpelling),
            (&[("x-tenant", "acme"), ("x.tenant", "evil"), ("connection", "x-tenant")], HeaderRead::OtherSpelling),
            (&[("x-tenant", "acme"), ("connection", "close, X-Tenant")], HeaderRead::Nominated),
            (&[("Connection", "x_tenant")], HeaderRead::Nominated),
            (&[("x-tenant", "acme"), ("connection", "close")], acme()),
            (&[("x-tenants", "acme"), ("xtenant", "evil")], HeaderRead::Absent),
        ] {
            let fields = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            assert_eq!(HeaderRead::among(fields, "x-tenant"), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_header_is_read_only_if_it_is_one_line_of_visible_ascii() {
        let long = "x".repeat(HeaderRead::BYTES_MAX);
        let longer = "x".repeat(HeaderRead::BYTES_MAX + 1);
        let value = |text: &'static str| HeaderRead::Value(text.into());
        for (lines, expected) in [
            (vec![], HeaderRead::Absent),
            (vec![b"acme".as_slice()], value("acme")),
            (vec![b"a, b;c~!"], value("a, b;c~!")),
            (vec![b" \t acme "], value("acme")),
            (vec![b""], value("")),
            (vec![b"  "], value("")),
            (vec![b"a\tb"], HeaderRead::Unreadable),
            (vec!["caf\u{e9}".as_bytes()], HeaderRead::Unreadable),
            (vec![b"\xff"], HeaderRead::Unreadable),
            (vec![b"a\x7f"], HeaderRead::Unreadable),
            (vec![long.as_bytes()], HeaderRead::Value(long.as_str().into())),
            (vec![longer.as_bytes()], HeaderRead::Unreadable),
            (vec![b"acme", b"acme"], HeaderRead::Twice),
            (vec![b"acme", b""], HeaderRead::Twice),
        ] {
            let read = HeaderRead::of(lines.iter().copied());
            assert_eq!(read, expected, "{lines:?}");
            assert_eq!(read.value().is_some(), matches!(read, HeaderRead::Value(_)), "{lines:?}");
            assert_eq!(read.flaw().is_some(), !matches!(read, HeaderRead::Value(_) | HeaderRead::Absent), "{lines:?}");
        }
    }
}
