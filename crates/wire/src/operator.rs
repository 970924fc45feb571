//! An operator's calls of the control plane, over its unix socket.

mod tokens;

pub use tokens::{TokenRevocation, TokensRevoked};

use crate::client::{CallFailure, within};
use crate::convert::{self, ConvertError};
use crate::proto;
use model::ids::IdError;
use model::shadow::ShadowReport;
use model::{DecisionId, DecisionRecord, Revision, Snapshot, SpiffeId, Timestamp, WorkloadName};
use proto::operator_client::OperatorClient as Generated;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// LIMIT: bytes of one answer to an operator; as many records as one answer may hold, each as large as it may be, fit.
const OPERATOR_BYTES_MAX: usize = 64 * 1024 * 1024;
const _: () = assert!(1000 * (convert::RECORD_BYTES_MAX + 8) <= OPERATOR_BYTES_MAX, "the largest answer must fit");

/// A join token and what its first call is checked against.
#[derive(Debug)]
pub struct JoinToken {
    /// The token; single use.
    pub token: String,
    /// The trust bundle.
    pub bundle_pem: String,
}

/// The mesh as the control plane sees it.
#[derive(Clone, Debug)]
pub struct MeshStatus {
    /// The revision in force.
    pub revision: Revision,
    /// From its publication to the last connected sidecar's ack, in milliseconds.
    pub publish_to_last_ack_ms: Option<u64>,
    /// What is wrong with the configuration on disk.
    pub errors: Vec<ConfigProblem>,
    /// Every configured workload.
    pub workloads: Vec<WorkloadStatus>,
    /// What an operator must look at beside the configuration.
    pub troubles: Vec<Trouble>,
}

/// What goes on by itself until it becomes an outage.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What is wrong, what it leads to, and what to do.
    pub message: String,
    /// Since when, if that is known.
    pub since: Option<Timestamp>,
}

/// One error of the configuration on disk.
#[derive(Clone, Debug)]
pub struct ConfigProblem {
    /// The file, relative to the configuration's directory.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// What is wrong and how to mend it.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// One workload.
#[derive(Clone, Debug)]
pub struct WorkloadStatus {
    /// Its name.
    pub name: WorkloadName,
    /// Its identity.
    pub identity: SpiffeId,
    /// Whether its configuration stream is up.
    pub connected: bool,
    /// The revision that it has acknowledged.
    pub revision: Revision,
    /// Why it refuses the configuration.
    pub rejected: Option<String>,
    /// When its SVID ends.
    pub svid_expires_at: Option<Timestamp>,
    /// Its SVID's serial.
    pub serial: Option<String>,
    /// SVIDs beyond the first since the control plane's start.
    pub rotations: u64,
    /// Subject key id of the authority that issued it.
    pub authority: Option<String>,
    /// The key exchange of its connection to the control plane.
    pub key_exchange: Option<String>,
    /// SVIDs of its application that have not ended.
    pub application_svids: u64,
}

/// The authorities of the mesh's trust domain, and what is under way with them.
#[derive(Clone, Debug)]
pub struct AuthorityStatus {
    /// Whose authorities they are.
    pub trust_domain: String,
    /// In the order in which they were prepared.
    pub authorities: Vec<AuthorityRecord>,
    /// `activate`, `taint` or `retire`; `None` if no rotation is under way.
    pub next_step: Option<String>,
    /// Who holds the next step up, and why.
    pub held_up_by: Vec<(String, String)>,
    /// Bundles of other trust domains.
    pub federated: Vec<FederatedBundle>,
    /// SVIDs that are refused everywhere.
    pub revoked: Vec<RevokedRecord>,
    /// Where the own bundle is served to other trust domains.
    pub bundle_endpoint: Option<BundleEndpoint>,
}

/// Where the own bundle is served.
#[derive(Clone, Debug)]
pub struct BundleEndpoint {
    /// Its address.
    pub listen: String,
    /// `spiffe_sequence` of what it gives.
    pub sequence: u64,
    /// How often others should look again.
    pub refresh_hint: Duration,
    /// Documents given since the control plane started.
    pub given: u64,
    /// What stands in the way; `None` if nothing does.
    pub failure: Option<String>,
}

/// One authority.
#[derive(Clone, Debug)]
pub struct AuthorityRecord {
    /// Subject key id, hexadecimal.
    pub id: String,
    /// `prepared`, `active`, `old` or `tainted`.
    pub state: String,
    /// When it came into its state.
    pub since: Timestamp,
    /// The issuing certificate's `notBefore`.
    pub not_before: Timestamp,
    /// The issuing certificate's `notAfter`.
    pub not_after: Timestamp,
    /// `self-signed`, `files` or `command`.
    pub source: String,
    /// SVIDs of it that have not ended.
    pub alive: u64,
    /// The issuing certificate first, up to the root, DER.
    pub chain: Vec<Vec<u8>>,
}

/// The bundle of another trust domain.
#[derive(Clone, Debug)]
pub struct FederatedBundle {
    /// Whose it is.
    pub trust_domain: String,
    /// Where it is fetched.
    pub url: String,
    /// X.509 authorities in it.
    pub authorities: u32,
    /// When it was last fetched; `None` for never.
    pub fetched_at: Option<Timestamp>,
    /// When it is fetched next.
    pub next_at: Timestamp,
    /// Why the last attempt failed; `None` if it did not.
    pub failure: Option<String>,
}

/// A revoked SVID.
#[derive(Clone, Debug)]
pub struct RevokedRecord {
    /// Hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub identity: String,
    /// Its end.
    pub until: Timestamp,
    /// When it was revoked.
    pub revoked_at: Timestamp,
    /// For people.
    pub reason: String,
}

/// What came of a revocation.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Every SVID that is revoked by it.
    pub revoked: Vec<RevokedRecord>,
    /// The revision that tells it to the sidecars.
    pub revision: Revision,
}

