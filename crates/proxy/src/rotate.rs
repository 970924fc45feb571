//! Keeps this workload's SVID fresh. When is `identity::rotation`'s rule; here is the loop that sleeps or acts.

use crate::anchor::{Anchor, AnchorFailure};
use crate::clock;
use crate::control_link::{self, LinkFailure};
use crate::state::Shared;
use crate::sync;
use identity::credentials::{Credentials, CredentialsError};
use identity::key::{KeyFailure, PrivateKey};
use identity::rotation::{self, Step};
use identity::{bundle::BundleError, bundle::TrustBundles, csr};
use model::{Snapshot, SpiffeId, Timestamp};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use wire::client::{CallFailure, ControlClient, IssueCall, Issued};

/// The longest sleep, so that a machine that was suspended, or a clock that was set, is noticed.
pub const SLEEP_MAX: Duration = Duration::from_secs(5);
/// How often the join token's file is looked at while no SVID speaks for the workload.
const OUT_LOOK_EVERY: Duration = Duration::from_millis(250);
/// For one issue call.
pub const ISSUE_DEADLINE: Duration = Duration::from_secs(10);
/// Clocks that differ by more than this are warned of; certificates bear about five minutes.
pub const CLOCK_OFF_MS: u64 = 60_000;
/// Join tokens are short; a larger file is not one.
const JOIN_TOKEN_BYTES_MAX: u64 = 4096;

