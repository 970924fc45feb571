//! The rotation of the authority: prepare, activate, taint, retire. Each step is taken only on evidence that it hurts nobody.
//!
//! [`next`] and [`held_up`] are the rule, without a clock or a store; [`run`] looks every half second and takes the step that
//! nothing holds up. What was decided is on disk, so that a control plane that was killed goes on where it was.

use crate::authorities::{self, Authorities, AuthorityFailure, Stage};
use crate::ca::{Ca, ChangeFailure};
use crate::clock;
use crate::desired::Board;
use crate::rollout::Rollout;
use identity::Credentials;
use identity::authority::BACK_DATING;
use model::{Revision, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked whether the next step is held up.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long whoever signs the authority is left alone after it failed.
const SIGNER_REST: Duration = Duration::from_secs(60);

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The prepared authority signs from now on.
    Activate,
    /// Whoever has an SVID of an old authority asks for another now.
    Taint,
    /// The tainted authorities leave the bundle.
    Retire,
}

impl Step {
    /// The word for people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Taint => "taint",
            Self::Retire => "retire",
        }
    }
}

/// Who holds the next step up, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HoldUp {
    pub(crate) who: String,
    pub(crate) why: String,
}

/// What is known of one workload's sidecar at a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness {
    pub(crate) workload: String,
    pub(crate) is_connected: bool,
    /// The revision that it runs.
    pub(crate) acked: Revision,
    pub(crate) rejected: Option<String>,
    /// The authority of the SVID that its stream was opened with.
    pub(crate) proven: Option<String>,
    /// Its SVIDs that have not ended.
    pub(crate) alive: Vec<Alive>,
}

/// An SVID that has not ended.
#[derive(Clone, Debug)]
pub(crate) struct Alive {
    pub(crate) serial: String,
    pub(crate) authority: String,
    pub(crate) until: Timestamp,
    pub(crate) is_applications: bool,
}

/// Everything that a step is decided on.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    pub(crate) now: Timestamp,
    /// The revision since which the same peers are believed.
    pub(crate) trust_revision: Revision,
    /// The authority of the control plane's own SVID.
    pub(crate) own: Option<String>,
    pub(crate) witnesses: Vec<Witness>,
    /// How often other trust domains look for a new bundle; `None` where it is not served to them.
    pub(crate) fetched_every: Option<Duration>,
}

/// The step that comes next; `None` if no rotation is under way.
pub(crate) fn next(authorities: &Authorities) -> Option<Step> {
    let has = |stage| authorities.in_stage(stage).is_some();
    match (has(Stage::Old), has(Stage::Tainted), has(Stage::Prepared)) {
        // What was begun is ended before another begins.
        (true, _, _) => Some(Step::Taint),
        (_, true, _) => Some(Step::Retire),
        (_, _, true) => Some(Step::Activate),
        (false, false, false) => None,
    }
}

/// Everything that holds a step up. Empty: it may be taken.
pub(crate) fn held_up(step: Step, authorities: &Authorities, evidence: &Evidence) -> Vec<HoldUp> {
    match step {
        Step::Activate => activating(authorities, evidence),
        Step::Taint => tainting(authorities, evidence),
        Step::Retire => retiring(authorities, evidence),
    }
}

/// Whoever may be alive must believe the new authority before it signs anything.
fn activating(authorities: &Authorities, evidence: &Evidence) -> Vec<HoldUp> {
    let mut held = Vec::new();
    // Ours begin so long before they are made; what a program signs may begin this very moment. Where the one in use has ended there is
    // nobody to be careful for.
    let has_ended = authorities.active().is_some_and(|active| evidence.now >= active.not_after);
    let margin = if has_ended { Duration::ZERO } else { BACK_DATING };
    let begins = authorities.in_stage(Stage::Prepared).map(|prepared| prepared.not_before.plus(margin));
    if let Some(begins) = begins.filter(|begins| evidence.now < *begins) {
        let why = format!("whoever's clock is behind believes the prepared authority from {begins} only");
        held.push(HoldUp { who: CONTROL_PLANE.into(), why });
    }
    held.extend(foreign(authorities, evidence));
    for witness in &evidence.witnesses {
        if witness.acked >= evidence.trust_revision {
            continue;
        }
        let ends = witness.alive.iter().map(|alive| alive.until).max();
        let why = match (witness.is_connected, &witness.rejected, ends) {
            (true, Some(reason), _) => format!("refuses the bundle with the new authority: {reason}"),
            (true, None, _) => {
                format!("has not acknowledged the bundle with the new authority (revision {})", evidence.trust_revision)
            }
            (false, _, Some(ends)) => {
                format!("is away without the new authority's bundle, and has an SVID until {ends}; it must come back or end")
            }
            // Nobody believes it any more: when it comes back it asks for an SVID first, and gets the new bundle.
            (false, _, None) => continue,
        };
        held.push(HoldUp { who: witness.workload.clone(), why });
    }
    held
}

