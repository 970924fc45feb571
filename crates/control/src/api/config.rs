//! The configuration stream: one task per sidecar, one update under way at a time.

use super::Plane;
use crate::clock;
use crate::desired::Desired;
use crate::rollout::Opened;
use identity::handshake::VerifiedPeer;
use identity::signed;
use model::{Revision, Snapshot, WorkloadName};
use proto::config_request::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::{Publication, proto};

/// For a sidecar to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// For a sidecar to answer an update, compilation included.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Updates that wait for the transport; there is one at a time.
const UPDATES_MAX: usize = 2;
/// Must be the same in the sidecar, which checks it (`proxy::disk`).
const SIGNATURE_PURPOSE: &str = "rondel snapshot 1";

type Updates = mpsc::Sender<Result<proto::ConfigUpdate, Status>>;

#[tonic::async_trait]
impl proto::config_server::Config for Plane {
    type StreamStream = ReceiverStream<Result<proto::ConfigUpdate, Status>>;

    async fn stream(&self, request: Request<Streaming<proto::ConfigRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = self.proven(&request)?;
        let mut answers = request.into_inner();
        let first = timeout(HELLO_DEADLINE, answers.message()).await.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(Message::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("the first message must be `hello`"));
        };
        let workload = WorkloadName::parse(&hello.workload).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let desired = self.board.current();
        // The same words for a workload that does not exist and for one of somebody else: a sidecar learns of no other.
        own(&peer, &workload, &desired)?;
        let (updates, stream) = mpsc::channel(UPDATES_MAX);
        let runs = runs(Revision(hello.revision), desired.revision);
        let opened = Opened {
            serial: peer.serial().to_owned(),
            authority: peer.authority_key_id().map(str::to_owned),
            not_after: peer.not_after(),
            key_exchange: peer.key_exchange_group(),
        };
        let session = self.rollout.connected(&workload, runs, opened);
        tracing::info!(%workload, version = hello.version, runs = hello.revision, "sidecar connected");
        let plane = self.clone();
        tokio::spawn(async move {
            let ended = plane.serve(&peer, &workload, session, answers, &updates).await;
            plane.rollout.disconnected(&workload, session);
            tracing::info!(%workload, cause = ended.message(), "sidecar disconnected");
            // The stream may be gone already.
            let _told = updates.try_send(Err(ended));
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The revision that counts as acknowledged: the one that the sidecar says it runs. One that is later than ours was told by a control
/// plane whose store is lost, and says nothing of whom we believe.
fn runs(said: Revision, ours: Revision) -> Revision {
    if said > ours { Revision(0) } else { said }
}

/// Whether the workload is this caller's own. It may become somebody else's while a stream is open.
fn own(peer: &VerifiedPeer, workload: &WorkloadName, desired: &Desired) -> Result<(), Status> {
    if desired.mesh.workloads.iter().any(|each| each.name == *workload && each.identity == *peer.id()) {
        return Ok(());
    }
    Err(Status::permission_denied(format!("`{}` has no workload `{workload}`", peer.id())))
}

/// Sends an order of a rehearsal, if there is one.
async fn rehearse(order: Option<&wire::rehearsal::Order>, updates: &Updates) -> Result<(), Status> {
    let Some(order) = order else { return Ok(()) };
    let sent = updates.send(Ok(wire::rehearsal::order_to_wire(order))).await;
    sent.map_err(|_| Status::cancelled("the sidecar is gone"))
}

impl Plane {
    /// The life of one stream; returns why it ended.
    async fn serve(
        &self,
        peer: &VerifiedPeer,
        workload: &WorkloadName,
        session: u64,
        mut answers: Streaming<proto::ConfigRequest>,
        updates: &Updates,
    ) -> Status {
        let mut revisions = self.board.subscribe();
        let mut orders = self.rehearsals.orders();
        let mut publication = Publication::new();
        // The revision that was offered last, whatever became of it.
        let mut decided = Revision(0);
        let mut look_again = tokio::time::interval(Duration::from_secs(1));
        loop {
            let desired = Arc::clone(&revisions.borrow_and_update());
            let mut deadline = None;
            if decided != desired.revision {
                if let Err(status) = own(peer, workload, &desired) {
                    return status;
                }
                let Some(snapshot) = self.snapshot(workload, &desired) else {
                    return Status::permission_denied(format!("workload `{workload}` is no longer configured"));
                };
                if let Some(update) = publication.next(&snapshot, || self.sign(&snapshot)) {
                    if updates.send(Ok(update)).await.is_err() {
                        return Status::cancelled("the sidecar is gone");
                    }
                    deadline = Some(tokio::time::Instant::now() + ANSWER_DEADLINE);
                }
                decided = desired.revision;
            }
            // With an update under way only its answer counts; otherwise whatever comes first.
            let answer = match deadline {
                Some(deadline) => match tokio::time::timeout_at(deadline, answers.message()).await {
                    Ok(answer) => answer,
                    Err(_) => return Status::deadline_exceeded("the sidecar did not answer an update"),
                },
                None => tokio::select! {
                    answer = answers.message() => answer,
                    changed = revisions.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return Status::unavailable("the control plane ends"),
                    },
                    Ok(()) = orders.changed() => {
                        let order = orders.borrow_and_update().clone();
                        match rehearse(order.as_deref(), updates).await {
                            Ok(()) => continue,
                            Err(status) => return status,
                        }
                    }
                    _ = look_again.tick() => match self.still_good(peer, workload, session) {
                        Ok(()) => continue,
                        Err(status) => return status,
                    },
                },
            };
            match answer {
                Ok(Some(request)) => {
                    if let Err(status) = self.answered(workload, session, &mut publication, request, &desired) {
                        return status;
                    }
                }
                Ok(None) => return Status::ok("the sidecar ended the stream"),
                Err(status) => return status,
            }
        }
    }

    /// Whether a stream that has nothing to do may go on.
    fn still_good(&self, peer: &VerifiedPeer, workload: &WorkloadName, session: u64) -> Result<(), Status> {
        if self.rollout.is_replaced(workload, session) {
            return Err(Status::aborted("a later stream of this workload took over"));
        }
        self.fresh(peer)
    }

    fn answered(
        &self,
        workload: &WorkloadName,
        session: u64,
        publication: &mut Publication,
        request: proto::ConfigRequest,
        desired: &Desired,
    ) -> Result<(), Status> {
        let wrong = |error: wire::ProtocolError| Status::invalid_argument(error.to_string());
        match request.message {
            Some(Message::Ack(ack)) => {
                let revision = publication.ack(&ack.nonce).map_err(wrong)?;
                self.rollout.acked(workload, session, revision, desired);
                Ok(())
            }
            Some(Message::Nack(nack)) => {
                let reason: String = nack.reason.chars().take(4096).collect();
                let revision = publication.nack(&nack.nonce, &reason).map_err(wrong)?;
                tracing::warn!(%workload, %revision, reason, "a sidecar refuses its configuration");
                self.rollout.rejected(workload, session, revision, &reason);
                Ok(())
            }
            Some(Message::Rehearsed(report)) => {
                let report = wire::rehearsal::report_from_wire(report);
                self.rehearsals.report(workload, report.map_err(|error| Status::invalid_argument(error.to_string()))?);
                Ok(())
            }
            Some(Message::Issuers(report)) => {
                let report = wire::issuers::from_wire(report).map_err(|error| Status::invalid_argument(error.to_string()))?;
                self.rollout.told(workload, session, report, clock::now());
                Ok(())
            }
            Some(Message::Troubles(report)) => {
                let troubles = wire::issuers::troubles_from_wire(report);
                let troubles = troubles.map_err(|error| Status::invalid_argument(error.to_string()))?;
                for trouble in &troubles {
                    tracing::warn!(%workload, trouble = trouble.text, "a sidecar is in trouble");
                }
                self.rollout.troubled(workload, session, troubles);
                Ok(())
            }
            Some(Message::Hello(_)) | None => Err(Status::invalid_argument("expected `ack` or `nack`")),
        }
    }

    fn snapshot(&self, workload: &WorkloadName, desired: &Desired) -> Option<Snapshot> {
        desired.mesh.snapshot(workload, desired.revision, &desired.trust)
    }

    /// The signature over the snapshot's digest; an empty one, which every sidecar refuses, if signing fails.
    fn sign(&self, snapshot: &Snapshot) -> Vec<u8> {
        let digest = identity::sha256(&wire::encode_snapshot(snapshot));
        let Some(credentials) = self.credentials.borrow().clone() else { return Vec::new() };
        signed::sign(&credentials, SIGNATURE_PURPOSE, &digest, clock::now()).unwrap_or_else(|failure| {
            tracing::error!(%failure, "a snapshot could not be signed");
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_of_another_control_plane_acknowledges_nothing() {
        for (said, counts) in [(0, 0), (6, 6), (7, 7), (8, 0), (u64::MAX, 0)] {
            assert_eq!(runs(Revision(said), Revision(7)), Revision(counts), "{said}");
        }
    }
}
