//! Takes decision records: each sidecar tells of its own workload only.

use super::Plane;
use crate::clock;
use ::identity::handshake::VerifiedPeer;
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};
use wire::{convert, proto};

/// A stream that brings nothing for this long is ended; the sidecar opens another when it has something to tell.
const QUIET_MAX: Duration = Duration::from_secs(3600);

#[tonic::async_trait]
impl proto::telemetry_server::Telemetry for Plane {
    async fn report(&self, request: Request<Streaming<proto::DecisionRecord>>) -> Result<Response<proto::ReportSummary>, Status> {
        let peer = self.proven(&request)?;
        let mut records = request.into_inner();
        let mut kept = 0;
        loop {
            let Ok(received) = timeout(QUIET_MAX, records.message()).await else { break };
            let Some(record) = received? else { break };
            self.fresh(&peer)?;
            let record = match convert::record_from_wire(record) {
                Ok(record) => record,
                Err(error) => {
                    // One bad record must not cost the good ones behind it.
                    tracing::warn!(peer = %peer.id(), %error, "a decision record cannot be read");
                    continue;
                }
            };
            self.own(&peer, &record.workload)?;
            self.records.keep(record);
            kept += 1;
        }
        Ok(Response::new(proto::ReportSummary { kept }))
    }

    async fn shadow(&self, request: Request<proto::ShadowReport>) -> Result<Response<proto::ShadowReportSummary>, Status> {
        let peer = self.proven(&request)?;
        let report = convert::shadow_report_from_wire(request.into_inner());
        let report = report.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.own(&peer, &report.workload)?;
        self.shadows.take(report, clock::now());
        Ok(Response::new(proto::ShadowReportSummary {}))
    }
}

impl Plane {
    /// Whether a workload is the caller's own.
    fn own(&self, peer: &VerifiedPeer, workload: &str) -> Result<(), Status> {
        let desired = self.board.current();
        let own = |each: &::config::Workload| each.name.as_str() == workload && each.identity == *peer.id();
        if desired.mesh.workloads.iter().any(own) {
            return Ok(());
        }
        Err(Status::permission_denied("a record of another workload"))
    }
}
