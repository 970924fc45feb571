//! Answers the operator, on the unix socket only.

use super::Plane;
use crate::authorities::{self, StoredAuthority};
use crate::ca::{ChangeFailure, Revocable};
use crate::clock;
use crate::federation::Foreign;
use crate::rehearsal::Part;
use crate::rotation::{self, HoldUp, Step};
use crate::store::{Issued, Revoked};
use crate::token_revocations::TokenRevocation;
use crate::troubles::{Trouble, troubles};
use config::{UpstreamAuthority, Workload};
use identity::TrustBundles;
use model::token::RevokedTokens;
use model::{DecisionId, SpiffeId, Timestamp, TrustDomain, WorkloadName};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use wire::rehearsal::Handshake;
use wire::{convert, proto};

/// LIMIT: bytes of the reason of a revocation.
const REASON_BYTES_MAX: usize = 256;
/// LIMIT: digits of a serial number (RFC 5280 §4.1.2.2).
const SERIAL_DIGITS_MAX: usize = 40;
/// LIMIT: bytes of each text by which tokens are revoked.
const TOKEN_TEXT_BYTES_MAX: usize = 1024;
/// The longest time for which a revocation of tokens is remembered.
const TOKEN_REVOCATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
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
        let ca = Arc::clone(&self.ca);
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
            troubles: troubles(&self.ca, &self.federation, &self.bundle_endpoint, clock::now())
                .into_iter()
                .chain(self.rollout.troubles())
                .map(trouble)
                .collect(),
        }))
    }

    async fn issuers(&self, request: Request<proto::IssuersRequest>) -> Result<Response<proto::IssuersResponse>, Status> {
        let wanted = request.into_inner().workload;
        let desired = self.board.current();
        let chosen = desired.mesh.workloads.iter().filter(|each| wanted.is_empty() || each.name.as_str() == wanted);
        let told = chosen.map(|each| {
            let issuers = self.rollout.of(&each.name).issuers;
            proto::WorkloadIssuers {
                workload: each.name.to_string(),
                told_at_ms: issuers.as_ref().map(|(at, _)| at.millis()),
                issuers: issuers.iter().flat_map(|(_, told)| told.iter().map(wire::issuers::report_to_wire)).collect(),
            }
        });
        let workloads: Vec<proto::WorkloadIssuers> = told.collect();
        if workloads.is_empty() && !wanted.is_empty() {
            return Err(Status::not_found(format!("no workload `{}` is configured", model::ids::printable(&wanted))));
        }
        Ok(Response::new(proto::IssuersResponse { workloads }))
    }

    async fn authority_status(
        &self,
        _request: Request<proto::AuthorityStatusRequest>,
    ) -> Result<Response<proto::AuthorityStatusResponse>, Status> {
        Ok(Response::new(self.authorities()))
    }

    async fn rotate_authority(
        &self,
        _request: Request<proto::RotateAuthorityRequest>,
    ) -> Result<Response<proto::AuthorityStatusResponse>, Status> {
        let (ca, board) = (Arc::clone(&self.ca), Arc::clone(&self.board));
        blocking(move || ca.prepare(&board, clock::now())).await?.map_err(refused)?;
        tracing::info!("the authority's rotation begins: an operator asks for it");
        Ok(Response::new(self.authorities()))
    }

    async fn rehearse(&self, _request: Request<proto::RehearseRequest>) -> Result<Response<proto::RehearseResponse>, Status> {
        let begun = Instant::now();
        let run = self.rehearsals.run(&self.ca, &self.board, &self.rollout, clock::now());
        let (parts, issued) = run.await.map_err(|failure| Status::failed_precondition(failure.to_string()))?;
        let board = Arc::clone(&self.board);
        let signer_failure = blocking(move || authorities::would_make(&board.current().mesh.settings, clock::now())).await?;
        let call = |each: Handshake| proto::RehearsedCall {
            address: each.address.to_string(),
            identity: each.identity.to_string(),
            phase: each.phase.as_str().to_owned(),
            failure: each.failure.unwrap_or_default(),
        };
        let proxy = |part: Part| proto::RehearsedProxy {
            workload: part.workload,
            failure: part.failure.unwrap_or_default(),
            handshakes: part.handshakes.into_iter().map(call).collect(),
        };
        Ok(Response::new(proto::RehearseResponse {
            proxies: parts.into_iter().map(proxy).collect(),
            issued,
            took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            signer: match &self.board.current().mesh.settings.upstream {
                UpstreamAuthority::SelfSigned => "self-signed",
                UpstreamAuthority::Files { .. } => "files",
                UpstreamAuthority::Command(_) => "command",
            }
            .to_owned(),
            signer_failure: signer_failure.err().map(|failure| failure.to_string()).unwrap_or_default(),
        }))
    }

    async fn revoke(&self, request: Request<proto::RevokeRequest>) -> Result<Response<proto::RevokeResponse>, Status> {
        let proto::RevokeRequest { what, reason } = request.into_inner();
        if reason.len() > REASON_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
        }
        let own = self.board.current().mesh.settings.trust_domain.clone();
        let what = revocable(&what, &own)?;
        let (ca, board) = (Arc::clone(&self.ca), Arc::clone(&self.board));
        let revoked = blocking(move || ca.revoke(&what, &reason, &board, clock::now())).await?.map_err(refused)?;
        for (serial, each) in &revoked {
            tracing::warn!(serial, id = each.id, reason = each.reason, "SVID revoked");
        }
        let revision = self.board.current().revision.0;
        Ok(Response::new(proto::RevokeResponse { revoked: revoked.into_iter().map(revoked_record).collect(), revision }))
    }

    async fn workload_snapshot(
        &self,
        request: Request<proto::WorkloadSnapshotRequest>,
    ) -> Result<Response<proto::WorkloadSnapshotResponse>, Status> {
        let name = WorkloadName::parse(&request.into_inner().workload);
        let name = name.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let desired = self.board.current();
        let snapshot = desired.mesh.snapshot(&name, desired.revision, &desired.trust);
        let snapshot = snapshot.ok_or_else(|| Status::not_found(format!("no workload `{name}` is configured")))?;
        Ok(Response::new(proto::WorkloadSnapshotResponse { snapshot: wire::encode_snapshot(&snapshot) }))
    }

    async fn revoke_tokens(
        &self,
        request: Request<proto::RevokeTokensRequest>,
    ) -> Result<Response<proto::RevokeTokensResponse>, Status> {
        let proto::RevokeTokensRequest { what, reason } = request.into_inner();
        if reason.len() > REASON_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
        }
        let what = self.meant(what.unwrap_or_default())?;
        let (ca, board) = (Arc::clone(&self.ca), Arc::clone(&self.board));
        let revoked = blocking(move || ca.revoke_tokens(what, &reason, &board, clock::now())).await?.map_err(refused)?;
        tracing::warn!(what = ?revoked.what, reason = revoked.reason, "tokens revoked");
        let revision = self.board.current().revision.0;
        Ok(Response::new(proto::RevokeTokensResponse { revoked: Some(token_revocation(revoked)), revision }))
    }

    async fn token_revocations(
        &self,
        _request: Request<proto::TokenRevocationsRequest>,
    ) -> Result<Response<proto::TokenRevocationsResponse>, Status> {
        let revoked = self.ca.tokens.all(clock::now()).into_iter().map(token_revocation).collect();
        Ok(Response::new(proto::TokenRevocationsResponse { revoked }))
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

    async fn shadow(&self, request: Request<proto::ShadowRequest>) -> Result<Response<proto::ShadowResponse>, Status> {
        let proto::ShadowRequest { workload, since_ms } = request.into_inner();
        let desired = self.board.current();
        let is_configured = |name: &str| desired.mesh.workloads.iter().any(|workload| workload.name.as_str() == name);
        self.shadows.retain(is_configured);
        if !workload.is_empty() && !is_configured(&workload) {
            let workload = model::ids::printable(&workload);
            return Err(Status::not_found(format!("no workload `{workload}` is configured")));
        }
        let wanted = (!workload.is_empty()).then_some(workload.as_str());
        let reports = self.shadows.since(wanted, Timestamp::from_millis(since_ms));
        Ok(Response::new(proto::ShadowResponse { reports: reports.iter().map(convert::shadow_report_to_wire).collect() }))
    }
}

