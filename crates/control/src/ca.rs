//! The certificate authority: who is asking, and what they get.

use crate::authorities::{self, Authorities, AuthorityFailure};
use crate::desired::Board;
use crate::keys::Keys;
use crate::rotation::{self, Step};
use crate::store::{Issued, Revoked, Store, StoreFailure};
use crate::token_revocations::TokenRevocations;
use config::{Settings, Trust};
use identity::authority::{Authority, IssueRefusal, IssuedSvid};
use identity::csr::{self, CsrRefusal};
use identity::handshake::VerifiedPeer;
use identity::jwt_svid::{self, IssuedJwt, JwtIssueRefusal};
use identity::key::KeyFailure;
use model::ids::IdError;
use model::snapshot::{RevokedSvid, TrustBundle};
use model::{SpiffeId, Timestamp};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Issued SVIDs in memory after which those that have ended are forgotten.
const ISSUED_SWEEP_AT: usize = 10_000;
/// LIMIT: SVIDs of one workload that have not ended, its application's included. One that renews in its time has four; this many
/// can be revoked at once, and take nobody else's place in the records.
const ISSUED_PER_WORKLOAD_MAX: usize = 256;
/// Life of a rehearsal's SVID.
const SHADOW_SVID_LIFETIME: Duration = Duration::from_secs(120);
/// The longest life of a JWT-SVID.
const JWT_LIFETIME_MAX: Duration = Duration::from_secs(300);
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
    /// The SVID that the connection was opened with is revoked.
    #[error("the SVID {serial} is revoked; a new join token gets its workload another")]
    PeerRevoked {
        /// Its serial.
        serial: String,
    },
    /// The SVID that the connection was opened with is an application's, which was lent an identity and no place of its sidecar.
    #[error("the SVID {serial} is an application's; only its sidecar speaks to the control plane")]
    Applications {
        /// Its serial.
        serial: String,
    },
    /// The authority has ended, and signs nothing that anybody would believe.
    #[error("the authority ended at {at}; `rondel ca rotate` makes another")]
    AuthorityEnded {
        /// When.
        at: Timestamp,
    },
    /// The caller says that it stands beside another workload than its own.
    #[error("`{id}` has no workload `{workload}`")]
    OtherWorkload {
        /// Who asks.
        id: SpiffeId,
        /// What it says.
        workload: String,
    },
    /// Its sidecar asks for more than it can use.
    #[error("`{workload}` has {ISSUED_PER_WORKLOAD_MAX} SVIDs that have not ended, which is the limit")]
    TooMany {
        /// The workload.
        workload: String,
    },
    /// No such rehearsal is under way.
    #[error("no rehearsal of this id is under way")]
    NoRehearsal,
    /// No JWT-SVID can be signed.
    #[error("{0}")]
    Jwt(#[from] JwtIssueRefusal),
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
                | Self::PeerRevoked { .. }
                | Self::Applications { .. }
                | Self::OtherWorkload { .. }
                | Self::TooMany { .. }
                | Self::NoRehearsal
                | Self::Jwt(_)
                | Self::NotConfigured { .. }
                | Self::Csr(_)
        )
    }
}

