//! The identity from a Workload API that somebody else serves: another sidecar's, and one that the test plays, honest or not.

use crate::control::Control;
use crate::sidecar::{DEADLINE, Setup, Sidecar, application};
use crate::workload_api;
use identity::csr;
use identity::key::PrivateKey;
use model::SpiffeId;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use testkit::pki::{self, TestAuthority};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};

const OWN: &str = "spiffe://shop.example/ns/shop/sa/server";

/// A Workload API that says whatever the test wants.
struct Source {
    says: watch::Sender<Result<X509svidResponse, Status>>,
    dir: tempfile::TempDir,
}

#[derive(Clone)]
struct Served(watch::Sender<Result<X509svidResponse, Status>>);

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Served {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Result<Response<Messages<X509svidResponse>>, Status> {
        assert_eq!(request.metadata().get("workload.spiffe.io").unwrap(), "true");
        Ok(Response::new(Box::pin(WatchStream::new(self.0.subscribe()))))
    }
    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Messages<X509BundlesResponse>>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
    async fn fetch_jwt_bundles(&self, _: Request<JwtBundlesRequest>) -> Result<Response<Messages<JwtBundlesResponse>>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
    async fn validate_jwtsvid(&self, _: Request<ValidateJwtsvidRequest>) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

impl Source {
    fn start(first: Result<X509svidResponse, Status>) -> Self {
        let source = Self { says: watch::Sender::new(first), dir: tempfile::tempdir().unwrap() };
        let listener = UnixListener::bind(source.socket()).unwrap();
        let server = Server::builder().add_service(SpiffeWorkloadApiServer::new(Served(source.says.clone())));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        source
    }

    fn say(&self, message: X509svidResponse) {
        self.says.send_modify(|says| *says = Ok(message));
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }
}

fn taking(socket: &Path, control: &Arc<Control>) -> Setup {
    let arguments = vec!["--identity-socket".to_owned(), format!("unix:{}", socket.display())];
    Setup { arguments, control: Some(Arc::clone(control)), ..Setup::default() }
}

/// An SVID as an honest source gives it.
fn honest(control: &Control, id: &str) -> X509svid {
    let (key, id) = (PrivateKey::generate().unwrap(), SpiffeId::parse(id).unwrap());
    let request = csr::prove(&csr::build(&key, &id).unwrap()).unwrap();
    let issued = control.authority().issue(&request, &id, Duration::from_secs(3600), pki::now()).unwrap();
    X509svid {
        spiffe_id: id.to_string(),
        x509_svid: issued.chain.concat(),
        x509_svid_key: key.to_pkcs8_der().to_vec(),
        bundle: control.bundle().authorities.concat(),
        hint: String::new(),
    }
}

fn message(svids: &[X509svid]) -> X509svidResponse {
    X509svidResponse { svids: svids.to_vec(), ..X509svidResponse::default() }
}

async fn until(sidecar: &Sidecar, what: &str, metric: &str, least: u64) {
    let deadline = Instant::now() + DEADLINE;
    while sidecar.metric(metric).await < least {
        assert!(Instant::now() < deadline, "{what}\n{}", sidecar.log());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_sidecar_without_a_join_token_takes_its_svid_from_a_workload_api_and_follows_its_rotation() {
    let arguments = ["--workload-api", "{dir}/api.sock"].map(str::to_owned).into();
    let lifetime = Duration::from_secs(6);
    let serving = Sidecar::start(application().await, Setup { arguments, lifetime, ..Setup::default() }).await;
    let control = serving.control.sibling().await;
    let sidecar = Sidecar::start(application().await, taking(&workload_api::socket(&serving), &control)).await;
    let request = b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    assert!(sidecar.exchange(request).await.starts_with("HTTP/1.1 200"));
    until(&sidecar, "no rotation", "rondel_svid_rotations_total", 3).await;
    assert!(sidecar.exchange(request).await.starts_with("HTTP/1.1 200"));
    assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 200"), "{}", sidecar.admin("/ready").await);
    assert_eq!(sidecar.metric("rondel_svid_failures_total").await, 0, "{}", sidecar.log());
}

#[tokio::test]
async fn workload_endpoint_6_a_client_that_is_denied_says_so_and_tries_again() {
    let control = Control::start(Duration::from_secs(3600)).await;
    let source = Source::start(Err(Status::permission_denied("no identity issued")));
    let sidecar = Sidecar::launch(application().await, taking(&source.socket(), &control)).await;
    until(&sidecar, "no attempt", "rondel_svid_failures_total", 2).await;
    let ready = sidecar.admin("/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("the identity socket has given no SVID"), "{ready}");
    assert!(sidecar.log().contains("no identity issued"), "{}", sidecar.log());
    source.say(message(&[honest(&control, OWN)]));
    sidecar.until_ready().await;
}

#[tokio::test]
async fn workload_api_4_2_a_client_connects_again_when_its_stream_has_ended() {
    let control = Control::start(Duration::from_secs(3600)).await;
    let source = Source::start(Ok(message(&[honest(&control, OWN)])));
    let sidecar = Sidecar::start(application().await, taking(&source.socket(), &control)).await;
    for rotations in 2..5 {
        let failures = sidecar.metric("rondel_svid_failures_total").await;
        source.says.send_modify(|says| *says = Err(Status::unavailable("the agent is restarted")));
        until(&sidecar, "the end was not noticed", "rondel_svid_failures_total", failures + 1).await;
        source.say(message(&[honest(&control, OWN)]));
        until(&sidecar, "it did not come back", "rondel_svid_rotations_total", rotations).await;
        assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 200"));
    }
}

/// The head of a PKCS#8 document with an RSA key.
fn rsa() -> Vec<u8> {
    let head = [0x30, 0x82, 0x04, 0xbd, 0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 42, 134, 72, 134, 247, 13, 1, 1, 1];
    [&head[..], &[0; 900]].concat()
}

#[tokio::test]
async fn workload_api_5_2_1_an_svid_of_the_identity_socket_is_used_only_if_every_peer_would_believe_it() {
    let control = Control::start(Duration::from_secs(3600)).await;
    let good = honest(&control, OWN);
    let rsa = X509svid { x509_svid_key: rsa(), ..good.clone() };
    let source = Source::start(Ok(message(&[rsa])));
    let sidecar = Sidecar::launch(application().await, taking(&source.socket(), &control)).await;
    until(&sidecar, "an RSA key", "rondel_svid_failures_total", 1).await;
    let log = sidecar.log();
    assert!(log.contains("its key is RSA") && log.contains("workload_x509_svid_key_type"), "{log}");
    assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 503"));
    source.say(message(std::slice::from_ref(&good)));
    sidecar.until_ready().await;

    let stranger = TestAuthority::new("shop.example");
    let presented = stranger.good(&SpiffeId::parse(OWN).unwrap());
    let usurped =
        X509svid { x509_svid: presented.chain.concat(), x509_svid_key: presented.key.to_pkcs8_der().to_vec(), ..good.clone() };
    let other = "spiffe://shop.example/ns/shop/sa/other";
    let hostile = [
        ("no SVID", message(&[])),
        ("no chain", message(&[X509svid { x509_svid: Vec::new(), ..good.clone() }])),
        ("half a chain", message(&[X509svid { x509_svid: good.x509_svid[..99].to_vec(), ..good.clone() }])),
        ("no bundle", message(&[X509svid { bundle: Vec::new(), ..good.clone() }])),
        ("no key", message(&[X509svid { x509_svid_key: Vec::new(), ..good.clone() }])),
        ("another's key", message(&[X509svid { x509_svid_key: honest(&control, OWN).x509_svid_key, ..good.clone() }])),
        ("another's SVID", message(&[honest(&control, other)])),
        ("another's SVID under our name", message(&[X509svid { spiffe_id: OWN.into(), ..honest(&control, other) }])),
        ("nobody's authority", message(&[usurped])),
    ];
    let before = sidecar.admin("/metrics").await;
    let end = |metrics: &str| metrics.lines().find(|line| line.starts_with("rondel_svid_expires_at_seconds")).map(str::to_owned);
    for (name, message) in hostile {
        let failures = sidecar.metric("rondel_svid_failures_total").await;
        source.say(message);
        until(&sidecar, name, "rondel_svid_failures_total", failures + 1).await;
        assert_eq!(sidecar.metric("rondel_svid_rotations_total").await, 1, "{name}: put in force");
        assert_eq!(end(&sidecar.admin("/metrics").await), end(&before), "{name}");
        assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 200"), "{name}");
    }
    // Ours stands second, after another's: it is found by its name.
    source.say(message(&[honest(&control, other), honest(&control, OWN)]));
    until(&sidecar, "the own SVID", "rondel_svid_rotations_total", 2).await;
}

#[tokio::test]
async fn workload_api_4_4_a_root_of_the_identity_socket_is_believed_until_it_is_taken_back() {
    let control = Control::start(Duration::from_secs(3600)).await;
    // One SVID all along: a new one opens a new configuration stream, with which the mesh's bundle comes again.
    let mut svid = honest(&control, OWN);
    let source = Source::start(Ok(message(std::slice::from_ref(&svid))));
    let mut sidecar = Sidecar::start(application().await, taking(&source.socket(), &control)).await;
    let kept = sidecar.dir.path().join("state/trust-bundle");
    let next = TestAuthority::new("shop.example");
    let knows = |authority: &[u8]| {
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        let pem = text.split_once('\n').map(|(_, pem)| pem.to_owned()).unwrap_or_default();
        identity::TrustBundles::from_pem(&pem)
            .is_ok_and(|known| known.to_model()[0].authorities.iter().any(|der| der == authority))
    };
    let until_knows = async |expected: bool, what: &str| {
        let deadline = Instant::now() + DEADLINE;
        while knows(next.certificate_der()) != expected {
            assert!(Instant::now() < deadline, "{what}");
            sleep(Duration::from_millis(20)).await;
        }
    };
    let old = svid.bundle.clone();
    svid.bundle.extend_from_slice(next.certificate_der());
    source.say(message(std::slice::from_ref(&svid)));
    until_knows(true, "the new root is not believed").await;
    sidecar.publish().await;
    until_knows(true, "the new root is believed only until the next configuration").await;
    // It is taken back, and the control plane's own authority stays.
    svid.bundle = old;
    source.say(message(&[svid]));
    until_knows(false, "a root that was taken back is believed").await;
    assert!(knows(control.authority().certificate_der()));
    assert!(sidecar.admin("/ready").await.starts_with("HTTP/1.1 200"));
}