impl Plane {
    fn workload_status(&self, workload: &Workload) -> proto::WorkloadStatus {
        let seen = self.rollout.of(&workload.name);
        let applications = |(_, issued): &(String, Issued)| issued.application && issued.workload == workload.name.as_str();
        proto::WorkloadStatus {
            name: workload.name.to_string(),
            identity: workload.identity.to_string(),
            connected: seen.connected(),
            revision: seen.acked.0,
            rejected: seen.rejected,
            svid_expires_at_ms: seen.svid_expires_at.map(Timestamp::millis),
            serial: seen.serial,
            rotations: seen.issued.saturating_sub(1),
            authority: seen.authority,
            key_exchange: seen.key_exchange.map(str::to_owned),
            application_svids: self.ca.alive(clock::now()).iter().filter(|each| applications(each)).count() as u64,
        }
    }

    /// Which tokens an operator means.
    fn meant(&self, wire: proto::RevokedTokens) -> Result<RevokedTokens, Status> {
        let wrong = Status::invalid_argument;
        let mut meant = convert::revoked_tokens_from_wire(&[wire]).map_err(|_| {
            wrong("say which tokens: by `jti`, subject, client, or the time before which they were issued".to_owned())
        })?;
        let meant = meant.pop().unwrap_or_default();
        let texts = [&meant.issuer, &meant.jti, &meant.subject, &meant.client];
        if texts.into_iter().flatten().any(|text| text.len() > TOKEN_TEXT_BYTES_MAX) {
            return Err(wrong(format!("`jti`, subject and client have at most {TOKEN_TEXT_BYTES_MAX} bytes")));
        }
        let desired = self.board.current();
        if let Some(name) = meant.issuer.as_ref().filter(|name| !desired.mesh.issuers.iter().any(|issuer| issuer.name == **name))
        {
            let known: Vec<&str> = desired.mesh.issuers.iter().map(|issuer| issuer.name.as_str()).collect();
            let name = model::ids::printable(name);
            return Err(Status::not_found(format!("no `TokenIssuer` is called `{name}`; there are: {}", known.join(", "))));
        }
        let now = clock::now();
        if meant.until <= now || meant.until > now.plus(TOKEN_REVOCATION_MAX) {
            return Err(wrong("a revocation ends (`until`) after now and within a year".to_owned()));
        }
        Ok(meant)
    }

