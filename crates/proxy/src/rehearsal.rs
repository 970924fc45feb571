//! This sidecar's part in the rehearsal of a rotation: an SVID of the shadow authority, and a handshake with every endpoint that
//! the application may call. Carries no request and changes nothing.

use crate::anchor::Anchor;
use crate::clock;
use crate::control_link::{self, LinkFailure};
use crate::state::Shared;
use identity::csr;
use identity::key::KeyFailure;
use identity::rehearsal::{Moment, Shadow, ShadowError};
use identity::{HandshakeRefusal, PrivateKey};
use model::snapshot::{Endpoint, TrustBundle};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use wire::client::{CallFailure, ControlClient, IssueCall};
use wire::rehearsal::{HANDSHAKES_MAX, Handshake, Order, Phase, Report, Step};

/// How long a shadow SVID is answered with, whatever becomes of the control plane.
const LIFE_MAX: Duration = Duration::from_secs(120);
/// For one issue call.
const ISSUE_DEADLINE: Duration = Duration::from_secs(10);
/// For one connection, and for one handshake.
const STEP_DEADLINE: Duration = Duration::from_secs(3);

/// A rehearsal that is under way.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    id: String,
    shadow: Arc<Shadow>,
    ends: Instant,
}

impl Rehearsal {
    /// What handshakes of the rehearsal are answered with; `None` when its time is over.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        (Instant::now() < self.ends).then(|| Arc::clone(&self.shadow))
    }
}

/// Why a step could not be taken. The text goes to the operator.
#[derive(Debug, thiserror::Error)]
enum RehearsalFailure {
    #[error("no SVID or no configuration yet")]
    NotReady,
    #[error("no rehearsal of this id is under way here")]
    Unknown,
    #[error("make a key and its request: {0}")]
    Key(#[from] KeyFailure),
    #[error("{0}")]
    Link(#[from] LinkFailure),
    #[error("issue call: {0}")]
    Call(#[from] CallFailure),
    #[error("{0}")]
    Shadow(#[from] ShadowError),
}

/// Takes one step and says what came of it.
pub async fn take(shared: &Shared, anchor: &Anchor, order: Order) -> Report {
    let Order { id, step } = order;
    let taken = match step {
        Step::Prepare(bundle) => prepare(shared, anchor, &id, &bundle).await.map(|()| Vec::new()),
        Step::Shake => shake(shared, &id).await,
        Step::End => {
            *shared.rehearsal.write() = None;
            Ok(Vec::new())
        }
    };
    match taken {
        Ok(handshakes) => Report { id, failure: None, handshakes },
        Err(failure) => Report { id, failure: Some(failure.to_string()), handshakes: Vec::new() },
    }
}

async fn prepare(shared: &Shared, anchor: &Anchor, id: &str, bundle: &TrustBundle) -> Result<(), RehearsalFailure> {
    let own = shared.credentials().ok_or(RehearsalFailure::NotReady)?;
    let key = PrivateKey::generate()?;
    let call = IssueCall {
        csr: csr::build(&key, own.svid().id())?,
        workload: shared.settings.workload.to_string(),
        rehearsal: Some(id.to_owned()),
        ..IssueCall::default()
    };
    let channel = control_link::channel(shared, anchor).await?;
    let issued = ControlClient::new(channel).issue(call, ISSUE_DEADLINE).await?;
    let shadow = Arc::new(Shadow::build(&key, issued.chain, bundle, &own, clock::now())?);
    *shared.rehearsal.write() = Some(Rehearsal { id: id.to_owned(), shadow, ends: Instant::now() + LIFE_MAX });
    Ok(())
}

/// Two handshakes with each endpoint, one after the other: a rehearsal is no load test.
async fn shake(shared: &Shared, id: &str) -> Result<Vec<Handshake>, RehearsalFailure> {
    let active = shared.active().ok_or(RehearsalFailure::NotReady)?;
    let rehearsal = shared.rehearsal.read().clone().filter(|rehearsal| rehearsal.id == id);
    let shadow = rehearsal.and_then(|rehearsal| rehearsal.shadow()).ok_or(RehearsalFailure::Unknown)?;
    let endpoints: BTreeSet<&Endpoint> = active.snapshot.upstreams.iter().flat_map(|upstream| &upstream.endpoints).collect();
    let mut handshakes = Vec::new();
    for endpoint in endpoints {
        for (phase, moment) in [(Phase::Activate, Moment::Activated), (Phase::Retire, Moment::Retired)] {
            if handshakes.len() == HANDSHAKES_MAX {
                return Ok(handshakes);
            }
            let failure = one(&shadow, endpoint, moment).await.err();
            handshakes.push(Handshake { address: endpoint.address, identity: endpoint.identity.clone(), phase, failure });
        }
    }
    Ok(handshakes)
}

async fn one(shadow: &Shadow, endpoint: &Endpoint, moment: Moment) -> Result<(), String> {
    let stream = match timeout(STEP_DEADLINE, TcpStream::connect(endpoint.address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("connect: {error}")),
        Err(_) => return Err(format!("connect: not done within {} ms", STEP_DEADLINE.as_millis())),
    };
    shadow.shake(stream, &endpoint.identity, moment, STEP_DEADLINE).await.map_err(|refusal| match refusal {
        HandshakeRefusal::Timeout { .. } => format!("handshake: not done within {} ms", STEP_DEADLINE.as_millis()),
        refusal => refusal.to_string(),
    })
}