/// What came of a rehearsal.
#[derive(Clone, Debug)]
pub struct Rehearsed {
    /// Every sidecar that should take part.
    pub proxies: Vec<RehearsedProxy>,
    /// SVIDs that the shadow authority issued.
    pub issued: u64,
    /// From the first order to the last report.
    pub took: Duration,
    /// Who would sign another authority: `self-signed`, `files`, or `command`, which is not asked.
    pub signer: String,
    /// Why it would not.
    pub signer_failure: Option<String>,
}

/// One sidecar's part in a rehearsal.
#[derive(Clone, Debug)]
pub struct RehearsedProxy {
    /// Its workload.
    pub workload: String,
    /// Why it could not take part; `None` if it did.
    pub failure: Option<String>,
    /// Its handshakes.
    pub handshakes: Vec<RehearsedCall>,
}

/// One handshake of a rehearsal.
#[derive(Clone, Debug)]
pub struct RehearsedCall {
    /// Where.
    pub address: String,
    /// Who had to answer there.
    pub identity: String,
    /// `activate` or `retire`.
    pub phase: String,
    /// Why it failed; `None` if it did not.
    pub failure: Option<String>,
}

/// An operator's calls.
#[derive(Clone, Debug)]
pub struct OperatorClient {
    pub(crate) client: Generated<Channel>,
}

impl OperatorClient {
    /// Connects to the control plane's unix socket.
    ///
    /// # Errors
    /// - [`CallFailure::Connect`] if nobody listens there, [`CallFailure::Timeout`] if nobody answers.
    pub async fn connect(socket: &Path, deadline: Duration) -> Result<Self, CallFailure> {
        let socket = socket.to_path_buf();
        let connector = tower::service_fn(move |_uri: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        // The address is not used: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://operator.rondel.internal");
        let connected = timeout(deadline, endpoint.connect_with_connector(connector)).await;
        let channel = connected.map_err(|_| CallFailure::Timeout { after: deadline })??;
        Ok(Self { client: Generated::new(channel).max_decoding_message_size(OPERATOR_BYTES_MAX) })
    }

    /// Makes a join token for a workload.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn create_join_token(&mut self, workload: &WorkloadName, deadline: Duration) -> Result<JoinToken, CallFailure> {
        let request = proto::CreateJoinTokenRequest { workload: workload.to_string() };
        let response = within(deadline, self.client.create_join_token(request)).await?.into_inner();
        Ok(JoinToken { token: response.token, bundle_pem: response.bundle_pem })
    }

