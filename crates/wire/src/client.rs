//! Clients of the control plane's services. `model` types in and out; every wait has a deadline.

use crate::convert::{self, ConvertError};
use crate::proto;
use crate::subscription::{Answer, Update};
use model::ids::IdError;
use model::snapshot::TrustBundle;
use model::{DecisionId, DecisionRecord, Revision, SpiffeId, Timestamp, WorkloadName};
use proto::config_client::ConfigClient;
use proto::identity_client::IdentityClient;
use proto::operator_client::OperatorClient as Generated;
use proto::telemetry_client::TelemetryClient;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// Answers that wait to be sent; there is one per update.
const ANSWERS_MAX: usize = 4;

/// LIMIT: bytes of one answer to an operator; as many records as one answer may hold, each as large as it may be, fit.
const OPERATOR_BYTES_MAX: usize = 64 * 1024 * 1024;
const _: () = assert!(1000 * (convert::RECORD_BYTES_MAX + 8) <= OPERATOR_BYTES_MAX, "the largest answer must fit");

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// The other side said no, or broke off.
    #[error("{}: {}", .code.description(), .message)]
    Refused {
        /// The gRPC status.
        code: Code,
        /// Its text.
        message: String,
    },
    /// No answer in time.
    #[error("no answer within {} ms", .after.as_millis())]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// The answer is not what the contract says.
    #[error("the answer cannot be read: {0}")]
    Convert(#[from] ConvertError),
    /// Nobody listens there.
    #[error("connect: {cause}")]
    Connect {
        /// The operating system's words.
        cause: String,
    },
    /// The stream's task has ended.
    #[error("the stream has ended")]
    Ended,
}

impl From<Status> for CallFailure {
    fn from(status: Status) -> Self {
        Self::Refused { code: status.code(), message: status.message().to_owned() }
    }
}

impl From<tonic::transport::Error> for CallFailure {
    /// The transport's own words are `transport error`; what helps is the innermost cause.
    fn from(error: tonic::transport::Error) -> Self {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Self::Connect { cause: cause.to_string() }
    }
}

/// What an issue call gives.
#[derive(Debug)]
pub struct Issued {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Every bundle that the workload should know.
    pub bundles: Vec<TrustBundle>,
}

/// What a sidecar says first on the configuration stream.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Whose configuration it wants.
    pub workload: WorkloadName,
    /// Its version.
    pub version: String,
    /// What it runs.
    pub revision: Revision,
}

/// A sidecar's calls over one channel.
#[derive(Clone, Debug)]
pub struct ControlClient {
    channel: Channel,
}

/// Receives updates.
#[derive(Debug)]
pub struct Updates(Streaming<proto::ConfigUpdate>);

/// Sends answers.
#[derive(Debug)]
pub struct Answers(mpsc::Sender<proto::ConfigRequest>);

impl ControlClient {
    /// Over a channel whose other end was verified.
    pub const fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Asks for an SVID.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn issue(&self, csr: Vec<u8>, join_token: Option<String>, deadline: Duration) -> Result<Issued, CallFailure> {
        let request = proto::IssueRequest { csr, join_token: join_token.unwrap_or_default() };
        let mut client = IdentityClient::new(self.channel.clone());
        let response = within(deadline, client.issue(request)).await?.into_inner();
        if response.chain.is_empty() {
            return Err(ConvertError::new("chain", "empty").into());
        }
        if let Some(index) = response.chain.iter().position(Vec::is_empty) {
            return Err(ConvertError::new(format!("chain[{index}]"), "empty").into());
        }
        if response.bundles.is_empty() {
            return Err(ConvertError::new("bundles", "empty").into());
        }
        let bundle = |(index, wire): (usize, &proto::TrustBundle)| {
            convert::bundle_from_wire(wire).map_err(|error| error.within(&format!("bundles[{index}]")))
        };
        let bundles = response.bundles.iter().enumerate().map(bundle).collect::<Result<_, _>>()?;
        Ok(Issued { chain: response.chain, bundles })
    }

    /// Opens the configuration stream. `bytes_max` bounds one message.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn config(&self, hello: Hello, bytes_max: usize, deadline: Duration) -> Result<(Answers, Updates), CallFailure> {
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let hello = proto::Hello {
            workload: hello.workload.to_string(),
            version: hello.version,
            capabilities: Vec::new(),
            revision: hello.revision.0,
        };
        let first = proto::ConfigRequest { message: Some(proto::config_request::Message::Hello(hello)) };
        sender.send(first).await.map_err(|_| CallFailure::Ended)?;
        let mut client = ConfigClient::new(self.channel.clone()).max_decoding_message_size(bytes_max);
        let response = within(deadline, client.stream(ReceiverStream::new(receiver))).await?;
        Ok((Answers(sender), Updates(response.into_inner())))
    }

    /// Sends records until the queue closes; returns how many were kept. Waits as long as the queue lives.
    ///
    /// # Errors
    /// - [`CallFailure`] if the control plane refuses or the connection breaks.
    pub async fn report(&self, records: mpsc::Receiver<DecisionRecord>) -> Result<u64, CallFailure> {
        let stream = ReceiverStream::new(records).map(|record| convert::record_to_wire(&record));
        let mut client = TelemetryClient::new(self.channel.clone());
        Ok(client.report(stream).await?.into_inner().kept)
    }
}

impl Updates {
    /// The next update; `None` at the stream's end. Waits as long as the connection lives (it is kept alive by pings).
    ///
    /// # Errors
    /// - [`CallFailure`] if the stream broke or a message is too large.
    pub async fn next(&mut self) -> Result<Option<Update>, CallFailure> {
        Ok(self.0.message().await?.map(Update))
    }
}

impl Answers {
    /// Sends the answer to one update.
    ///
    /// # Errors
    /// - [`CallFailure::Ended`] if the stream is gone.
    pub async fn send(&self, answer: Answer) -> Result<(), CallFailure> {
        self.0.send(answer.0).await.map_err(|_| CallFailure::Ended)
    }
}

async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, CallFailure> {
    match timeout(deadline, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(CallFailure::Timeout { after: deadline }),
    }
}

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
}

/// An operator's calls.
#[derive(Clone, Debug)]
pub struct OperatorClient {
    client: Generated<Channel>,
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
            })
        };
        Ok(MeshStatus {
            revision: Revision(response.revision),
            publish_to_last_ack_ms: response.publish_to_last_ack_ms,
            errors: errors.collect(),
            workloads: response.workloads.into_iter().enumerate().map(workload).collect::<Result<_, _>>()?,
        })
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
}

#[cfg(test)]
mod tests;