/// Why no SVID could be had.
#[derive(Debug, thiserror::Error)]
pub enum IssueFailure {
    /// No key or CSR could be made.
    #[error("make a key and its request: {0}")]
    Key(#[from] KeyFailure),
    /// The join token's file could not be read.
    #[error("read the join token `{path}`: {error}")]
    JoinToken {
        /// The file.
        path: String,
        /// The operating system's word.
        error: io::Error,
    },
    /// There is nothing to check the control plane against.
    #[error("{0}")]
    Anchor(#[from] AnchorFailure),
    /// The control plane cannot be reached.
    #[error("{0}")]
    Link(#[from] LinkFailure),
    /// The control plane refused.
    #[error("issue call: {0}")]
    Call(#[from] CallFailure),
    /// What it sent is not a bundle.
    #[error("trust bundle from the control plane: {0}")]
    Bundle(#[from] BundleError),
    /// What it sent does not pass as an SVID with any peer.
    #[error("SVID from the control plane: {0}")]
    Svid(#[from] CredentialsError),
    /// It is the SVID of somebody else.
    #[error("SVID from the control plane is for `{got}`, not for `{wanted}`")]
    Foreign {
        /// Who we are.
        wanted: SpiffeId,
        /// Who it says we are.
        got: SpiffeId,
    },
}

/// The loop: wait or issue, for as long as the process lives.
pub async fn run(shared: Arc<Shared>, anchor: Anchor) {
    let mut failures = 0;
    let mut last_attempt = None;
    let mut configured = shared.config.subscribe();
    let mut jitter = jitter();
    // An SVID that must be replaced before its time, and since when.
    let mut urgent: Option<(String, Timestamp)> = None;
    let mut token = None;
    loop {
        let now = clock::now();
        let state = shared.rotation_state(failures, last_attempt);
        urgent = overtaken(&shared).map(|serial| match urgent.take() {
            Some((known, since)) if known == serial && since <= now => (known, since),
            Some(_) | None => (serial, now),
        });
        let step = match (&state, last_attempt) {
            // Without any SVID the plan knows nothing to wait for; the back-off still holds.
            (None, Some(attempt)) if failures > 0 => rotation::retry(now, attempt, failures, jitter),
            (Some(state), _) => {
                // Many renew at once when an authority is tainted; who is revoked is out of service until it is done.
                let spread = if shared.is_revoked() { 0.0 } else { jitter };
                rotation::next_of(now, state, urgent.as_ref().map(|(_, since)| *since), spread)
            }
            _ => rotation::next(now, state.as_ref(), jitter),
        };
        let is_out = !shared.credentials().is_some_and(|credentials| is_good(&credentials, now));
        let is_given = is_out && is_replaced(&shared, &mut token);
        match step {
            // A supervisor has put another token there: what made the earlier attempts fail is gone.
            Step::WaitUntil(_) if is_given => failures = failures.min(1),
            Step::WaitUntil(_) if is_out => tokio::time::sleep(OUT_LOOK_EVERY).await,
            // A configuration may taint or revoke the SVID meanwhile.
            Step::WaitUntil(at) => {
                let sleep = tokio::time::sleep(at.since(now).clamp(Duration::from_millis(20), SLEEP_MAX));
                tokio::select! {
                    () = sleep => {}
                    Ok(()) = configured.changed() => {}
                }
            }
            Step::Issue => {
                last_attempt = Some(now);
                match issue(&shared, &anchor).await {
                    Ok(()) => {
                        if failures > 0 {
                            tracing::info!(failures, "an SVID was issued again");
                        }
                        failures = 0;
                        jitter = self::jitter();
                        shared.metrics.svid_rotations.inc();
                    }
                    Err(failure) => {
                        failures += 1;
                        shared.metrics.svid_failures.inc();
                        // Once per change of state, then at every tenth, so that a long outage stays visible without filling the disk.
                        if failures == 1 || failures % 10 == 0 {
                            tracing::warn!(failures, %failure, "no SVID could be issued");
                        }
                    }
                }
            }
        }
    }
}

/// Whether the join token's file was replaced since it was looked at last.
fn is_replaced(shared: &Shared, known: &mut Option<SystemTime>) -> bool {
    let path = shared.settings.join_token_file.as_ref();
    let modified = path.and_then(|path| std::fs::metadata(path).and_then(|found| found.modified()).ok());
    let before = std::mem::replace(known, modified);
    before.is_some() && modified != before
}

/// A share of 0 to 1, so that sidecars that started together do not renew together.
pub(crate) fn jitter() -> f64 {
    let bytes: [u8; 4] = identity::random_bytes().unwrap_or([128; 4]);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}

/// One issuance: new key, request, ask, check it as any peer would, put it in force.
async fn issue(shared: &Shared, anchor: &Anchor) -> Result<(), IssueFailure> {
    let key = PrivateKey::generate()?;
    let wanted = shared.active().map(|active| active.snapshot.identity.clone());
    // The name in a CSR is a courtesy: the control plane takes the identity from the attestation and only the key from here.
    let named = wanted.clone().unwrap_or_else(|| anchor.control_plane.clone());
    let request = csr::build(&key, &named)?;
    let join_token = join_token(shared, anchor).await?;
    let channel = control_link::channel(shared, anchor).await?;
    let asked_at = clock::now();
    let workload = shared.settings.workload.to_string();
    let call = IssueCall { csr: request, join_token, workload, ..IssueCall::default() };
    let issued = ControlClient::new(channel).issue(call, ISSUE_DEADLINE).await?;
    let now = clock::now();
    compare_clocks(shared, issued.now, asked_at, now);
    let bundles = bundles_with(shared, &issued)?;
    let credentials = Credentials::build(&key, issued.chain, Arc::new(bundles), now)?;
    let got = credentials.svid().id().clone();
    if let Some(wanted) = wanted.filter(|wanted| *wanted != got) {
        return Err(IssueFailure::Foreign { wanted, got });
    }
    tracing::info!(id = %got, serial = credentials.svid().serial(), not_after = %credentials.svid().not_after(), "SVID issued");
    shared.replace_credentials(Arc::new(credentials), now);
    Ok(())
}

/// What an SVID that was just issued is checked with.
///
/// # Errors
/// - [`BundleError`] naming the authority that cannot be one.
pub(crate) fn bundles_with(shared: &Shared, issued: &Issued) -> Result<TrustBundles, BundleError> {
    // What the configuration in force says is kept if it is later: an answer may have been overtaken on its way.
    bundles_under(shared.active().as_ref().map(|active| &active.snapshot), issued)
}

fn bundles_under(snapshot: Option<&Snapshot>, issued: &Issued) -> Result<TrustBundles, BundleError> {
    match snapshot {
        Some(snapshot) if snapshot.revision >= issued.revision => sync::bundles_of(snapshot),
        // An answer tells who is believed, and nothing of who is not in spite of that.
        Some(snapshot) => Ok(sync::restricted(TrustBundles::from_model(&issued.bundles)?, snapshot)),
        None => TrustBundles::from_model(&issued.bundles),
    }
}

/// The serial of the SVID in use, if it must be replaced before its time: it is revoked, or its authority is about to be retired.
fn overtaken(shared: &Shared) -> Option<String> {
    let own = shared.credentials()?;
    (shared.is_revoked() || shared.is_tainted(own.svid())).then(|| own.svid().serial().to_owned())
}

/// Notes how far the two clocks are apart: the control plane's answer was made between the two moments of ours.
fn compare_clocks(shared: &Shared, theirs: Timestamp, asked_at: Timestamp, answered_at: Timestamp) {
    if theirs.millis() == 0 {
        return;
    }
    let ours = asked_at.plus(answered_at.since(asked_at) / 2);
    let signed = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let ahead = if ours >= theirs { signed(ours.since(theirs)) } else { -signed(theirs.since(ours)) };
    let before = shared.clock_ahead_ms.swap(ahead, Ordering::Relaxed);
    shared.metrics.clock_ahead_ms.set(ahead);
    let is_off = |ahead: i64| ahead.unsigned_abs() > CLOCK_OFF_MS;
    if is_off(ahead) && !is_off(before) {
        tracing::warn!(ahead_ms = ahead, "this machine's clock and the control plane's differ; set them by NTP");
    }
}

/// The join token, where there is no SVID that could speak for us. Read anew each time: a supervisor may have replaced it, and
/// the trust bundle beside it.
async fn join_token(shared: &Shared, anchor: &Anchor) -> Result<Option<String>, IssueFailure> {
    if shared.credentials().is_some_and(|credentials| is_good(&credentials, clock::now())) {
        return Ok(None);
    }
    anchor.reread()?;
    // Who has none takes the SVID from an identity socket, and does not come here.
    let path = shared.settings.join_token_file.as_deref().unwrap_or(Path::new(""));
    let failed = |error| IssueFailure::JoinToken { path: path.display().to_string(), error };
    let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if size > JOIN_TOKEN_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is larger than a join token")));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
    Ok(Some(text.trim().to_owned()))
}

/// Whether an SVID speaks for its workload: it has not ended and is not revoked.
pub fn is_good(credentials: &Credentials, now: Timestamp) -> bool {
    now < credentials.svid().not_after() && !credentials.bundles().is_revoked(credentials.svid().serial())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::snapshot::{Egress, RevokedSvid};
    use model::{Limits, Revision, ServiceName, WorkloadName};
    use testkit::pki::TestAuthority;

    fn snapshot(authority: &TestAuthority, revision: u64) -> Snapshot {
        Snapshot {
            revision: Revision(revision),
            workload: WorkloadName::parse("a/b").expect("name"),
            identity: authority.id("b"),
            service: ServiceName::parse("a/b").expect("name"),
            bundles: vec![authority.bundle()],
            inbound: Vec::new(),
            upstreams: Vec::new(),
            issuers: Vec::new(),
            token: Default::default(),
            policies: Vec::new(),
            roles: model::Roles::default(),
            shadow: Vec::new(),
            sensitive: model::snapshot::Sensitive::default(),
            country: None,
            country_database: None,
            forwarders: Vec::new(),
            captured: false,
            egress: Egress::Refuse,
            connection_age_max: Duration::from_secs(60),
            limits: Limits::default(),
            revoked_tokens: Vec::new(),
            revoked: vec![RevokedSvid { serial: "0a".into(), until: Timestamp::from_seconds(9) }],
            post_quantum_required: true,
        }
    }

    #[test]
    fn the_later_bundles_count_and_what_is_refused_stays_so_whichever_they_are() {
        let (old, new) = (TestAuthority::new("a.example"), TestAuthority::new("a.example"));
        let issued =
            Issued { chain: Vec::new(), bundles: vec![new.bundle()], revision: Revision(5), now: Timestamp::from_seconds(1) };
        for (revision, believed) in [(4, &new), (5, &old), (6, &old)] {
            let bundles = bundles_under(Some(&snapshot(&old, revision)), &issued).expect("sound");
            assert_eq!(bundles.to_model(), [believed.bundle()], "{revision}");
            assert!(bundles.is_revoked("0a") && bundles.is_post_quantum_required(), "{revision}");
        }
        assert_eq!(bundles_under(None, &issued).expect("sound").to_model(), [new.bundle()]);
    }
}