/// Why the authorities, or who is revoked, could not be changed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeFailure {
    /// No authority could be made, kept or changed.
    #[error("{0}")]
    Authority(#[from] AuthorityFailure),
    /// The store does not work.
    #[error("{0}")]
    Store(#[from] StoreFailure),
    /// There is nothing to revoke.
    #[error("{0}")]
    Nothing(String),
    /// A rotation is under way already.
    #[error("a rotation is under way: `{next}` comes next; `rondel ca status` shows what it waits for")]
    UnderWay {
        /// The step that comes next.
        next: &'static str,
    },
}

/// The mesh's authorities and their records. Calls block on the store: use it from a blocking thread.
#[derive(Debug)]
pub(crate) struct Ca {
    pub(crate) store: Arc<Store>,
    keys: Keys,
    authorities: watch::Sender<Arc<Authorities>>,
    /// Held by whoever changes something, from reading to telling.
    pub(crate) changing: Mutex<()>,
    /// Held by whoever has an authority made, which may take half a minute: what is revoked meanwhile must not wait for it.
    making: Mutex<()>,
    /// Held for reading from the look at what is revoked until an SVID is on record, and for writing by whoever revokes.
    issuing: RwLock<()>,
    issued: Mutex<OnRecord>,
    revoked: RwLock<BTreeMap<String, Revoked>>,
    pub(crate) tokens: TokenRevocations,
    federated: RwLock<Vec<TrustBundle>>,
    /// The shadow authority of the rehearsal that is under way, and its id.
    shadow: Mutex<Option<(String, Authority)>>,
    /// When the last JWT-SVID ends that the active authority signed.
    jwt_until: Mutex<Timestamp>,
    /// Why the rotation that is due or under way fails, and since when.
    failing: Mutex<Option<(String, Timestamp)>>,
}

impl Ca {
    /// Loads everything from the store, or makes the first authority.
    pub(crate) fn open(store: Arc<Store>, state: &Path, settings: &Settings, now: Timestamp) -> Result<Self, ChangeFailure> {
        let keys = Keys::open(state).map_err(AuthorityFailure::from)?;
        let is_first = store.authorities()?.is_none();
        let authorities = Authorities::open(&store, &keys, settings, now)?;
        let mut issued = OnRecord::default();
        store.issued(now)?.into_iter().for_each(|(serial, row)| issued.keep(serial, row));
        let revoked = store.revoked(now)?.into_iter().collect();
        let tokens = TokenRevocations::open(&store, now)?;
        Ok(Self {
            keys,
            authorities: watch::Sender::new(Arc::new(authorities)),
            changing: Mutex::new(()),
            making: Mutex::new(()),
            issuing: RwLock::new(()),
            issued: Mutex::new(issued),
            revoked: RwLock::new(revoked),
            tokens,
            federated: RwLock::new(Vec::new()),
            shadow: Mutex::new(None),
            // An earlier process may have signed some a moment ago.
            jwt_until: Mutex::new(if is_first { now } else { now.plus(jwt_lifetime(settings)) }),
            failing: Mutex::default(),
            store,
        })
    }

    /// Why the rotation fails, and since when; `None` where it does not.
    pub(crate) fn failing(&self) -> Option<(String, Timestamp)> {
        self.failing.lock().clone()
    }

    /// Notes what the last look at the rotation came to.
    pub(crate) fn set_failing(&self, failure: Option<String>, now: Timestamp) {
        let mut failing = self.failing.lock();
        let since = failing.as_ref().map_or(now, |(_, since)| *since);
        *failing = failure.map(|failure| (failure, since));
    }

    /// The authorities at this moment.
    pub(crate) fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.borrow())
    }

    /// Told of every change of the authorities.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Authorities>> {
        self.authorities.subscribe()
    }

    /// The bundle of this trust domain.
    pub(crate) fn bundle(&self) -> TrustBundle {
        self.authorities().bundle()
    }

    /// Who is believed, and who is not in spite of that.
    pub(crate) fn trust(&self, now: Timestamp) -> Trust {
        let mut bundles = vec![self.bundle()];
        bundles.extend(self.federated.read().iter().cloned());
        let revoked = self.revoked.read();
        let revoked = revoked.iter().filter(|(_, revoked)| revoked.counts(now));
        let revoked = revoked.map(|(serial, revoked)| RevokedSvid { serial: serial.clone(), until: revoked.until });
        let revoked_tokens = self.tokens.all(now).into_iter().map(|each| each.what).collect();
        Trust { bundles, revoked: revoked.collect(), revoked_tokens }
    }

    /// Tells the sidecars who is believed, if that has changed.
    pub(crate) fn publish(&self, board: &Board, now: Timestamp) -> Result<(), ChangeFailure> {
        let _changing = self.changing.lock();
        Ok(board.set_trust(self.trust(now))?)
    }

    /// Begins a rotation: another authority is believed from now on.
    pub(crate) fn prepare(&self, board: &Board, now: Timestamp) -> Result<(), ChangeFailure> {
        let _making = self.making.lock();
        if let Some(step) = rotation::next(&self.authorities()) {
            return Err(ChangeFailure::UnderWay { next: step.as_str() });
        }
        let fresh = authorities::make(&board.current().mesh.settings, now)?;
        // Without a rotation under way only this function changes the authorities: they are as they were.
        let _changing = self.changing.lock();
        let next = self.authorities().prepared(&self.store, &self.keys, fresh, now)?;
        self.replace(next, board, now)
    }

    /// Takes a step of the rotation if `may` says so, which is asked while nothing can change; says whether it was taken.
    pub(crate) fn take(
        &self,
        step: Step,
        board: &Board,
        now: Timestamp,
        may: impl FnOnce(&Authorities) -> bool,
    ) -> Result<bool, ChangeFailure> {
        let _changing = self.changing.lock();
        let before = self.authorities();
        if rotation::next(&before) != Some(step) || !may(&before) {
            return Ok(false);
        }
        let next = match step {
            Step::Activate => {
                // Whoever signs one meanwhile waits, and signs with the new key.
                let until = self.jwt_until.lock();
                let next = before.activated(&self.store, &self.keys, *until, now)?;
                self.authorities.send_replace(Arc::new(next));
                drop(until);
                board.set_trust(self.trust(now))?;
                return Ok(true);
            }
            Step::Taint => before.tainted(&self.store, &self.keys, now)?,
            Step::Retire => before.retired(&self.store, &self.keys, now)?,
        };
        self.replace(next, board, now).map(|()| true)
    }

    fn replace(&self, next: Authorities, board: &Board, now: Timestamp) -> Result<(), ChangeFailure> {
        self.authorities.send_replace(Arc::new(next));
        Ok(board.set_trust(self.trust(now))?)
    }

    /// Takes the bundles of other trust domains, before anybody is told.
    pub(crate) fn set_federated(&self, bundles: Vec<TrustBundle>) {
        *self.federated.write() = bundles;
    }

    /// Takes the bundles of other trust domains as they are now.
    pub(crate) fn federate(&self, bundles: Vec<TrustBundle>, board: &Board, now: Timestamp) -> Result<(), ChangeFailure> {
        let _changing = self.changing.lock();
        *self.federated.write() = bundles;
        Ok(board.set_trust(self.trust(now))?)
    }

    /// Revokes one SVID by its serial, or every one of an identity that has not ended. Gives all that are revoked by it.
    pub(crate) fn revoke(
        &self,
        what: &Revocable,
        reason: &str,
        board: &Board,
        now: Timestamp,
    ) -> Result<Vec<(String, Revoked)>, ChangeFailure> {
        let _changing = self.changing.lock();
        let issuing = self.issuing.write();
        let alive = self.alive(now);
        let meant = alive.into_iter().filter(|(serial, issued)| match what {
            Revocable::Id(id) => issued.id == id.as_str(),
            Revocable::Serial(wanted) => serial == wanted,
        });
        let before = self.revoked.read().clone();
        let revoked: Vec<(String, Revoked)> = meant
            .map(|(serial, issued)| {
                let fresh = Revoked { id: issued.id, until: issued.not_after, at: now, reason: reason.to_owned() };
                // Who was first said why.
                let revoked = before.get(&serial).cloned().unwrap_or(fresh);
                (serial, revoked)
            })
            .collect();
        if revoked.is_empty() {
            return Err(ChangeFailure::Nothing(match what {
                Revocable::Id(id) => {
                    format!("`{id}` has no SVID of this mesh that has not ended; `rondel certs` shows those there are")
                }
                Revocable::Serial(serial) => {
                    format!("no SVID of the serial `{serial}` that has not ended; `rondel certs` shows those there are")
                }
            }));
        }
        if revoked.iter().any(|(_, each)| each.id == self.authorities().active.trust_domain().control_plane().as_str()) {
            return Err(ChangeFailure::Nothing(
                "that is the control plane's own SVID; without it nobody would hear of the revocation: rotate the authority, or restart the control plane"
                    .into(),
            ));
        }
        let rows: Vec<(&str, &Revoked)> = revoked.iter().map(|(serial, revoked)| (serial.as_str(), revoked)).collect();
        self.store.revoke(&rows, now)?;
        let mut all = self.revoked.write();
        all.retain(|_, revoked| revoked.counts(now));
        all.extend(revoked.iter().cloned());
        drop(all);
        drop(issuing);
        board.set_trust(self.trust(now))?;
        Ok(revoked)
    }

    /// Whether an SVID of this serial is revoked.
    pub(crate) fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.read().contains_key(serial)
    }

    /// Whether an SVID of this serial was handed on to an application.
    pub(crate) fn is_applications(&self, serial: &str) -> bool {
        self.issued.lock().by_serial.get(serial).is_some_and(|issued| issued.application)
    }

    /// Every revoked SVID that somebody may still believe, with its serial.
    pub(crate) fn revoked(&self, now: Timestamp) -> Vec<(String, Revoked)> {
        let revoked = self.revoked.read();
        revoked
            .iter()
            .filter(|(_, revoked)| revoked.counts(now))
            .map(|(serial, revoked)| (serial.clone(), revoked.clone()))
            .collect()
    }

    /// Every issued SVID that has not ended, with its serial.
    pub(crate) fn alive(&self, now: Timestamp) -> Vec<(String, Issued)> {
        let issued = self.issued.lock();
        issued
            .by_serial
            .iter()
            .filter(|(_, issued)| now < issued.not_after)
            .map(|(serial, issued)| (serial.clone(), issued.clone()))
            .collect()
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
            if self.is_revoked(peer.serial()) {
                return Err(IssueFailure::PeerRevoked { serial: peer.serial().to_owned() });
            }
            if self.is_applications(peer.serial()) {
                return Err(IssueFailure::Applications { serial: peer.serial().to_owned() });
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
    ///
    /// It ends with the authority at the latest.
    pub(crate) fn issue(&self, csr: &[u8], wanted: &Wanted<'_>, now: Timestamp) -> Result<(IssuedSvid, String), IssueFailure> {
        let key = csr::prove(csr)?;
        // Whoever revokes an identity meanwhile finds this SVID on record, or is found here.
        let _issuing = self.issuing.read();
        if let Some(serial) = wanted.shown.filter(|serial| self.is_revoked(serial)) {
            return Err(IssueFailure::PeerRevoked { serial: serial.to_owned() });
        }
        let authorities = self.authorities();
        let end = authorities.active.not_after();
        if end.since(now) < Duration::from_secs(2) {
            return Err(IssueFailure::AuthorityEnded { at: end });
        }
        let left = Duration::from_secs(end.since(now).as_secs().saturating_sub(1));
        let issued = authorities.active.issue(&key, wanted.id, wanted.lifetime.min(left), now)?;
        let authority = authorities.active().map_or_else(String::new, |active| active.id.clone());
        let row = Issued {
            id: wanted.id.to_string(),
            not_after: issued.not_after,
            authority: authority.clone(),
            workload: wanted.workload.to_owned(),
            application: wanted.application,
        };
        // In memory first, so that no two are let in for one place.
        if !self.issued.lock().admit(&issued.serial, &row, now) {
            return Err(IssueFailure::TooMany { workload: row.workload });
        }
        if let Err(failure) = self.store.record_issue(&issued.serial, &row, now) {
            self.issued.lock().forget(&issued.serial);
            return Err(failure.into());
        }
        Ok((issued, authority))
    }

    /// Signs a JWT-SVID for a proven identity.
    pub(crate) fn issue_jwt(
        &self,
        id: &SpiffeId,
        audiences: &[String],
        settings: &Settings,
        now: Timestamp,
    ) -> Result<IssuedJwt, IssueFailure> {
        // Held while it is signed, so that an activation in between counts it as the old authority's.
        let mut until = self.jwt_until.lock();
        let issued = jwt_svid::issue(&self.authorities().jwt, id, audiences, jwt_lifetime(settings), now)?;
        *until = (*until).max(issued.expires_at);
        Ok(issued)
    }

    /// Takes the shadow authority of a rehearsal, or forgets it.
    pub(crate) fn set_shadow(&self, shadow: Option<(String, Authority)>) {
        *self.shadow.lock() = shadow;
    }

    /// Issues an SVID of the shadow authority, which no workload trusts. It is on no record.
    pub(crate) fn issue_shadow(
        &self,
        rehearsal: &str,
        csr: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<IssuedSvid, IssueFailure> {
        let key = csr::prove(csr)?;
        let shadow = self.shadow.lock();
        let shadow = shadow.as_ref().filter(|(known, _)| known == rehearsal).ok_or(IssueFailure::NoRehearsal)?;
        // It is over with the rehearsal, and must not outlive the shadow authority.
        Ok(shadow.1.issue(&key, id, lifetime.min(SHADOW_SVID_LIFETIME), now)?)
    }
}

/// What an SVID is issued for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) id: &'a SpiffeId,
    /// The serial of the SVID that spoke for it, if one did.
    pub(crate) shown: Option<&'a str>,
    /// `namespace/name`; empty for the control plane's own.
    pub(crate) workload: &'a str,
    pub(crate) application: bool,
    pub(crate) lifetime: Duration,
}

/// The issued SVIDs by serial, and how many there are of each workload. Some may have ended.
#[derive(Debug, Default)]
struct OnRecord {
    by_serial: HashMap<String, Issued>,
    counts: HashMap<String, usize>,
}

impl OnRecord {
    fn keep(&mut self, serial: String, row: Issued) {
        *self.counts.entry(row.workload.clone()).or_default() += 1;
        if let Some(before) = self.by_serial.insert(serial, row) {
            self.discount(&before.workload);
        }
    }

    fn forget(&mut self, serial: &str) {
        if let Some(row) = self.by_serial.remove(serial) {
            self.discount(&row.workload);
        }
    }

    fn discount(&mut self, workload: &str) {
        if let Some(count) = self.counts.get_mut(workload) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(workload);
            }
        }
    }

    /// Keeps a record, unless its workload has as many as it may. The control plane's own are not counted: it must start again.
    fn admit(&mut self, serial: &str, row: &Issued, now: Timestamp) -> bool {
        let is_full = |counts: &HashMap<String, usize>| {
            !row.workload.is_empty() && counts.get(&row.workload).is_some_and(|count| *count >= ISSUED_PER_WORKLOAD_MAX)
        };
        if self.by_serial.len() >= ISSUED_SWEEP_AT || is_full(&self.counts) {
            self.sweep(now);
        }
        let may = !is_full(&self.counts);
        if may {
            self.keep(serial.to_owned(), row.clone());
        }
        may
    }

    fn sweep(&mut self, now: Timestamp) {
        self.by_serial.retain(|_, row| now < row.not_after);
        self.counts.clear();
        for row in self.by_serial.values() {
            *self.counts.entry(row.workload.clone()).or_default() += 1;
        }
    }
}

