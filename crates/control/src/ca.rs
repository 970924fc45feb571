//! The certificate authority: who is asking, and what they get.

use crate::store::{Store, StoreFailure, StoredAuthority};
use identity::authority::{Authority, AuthorityError, IssueRefusal, IssuedSvid};
use identity::csr::{self, CsrRefusal};
use identity::handshake::VerifiedPeer;
use identity::key::{KeyFailure, PrivateKey};
use model::ids::IdError;
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp, TrustDomain};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a join token may be used.
pub(crate) const JOIN_TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// Longer texts are not join tokens.
const JOIN_TOKEN_BYTES_MAX: usize = 256;

/// Why no SVID is issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueFailure {
    /// The caller shows neither a join token nor an SVID.
    #[error("no attestation: neither a join token nor an SVID")]
    NoAttestation,
    /// The join token is unknown, was used already, or is not one.
    #[error("the join token is unknown or was used already; make a new one with `rondel join-token`")]
    JoinTokenUnknown,
    /// The join token is too old.
    #[error("the join token expired at {at}; make a new one with `rondel join-token`")]
    JoinTokenExpired {
        /// When.
        at: Timestamp,
    },
    /// The SVID that the connection was opened with has ended meanwhile.
    #[error("the SVID of this connection ended at {at}; connect with the present one, or with a join token")]
    PeerExpired {
        /// When.
        at: Timestamp,
    },
    /// Its workload is gone from the configuration.
    #[error("no workload with the identity `{id}` is configured")]
    NotConfigured {
        /// Who asks.
        id: SpiffeId,
    },
    /// The CSR is not good.
    #[error("certificate request: {0}")]
    Csr(#[from] CsrRefusal),
    /// The authority refuses.
    #[error("{0}")]
    Issue(#[from] IssueRefusal),
    /// The store does not work.
    #[error("{0}")]
    Store(#[from] StoreFailure),
    /// No randomness.
    #[error("{0}")]
    Key(#[from] KeyFailure),
    /// A stored identity cannot be read.
    #[error("stored identity: {0}")]
    Id(#[from] IdError),
}

impl IssueFailure {
    /// Whether the caller is at fault, not this control plane.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NoAttestation
                | Self::JoinTokenUnknown
                | Self::JoinTokenExpired { .. }
                | Self::PeerExpired { .. }
                | Self::NotConfigured { .. }
                | Self::Csr(_)
        )
    }
}

/// Why there is no authority to begin with.
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
    /// Its key cannot be read.
    #[error("authority's key: {0}")]
    Key(#[from] KeyFailure),
    /// The store does not work.
    #[error("{0}")]
    Store(#[from] StoreFailure),
}

/// The mesh's authority and its records. Calls block on the store: use it from a blocking thread.
#[derive(Debug)]
pub(crate) struct Ca {
    authority: Authority,
    store: Arc<Store>,
}

impl Ca {
    /// Loads the authority from the store, or makes it at the first start.
    pub(crate) fn open(
        store: Arc<Store>,
        domain: &TrustDomain,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Self, AuthorityFailure> {
        let authority = match store.authority()? {
            Some(stored) if stored.trust_domain != domain.as_str() => {
                return Err(AuthorityFailure::Foreign { stored: stored.trust_domain, wanted: domain.clone() });
            }
            Some(stored) => {
                let key = Zeroizing::new(stored.key);
                Authority::load(stored.certificate, PrivateKey::from_pkcs8_der(&key)?)?
            }
            None => {
                let authority = Authority::generate(domain, now, lifetime)?;
                store.keep_authority(&StoredAuthority {
                    trust_domain: domain.to_string(),
                    certificate: authority.certificate_der().to_vec(),
                    key: authority.key().to_pkcs8_der().to_vec(),
                })?;
                authority
            }
        };
        Ok(Self { authority, store })
    }

    /// The bundle of this trust domain.
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle {
            trust_domain: self.authority.trust_domain().clone(),
            authorities: vec![self.authority.certificate_der().to_vec()],
        }
    }

    /// When the authority itself ends.
    pub(crate) fn not_after(&self) -> Timestamp {
        self.authority.not_after()
    }

    /// A fresh join token for one identity. Only its digest is stored.
    pub(crate) fn join_token(&self, id: &SpiffeId, now: Timestamp) -> Result<String, IssueFailure> {
        let secret: [u8; 32] = identity::random_bytes()?;
        let token = format!("rondel-join-{}", hex::encode(secret));
        self.store.keep_join(identity::sha256(token.as_bytes()), id, now.plus(JOIN_TOKEN_LIFETIME), now)?;
        Ok(token)
    }

    /// Who is asking: the identity of the SVID that the connection was opened with, or that of the join token, which is spent by this.
    ///
    /// An SVID comes first: whoever holds one may ask for its own identity only, whatever token it also shows.
    pub(crate) fn attest(
        &self,
        peer: Option<&VerifiedPeer>,
        join_token: Option<&str>,
        now: Timestamp,
    ) -> Result<SpiffeId, IssueFailure> {
        if let Some(peer) = peer {
            if now >= peer.not_after() {
                return Err(IssueFailure::PeerExpired { at: peer.not_after() });
            }
            return Ok(peer.id().clone());
        }
        let token = join_token.ok_or(IssueFailure::NoAttestation)?;
        if token.len() > JOIN_TOKEN_BYTES_MAX {
            return Err(IssueFailure::JoinTokenUnknown);
        }
        // The look-up is by digest, so that its time says nothing about the token.
        let taken = self.store.take_join(identity::sha256(token.as_bytes()))?;
        let (id, expires_at) = taken.ok_or(IssueFailure::JoinTokenUnknown)?;
        if now >= expires_at {
            return Err(IssueFailure::JoinTokenExpired { at: expires_at });
        }
        Ok(SpiffeId::parse(&id)?)
    }

    /// Issues an SVID for an attested identity. Of the CSR only the public key is used; the record is on disk before the answer.
    pub(crate) fn issue(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<IssuedSvid, IssueFailure> {
        let key = csr::prove(csr)?;
        let issued = self.authority.issue(&key, id, lifetime, now)?;
        self.store.record_issue(&issued.serial, id, issued.not_after, now)?;
        Ok(issued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().expect("directory");
        let store = Arc::new(Store::open(&dir.path().join("control.redb")).expect("open"));
        let domain = TrustDomain::parse("a.example").expect("domain");
        let ca =
            Ca::open(store, &domain, Duration::from_secs(1_000_000), Timestamp::from_seconds(1_800_000_000)).expect("authority");
        (dir, ca)
    }

    #[test]
    fn a_join_token_attests_one_identity_once_and_only_for_minutes() {
        let (_dir, ca) = ca();
        let now = Timestamp::from_seconds(1_800_000_000);
        let id = SpiffeId::parse("spiffe://a.example/ns/b/sa/c").expect("id");
        let token = ca.join_token(&id, now).expect("token");
        assert_eq!(ca.attest(None, Some(&token), now).expect("first use"), id);
        assert!(matches!(ca.attest(None, Some(&token), now), Err(IssueFailure::JoinTokenUnknown)), "replayed");
        let late = ca.join_token(&id, now).expect("token");
        let after = now.plus(JOIN_TOKEN_LIFETIME);
        assert!(matches!(ca.attest(None, Some(&late), after), Err(IssueFailure::JoinTokenExpired { .. })), "expired");
        for wrong in ["", "rondel-join-", &"x".repeat(10_000)] {
            assert!(matches!(ca.attest(None, Some(wrong), now), Err(IssueFailure::JoinTokenUnknown)), "{wrong}");
        }
        assert!(matches!(ca.attest(None, None, now), Err(IssueFailure::NoAttestation)));
    }

    #[test]
    fn a_store_of_another_trust_domain_is_refused() {
        let (_dir, ca) = ca();
        let other = TrustDomain::parse("b.example").expect("domain");
        let reopened = Ca::open(Arc::clone(&ca.store), &other, Duration::from_secs(1), Timestamp::from_seconds(1_800_000_000));
        assert!(matches!(reopened, Err(AuthorityFailure::Foreign { .. })));
    }

    #[test]
    fn every_issued_svid_is_on_record() {
        let (_dir, ca) = ca();
        let now = Timestamp::from_seconds(1_800_000_000);
        let id = SpiffeId::parse("spiffe://a.example/ns/b/sa/c").expect("id");
        let request = csr::build(&PrivateKey::generate().expect("key"), &id).expect("csr");
        let issued = ca.issue(&request, &id, Duration::from_secs(60), now).expect("issue");
        let on_record = ca.store.issued(now).expect("records");
        assert_eq!(on_record, [(issued.serial, id.to_string(), issued.not_after)]);
        assert!(ca.issue(b"garbage", &id, Duration::from_secs(60), now).is_err());
    }
}
