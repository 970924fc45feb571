//! Answers the operator, on the unix socket only.

use super::Plane;
use crate::clock;
use config::Workload;
use identity::TrustBundles;
use model::{DecisionId, Timestamp, WorkloadName};
use tonic::{Request, Response, Status};
use wire::{convert, proto};

/// Records of one answer.
const DECISIONS_MAX: u32 = 1000;

#[tonic::async_trait]
impl proto::operator_server::Operator for Plane {
    async fn create_join_token(
        &self,
        request: Request<proto::CreateJoinTokenRequest>,
    ) -> Result<Response<proto::CreateJoinTokenResponse>, Status> {
        let name = request.into_inner().workload;
        let name = WorkloadName::parse(&name).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let desired = self.board.current();
        let workload = desired.mesh.workloads.iter().find(|workload| workload.name == name);
        let id = workload.map(|workload| workload.identity.clone());
        let id = id.ok_or_else(|| Status::not_found(format!("no workload `{name}` is configured")))?;
        let ca = std::sync::Arc::clone(&self.ca);
        let made = tokio::task::spawn_blocking(move || ca.join_token(&id, clock::now()));
        let token = made
            .await
            .map_err(|_| Status::internal("the task ended"))?
            .map_err(|failure| Status::internal(failure.to_string()))?;
        let bundles = TrustBundles::from_model(&[self.ca.bundle()]).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(proto::CreateJoinTokenResponse { token, bundle_pem: bundles.to_pem() }))
    }

    async fn status(&self, _request: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        let desired = self.board.current();
        let last = self.rollout.last().filter(|(revision, _)| *revision == desired.revision);
        let errors = self.board.problems().into_iter().map(|problem| proto::ConfigProblem {
            file: problem.error.file,
            line: problem.error.line,
            column: problem.error.column,
            message: problem.error.message,
            since_ms: problem.since.millis(),
        });
        Ok(Response::new(proto::StatusResponse {
            revision: desired.revision.0,
            publish_to_last_ack_ms: last.map(|(_, took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            errors: errors.collect(),
            workloads: desired.mesh.workloads.iter().map(|workload| self.workload_status(workload)).collect(),
        }))
    }

    async fn decision(&self, request: Request<proto::DecisionRequest>) -> Result<Response<proto::DecisionResponse>, Status> {
        let id = DecisionId::parse(&request.into_inner().id).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let record = self.records.find(id).map(|record| convert::record_to_wire(&record));
        Ok(Response::new(proto::DecisionResponse { record }))
    }

    async fn decisions(&self, request: Request<proto::DecisionsRequest>) -> Result<Response<proto::DecisionsResponse>, Status> {
        let proto::DecisionsRequest { limit, only_denied } = request.into_inner();
        if !(1..=DECISIONS_MAX).contains(&limit) {
            return Err(Status::invalid_argument(format!("limit {limit} is outside 1 to {DECISIONS_MAX}")));
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let records = self.records.recent(limit, only_denied);
        Ok(Response::new(proto::DecisionsResponse { records: records.iter().map(convert::record_to_wire).collect() }))
    }
}

impl Plane {
    fn workload_status(&self, workload: &Workload) -> proto::WorkloadStatus {
        let seen = self.rollout.of(&workload.name);
        proto::WorkloadStatus {
            name: workload.name.to_string(),
            identity: workload.identity.to_string(),
            connected: seen.connected(),
            revision: seen.acked.0,
            rejected: seen.rejected,
            svid_expires_at_ms: seen.svid_expires_at.map(Timestamp::millis),
            serial: seen.serial,
            rotations: seen.issued.saturating_sub(1),
        }
    }
}
