//! What an authorization policy is asked about: plain facts, already verified by whoever collected them.

use crate::ids::{ServiceName, SpiffeId};
use crate::time::Timestamp;
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
    /// ISO 3166-1 alpha-2, from the trusted header of a trusted caller; absent if nobody trustworthy said it.
    pub country: Option<String>,
}

/// One question to the policies: may `principal`, for `user`, do `action` on `resource`?
///
/// For opaque TCP `action` is `connect`, `path` is `/`, `host` is empty, and there is neither user nor body.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuthzRequest {
    /// The calling workload, proven by its SVID, or nobody who proved anything.
    pub principal: Principal,
    /// The user of the verified token, if the request carried one.
    pub user: Option<Arc<User>>,
    /// The HTTP method as sent, or `connect`.
    pub action: String,
    /// The called service.
    pub resource: ServiceName,
    /// The normalised path: percent-decoded once, no dot segments, begins with `/`.
    pub path: String,
    /// The host that the request names, without a port, in lower case.
    pub host: String,
    /// The declared body fields that were there with the declared type; `None` if there is no such body (see `body_note`).
    pub body: Option<BTreeMap<String, AttributeValue>>,
    /// Why `body` is `None` although the policies read it. For the explanation only.
    pub body_note: Option<String>,
    /// Where the call comes from.
    pub source: Source,
    /// The moment of the decision.
    pub now: Timestamp,
}