    fn authorities(&self) -> proto::AuthorityStatusResponse {
        let now = clock::now();
        let authorities = self.ca.authorities();
        let alive = self.ca.alive(now);
        let next = rotation::next(&authorities);
        let held = next.map(|step| {
            let evidence = rotation::evidence(&self.ca, &self.board, &self.rollout, &self.credentials, now);
            rotation::held_up(step, &authorities, &evidence)
        });
        let record = |authority: &StoredAuthority| proto::AuthorityRecord {
            id: authority.id.clone(),
            state: authority.stage.as_str().to_owned(),
            not_before_ms: authority.not_before.millis(),
            not_after_ms: authority.not_after.millis(),
            source: authority.source.clone(),
            alive: alive.iter().filter(|(_, issued)| issued.authority == authority.id).count() as u64,
            chain: authority.chain.iter().chain(&authority.roots).cloned().collect(),
            since_ms: authority.since.millis(),
        };
        let federated = |(trust_domain, foreign): (TrustDomain, Foreign)| proto::FederatedBundle {
            trust_domain: trust_domain.to_string(),
            url: foreign.url,
            authorities: foreign.bundle.as_ref().map_or(0, |bundle| u32::try_from(bundle.authorities.len()).unwrap_or(u32::MAX)),
            fetched_at_ms: foreign.bundle.map_or(0, |bundle| bundle.fetched_at.millis()),
            next_at_ms: foreign.next_at.millis(),
            failure: foreign.failure.unwrap_or_default(),
        };
        proto::AuthorityStatusResponse {
            trust_domain: authorities.stored.trust_domain.clone(),
            authorities: authorities.stored.authorities.iter().map(record).collect(),
            next_step: next.map(Step::as_str).unwrap_or_default().to_owned(),
            held_up_by: held.unwrap_or_default().into_iter().map(|HoldUp { who, why }| proto::HoldUp { who, why }).collect(),
            federated: self.federation.each().into_iter().map(federated).collect(),
            revoked: self.ca.revoked(now).into_iter().map(revoked_record).collect(),
            bundle_endpoint: self.board.current().mesh.settings.bundle_endpoint.as_ref().map(|endpoint| self.endpoint(endpoint)),
        }
    }

    fn endpoint(&self, endpoint: &config::BundleEndpoint) -> proto::BundleEndpoint {
        let state = self.bundle_endpoint.state();
        proto::BundleEndpoint {
            listen: endpoint.listen.to_string(),
            sequence: self.board.current().trust_revision.0,
            refresh_hint_seconds: endpoint.refresh_hint.as_secs(),
            given: state.count,
            failure: state.failure.unwrap_or_default(),
        }
    }
}

fn trouble(trouble: Trouble) -> proto::Trouble {
    proto::Trouble { message: trouble.message, since_ms: trouble.since.map_or(0, Timestamp::millis) }
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(call).await.map_err(|_| Status::internal("the task ended"))
}

fn refused(failure: ChangeFailure) -> Status {
    match failure {
        ChangeFailure::Nothing(_) => Status::not_found(failure.to_string()),
        _ => Status::failed_precondition(failure.to_string()),
    }
}

/// A SPIFFE ID of the own trust domain, or a serial number.
fn revocable(what: &str, own: &TrustDomain) -> Result<Revocable, Status> {
    if what.starts_with("spiffe://") {
        let id = SpiffeId::parse(what).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if id.trust_domain() != own {
            return Err(Status::invalid_argument(format!(
                "`{id}` is of another trust domain, whose own authority revokes its SVIDs; until it does, forbid it by a policy"
            )));
        }
        return Ok(Revocable::Id(id));
    }
    let serial = what.replace(':', "").to_ascii_lowercase();
    let is_serial = (1..=SERIAL_DIGITS_MAX).contains(&serial.len()) && serial.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_serial {
        let what = model::ids::printable(what);
        return Err(Status::invalid_argument(format!("`{what}` is neither a SPIFFE ID nor a serial number in hexadecimal")));
    }
    Ok(Revocable::Serial(serial))
}

fn token_revocation(revoked: TokenRevocation) -> proto::TokenRevocation {
    proto::TokenRevocation {
        what: Some(convert::revoked_token_to_wire(&revoked.what)),
        revoked_at_ms: revoked.at.millis(),
        reason: revoked.reason,
    }
}

fn revoked_record((serial, revoked): (String, Revoked)) -> proto::RevokedRecord {
    proto::RevokedRecord {
        serial,
        identity: revoked.id,
        until_ms: revoked.until.millis(),
        revoked_at_ms: revoked.at.millis(),
        reason: revoked.reason,
    }
}