    /// Asks for the state of the mesh.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn status(&mut self, deadline: Duration) -> Result<MeshStatus, CallFailure> {
        let response = within(deadline, self.client.status(proto::StatusRequest {})).await?.into_inner();
        let errors = response.errors.into_iter().map(|wire| ConfigProblem {
            file: wire.file,
            line: wire.line,
            column: wire.column,
            message: wire.message,
            since: Timestamp::from_millis(wire.since_ms),
        });
        let workload = |(index, wire): (usize, proto::WorkloadStatus)| -> Result<WorkloadStatus, ConvertError> {
            let wrong = |field: &str, error: IdError| ConvertError::new(format!("workloads[{index}].{field}"), error);
            Ok(WorkloadStatus {
                name: WorkloadName::parse(&wire.name).map_err(|error| wrong("name", error))?,
                identity: SpiffeId::parse(&wire.identity).map_err(|error| wrong("identity", error))?,
                connected: wire.connected,
                revision: Revision(wire.revision),
                rejected: wire.rejected,
                svid_expires_at: wire.svid_expires_at_ms.map(Timestamp::from_millis),
                serial: wire.serial,
                rotations: wire.rotations,
                authority: wire.authority,
                key_exchange: wire.key_exchange,
                application_svids: wire.application_svids,
            })
        };
        Ok(MeshStatus {
            revision: Revision(response.revision),
            publish_to_last_ack_ms: response.publish_to_last_ack_ms,
            errors: errors.collect(),
            workloads: response.workloads.into_iter().enumerate().map(workload).collect::<Result<_, _>>()?,
            troubles: response.troubles.into_iter().map(trouble).collect(),
        })
    }

    /// Asks for the snapshot that is in force for a workload.
    ///
    /// # Errors
    /// - [`CallFailure`], also if no such workload is configured.
    pub async fn snapshot(&mut self, workload: &WorkloadName, deadline: Duration) -> Result<Snapshot, CallFailure> {
        let request = proto::WorkloadSnapshotRequest { workload: workload.to_string() };
        let response = within(deadline, self.client.workload_snapshot(request)).await?.into_inner();
        Ok(convert::decode_snapshot(&response.snapshot).map_err(|error| error.within("snapshot"))?)
    }

    /// Asks for one decision record.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn decision(&mut self, id: DecisionId, deadline: Duration) -> Result<Option<DecisionRecord>, CallFailure> {
        let request = proto::DecisionRequest { id: id.to_string() };
        let response = within(deadline, self.client.decision(request)).await?.into_inner();
        let record = response.record.map(convert::record_from_wire).transpose();
        Ok(record.map_err(|error| error.within("record"))?)
    }

    /// Asks what policies in shadow mode would have changed: of one workload or of all, since a moment or ever.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn shadow(
        &mut self,
        workload: Option<&WorkloadName>,
        since: Option<Timestamp>,
        deadline: Duration,
    ) -> Result<Vec<ShadowReport>, CallFailure> {
        let request = proto::ShadowRequest {
            workload: workload.map(ToString::to_string).unwrap_or_default(),
            since_ms: since.map_or(0, Timestamp::millis),
        };
        let response = within(deadline, self.client.shadow(request)).await?.into_inner();
        Ok(response.reports.into_iter().map(convert::shadow_report_from_wire).collect::<Result<_, _>>()?)
    }

    /// Asks for recent decision records, newest first.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn decisions(
        &mut self,
        limit: u32,
        only_denied: bool,
        deadline: Duration,
    ) -> Result<Vec<DecisionRecord>, CallFailure> {
        let request = proto::DecisionsRequest { limit, only_denied };
        let response = within(deadline, self.client.decisions(request)).await?.into_inner();
        let record = |(index, wire)| convert::record_from_wire(wire).map_err(|error| error.within(&format!("records[{index}]")));
        Ok(response.records.into_iter().enumerate().map(record).collect::<Result<_, _>>()?)
    }

    /// Asks for the authorities.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn authority_status(&mut self, deadline: Duration) -> Result<AuthorityStatus, CallFailure> {
        let request = proto::AuthorityStatusRequest {};
        Ok(authority_status(within(deadline, self.client.authority_status(request)).await?.into_inner()))
    }

    /// Begins a rotation of the authority.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn rotate_authority(&mut self, deadline: Duration) -> Result<AuthorityStatus, CallFailure> {
        let request = proto::RotateAuthorityRequest {};
        Ok(authority_status(within(deadline, self.client.rotate_authority(request)).await?.into_inner()))
    }

    /// Rotates a shadow authority and changes nothing.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn rehearse(&mut self, deadline: Duration) -> Result<Rehearsed, CallFailure> {
        let response = within(deadline, self.client.rehearse(proto::RehearseRequest {})).await?.into_inner();
        let call = |wire: proto::RehearsedCall| RehearsedCall {
            address: wire.address,
            identity: wire.identity,
            phase: wire.phase,
            failure: filled(wire.failure),
        };
        let proxy = |wire: proto::RehearsedProxy| RehearsedProxy {
            workload: wire.workload,
            failure: filled(wire.failure),
            handshakes: wire.handshakes.into_iter().map(call).collect(),
        };
        Ok(Rehearsed {
            proxies: response.proxies.into_iter().map(proxy).collect(),
            issued: response.issued,
            took: Duration::from_millis(response.took_ms),
            signer: response.signer,
            signer_failure: filled(response.signer_failure),
        })
    }

    /// Revokes an SVID by its serial, or all SVIDs of a SPIFFE ID.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn revoke(&mut self, what: &str, reason: &str, deadline: Duration) -> Result<Revocation, CallFailure> {
        let request = proto::RevokeRequest { what: what.to_owned(), reason: reason.to_owned() };
        let response = within(deadline, self.client.revoke(request)).await?.into_inner();
        let revoked = response.revoked.into_iter().map(revoked).collect();
        Ok(Revocation { revoked, revision: Revision(response.revision) })
    }
}

