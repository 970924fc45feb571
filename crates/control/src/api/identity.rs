//! Issues SVIDs: attest, prove possession of the key, sign, record, answer.

use super::{Plane, caller};
use crate::ca::{IssueFailure, Wanted};
use crate::clock;
use crate::desired::Desired;
use ::identity::handshake::VerifiedPeer;
use model::{SpiffeId, WorkloadName};
use std::sync::Arc;
use tonic::{Request, Response, Status};
use wire::proto;

#[tonic::async_trait]
impl proto::identity_server::Identity for Plane {
    async fn issue(&self, request: Request<proto::IssueRequest>) -> Result<Response<proto::IssueResponse>, Status> {
        let peer = caller(&request);
        let proto::IssueRequest { csr, join_token, workload, for_application, rehearsal } = request.into_inner();
        let desired = self.board.current();
        let lifetime = desired.mesh.settings.svid_lifetime;
        let (ca, configured) = (Arc::clone(&self.ca), Arc::clone(&desired));
        let signed = tokio::task::spawn_blocking(move || {
            let now = clock::now();
            let token = (!join_token.is_empty()).then_some(join_token.as_str());
            let id = ca.attest(peer.as_ref(), token, now)?;
            let workload = workload_of(&configured, &id, &workload)?;
            if !rehearsal.is_empty() {
                let issued = ca.issue_shadow(&rehearsal, &csr, &id, lifetime, now)?;
                return Ok((id, workload, issued, None));
            }
            let (shown, workload_name) = (peer.as_ref().map(VerifiedPeer::serial), workload.as_str());
            let wanted = Wanted { id: &id, shown, workload: workload_name, application: for_application, lifetime };
            let (issued, authority) = ca.issue(&csr, &wanted, now)?;
            Ok::<_, IssueFailure>((id, workload, issued, Some(authority)))
        });
        let signed = signed.await.map_err(|_| Status::internal("the signing task ended"))?;
        let (id, workload, issued, authority) = signed.map_err(refuse)?;
        if let Some(authority) = authority {
            tracing::info!(%id, %workload, serial = issued.serial, not_after = %issued.not_after, for_application, "SVID issued");
            if !for_application {
                self.rollout.issued(&workload, issued.serial.clone(), authority, issued.not_after);
            }
        }
        // Of the moment of the answer: the caller tells by the revision which of two is the later one.
        let desired = self.board.current();
        Ok(Response::new(proto::IssueResponse {
            chain: issued.chain,
            bundles: desired.trust.bundles.iter().map(wire::convert::bundle_to_wire).collect(),
            revision: desired.revision.0,
            now_ms: clock::now().millis(),
        }))
    }

    async fn issue_jwt(&self, request: Request<proto::IssueJwtRequest>) -> Result<Response<proto::IssueJwtResponse>, Status> {
        let peer = self.proven(&request)?;
        let audiences = request.into_inner().audiences;
        let desired = self.board.current();
        if !desired.mesh.workloads.iter().any(|workload| workload.identity == *peer.id()) {
            return Err(refuse(IssueFailure::NotConfigured { id: peer.id().clone() }));
        }
        let issued = self.ca.issue_jwt(peer.id(), &audiences, &desired.mesh.settings, clock::now()).map_err(refuse)?;
        Ok(Response::new(proto::IssueJwtResponse { token: issued.token, expires_at_ms: issued.expires_at.millis() }))
    }
}

/// The workload that the caller says it stands beside, if it is one of the identity that it proved.
fn workload_of(desired: &Desired, id: &SpiffeId, said: &str) -> Result<WorkloadName, IssueFailure> {
    let mut own = desired.mesh.workloads.iter().filter(|workload| workload.identity == *id).peekable();
    if own.peek().is_none() {
        return Err(IssueFailure::NotConfigured { id: id.clone() });
    }
    let found = own.find(|workload| workload.name.as_str() == said).map(|workload| workload.name.clone());
    found.ok_or_else(|| IssueFailure::OtherWorkload { id: id.clone(), workload: model::ids::printable(said) })
}

fn refuse(failure: IssueFailure) -> Status {
    tracing::warn!(%failure, "no SVID issued");
    match &failure {
        IssueFailure::AuthorityEnded { .. } => Status::failed_precondition(failure.to_string()),
        IssueFailure::TooMany { .. } => Status::resource_exhausted(failure.to_string()),
        IssueFailure::Csr(_) | IssueFailure::Jwt(_) => Status::invalid_argument(failure.to_string()),
        _ if failure.is_refusal() => Status::permission_denied(failure.to_string()),
        // What is wrong with our store concerns the operator, not the caller.
        _ => Status::internal("the SVID could not be issued; the control plane's log says why"),
    }
}
