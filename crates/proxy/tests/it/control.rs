//! A control plane that does what the test says: issues real SVIDs, sends whatever update it is given, and notes the answers.

use identity::authority::Authority;
use identity::bundle::TrustBundles;
use identity::credentials::Credentials;
use identity::handshake::{self, ServerStream};
use identity::key::PrivateKey;
use identity::{csr, signed};
use model::snapshot::TrustBundle;
use model::{DecisionRecord, Snapshot, SpiffeId, TrustDomain};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use testkit::pki::{self, TestAuthority};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, broadcast, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use wire::proto;

pub(crate) const DOMAIN: &str = "shop.example";
pub(crate) const JOIN_TOKEN: &str = "join-token-of-the-test";

/// The control plane's state, shared with the test.
pub(crate) struct Control {
    pub(crate) address: SocketAddr,
    /// Signs good and flawed certificates under a root of the same bundle.
    pub(crate) hostile: TestAuthority,
    authority: Authority,
    credentials: Arc<Credentials>,
    /// Life of the SVIDs that are issued.
    pub(crate) lifetime: Duration,
    updates: broadcast::Sender<proto::ConfigUpdate>,
    first: Mutex<Option<proto::ConfigUpdate>>,
    answers: AsyncMutex<mpsc::Receiver<proto::ConfigRequest>>,
    heard: mpsc::Sender<proto::ConfigRequest>,
    pub(crate) records: Mutex<Vec<DecisionRecord>>,
}

#[derive(Clone)]
struct Served(Arc<Control>);

impl Control {
    pub(crate) async fn start(lifetime: Duration) -> Arc<Self> {
        let domain = TrustDomain::parse(DOMAIN).unwrap();
        let now = pki::now();
        let authority = Authority::generate(&domain, now, Duration::from_secs(86_400)).unwrap();
        let hostile = TestAuthority::new(DOMAIN);
        let key = PrivateKey::generate().unwrap();
        let id = domain.control_plane();
        let request = csr::prove(&csr::build(&key, &id).unwrap()).unwrap();
        let own = authority.issue(&request, &id, Duration::from_secs(3600), now).unwrap();
        let bundle = bundle(&authority, &hostile);
        let bundles = Arc::new(TrustBundles::from_model(&[bundle]).unwrap());
        let credentials = Arc::new(Credentials::build(&key, own.chain, bundles, now).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (heard, answers) = mpsc::channel(64);
        let control = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            hostile,
            authority,
            credentials,
            lifetime,
            updates: broadcast::Sender::new(16),
            first: Mutex::new(None),
            answers: AsyncMutex::new(answers),
            heard,
            records: Mutex::default(),
        });
        serve(listener, &control);
        control
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        bundle(&self.authority, &self.hostile)
    }

    pub(crate) fn bundle_pem(&self) -> String {
        self.credentials.bundles().to_pem()
    }

    /// The whole of a snapshot as one signed update.
    pub(crate) fn whole(&self, snapshot: &Snapshot, nonce: &str) -> proto::ConfigUpdate {
        let digest = identity::sha256(&wire::encode_snapshot(snapshot));
        let signature = signed::sign(&self.credentials, proxy::disk::SIGNATURE_PURPOSE, &digest, pki::now()).unwrap();
        proto::ConfigUpdate {
            nonce: nonce.to_owned(),
            revision: snapshot.revision.0,
            changed: wire::convert::resources(snapshot).into_values().collect(),
            removed: Vec::new(),
            signature,
            rehearsal: None,
        }
    }

    /// Sends an update to every stream that is open, and first to every one that is opened later.
    pub(crate) fn send(&self, update: proto::ConfigUpdate) {
        *self.first.lock() = Some(update.clone());
        // Nobody may be listening yet.
        let _nobody = self.updates.send(update);
    }

    /// The next ack or nack: `Ok(nonce)` or `Err(reason)`.
    pub(crate) async fn answer(&self) -> Result<String, String> {
        loop {
            let mut answers = self.answers.lock().await;
            let next = tokio::time::timeout(Duration::from_secs(20), answers.recv()).await.expect("an answer in time").unwrap();
            match next.message.unwrap() {
                proto::config_request::Message::Hello(_) | proto::config_request::Message::Rehearsed(_) => {}
                proto::config_request::Message::Ack(ack) => return Ok(ack.nonce),
                proto::config_request::Message::Nack(nack) => return Err(nack.reason),
            }
        }
    }
}

fn bundle(authority: &Authority, hostile: &TestAuthority) -> TrustBundle {
    let authorities = vec![authority.certificate_der().to_vec(), hostile.certificate_der().to_vec()];
    TrustBundle::x509(TrustDomain::parse(DOMAIN).unwrap(), authorities)
}

fn serve(listener: TcpListener, control: &Arc<Control>) {
    let (shaken, incoming) = mpsc::channel::<std::io::Result<Io>>(8);
    let credentials = Arc::clone(&control.credentials);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (credentials, shaken) = (Arc::clone(&credentials), shaken.clone());
            tokio::spawn(async move {
                if let Ok((stream, _)) = handshake::accept_optional(stream, &credentials, Duration::from_secs(5)).await {
                    let _gone = shaken.send(Ok(Io(stream))).await;
                }
            });
        }
    });
    let served = Served(Arc::clone(control));
    let server = Server::builder()
        .add_service(proto::identity_server::IdentityServer::new(served.clone()))
        .add_service(proto::config_server::ConfigServer::new(served.clone()))
        .add_service(proto::telemetry_server::TelemetryServer::new(served));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
}

#[tonic::async_trait]
impl proto::identity_server::Identity for Served {
    async fn issue(&self, request: Request<proto::IssueRequest>) -> Result<Response<proto::IssueResponse>, Status> {
        let request = request.into_inner();
        if !request.join_token.is_empty() && request.join_token != JOIN_TOKEN {
            return Err(Status::unauthenticated("nobody issued this join token"));
        }
        let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/server").unwrap();
        let key = csr::prove(&request.csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let issued = self.0.authority.issue(&key, &id, self.0.lifetime, pki::now()).unwrap();
        let bundles = vec![wire::convert::bundle_to_wire(&self.0.bundle())];
        let now_ms = pki::now().millis();
        Ok(Response::new(proto::IssueResponse { chain: issued.chain, bundles, revision: 0, now_ms }))
    }

    async fn issue_jwt(&self, _: Request<proto::IssueJwtRequest>) -> Result<Response<proto::IssueJwtResponse>, Status> {
        Err(Status::unimplemented("this control plane signs no JWT-SVIDs"))
    }
}

type Updates = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::ConfigUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl proto::config_server::Config for Served {
    type StreamStream = Updates;

    async fn stream(&self, request: Request<Streaming<proto::ConfigRequest>>) -> Result<Response<Updates>, Status> {
        let later = BroadcastStream::new(self.0.updates.subscribe()).filter_map(Result::ok);
        let first = self.0.first.lock().clone();
        let heard = self.0.heard.clone();
        let mut answers = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let _full = heard.send(answer).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(first).chain(later).map(Ok))))
    }
}

#[tonic::async_trait]
impl proto::telemetry_server::Telemetry for Served {
    async fn report(&self, request: Request<Streaming<proto::DecisionRecord>>) -> Result<Response<proto::ReportSummary>, Status> {
        let mut records = request.into_inner();
        while let Some(record) = records.message().await? {
            self.0.records.lock().push(wire::convert::record_from_wire(record).unwrap());
        }
        Ok(Response::new(proto::ReportSummary { kept: 0 }))
    }
}

struct Io(ServerStream<TcpStream>);

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