/// What can be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Revocable {
    /// Every SVID of an identity.
    Id(SpiffeId),
    /// One SVID, lower-case hexadecimal.
    Serial(String),
}

/// Life of a JWT-SVID: it cannot be revoked, so it is short.
fn jwt_lifetime(settings: &Settings) -> Duration {
    JWT_LIFETIME_MAX.min(settings.svid_lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::authority::BACK_DATING;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn settings(domain: &str) -> Settings {
        let text = format!(
            "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{ name: a }}\nspec:\n  trustDomain: {domain}\n"
        );
        config::parse(&[config::Source { file: "a.yaml".into(), text }]).expect("mesh").settings
    }

    fn ca() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().expect("directory");
        let store = Arc::new(Store::open(&dir.path().join("control.redb")).expect("open"));
        let ca = Ca::open(store, dir.path(), &settings("a.example"), NOW).expect("authority");
        (dir, ca)
    }

    /// Who asks for an SVID, and the request for it.
    fn asked() -> (SpiffeId, Vec<u8>) {
        let id = SpiffeId::parse("spiffe://a.example/ns/b/sa/c").expect("id");
        let request = csr::build(&identity::PrivateKey::generate().expect("key"), &id).expect("csr");
        (id, request)
    }

    fn wanted(id: &SpiffeId) -> Wanted<'_> {
        Wanted { id, shown: None, workload: "b/c", application: false, lifetime: Duration::from_secs(60) }
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
        let (dir, ca) = ca();
        let reopened = Ca::open(Arc::clone(&ca.store), dir.path(), &settings("b.example"), NOW);
        assert!(matches!(reopened, Err(ChangeFailure::Authority(AuthorityFailure::Foreign { .. }))));
    }

    #[test]
    fn every_issued_svid_is_on_record_and_ends_with_the_authority() {
        let (_dir, ca) = ca();
        let (id, request) = asked();
        let (issued, authority) = ca.issue(&request, &wanted(&id), NOW).expect("issue");
        let row =
            Issued { id: id.to_string(), not_after: issued.not_after, authority, workload: "b/c".into(), application: false };
        assert_eq!(ca.store.issued(NOW).expect("records"), [(issued.serial.clone(), row.clone())]);
        assert_eq!(ca.alive(NOW), [(issued.serial, row)]);
        assert!(ca.issue(b"garbage", &wanted(&id), NOW).is_err());
        let end = ca.authorities().active.not_after();
        let late = end.minus(Duration::from_secs(30));
        let (short, _) = ca.issue(&request, &wanted(&id), late).expect("issue");
        assert!(short.not_after < end, "what outlives its authority nobody believes");
        let ended = ca.issue(&request, &wanted(&id), end);
        assert!(matches!(ended, Err(IssueFailure::AuthorityEnded { .. })));
    }

    /// A board that begins with what the authority says.
    fn board(ca: &Ca) -> Board {
        board_with(ca, "")
    }

    /// The same, with `certificates` in the configuration.
    fn board_with(ca: &Ca, certificates: &str) -> Board {
        let head = "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: { name: a }\nspec:\n  trustDomain: a.example\n";
        let sources = vec![config::Source { file: "a.yaml".into(), text: format!("{head}{certificates}") }];
        let begun = crate::desired::Begun::read(&ca.store, Ok(sources)).expect("begun");
        Board::begin(Arc::clone(&ca.store), begun, ca.trust(NOW)).expect("board")
    }

    #[test]
    fn each_step_of_a_rotation_is_on_disk_and_goes_on_after_a_restart() {
        let (dir, ca) = ca();
        let board = board(&ca);
        let first = ca.authorities().active().expect("active").id.clone();
        ca.prepare(&board, NOW).expect("prepare");
        assert!(matches!(ca.prepare(&board, NOW), Err(ChangeFailure::UnderWay { next: "activate" })));
        let mut ca = ca;
        let keys = |dir: &tempfile::TempDir| std::fs::read_dir(dir.path().join("keys")).expect("keys").count();
        for (step, roots, key_files) in [(Step::Activate, 2, 4), (Step::Taint, 2, 4), (Step::Retire, 1, 2)] {
            // As after a crash: nothing is known but what is on disk.
            let store = Arc::clone(&ca.store);
            ca = Ca::open(store, dir.path(), &settings("a.example"), NOW).expect("restart");
            assert_eq!(rotation::next(&ca.authorities()), Some(step));
            let before = board.current().revision;
            assert!(ca.take(step, &board, NOW, |_| true).expect("step"));
            assert!(!ca.take(step, &board, NOW, |_| true).expect("twice is once"));
            assert_eq!(ca.bundle().authorities.len(), roots, "{step:?}");
            assert_eq!(*board.current().trust, ca.trust(NOW), "{step:?}: what is believed is told");
            // Who signs is nothing that a sidecar is told.
            assert_eq!(board.current().revision.0 - before.0, u64::from(step != Step::Activate), "{step:?}");
            assert_eq!(keys(&dir), key_files, "{step:?}");
            let tainted = ca.bundle().tainted;
            assert_eq!(tainted, if step == Step::Taint { vec![first.clone()] } else { Vec::new() });
        }
        assert_eq!(rotation::next(&ca.authorities()), None);
        assert_ne!(ca.authorities().active().expect("active").id, first);
    }

    #[test]
    fn what_holds_a_step_up_is_looked_at_while_nothing_can_change() {
        let (_dir, ca) = ca();
        let board = board(&ca);
        ca.prepare(&board, NOW).expect("prepare");
        let taken = ca.take(Step::Activate, &board, NOW, |authorities| {
            // Else a step could be taken on what was acknowledged before the authority was told of.
            assert!(ca.changing.is_locked(), "an authority that is not told of yet would count as acknowledged");
            assert_eq!(board.current().trust.bundles, [authorities.bundle()]);
            false
        });
        assert!(!taken.expect("not taken"));
        assert_eq!(rotation::next(&ca.authorities()), Some(Step::Activate));
    }

    #[test]
    fn a_revocation_does_not_wait_for_whoever_signs_the_authority() {
        let (dir, ca) = ca();
        let begun = dir.path().join("begun");
        let command =
            format!("  certificates: {{ upstream: {{ command: [sh, -c, 'touch {}; sleep 3; false'] }} }}\n", begun.display());
        let board = board_with(&ca, &command);
        let (id, request) = asked();
        ca.issue(&request, &wanted(&id), NOW).expect("issue");
        std::thread::scope(|scope| {
            let preparing = scope.spawn(|| ca.prepare(&board, NOW));
            while !begun.exists() {
                std::thread::yield_now();
            }
            ca.revoke(&Revocable::Id(id), "stolen", &board, NOW).expect("revoke");
            assert!(!preparing.is_finished(), "the signer still takes its time");
            assert!(matches!(preparing.join().expect("thread"), Err(ChangeFailure::Authority(AuthorityFailure::Upstream(_)))));
        });
    }

    #[test]
    fn what_a_revoked_svid_was_asking_for_is_not_issued() {
        let (_dir, ca) = ca();
        let board = board(&ca);
        let (id, request) = asked();
        let (first, _) = ca.issue(&request, &wanted(&id), NOW).expect("issue");
        // It was attested, and its identity is revoked before the next one is on record.
        let asking = Wanted { shown: Some(&first.serial), ..wanted(&id) };
        ca.issue(&request, &asking, NOW).expect("good until now");
        assert_eq!(ca.revoke(&Revocable::Id(id.clone()), "stolen", &board, NOW).expect("revoke").len(), 2);
        let refused = ca.issue(&request, &asking, NOW);
        assert!(matches!(refused, Err(IssueFailure::PeerRevoked { serial }) if serial == first.serial));
        assert_eq!(ca.alive(NOW).len(), 2, "none is on record that is not revoked");
        ca.issue(&request, &wanted(&id), NOW).expect("with a new join token");
    }

    #[test]
    fn a_workload_that_asks_without_end_can_still_be_revoked_and_takes_nobodys_place() {
        let (dir, ca) = ca();
        let board = board(&ca);
        let (id, request) = asked();
        for _ in 0..ISSUED_PER_WORKLOAD_MAX {
            ca.issue(&request, &wanted(&id), NOW).expect("issue");
        }
        let again = Ca::open(Arc::clone(&ca.store), dir.path(), &settings("a.example"), NOW).expect("restart");
        for ca in [&ca, &again] {
            let refused = ca.issue(&request, &wanted(&id), NOW);
            assert!(matches!(refused, Err(IssueFailure::TooMany { workload }) if workload == "b/c"));
        }
        ca.issue(&request, &Wanted { workload: "b/d", ..wanted(&id) }, NOW).expect("another workload");
        let revoked = ca.revoke(&Revocable::Id(id.clone()), "stolen", &board, NOW).expect("all at once");
        assert_eq!(revoked.len(), ISSUED_PER_WORKLOAD_MAX + 1);
        ca.issue(&request, &wanted(&id), NOW.plus(Duration::from_secs(61))).expect("what has ended makes room");
    }

    #[test]
    fn what_is_revoked_stays_so_over_a_restart_until_its_end() {
        let (dir, ca) = ca();
        let board = board(&ca);
        let (id, request) = asked();
        let issue = || ca.issue(&request, &wanted(&id), NOW).expect("issue").0.serial;
        let (one, two) = (issue(), issue());
        let revoked = ca.revoke(&Revocable::Serial(one.clone()), "lost", &board, NOW).expect("revoke");
        assert_eq!(revoked.iter().map(|(serial, _)| serial.as_str()).collect::<Vec<_>>(), [one.as_str()]);
        let all = ca.revoke(&Revocable::Id(id.clone()), "later", &board, NOW).expect("revoke");
        assert_eq!(all.len(), 2);
        let first = all.iter().find(|(serial, _)| *serial == one).expect("still");
        assert_eq!(first.1.reason, "lost", "who was first said why");
        assert_eq!(board.current().trust.revoked.len(), 2);
        let again = Ca::open(Arc::clone(&ca.store), dir.path(), &settings("a.example"), NOW).expect("restart");
        assert!(again.is_revoked(&one) && again.is_revoked(&two));
        // A peer whose clock is behind believes it for longer than its end.
        let (ended, forgotten) = (NOW.plus(Duration::from_secs(61)), NOW.plus(Duration::from_secs(60) + BACK_DATING));
        assert_eq!(again.trust(ended).revoked.len(), 2);
        assert!(again.trust(forgotten).revoked.is_empty(), "what nobody believes is not remembered");
        for nothing in
            [Revocable::Serial("0a".into()), Revocable::Id(SpiffeId::parse("spiffe://a.example/ns/b/sa/d").expect("id"))]
        {
            assert!(matches!(ca.revoke(&nothing, "", &board, NOW), Err(ChangeFailure::Nothing(_))), "{nothing:?}");
        }
    }
}
