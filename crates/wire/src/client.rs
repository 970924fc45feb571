//! A sidecar's calls of the control plane. `model` types in and out; every wait has a deadline.

use crate::convert::{self, ConvertError};
use crate::issuers;
use crate::proto;
use crate::rehearsal::{self, Order, Report};
use crate::subscription::{Answer, Update};
use model::issuers::{IssuerReport, Trouble};
use model::shadow::ShadowReport;
use model::snapshot::TrustBundle;
use model::{DecisionRecord, Revision, Timestamp, WorkloadName};
use proto::config_client::ConfigClient;
use proto::identity_client::IdentityClient;
use proto::telemetry_client::TelemetryClient;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Answers that wait to be sent; there is one per update.
const ANSWERS_MAX: usize = 4;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// The other side said no, or broke off.
    #[error("{}", said(*.code, .message))]
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

/// The other side's own words, which say what to do; gRPC's word for the code only where there are none.
fn said(code: Code, message: &str) -> &str {
    if message.is_empty() { code.description() } else { message }
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

/// What is asked for with an issue call.
#[derive(Clone, Debug, Default)]
pub struct IssueCall {
    /// The request (PKCS#10, DER).
    pub csr: Vec<u8>,
    /// For a caller without an SVID.
    pub join_token: Option<String>,
    /// Beside which workload the caller stands, `namespace/name`.
    pub workload: String,
    /// The SVID is handed on to the application.
    pub for_application: bool,
    /// The rehearsal whose shadow authority is meant.
    pub rehearsal: Option<String>,
}

/// What an issue call gives.
#[derive(Debug)]
pub struct Issued {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Every bundle that the workload should know.
    pub bundles: Vec<TrustBundle>,
    /// The revision that the bundles belong to.
    pub revision: Revision,
    /// The control plane's clock when it answered.
    pub now: Timestamp,
}

/// A JWT-SVID that was signed.
#[derive(Debug)]
pub struct IssuedJwt {
    /// The token, in the compact form.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What comes on the configuration stream.
#[derive(Debug)]
pub enum Received {
    /// A difference of the configuration, to be answered.
    Update(Box<Update>),
    /// A step of a rehearsal, to be reported.
    Rehearsal(Order),
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

/// Sends answers. Cheap to clone.
#[derive(Clone, Debug)]
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
    pub async fn issue(&self, call: IssueCall, deadline: Duration) -> Result<Issued, CallFailure> {
        let request = proto::IssueRequest {
            csr: call.csr,
            join_token: call.join_token.unwrap_or_default(),
            workload: call.workload,
            for_application: call.for_application,
            rehearsal: call.rehearsal.unwrap_or_default(),
        };
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
        let (revision, now) = (Revision(response.revision), Timestamp::from_millis(response.now_ms));
        Ok(Issued { chain: response.chain, bundles, revision, now })
    }

    /// Asks for a JWT-SVID for these audiences.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn issue_jwt(&self, audiences: Vec<String>, deadline: Duration) -> Result<IssuedJwt, CallFailure> {
        let mut client = IdentityClient::new(self.channel.clone());
        let response = within(deadline, client.issue_jwt(proto::IssueJwtRequest { audiences })).await?.into_inner();
        if response.token.is_empty() {
            return Err(ConvertError::new("token", "empty").into());
        }
        Ok(IssuedJwt { token: response.token, expires_at: Timestamp::from_millis(response.expires_at_ms) })
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

    /// Tells what policies in shadow mode would have changed.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn shadow(&self, report: &ShadowReport, deadline: Duration) -> Result<(), CallFailure> {
        let mut client = TelemetryClient::new(self.channel.clone());
        within(deadline, client.shadow(convert::shadow_report_to_wire(report))).await?;
        Ok(())
    }
}

impl Updates {
    /// The next update or order; `None` at the stream's end. Waits as long as the connection lives (it is kept alive by pings).
    ///
    /// # Errors
    /// - [`CallFailure`] if the stream broke, a message is too large, or an order cannot be read.
    pub async fn next(&mut self) -> Result<Option<Received>, CallFailure> {
        let Some(mut update) = self.0.message().await? else { return Ok(None) };
        Ok(Some(match update.rehearsal.take() {
            Some(order) => Received::Rehearsal(rehearsal::order_from_wire(order)?),
            None => Received::Update(Box::new(Update(update))),
        }))
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

    /// Tells what is known of the issuers.
    ///
    /// # Errors
    /// - [`CallFailure::Ended`] if the stream is gone.
    pub async fn issuers(&self, issuers: &[IssuerReport]) -> Result<(), CallFailure> {
        let message = proto::config_request::Message::Issuers(issuers::to_wire(issuers));
        self.0.send(proto::ConfigRequest { message: Some(message) }).await.map_err(|_| CallFailure::Ended)
    }

    /// Tells what an operator must look at at this sidecar: all of it.
    ///
    /// # Errors
    /// - [`CallFailure::Ended`] if the stream is gone.
    pub async fn troubles(&self, troubles: &[Trouble]) -> Result<(), CallFailure> {
        let message = proto::config_request::Message::Troubles(issuers::troubles_to_wire(troubles));
        self.0.send(proto::ConfigRequest { message: Some(message) }).await.map_err(|_| CallFailure::Ended)
    }

    /// Reports a step of a rehearsal.
    ///
    /// # Errors
    /// - [`CallFailure::Ended`] if the stream is gone.
    pub async fn report(&self, report: Report) -> Result<(), CallFailure> {
        let message = proto::config_request::Message::Rehearsed(rehearsal::report_to_wire(report));
        self.0.send(proto::ConfigRequest { message: Some(message) }).await.map_err(|_| CallFailure::Ended)
    }
}

pub(crate) async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, CallFailure> {
    match timeout(deadline, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(CallFailure::Timeout { after: deadline }),
    }
}

#[cfg(test)]
mod tests;
