//! Issues SVIDs: attest, prove possession of the key, sign, record, answer.

use super::{Plane, caller};
use crate::ca::IssueFailure;
use crate::clock;
use tonic::{Request, Response, Status};
use wire::proto;

#[tonic::async_trait]
impl proto::identity_server::Identity for Plane {
    async fn issue(&self, request: Request<proto::IssueRequest>) -> Result<Response<proto::IssueResponse>, Status> {
        let peer = caller(&request);
        let proto::IssueRequest { csr, join_token } = request.into_inner();
        let desired = self.board.current();
        let lifetime = desired.mesh.settings.svid_lifetime;
        let (ca, configured) = (std::sync::Arc::clone(&self.ca), std::sync::Arc::clone(&desired));
        let signed = tokio::task::spawn_blocking(move || {
            let now = clock::now();
            let token = (!join_token.is_empty()).then_some(join_token.as_str());
            let id = ca.attest(peer.as_ref(), token, now)?;
            if !configured.mesh.workloads.iter().any(|workload| workload.identity == id) {
                return Err(IssueFailure::NotConfigured { id });
            }
            let issued = ca.issue(&csr, &id, lifetime, now)?;
            Ok::<_, IssueFailure>((id, issued))
        });
        let (id, issued) = signed.await.map_err(|_| Status::internal("the signing task ended"))?.map_err(refuse)?;
        tracing::info!(%id, serial = issued.serial, not_after = %issued.not_after, "SVID issued");
        // Told under every workload of this identity: instances share an account.
        for workload in desired.mesh.workloads.iter().filter(|workload| workload.identity == id) {
            self.rollout.issued(&workload.name, issued.serial.clone(), issued.not_after);
        }
        let bundles = vec![wire::convert::bundle_to_wire(&self.ca.bundle())];
        Ok(Response::new(proto::IssueResponse { chain: issued.chain, bundles }))
    }
}

fn refuse(failure: IssueFailure) -> Status {
    tracing::warn!(%failure, "no SVID issued");
    match &failure {
        IssueFailure::Csr(_) => Status::invalid_argument(failure.to_string()),
        _ if failure.is_refusal() => Status::permission_denied(failure.to_string()),
        // What is wrong with our store concerns the operator, not the caller.
        _ => Status::internal("the SVID could not be issued; the control plane's log says why"),
    }
}