/// Other trust domains acknowledge nothing: they have had the new authority's bundle for as long as two of their looks take.
/// An authority that has ended is believed by none of them, so that nothing is lost by its successor's haste.
fn foreign(authorities: &Authorities, evidence: &Evidence) -> Option<HoldUp> {
    let (prepared, every) = (authorities.in_stage(Stage::Prepared)?, evidence.fetched_every?);
    let is_alive = authorities.active().is_some_and(|active| evidence.now < active.not_after);
    let until = prepared.since.plus(every * 2);
    (is_alive && evidence.now < until).then(|| HoldUp {
        who: "other trust domains".into(),
        why: format!("look for a new bundle every {} s; they have seen it at {until}", every.as_secs()),
    })
}

/// The first SVID of the new authority must be in use: our own, with which everybody talks.
fn tainting(authorities: &Authorities, evidence: &Evidence) -> Vec<HoldUp> {
    let active = authorities.active().map(|active| active.id.as_str());
    if evidence.own.as_deref() == active {
        return Vec::new();
    }
    vec![HoldUp { who: CONTROL_PLANE.into(), why: "has not renewed its own SVID with the new authority yet".into() }]
}

/// Nothing that a tainted authority signed may be in use.
fn retiring(authorities: &Authorities, evidence: &Evidence) -> Vec<HoldUp> {
    let tainted: BTreeSet<&str> = authorities::ids(authorities, Stage::Tainted);
    let mut held = Vec::new();
    for witness in &evidence.witnesses {
        // Its stream is opened anew with each SVID: it shows what it uses. What it used before has gone with its key.
        let has_moved = witness.is_connected && witness.proven.as_deref().is_some_and(|proven| !tainted.contains(proven));
        let in_use = witness.alive.iter().filter(|alive| tainted.contains(alive.authority.as_str()));
        let in_use = in_use.filter(|alive| alive.is_applications || !has_moved).max_by_key(|alive| alive.until);
        let Some(alive) = in_use else { continue };
        let what = if alive.is_applications { "its application has" } else { "has" };
        let how = if witness.is_connected { "" } else { ", and is away" };
        let why = format!("{what} the SVID {} of the old authority until {}{how}", alive.serial, alive.until);
        held.push(HoldUp { who: witness.workload.clone(), why });
    }
    for authority in authorities.stored.authorities.iter().filter(|authority| authority.stage == Stage::Tainted) {
        if evidence.now < authority.jwt_until {
            let why = format!("JWT-SVIDs of the old authority may be in use until {}", authority.jwt_until);
            held.push(HoldUp { who: CONTROL_PLANE.into(), why });
        }
    }
    held
}

/// Who a hold-up is told of that no sidecar is at fault for.
pub(crate) const CONTROL_PLANE: &str = "control plane";

/// Takes each step when nothing holds it up, for as long as the process lives; begins a rotation when one is due.
pub(crate) async fn run(
    ca: Arc<Ca>,
    board: Arc<Board>,
    rollout: Arc<Rollout>,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
) {
    let mut told = String::new();
    let mut rests_until = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let failing = Arc::clone(&ca);
        let (ca, board, rollout, own) = (Arc::clone(&ca), Arc::clone(&board), Arc::clone(&rollout), credentials.clone());
        let may_begin = Instant::now() >= rests_until;
        let taken = tokio::task::spawn_blocking(move || look(&ca, &board, &rollout, &own, may_begin)).await;
        if may_begin && matches!(taken, Ok(Err(ChangeFailure::Authority(AuthorityFailure::Upstream(_))))) {
            rests_until = Instant::now() + SIGNER_REST;
        }
        // The same complaint twice a second helps nobody.
        let now = match taken {
            Ok(Ok(())) if may_begin || next(&failing.authorities()).is_some() => String::new(),
            Ok(Ok(())) => told.clone(),
            Ok(Err(failure)) => failure.to_string(),
            Err(failure) => failure.to_string(),
        };
        failing.set_failing((!now.is_empty()).then(|| now.clone()), clock::now());
        if now != told && !now.is_empty() {
            tracing::error!(failure = now, "the authority's rotation cannot go on; it is tried again");
        }
        told = now;
    }
}

