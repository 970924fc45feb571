//! The authorities of the mesh: which one signs, which ones are believed, and the four changes that a rotation makes.
//!
//! A value of it is immutable. A change is on disk before it is in memory, and in memory before anybody is told.

use crate::keys::{KeyFileFailure, Keys, Use};
use crate::store::{Store, StoreFailure};
use crate::upstream::{self, Obtained, UpstreamFailure};
use config::{Settings, UpstreamAuthority};
use identity::Authority;
use identity::authority::AuthorityError;
use identity::jwt_svid::JwtKey;
use model::snapshot::TrustBundle;
use model::{Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// LIMIT: authorities at one time. A rotation has two; only one that is interrupted by hand could have more.
const AUTHORITIES_MAX: usize = 8;

/// How far an authority is with its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Believed, and does not sign yet.
    Prepared,
    /// Signs.
    Active,
    /// Does not sign any more; what it signed is renewed in its time.
    Old,
    /// What it signed is renewed at once.
    Tainted,
}

impl Stage {
    /// The word for people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
        }
    }
}

/// An authority as it is stored; its keys are in files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredAuthority {
    /// Subject key id, hexadecimal.
    pub(crate) id: String,
    pub(crate) stage: Stage,
    /// When it came into its stage.
    pub(crate) since: Timestamp,
    /// `self-signed`, `files` or `command`.
    pub(crate) source: String,
    /// The issuing certificate first, without the root, DER. Empty for a root that signs by itself.
    pub(crate) chain: Vec<Vec<u8>>,
    /// What belongs into the bundle, DER.
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// When it was made: its certificate begins earlier than that. Unknown of one that an earlier version made.
    #[serde(default = "never")]
    pub(crate) made_at: Timestamp,
    /// Public key of JWT-SVIDs, a JSON Web Key.
    pub(crate) jwk: Vec<u8>,
    /// When the last JWT-SVID that it signed has ended.
    pub(crate) jwt_until: Timestamp,
}

const fn never() -> Timestamp {
    Timestamp::from_millis(0)
}

/// All of them, in the order in which they were prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredAuthorities {
    pub(crate) trust_domain: String,
    pub(crate) authorities: Vec<StoredAuthority>,
}

