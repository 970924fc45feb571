//! The services: one file each, one page each.

pub(crate) mod config;
pub(crate) mod identity;
pub(crate) mod operator;
pub(crate) mod telemetry;

use crate::bundle_endpoint::Served;
use crate::ca::{Ca, IssueFailure};
use crate::clock;
use crate::desired::Board;
use crate::federation::Federation;
use crate::records::Records;
use crate::rehearsal::Rehearsals;
use crate::rollout::Rollout;
use crate::serve::Caller;
use crate::shadows::Shadows;
use ::identity::Credentials;
use ::identity::handshake::VerifiedPeer;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Status};

/// What the services work with.
#[derive(Clone, Debug)]
pub(crate) struct Plane {
    pub(crate) board: Arc<Board>,
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) records: Arc<Records>,
    pub(crate) shadows: Arc<Shadows>,
    pub(crate) ca: Arc<Ca>,
    pub(crate) credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub(crate) rehearsals: Arc<Rehearsals>,
    pub(crate) federation: Arc<Federation>,
    pub(crate) bundle_endpoint: Arc<Served>,
}

/// Who opened the connection that a call came on.
fn caller<T>(request: &Request<T>) -> Option<VerifiedPeer> {
    request.extensions().get::<Caller>().and_then(|caller| caller.0.clone())
}

impl Plane {
    /// The same, where a call is for proven workloads only.
    fn proven<T>(&self, request: &Request<T>) -> Result<VerifiedPeer, Status> {
        let peer = caller(request).ok_or_else(|| Status::unauthenticated("this call needs an SVID of the mesh"))?;
        self.fresh(&peer)?;
        // With it somebody could take the sidecar's stream away, and speak for what the sidecar uses and believes.
        if self.ca.is_applications(peer.serial()) {
            let failure = IssueFailure::Applications { serial: peer.serial().to_owned() };
            return Err(Status::permission_denied(failure.to_string()));
        }
        Ok(peer)
    }

    /// A connection can outlive the SVID that it was opened with; what that SVID allows cannot.
    fn fresh(&self, peer: &VerifiedPeer) -> Result<(), Status> {
        if self.ca.is_revoked(peer.serial()) {
            return Err(Status::unauthenticated(format!("the SVID {} of this connection is revoked", peer.serial())));
        }
        if clock::now() < peer.not_after() {
            return Ok(());
        }
        Err(Status::unauthenticated(format!(
            "the SVID of this connection ended at {}; connect with the present one",
            peer.not_after()
        )))
    }
}