fn look(
    ca: &Ca,
    board: &Board,
    rollout: &Rollout,
    credentials: &watch::Receiver<Option<Arc<Credentials>>>,
    may_begin: bool,
) -> Result<(), ChangeFailure> {
    let now = clock::now();
    // What a crash cut off between the store and the sidecars is told now; what has ended is told no longer.
    ca.publish(board, now)?;
    let desired = board.current();
    rollout.forget_others(&desired.mesh.workloads.iter().map(|workload| &workload.name).collect(), now);
    let authorities = ca.authorities();
    let Some(step) = next(&authorities) else {
        // With nobody there to prove anything to, a wrong clock could rotate the mesh away.
        let is_due = authorities.active().is_some_and(|active| authorities::is_due(active, now)) && rollout.connections() > 0;
        if is_due && may_begin {
            tracing::info!("half of the authority's life is over; its rotation begins");
            ca.prepare(board, now)?;
        }
        return Ok(());
    };
    let is_free =
        |authorities: &Authorities| held_up(step, authorities, &evidence(ca, board, rollout, credentials, now)).is_empty();
    if ca.take(step, board, now, is_free)? {
        tracing::info!(step = step.as_str(), "the authority's rotation went on");
    }
    Ok(())
}

/// What is known now.
pub(crate) fn evidence(
    ca: &Ca,
    board: &Board,
    rollout: &Rollout,
    credentials: &watch::Receiver<Option<Arc<Credentials>>>,
    now: Timestamp,
) -> Evidence {
    let own = credentials.borrow().as_ref().and_then(|own| own.svid().authority_key_id().map(str::to_owned));
    let mut witnesses = rollout.witnesses();
    for (serial, issued) in ca.alive(now) {
        // The control plane's own are told by `own`.
        if issued.workload.is_empty() {
            continue;
        }
        let alive = Alive { serial, authority: issued.authority, until: issued.not_after, is_applications: issued.application };
        match witnesses.iter_mut().find(|witness| witness.workload == issued.workload) {
            Some(witness) => witness.alive.push(alive),
            None => witnesses.push(Witness { workload: issued.workload, alive: vec![alive], ..Witness::default() }),
        }
    }
    let desired = board.current();
    let fetched_every = desired.mesh.settings.bundle_endpoint.as_ref().map(|endpoint| endpoint.refresh_hint);
    Evidence { now, trust_revision: desired.trust_revision, own, witnesses, fetched_every }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorities::{StoredAuthorities, StoredAuthority};
    use identity::Authority;
    use identity::jwt_svid::JwtKey;
    use model::TrustDomain;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const LATER: Timestamp = Timestamp::from_seconds(1_800_000_060);

    /// Authorities `old` and `new` in these stages.
    fn authorities(old: Stage, new: Option<Stage>) -> Authorities {
        let domain = TrustDomain::parse("a.example").expect("domain");
        let one = |id: &str, stage| StoredAuthority {
            id: id.into(),
            stage,
            since: NOW,
            source: "self-signed".into(),
            chain: Vec::new(),
            roots: Vec::new(),
            not_before: NOW.minus(BACK_DATING),
            not_after: LATER,
            made_at: NOW,
            jwk: Vec::new(),
            jwt_until: NOW,
        };
        let all = std::iter::once(one("old", old)).chain(new.map(|stage| one("new", stage))).collect();
        Authorities {
            stored: StoredAuthorities { trust_domain: domain.to_string(), authorities: all },
            active: Authority::generate(&domain, NOW, Duration::from_secs(60)).expect("authority"),
            jwt: JwtKey::generate().expect("key"),
        }
    }

    fn alive(authority: &str, is_applications: bool) -> Alive {
        Alive { serial: "0a".into(), authority: authority.into(), until: LATER, is_applications }
    }

    fn witness(is_connected: bool, acked: u64, proven: Option<&str>, alive: Vec<Alive>) -> Witness {
        let proven = proven.map(str::to_owned);
        Witness { workload: "a/b".into(), is_connected, acked: Revision(acked), rejected: None, proven, alive }
    }

    fn evidence(own: &str, witness: Witness) -> Evidence {
        Evidence { now: NOW, trust_revision: Revision(7), own: Some(own.into()), witnesses: vec![witness], fetched_every: None }
    }

    #[test]
    fn one_step_follows_the_other() {
        for (old, new, expected) in [
            (Stage::Active, None, None),
            (Stage::Active, Some(Stage::Prepared), Some(Step::Activate)),
            (Stage::Old, Some(Stage::Active), Some(Step::Taint)),
            (Stage::Tainted, Some(Stage::Active), Some(Step::Retire)),
        ] {
            assert_eq!(next(&authorities(old, new)), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn nothing_is_activated_before_all_who_may_be_alive_believe_it() {
        let authorities = authorities(Stage::Active, Some(Stage::Prepared));
        let old = || vec![alive("old", false)];
        for (name, witness, held) in [
            ("acknowledged", witness(true, 7, Some("old"), old()), None),
            ("not yet", witness(true, 6, Some("old"), old()), Some("has not acknowledged")),
            ("connected without any SVID on record", witness(true, 6, None, Vec::new()), Some("has not acknowledged")),
            ("away with an SVID", witness(false, 6, None, old()), Some("is away")),
            ("away, and it acknowledged before", witness(false, 7, None, old()), None),
            ("away, and nobody believes it any more", witness(false, 0, None, Vec::new()), None),
            (
                "refuses",
                Witness { rejected: Some("no room".into()), ..witness(true, 6, None, old()) },
                Some("refuses the bundle with the new authority: no room"),
            ),
        ] {
            let found = held_up(Step::Activate, &authorities, &evidence("old", witness));
            assert_eq!(found.len(), usize::from(held.is_some()), "{name}: {found:?}");
            assert!(
                found.iter().all(|each| each.who == "a/b" && each.why.contains(held.unwrap_or_default())),
                "{name}: {found:?}"
            );
        }
        let early = Evidence { now: Timestamp::from_seconds(1), ..evidence("old", witness(true, 7, None, Vec::new())) };
        assert!(held_up(Step::Activate, &authorities, &early)[0].why.contains("clock is behind"), "the clock was set back");
        // A program signed it this very moment: a sidecar whose clock is behind would refuse whoever has an SVID of it.
        let mut young = authorities;
        young.stored.authorities[1].not_before = NOW;
        let acknowledged = evidence("old", witness(true, 7, None, Vec::new()));
        assert!(held_up(Step::Activate, &young, &acknowledged)[0].why.contains("clock is behind"));
        let later = Evidence { now: NOW.plus(BACK_DATING), ..acknowledged };
        assert!(held_up(Step::Activate, &young, &later).is_empty());
        young.stored.authorities[0].not_after = NOW;
        let ended = evidence("old", witness(true, 7, None, Vec::new()));
        assert!(held_up(Step::Activate, &young, &ended).is_empty(), "nothing that has ended is waited for");
    }

    #[test]
    fn nothing_is_activated_before_other_trust_domains_have_looked_twice() {
        let authorities = authorities(Stage::Active, Some(Stage::Prepared));
        for (after, every, is_held) in
            [(0, Some(10), true), (19, Some(10), true), (20, Some(10), false), (0, None, false), (60, Some(600), false)]
        {
            let evidence = Evidence {
                now: NOW.plus(Duration::from_secs(after)),
                fetched_every: every.map(Duration::from_secs),
                ..evidence("old", witness(true, 7, Some("old"), Vec::new()))
            };
            let found = held_up(Step::Activate, &authorities, &evidence);
            assert_eq!(found.len(), usize::from(is_held), "{after} s, every {every:?}: {found:?}");
            assert!(found.iter().all(|each| each.who == "other trust domains"), "{found:?}");
        }
    }

    #[test]
    fn nothing_is_tainted_before_the_new_authority_is_in_use() {
        let authorities = authorities(Stage::Old, Some(Stage::Active));
        let nobody = || witness(false, 0, None, Vec::new());
        assert_eq!(held_up(Step::Taint, &authorities, &evidence("old", nobody()))[0].who, CONTROL_PLANE);
        assert!(held_up(Step::Taint, &authorities, &evidence("new", nobody())).is_empty());
    }

    #[test]
    fn nothing_is_retired_while_an_svid_of_it_may_be_in_use() {
        let tainted = || authorities(Stage::Tainted, Some(Stage::Active));
        for (name, witness, held) in [
            ("renewed and shown", witness(true, 7, Some("new"), vec![alive("old", false), alive("new", false)]), None),
            (
                "renewed and not shown",
                witness(true, 7, Some("old"), vec![alive("old", false), alive("new", false)]),
                Some("until"),
            ),
            ("shows nothing", witness(true, 7, None, vec![alive("old", false)]), Some("until")),
            ("away", witness(false, 7, None, vec![alive("old", false)]), Some("and is away")),
            ("away, and its SVID has ended", witness(false, 7, None, Vec::new()), None),
            ("its application's", witness(true, 7, Some("new"), vec![alive("old", true)]), Some("its application has")),
            ("only new ones", witness(true, 7, Some("new"), vec![alive("new", true), alive("new", false)]), None),
        ] {
            let found = held_up(Step::Retire, &tainted(), &evidence("new", witness));
            assert_eq!(found.len(), usize::from(held.is_some()), "{name}: {found:?}");
            assert!(found.iter().all(|each| each.why.contains(held.unwrap_or_default())), "{name}: {found:?}");
        }
        let mut signed = tainted();
        signed.stored.authorities[0].jwt_until = LATER;
        let nobody = witness(false, 0, None, Vec::new());
        assert!(held_up(Step::Retire, &signed, &evidence("new", nobody))[0].why.contains("JWT-SVIDs"));
    }

    #[test]
    fn an_authority_is_replaced_by_itself_in_the_second_half_of_its_life_only() {
        let authority = |(not_before, made_at, not_after)| StoredAuthority {
            not_before: Timestamp::from_seconds(not_before),
            made_at: Timestamp::from_seconds(made_at),
            not_after: Timestamp::from_seconds(not_after),
            ..authorities(Stage::Active, None).stored.authorities[0].clone()
        };
        let now = Timestamp::from_seconds(150);
        for (name, life, expected) in [
            ("young", (100, 100, 300), false),
            ("half", (100, 100, 200), true),
            ("ended", (100, 100, 150), false),
            ("not yet valid", (200, 100, 300), false),
            ("short-lived and begun long before it was made", (10, 140, 180), false),
            ("that one at half of its life", (10, 110, 180), true),
            ("made by an earlier version", (100, 0, 200), true),
        ] {
            assert_eq!(authorities::is_due(&authority(life), now), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn a_signer_that_fails_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().expect("directory");
        let asked = dir.path().join("asked");
        let text = format!(
            "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{ name: a }}\nspec:\n  trustDomain: a.example\n  \
             certificates: {{ upstream: {{ command: [sh, -c, 'echo >> {}; false'] }} }}\n",
            asked.display()
        );
        let sources = vec![config::Source { file: "a.yaml".into(), text }];
        let mesh = config::parse(&sources).expect("mesh");
        // Made two thirds of its life ago: it is due at once.
        let (lifetime, made_at) = (Duration::from_secs(60), clock::now().minus(Duration::from_secs(40)));
        let first =
            config::Settings { upstream: config::UpstreamAuthority::SelfSigned, authority_lifetime: lifetime, ..mesh.settings };
        let store = Arc::new(crate::store::Store::open(&dir.path().join("control.redb")).expect("store"));
        let ca = Arc::new(Ca::open(Arc::clone(&store), dir.path(), &first, made_at).expect("authority"));
        let begun = crate::desired::Begun::read(&store, Ok(sources)).expect("begun");
        let board = Arc::new(Board::begin(store, begun, ca.trust(clock::now())).expect("board"));
        let rollout = Arc::new(Rollout::default());
        let opened = crate::rollout::Opened { serial: "01".into(), authority: None, not_after: LATER, key_exchange: "X25519" };
        rollout.connected(&model::WorkloadName::parse("a/b").expect("name"), Revision(1), opened);
        let (_own, credentials) = watch::channel(None);
        let run = run(ca, board, rollout, credentials);
        tokio::time::timeout(Duration::from_secs(3), run).await.expect_err("it runs for as long as the process");
        assert_eq!(std::fs::read_to_string(asked).expect("asked").lines().count(), 1);
    }
}