fn trouble(wire: proto::Trouble) -> Trouble {
    Trouble { message: wire.message, since: (wire.since_ms > 0).then(|| Timestamp::from_millis(wire.since_ms)) }
}

fn authority_status(wire: proto::AuthorityStatusResponse) -> AuthorityStatus {
    let at = Timestamp::from_millis;
    let authority = |wire: proto::AuthorityRecord| AuthorityRecord {
        id: wire.id,
        state: wire.state,
        since: at(wire.since_ms),
        not_before: at(wire.not_before_ms),
        not_after: at(wire.not_after_ms),
        source: wire.source,
        alive: wire.alive,
        chain: wire.chain,
    };
    let federated = |wire: proto::FederatedBundle| FederatedBundle {
        trust_domain: wire.trust_domain,
        url: wire.url,
        authorities: wire.authorities,
        fetched_at: (wire.fetched_at_ms > 0).then(|| at(wire.fetched_at_ms)),
        next_at: at(wire.next_at_ms),
        failure: filled(wire.failure),
    };
    AuthorityStatus {
        trust_domain: wire.trust_domain,
        authorities: wire.authorities.into_iter().map(authority).collect(),
        next_step: filled(wire.next_step),
        held_up_by: wire.held_up_by.into_iter().map(|each| (each.who, each.why)).collect(),
        federated: wire.federated.into_iter().map(federated).collect(),
        revoked: wire.revoked.into_iter().map(revoked).collect(),
        bundle_endpoint: wire.bundle_endpoint.map(|wire| BundleEndpoint {
            listen: wire.listen,
            sequence: wire.sequence,
            refresh_hint: Duration::from_secs(wire.refresh_hint_seconds),
            given: wire.given,
            failure: filled(wire.failure),
        }),
    }
}

fn revoked(wire: proto::RevokedRecord) -> RevokedRecord {
    RevokedRecord {
        serial: wire.serial,
        identity: wire.identity,
        until: Timestamp::from_millis(wire.until_ms),
        revoked_at: Timestamp::from_millis(wire.revoked_at_ms),
        reason: wire.reason,
    }
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
