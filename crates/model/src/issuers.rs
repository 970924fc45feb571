//! What one sidecar knows of an issuer: for people, told by `rondel issuers`.

use crate::time::Timestamp;

/// One issuer at one sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerReport {
    /// The `TokenIssuer`'s name.
    pub name: String,
    /// Its `iss`.
    pub issuer: String,
    /// Where its keys come from.
    pub source: String,
    /// The keys in use, at most [`Self::KEYS_MAX`].
    pub keys: Vec<KeyReport>,
    /// Keys that it publishes and that cannot be used.
    pub ignored: u32,
    /// When the keys last came; `None`: never.
    pub fetched_at: Option<Timestamp>,
    /// When they are fetched again.
    pub next_at: Option<Timestamp>,
    /// Until when they are believed if they cannot be fetched again; `None`: for as long as the configuration.
    pub believed_until: Option<Timestamp>,
    /// Why the last fetch failed; `None` if it did not.
    pub failure: Option<Trouble>,
    /// How it is asked about opaque tokens.
    pub introspection: Option<IntrospectionReport>,
}

impl IssuerReport {
    /// LIMIT: keys of one issuer that are told.
    pub const KEYS_MAX: usize = 64;
}

/// One key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyReport {
    /// Its `kid`, printable.
    pub id: Option<String>,
    /// Its algorithm's word.
    pub algorithm: String,
}

/// How an issuer answers about opaque tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntrospectionReport {
    /// Where it is asked; empty until that was discovered.
    pub endpoint: String,
    /// How the sidecar authenticates.
    pub authentication: String,
    /// What its opaque tokens begin with; empty: all of them.
    pub prefix: String,
    /// When it last answered; `None`: never.
    pub answered_at: Option<Timestamp>,
    /// Questions since the sidecar's start.
    pub asked: u64,
    /// Those of them without an answer.
    pub failed: u64,
    /// Why the last one had none; `None` if it had.
    pub failure: Option<Trouble>,
}

/// What went wrong last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// When.
    pub at: Timestamp,
    /// What.
    pub text: String,
}
