//! A control plane that does what the test says: issues real SVIDs, sends whatever update it is given, and notes the answers.

use identity::authority::Authority;
use identity::bundle::TrustBundles;
use identity::credentials::Credentials;
use identity::handshake::{self, ServerStream};
use identity::jwt_svid::{self, JwtKey};
use identity::key::PrivateKey;
use identity::{csr, signed};
use model::shadow::ShadowReport;
use model::snapshot::TrustBundle;
use model::{DecisionRecord, Snapshot, SpiffeId, TrustDomain};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    pub(crate) hostile: Arc<TestAuthority>,
    authority: Arc<Authority>,
    jwt_key: Arc<JwtKey>,
    credentials: Arc<Credentials>,
    /// Life of the SVIDs that are issued.
    pub(crate) lifetime: Duration,
    /// Life of the tokens that are signed.
    pub(crate) jwt_lifetime: Mutex<Duration>,
    /// Whether the application's SVIDs and tokens are refused as by a control plane that is away.
    pub(crate) is_away: AtomicBool,
    /// SVIDs that were issued for the application.
    pub(crate) lent: AtomicU64,
    /// Tokens that were signed.
    pub(crate) tokens: AtomicU64,
    updates: broadcast::Sender<proto::ConfigUpdate>,
    first: Mutex<Option<proto::ConfigUpdate>>,
    answers: AsyncMutex<mpsc::Receiver<proto::ConfigRequest>>,
    heard: mpsc::Sender<proto::ConfigRequest>,
    troubles: AsyncMutex<mpsc::Receiver<Vec<String>>>,
    troubled: mpsc::Sender<Vec<String>>,
    pub(crate) records: Mutex<Vec<DecisionRecord>>,
    pub(crate) shadows: Mutex<Vec<ShadowReport>>,
}

#[derive(Clone)]
struct Served(Arc<Control>);

impl Control {
    pub(crate) async fn start(lifetime: Duration) -> Arc<Self> {
        let domain = TrustDomain::parse(DOMAIN).unwrap();
        let authority = Authority::generate(&domain, pki::now(), Duration::from_secs(86_400)).unwrap();
        let jwt_key = Arc::new(JwtKey::generate().unwrap());
        Self::of(Arc::new(authority), Arc::new(TestAuthority::new(DOMAIN)), jwt_key, lifetime).await
    }

    /// Another control plane of the same authorities.
    pub(crate) async fn sibling(&self) -> Arc<Self> {
        let (authority, hostile) = (Arc::clone(&self.authority), Arc::clone(&self.hostile));
        Self::of(authority, hostile, Arc::clone(&self.jwt_key), self.lifetime).await
    }

    async fn of(authority: Arc<Authority>, hostile: Arc<TestAuthority>, jwt_key: Arc<JwtKey>, lifetime: Duration) -> Arc<Self> {
        let now = pki::now();
        let key = PrivateKey::generate().unwrap();
        let id = authority.trust_domain().control_plane();
        let request = csr::prove(&csr::build(&key, &id).unwrap()).unwrap();
        let own = authority.issue(&request, &id, Duration::from_secs(3600), now).unwrap();
        let bundle = bundle(&authority, &hostile, &jwt_key);
        let bundles = Arc::new(TrustBundles::from_model(&[bundle]).unwrap());
        let credentials = Arc::new(Credentials::build(&key, own.chain, bundles, now).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (heard, answers) = mpsc::channel(64);
        let (troubled, troubles) = mpsc::channel(64);
        let control = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            hostile,
            authority,
            jwt_key,
            credentials,
            lifetime,
            jwt_lifetime: Mutex::new(Duration::from_secs(300)),
            is_away: AtomicBool::new(false),
            lent: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            updates: broadcast::Sender::new(16),
            first: Mutex::new(None),
            answers: AsyncMutex::new(answers),
            heard,
            troubles: AsyncMutex::new(troubles),
            troubled,
            records: Mutex::default(),
            shadows: Mutex::default(),
        });
        serve(listener, &control);
        control
    }

    /// The authority that signs what is asked for by a call.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        bundle(&self.authority, &self.hostile, &self.jwt_key)
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

    /// The next troubles that the sidecar tells of.
    pub(crate) async fn trouble(&self) -> Vec<String> {
        let mut troubles = self.troubles.lock().await;
        tokio::time::timeout(Duration::from_secs(20), troubles.recv()).await.expect("told in time").unwrap()
    }

    /// The next ack or nack: `Ok(nonce)` or `Err(reason)`.
    pub(crate) async fn answer(&self) -> Result<String, String> {
        loop {
            let mut answers = self.answers.lock().await;
            let next = tokio::time::timeout(Duration::from_secs(20), answers.recv()).await.expect("an answer in time").unwrap();
            match next.message.unwrap() {
                proto::config_request::Message::Hello(_)
                | proto::config_request::Message::Rehearsed(_)
                | proto::config_request::Message::Issuers(_)
                | proto::config_request::Message::Troubles(_) => {}
                proto::config_request::Message::Ack(ack) => return Ok(ack.nonce),
                proto::config_request::Message::Nack(nack) => return Err(nack.reason),
            }
        }
    }
}