/// Why there is no authority, or none could be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityFailure {
    /// The store belongs to another trust domain.
    #[error(
        "the store's authority is that of trust domain `{stored}`, the configuration says `{wanted}`; use another --state, or the old name"
    )]
    Foreign {
        /// The store's.
        stored: String,
        /// The configuration's.
        wanted: TrustDomain,
    },
    /// It cannot be made or read.
    #[error("authority: {0}")]
    Authority(#[from] AuthorityError),
    /// No key could be made.
    #[error("authority's key: {0}")]
    Key(#[from] identity::key::KeyFailure),
    /// A key cannot be read or kept.
    #[error("{0}")]
    KeyFile(#[from] KeyFileFailure),
    /// Whoever should sign it does not.
    #[error("upstream authority: {0}")]
    Upstream(#[from] UpstreamFailure),
    /// The store does not work.
    #[error("{0}")]
    Store(#[from] StoreFailure),
    /// The change does not follow from what there is.
    #[error("no authority is {wanted}; `rondel ca status` shows those there are")]
    Stage {
        /// The stage that is missing.
        wanted: &'static str,
    },
    /// Whoever signed it gave it the key id of another: their keys could not be told apart.
    #[error(
        "the new authority has the subject key id `{id}`, which another has already; whoever signs it must give each its own"
    )]
    SameId {
        /// The key id.
        id: String,
    },
    /// Too many at once.
    #[error("there are {AUTHORITIES_MAX} authorities already; let the rotation under way end first")]
    TooMany,
}

/// The authorities at one moment, with the keys of the one that signs.
pub(crate) struct Authorities {
    pub(crate) stored: StoredAuthorities,
    pub(crate) active: Authority,
    pub(crate) jwt: JwtKey,
}

impl Authorities {
    /// Loads them from the store, or makes the first one.
    pub(crate) fn open(store: &Store, keys: &Keys, settings: &Settings, now: Timestamp) -> Result<Self, AuthorityFailure> {
        let domain = &settings.trust_domain;
        let stored = match store.authorities()? {
            Some(stored) if stored.trust_domain != domain.as_str() => {
                return Err(AuthorityFailure::Foreign { stored: stored.trust_domain, wanted: domain.clone() });
            }
            Some(stored) => stored,
            None => {
                let first = kept(keys, make(settings, now)?, now)?;
                let authorities = vec![StoredAuthority { stage: Stage::Active, ..first }];
                let stored = StoredAuthorities { trust_domain: domain.to_string(), authorities };
                store.keep_authorities(&stored)?;
                stored
            }
        };
        let loaded = Self::load(stored, keys, domain, now)?;
        // A crash between the key and the record leaves a key that nobody knows.
        keys.forget_others(&loaded.stored.authorities.iter().map(|authority| authority.id.as_str()).collect())?;
        Ok(loaded)
    }

    fn load(stored: StoredAuthorities, keys: &Keys, domain: &TrustDomain, now: Timestamp) -> Result<Self, AuthorityFailure> {
        let active = stored.authorities.iter().find(|authority| authority.stage == Stage::Active);
        let active = active.ok_or(AuthorityFailure::Stage { wanted: Stage::Active.as_str() })?;
        let key = keys.x509(&active.id)?;
        let authority = match active.chain.is_empty() {
            true => Authority::load(active.roots.first().cloned().unwrap_or_default(), key)?,
            false => Authority::load_chain(active.chain.clone(), key, &active.roots, domain, now)?,
        };
        let jwt = JwtKey::from_pkcs8_der(&keys.read(&active.id, Use::Jwt)?);
        let jwt = jwt.map_err(|failure| keys.refused(&active.id, Use::Jwt, failure))?;
        Ok(Self { active: authority, jwt, stored })
    }

    /// Subject key id of the one that signs.
    pub(crate) fn active(&self) -> Option<&StoredAuthority> {
        self.in_stage(Stage::Active)
    }

    /// The first one in a stage.
    pub(crate) fn in_stage(&self, stage: Stage) -> Option<&StoredAuthority> {
        self.stored.authorities.iter().find(|authority| authority.stage == stage)
    }

    /// The bundle of this trust domain: every authority that is believed.
    pub(crate) fn bundle(&self) -> TrustBundle {
        let mut roots: Vec<Vec<u8>> = Vec::new();
        for root in self.stored.authorities.iter().flat_map(|authority| &authority.roots) {
            // Several authorities may stand under one root.
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        let tainted = self.stored.authorities.iter().filter(|authority| authority.stage == Stage::Tainted);
        TrustBundle {
            trust_domain: self.active.trust_domain().clone(),
            authorities: roots,
            jwt_authorities: self.stored.authorities.iter().map(|authority| authority.jwk.clone()).collect(),
            tainted: tainted.map(|authority| authority.id.clone()).collect(),
        }
    }

    /// With one more authority, which is believed and does not sign yet.
    pub(crate) fn prepared(&self, store: &Store, keys: &Keys, fresh: Fresh, now: Timestamp) -> Result<Self, AuthorityFailure> {
        if self.stored.authorities.len() >= AUTHORITIES_MAX {
            return Err(AuthorityFailure::TooMany);
        }
        // Its key files are named by it: they would replace those of the other.
        let id = fresh.made.authority.subject_key_id();
        if self.stored.authorities.iter().any(|known| known.id == id) {
            return Err(AuthorityFailure::SameId { id });
        }
        let next = kept(keys, fresh, now)?;
        self.with(store, keys, now, |authorities| authorities.push(next))
    }

    /// With the prepared one signing, and the one that signed until now old. `jwt_until`: see [`StoredAuthority`].
    pub(crate) fn activated(
        &self,
        store: &Store,
        keys: &Keys,
        jwt_until: Timestamp,
        now: Timestamp,
    ) -> Result<Self, AuthorityFailure> {
        self.in_stage(Stage::Prepared).ok_or(AuthorityFailure::Stage { wanted: Stage::Prepared.as_str() })?;
        self.with(store, keys, now, |authorities| {
            let mut is_first = true;
            for authority in authorities {
                match authority.stage {
                    Stage::Active => {
                        (authority.stage, authority.since) = (Stage::Old, now);
                        authority.jwt_until = authority.jwt_until.max(jwt_until);
                    }
                    Stage::Prepared if is_first => {
                        (authority.stage, authority.since) = (Stage::Active, now);
                        is_first = false;
                    }
                    Stage::Prepared | Stage::Old | Stage::Tainted => {}
                }
            }
        })
    }

    /// With every old one tainted.
    pub(crate) fn tainted(&self, store: &Store, keys: &Keys, now: Timestamp) -> Result<Self, AuthorityFailure> {
        self.with(store, keys, now, |authorities| {
            for authority in authorities.iter_mut().filter(|authority| authority.stage == Stage::Old) {
                (authority.stage, authority.since) = (Stage::Tainted, now);
            }
        })
    }

    /// Without those that are tainted; their keys are destroyed.
    pub(crate) fn retired(&self, store: &Store, keys: &Keys, now: Timestamp) -> Result<Self, AuthorityFailure> {
        let next =
            self.with(store, keys, now, |authorities| authorities.retain(|authority| authority.stage != Stage::Tainted))?;
        keys.forget_others(&next.stored.authorities.iter().map(|authority| authority.id.as_str()).collect())?;
        Ok(next)
    }

    fn with(
        &self,
        store: &Store,
        keys: &Keys,
        now: Timestamp,
        change: impl FnOnce(&mut Vec<StoredAuthority>),
    ) -> Result<Self, AuthorityFailure> {
        let mut stored = self.stored.clone();
        change(&mut stored.authorities);
        // Loaded before it is stored: what cannot be used must not be what a restart finds.
        let next = Self::load(stored, keys, self.active.trust_domain(), now)?;
        store.keep_authorities(&next.stored)?;
        Ok(next)
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("stored", &self.stored).finish_non_exhaustive()
    }
}

/// An authority with its keys, of which nothing is on disk yet.
pub(crate) struct Fresh {
    made: Obtained,
    jwt: JwtKey,
}

/// Makes an authority. Blocks for as long as its signer takes, at most half a minute.
pub(crate) fn make(settings: &Settings, now: Timestamp) -> Result<Fresh, AuthorityFailure> {
    let made = upstream::obtain(&settings.upstream, &settings.trust_domain, settings.authority_lifetime, now)?;
    Ok(Fresh { made, jwt: JwtKey::generate()? })
}

/// Whether one could be made now; it is thrown away. A program that signs is not asked: what it signs may be on record somewhere.
pub(crate) fn would_make(settings: &Settings, now: Timestamp) -> Result<(), AuthorityFailure> {
    match settings.upstream {
        UpstreamAuthority::Command(_) => Ok(()),
        UpstreamAuthority::SelfSigned | UpstreamAuthority::Files { .. } => make(settings, now).map(drop),
    }
}

/// Keeps an authority's keys, which are on disk when this returns; nobody believes it yet.
fn kept(keys: &Keys, Fresh { made, jwt }: Fresh, now: Timestamp) -> Result<StoredAuthority, AuthorityFailure> {
    let id = made.authority.subject_key_id();
    keys.keep(&id, Use::X509, &made.authority.key().to_pkcs8_der())?;
    keys.keep(&id, Use::Jwt, &jwt.to_pkcs8_der())?;
    Ok(StoredAuthority {
        id,
        stage: Stage::Prepared,
        since: now,
        source: made.source.to_owned(),
        chain: made.chain,
        roots: made.roots,
        not_before: made.authority.not_before(),
        not_after: made.authority.not_after(),
        made_at: now,
        jwk: jwt.public().to_jwk_json(),
        jwt_until: Timestamp::from_millis(0),
    })
}

/// Whether an authority should be replaced by itself: half of its life is over, and it still signs.
///
/// One that has ended is left to a person: a clock that was set wrong looks the same, and must not cost the mesh its authority.
pub(crate) fn is_due(authority: &StoredAuthority, now: Timestamp) -> bool {
    let begun = authority.not_before.max(authority.made_at);
    let half: Duration = authority.not_after.since(begun) / 2;
    now >= begun.plus(half) && now < authority.not_after
}

/// The ids of those in a stage.
pub(crate) fn ids(authorities: &Authorities, stage: Stage) -> BTreeSet<&str> {
    let of = authorities.stored.authorities.iter().filter(|authority| authority.stage == stage);
    of.map(|authority| authority.id.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    #[test]
    fn an_authority_with_the_key_id_of_another_replaces_no_key() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(&dir.path().join("control.redb")).expect("store");
        let keys = Keys::open(dir.path()).expect("keys");
        let text = "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: { name: a }\nspec:\n  trustDomain: a.example\n";
        let settings = config::parse(&[config::Source { file: "a.yaml".into(), text: text.into() }]).expect("mesh").settings;
        let authorities = Authorities::open(&store, &keys, &settings, NOW).expect("open");
        let first = authorities.active().expect("active").clone();
        let before = keys.read(&first.id, Use::Jwt).expect("key");
        // A signer may write whatever key id it likes.
        let authority = Authority::load(first.roots[0].clone(), keys.x509(&first.id).expect("key")).expect("authority");
        let made = Obtained { authority, chain: first.chain.clone(), roots: first.roots.clone(), source: "command" };
        let fresh = Fresh { made, jwt: JwtKey::generate().expect("key") };
        let refused = authorities.prepared(&store, &keys, fresh, NOW);
        assert!(matches!(refused, Err(AuthorityFailure::SameId { id }) if id == first.id));
        assert_eq!(keys.read(&first.id, Use::Jwt).expect("key"), before);
        assert_eq!(store.authorities().expect("read"), Some(authorities.stored));
    }
}
