//! What is asked of a token, where it is taken from and which tokens are revoked.

use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Where a claim stands in a token: the names from the outermost object inwards. Never empty.
///
/// Written with dots between the names: `realm_access.roles`. A name that holds anything but letters, digits, `_`, `-` and `:` stands in
/// double quotes: `"https://shop.example/roles"`, `resource_access."my.client".roles`. What could be read in two ways is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimPath(Vec<String>);

/// Why a text is no path of a claim. Whoever wrote it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimPathError {
    /// A name is empty.
    #[error("a name in it is empty")]
    Empty,
    /// A name that must stand in quotes does not.
    #[error("a name with other characters than letters, digits, `_`, `-` and `:` stands in double quotes: `\"{name}\"`")]
    Unquoted {
        /// The name, as it could have been meant.
        name: String,
    },
    /// A quote without its end, or something behind it that is not a dot.
    #[error("a name in double quotes ends with one, and a dot or nothing follows; a quote cannot stand in a name")]
    Quote,
    /// More names than [`ClaimPath::DEPTH_MAX`].
    #[error("it has more than {} names", ClaimPath::DEPTH_MAX)]
    Deep,
}

impl ClaimPath {
    /// LIMIT: names of one path.
    pub const DEPTH_MAX: usize = 8;

    /// Reads a path as it is written.
    ///
    /// # Errors
    /// - [`ClaimPathError`], saying what would be unambiguous.
    pub fn parse(text: &str) -> Result<Self, ClaimPathError> {
        let mut names = Vec::new();
        let mut rest = text;
        loop {
            let (name, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').ok_or(ClaimPathError::Quote)?,
                None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
            };
            if name.is_empty() {
                return Err(ClaimPathError::Empty);
            }
            if !rest.starts_with('"') && !name.chars().all(is_plain) {
                // An address with dots in it is one name to everybody who writes it.
                let meant = if text.contains('"') { name } else { text };
                return Err(ClaimPathError::Unquoted { name: crate::ids::printable(meant) });
            }
            names.push(name.to_owned());
            match after.strip_prefix('.') {
                None if after.is_empty() => break,
                None => return Err(ClaimPathError::Quote),
                Some(more) => rest = more,
            }
        }
        if names.len() > Self::DEPTH_MAX { Err(ClaimPathError::Deep) } else { Ok(Self(names)) }
    }

    /// The names, the outermost first.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | ':')
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            if name.chars().all(is_plain) { f.write_str(name)? } else { write!(f, "\"{name}\"")? }
        }
        Ok(())
    }
}

/// What an issuer's tokens must fulfil beyond signature, audience and time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The profile of RFC 9068: `typ` is `at+jwt`, and `sub`, `client_id`, `iat` and `jti` are there (§2.2). It is one of JWTs: what an
    /// issuer says of an opaque token is not held to it.
    pub at_jwt: bool,
    /// Scopes that a token must have, all of them (RFC 6749 §3.3).
    pub scopes: Vec<String>,
    /// Claims that must be there with one of these values. A claim that is a list must hold one of them.
    pub claims: BTreeMap<ClaimPath, Vec<String>>,
    /// Accepted values of `acr` (RFC 9470 §4). Empty: any, or none.
    pub acr: Vec<String>,
    /// The longest time since the user logged in, `auth_time` (RFC 9470 §4).
    pub max_age: Option<Duration>,
    /// By what a caller shows that the token is its own.
    pub sender: SenderConstraint,
    /// Whether a DPoP proof must hold a nonce of this sidecar (RFC 9449 §9).
    pub dpop_nonce: bool,
    /// The clock difference that is tolerated in this issuer's tokens; `None`: limit `clockSkewMs`.
    pub clock_skew: Option<Duration>,
}

/// By what a caller must show that a token is its own. A token that says it is bound is held to it in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SenderConstraint {
    /// Bearer tokens are accepted (RFC 6750).
    #[default]
    None,
    /// The token is bound to the certificate of the caller's mutual TLS (RFC 8705 §3).
    Certificate,
    /// The token is bound to a key, of which each request brings a proof (RFC 9449).
    Dpop,
    /// One of the two.
    Any,
}

impl SenderConstraint {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::None, Self::Certificate, Self::Dpop, Self::Any];

    /// The word that a user writes: `none`, `mtls`, `dpop`, `any`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Certificate => "mtls",
            Self::Dpop => "dpop",
            Self::Any => "any",
        }
    }
}

/// Where a workload's sidecar takes the token from, and what its application gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// The header that carries it, lower case. `authorization` carries a scheme before it; another may.
    pub header: String,
    /// The cookie that may carry it instead.
    pub cookie: Option<String>,
    /// The parameter of the query that may carry it instead (RFC 6750 §2.3).
    pub query: Option<String>,
    /// Whether the application does not get the token, from wherever it came.
    pub strip: bool,
    /// Headers that the application gets, lower case, and the claims that they tell. Nobody else can set them.
    pub claims: BTreeMap<String, ClaimPath>,
    /// The identifier of the protected resource (RFC 9728 §1.2), an `https` URL: its metadata is served, and challenges name it.
    pub resource: Option<String>,
}

impl Default for TokenUse {
    fn default() -> Self {
        Self {
            header: "authorization".to_owned(),
            cookie: None,
            query: None,
            strip: false,
            claims: BTreeMap::new(),
            resource: None,
        }
    }
}

/// Tokens that are refused although they have not expired: those of which everything that is said here is true. At least one of
/// `jti`, `subject`, `client` and `issued_before` is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct RevokedTokens {
    /// The `TokenIssuer`'s name; `None`: of every issuer.
    pub issuer: Option<String>,
    /// The token's `jti`.
    pub jti: Option<String>,
    /// The token's `sub`.
    pub subject: Option<String>,
    /// The token's `client_id` or `azp`; either is enough.
    pub client: Option<String>,
    /// The token's `iat` is before this. One that does not say when it was issued counts as before.
    pub issued_before: Option<Timestamp>,
    /// From when on it need not be remembered.
    pub until: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_in_one_way_or_refused() {
        for (text, names) in [
            ("roles", &["roles"][..]),
            ("realm_access.roles", &["realm_access", "roles"]),
            ("cognito:groups", &["cognito:groups"]),
            ("\"https://x.y/roles\"", &["https://x.y/roles"]),
            ("resource_access.\"my.client\".roles", &["resource_access", "my.client", "roles"]),
            ("\"a\".b", &["a", "b"]),
        ] {
            let path = ClaimPath::parse(text).expect(text);
            assert_eq!(path.names(), names, "{text}");
            assert_eq!(ClaimPath::parse(&path.to_string()), Ok(path), "{text}");
        }
        for (text, told) in [
            ("", "empty"),
            (".", "empty"),
            ("a.", "empty"),
            ("a..b", "empty"),
            ("\"\"", "empty"),
            ("https://x.y/roles", "`\"https://x.y/roles\"`"),
            ("a.b/c", "`\"a.b/c\"`"),
            ("$.a", "`\"$.a\"`"),
            ("\"a\".b/c", "`\"b/c\"`"),
            ("a[0]", "double quotes"),
            ("a b", "double quotes"),
            ("\"a", "ends with one"),
            ("\"a\"b", "a dot or nothing follows"),
            ("a\"b", "double quotes"),
            ("a.b.c.d.e.f.g.h.i", "more than 8"),
        ] {
            let error = ClaimPath::parse(text).expect_err(text).to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