fn bundle(authority: &Authority, hostile: &TestAuthority, jwt_key: &JwtKey) -> TrustBundle {
    let authorities = vec![authority.certificate_der().to_vec(), hostile.certificate_der().to_vec()];
    let bundle = TrustBundle::x509(TrustDomain::parse(DOMAIN).unwrap(), authorities);
    TrustBundle { jwt_authorities: vec![jwt_key.public().to_jwk_json()], ..bundle }
}

fn serve(listener: TcpListener, control: &Arc<Control>) {
    let (shaken, incoming) = mpsc::channel::<std::io::Result<Io>>(8);
    let credentials = Arc::clone(&control.credentials);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (credentials, shaken) = (Arc::clone(&credentials), shaken.clone());
            tokio::spawn(async move {
                if let Ok((stream, peer)) = handshake::accept_optional(stream, &credentials, Duration::from_secs(5)).await {
                    let caller = peer.map(|peer| peer.id().clone());
                    let _gone = shaken.send(Ok(Io(stream, Caller(caller)))).await;
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
        let caller = request.extensions().get::<Caller>().and_then(|caller| caller.0.clone());
        let request = request.into_inner();
        if request.for_application {
            if caller.is_none() {
                return Err(Status::permission_denied("only a workload that has proven itself is lent an SVID"));
            }
            if self.0.is_away.load(Ordering::Relaxed) {
                return Err(Status::unavailable("away"));
            }
            self.0.lent.fetch_add(1, Ordering::Relaxed);
        }
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

    async fn issue_jwt(&self, request: Request<proto::IssueJwtRequest>) -> Result<Response<proto::IssueJwtResponse>, Status> {
        let caller = request.extensions().get::<Caller>().and_then(|caller| caller.0.clone());
        let id = caller.ok_or_else(|| Status::permission_denied("only a workload that has proven itself gets a token"))?;
        if self.0.is_away.load(Ordering::Relaxed) {
            return Err(Status::unavailable("away"));
        }
        self.0.tokens.fetch_add(1, Ordering::Relaxed);
        let (audiences, lifetime) = (request.into_inner().audiences, *self.0.jwt_lifetime.lock());
        let issued = jwt_svid::issue(&self.0.jwt_key, &id, &audiences, lifetime, pki::now());
        let issued = issued.map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        Ok(Response::new(proto::IssueJwtResponse { token: issued.token, expires_at_ms: issued.expires_at.millis() }))
    }
}

type Updates = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::ConfigUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl proto::config_server::Config for Served {
    type StreamStream = Updates;

    async fn stream(&self, request: Request<Streaming<proto::ConfigRequest>>) -> Result<Response<Updates>, Status> {
        let later = BroadcastStream::new(self.0.updates.subscribe()).filter_map(Result::ok);
        let first = self.0.first.lock().clone();
        let (heard, troubled) = (self.0.heard.clone(), self.0.troubled.clone());
        let mut answers = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                if let Some(proto::config_request::Message::Troubles(report)) = &answer.message {
                    let texts = report.troubles.iter().map(|trouble| trouble.text.clone());
                    let _full = troubled.try_send(texts.collect());
                }
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

    async fn shadow(&self, request: Request<proto::ShadowReport>) -> Result<Response<proto::ShadowReportSummary>, Status> {
        self.0.shadows.lock().push(wire::convert::shadow_report_from_wire(request.into_inner()).unwrap());
        Ok(Response::new(proto::ShadowReportSummary {}))
    }
}

/// Who the connection proves to be, if anybody.
#[derive(Clone)]
struct Caller(Option<SpiffeId>);

struct Io(ServerStream<TcpStream>, Caller);

impl Connected for Io {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.1.clone()
    }
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
