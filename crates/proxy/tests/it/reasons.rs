//! Reasons that no other test produces, each end to end: the same word in the answer, in the access log with its side, and in the
//! metric. [`every_reason_is_produced_by_a_test`] says where the others are.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application, free};
use clap::Parser;
use model::snapshot::{Endpoint, Protocol, Upstream};
use model::{Limit, Reason, Revision, ServiceName, SpiffeId};
use proxy::settings::Settings;
use proxy::state::Shared;
use proxy::telemetry::access_log::{AccessLog, Direction, Entry};
use proxy::telemetry::decisions::Decisions;
use proxy::telemetry::metrics::Metrics;
use proxy::workers::Workers;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use testkit::pki::{Flaw, LawlessServer, Presented};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: peer\r\nconnection: close\r\n\r\n";

pub(crate) fn peer() -> SpiffeId {
    SpiffeId::parse("spiffe://shop.example/ns/shop/sa/peer").unwrap()
}

/// The word stands in the access log with its side, and in the metric of its direction.
async fn told(sidecar: &Sidecar, reason: Reason) {
    let line = sidecar.logged(reason.as_str()).await;
    let side = if line["direction"] == "outbound" { reason.side_of_call() } else { reason.side() };
    assert_eq!(line["side"], side.as_str(), "{reason}");
    let metrics = sidecar.admin("/metrics").await;
    assert!(metrics.contains(&format!("reason=\"{reason}\"")), "{reason} is not counted");
}

/// Has the sidecar call a peer at `endpoint` for whoever calls `listen`.
async fn calling(sidecar: &mut Sidecar, listen: SocketAddr, endpoint: Option<SocketAddr>) {
    sidecar.snapshot.revision = Revision(sidecar.snapshot.revision.0 + 1);
    sidecar.snapshot.upstreams = vec![Upstream {
        service: ServiceName::parse("shop/peer").unwrap(),
        listen: Some(listen),
        protocol: Protocol::Http,
        endpoints: endpoint.into_iter().map(|address| Endpoint { address, identity: peer() }).collect(),
    }];
    let nonce = format!("upstream-{}", sidecar.snapshot.revision.0);
    sidecar.control.send(sidecar.control.whole(&sidecar.snapshot, &nonce));
    assert_eq!(sidecar.control.answer().await, Ok(nonce));
}

async fn called(listen: SocketAddr) -> String {
    let mut stream = TcpStream::connect(listen).await.unwrap();
    stream.write_all(GET).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
    answer
}

/// A peer with this identity that reads a request, says `answer`, and closes unless it is silent.
pub(crate) async fn playing(sidecar: &Sidecar, id: &SpiffeId, answer: &'static [u8]) -> SocketAddr {
    presenting(&sidecar.control.hostile.good(id), answer).await
}

async fn presenting(presented: &Presented, answer: &'static [u8]) -> SocketAddr {
    let server = LawlessServer::presenting(&presented.chain, &presented.key, &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = server.accept(stream).await else { continue };
            let _read = stream.read(&mut [0; 1024]).await;
            if answer.is_empty() {
                sleep(DEADLINE).await;
            }
            let _sent = stream.write_all(answer).await;
            let _closed = stream.shutdown().await;
        }
    });
    address
}

/// A peer with the right identity that does not believe ours.
async fn disbelieving(sidecar: &Sidecar) -> SocketAddr {
    let presented = sidecar.control.hostile.good(&peer());
    let server = LawlessServer::believing_nobody(&presented.chain, &presented.key, &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            server.accept(stream).await.unwrap_err();
        }
    });
    address
}

#[tokio::test]
async fn failures_of_an_upstream_are_told_as_its_own() {
    let limits = &[(Limit::ResponseHeadMs, 400)];
    let mut sidecar = Sidecar::start(application().await, Setup { limits, ..Setup::default() }).await;
    let other = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/other").unwrap();
    let cases = [
        (Reason::UpstreamNoEndpoint, "503", None),
        (Reason::UpstreamConnect, "502", Some(free())),
        (Reason::PeerUnexpected, "502", Some(playing(&sidecar, &other, b"x").await)),
        (Reason::PeerExpired, "502", Some(presenting(&sidecar.control.hostile.flawed(Flaw::Expired, &peer()), b"x").await)),
        (Reason::IdentityRefused, "502", Some(disbelieving(&sidecar).await)),
        // The application itself: plaintext.
        (Reason::UpstreamHandshake, "502", Some(application().await)),
        (Reason::UpstreamTimeout, "504", Some(playing(&sidecar, &peer(), b"").await)),
        (Reason::UpstreamMalformed, "502", Some(playing(&sidecar, &peer(), b"no http\r\n\r\n").await)),
        (Reason::UpstreamReset, "502", Some(playing(&sidecar, &peer(), b"HTTP/1.1 2").await)),
    ];
    let listen = free();
    for (reason, status, endpoint) in cases {
        calling(&mut sidecar, listen, endpoint).await;
        let answer = called(listen).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{reason}: {answer}");
        assert!(answer.contains(&format!("x-rondel-reason: {reason}\r\n")), "{reason}: {answer}");
        told(&sidecar, reason).await;
    }
    let good = playing(&sidecar, &peer(), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    calling(&mut sidecar, listen, Some(good)).await;
    assert!(called(listen).await.ends_with("ok"));
}

#[tokio::test]
async fn a_policy_that_fails_denies_and_says_so() {
    let policy = "@id(\"sum\") permit (principal, action, resource) when \
                  { context.request has body && context.request.body.amount + 9223372036854775807 > 0 };";
    let sidecar = Sidecar::start(application().await, Setup { policy, ..Setup::default() }).await;
    let body = "{\"amount\":1}";
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close";
    let answer = sidecar.exchange(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("x-rondel-reason: policy_error\r\n"), "{answer}");
    told(&sidecar, Reason::PolicyError).await;
}

/// An open connection of opaque bytes to the application.
async fn opaque(sidecar: &Sidecar) -> crate::sidecar::Tls {
    let id = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap();
    let good = sidecar.control.hostile.good(&id);
    let client = testkit::pki::LawlessClient::new().presenting(&good.chain, &good.key).alpn(&["rondel-tcp"]);
    client.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap()
}

async fn ended(stream: &mut crate::sidecar::Tls) {
    let read = timeout(Duration::from_secs(10), stream.read(&mut [0; 1])).await.expect("ended in time");
    assert_eq!(read.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_opaque_connection_that_nothing_moves_on_is_ended() {
    let setup = Setup { protocol: Protocol::Tcp, limits: &[(Limit::IdleMs, 1000)], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    ended(&mut opaque(&sidecar).await).await;
    told(&sidecar, Reason::IdleTimeout).await;
    assert_eq!(sidecar.logged("idle_timeout").await["detail"], "no byte for limit `idleMs` (1000 ms)");
}

#[tokio::test]
async fn an_opaque_connection_ends_at_its_maximum_age() {
    let setup = Setup { protocol: Protocol::Tcp, age: Duration::from_secs(1), ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    ended(&mut opaque(&sidecar).await).await;
    told(&sidecar, Reason::ConnectionAge).await;
}

#[tokio::test]
async fn an_opaque_connection_is_ended_by_a_drain() {
    let setup = Setup { protocol: Protocol::Tcp, limits: &[(Limit::DrainMs, 3000)], ..Setup::default() };
    let sidecar = Sidecar::start(application().await, setup).await;
    let mut stream = opaque(&sidecar).await;
    // Told only when the tunnel stands.
    stream.write_all(GET).await.unwrap();
    stream.read_u8().await.unwrap();
    sidecar.admin_post("/quit").await;
    let mut rest = Vec::new();
    let _ended = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("ended in time");
    assert_eq!(sidecar.logged("draining").await["side"], "sidecar");
}

#[tokio::test]
async fn a_stream_that_its_caller_resets_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let sidecar = Sidecar::start(silent, Setup { permissive: true, ..Setup::default() }).await;
    let stream = TcpStream::connect(sidecar.inbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = http::Request::get("http://server/").body(()).unwrap();
    let (_response, mut send): (_, h2::SendStream<bytes::Bytes>) = client.send_request(request, false).unwrap();
    sleep(Duration::from_millis(200)).await;
    send.send_reset(h2::Reason::CANCEL);
    told(&sidecar, Reason::CallerGone).await;
}

#[tokio::test]
async fn a_sidecar_without_an_identity_refuses_and_says_so() {
    let mut sidecar = Sidecar::start(application().await, Setup::default()).await;
    // It begins with the configuration on its disk, and gets no certificate for a token that nobody issued.
    std::fs::write(sidecar.dir.path().join("join-token"), "not-a-token").unwrap();
    sidecar.restart();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Ok(mut stream) = TcpStream::connect(sidecar.inbound).await {
            let ended = timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("closed");
            assert_eq!(ended.unwrap_or(0), 0);
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it does not listen\n{}", sidecar.log());
        sleep(Duration::from_millis(50)).await;
    }
    told(&sidecar, Reason::NotReady).await;
    assert!(sidecar.admin("/ready").await.contains("no SVID issued yet"));
}

/// No invariant can be broken from outside: the parts of a sidecar that a request runs through, and a request that breaks one.
#[tokio::test]
async fn a_request_that_a_broken_invariant_ends_is_told_as_the_sidecars_own_fault() {
    let arguments = "rondel-proxy --workload shop/server --control 127.0.0.1:1 --join-token-file t --trust-bundle b --state s";
    let settings = Settings::try_parse_from(arguments.split(' ')).unwrap();
    let ((decisions, _told), (key_requests, _wanted)) = (Decisions::queue(1), mpsc::channel(1));
    let log = AccessLog::start(false).unwrap();
    let shared = Arc::new(Shared::new(settings, key_requests, decisions, log, Metrics::default()));
    let workers = Workers::start(1, &shared.metrics).unwrap();
    let entry = Entry::begin(&shared, "access", Direction::Inbound, free());
    workers.spawn(|_| async move {
        let _under_way = entry;
        std::panic::panic_any("a broken invariant");
    });
    let deadline = Instant::now() + DEADLINE;
    while shared.metrics.connection_panics.get() == 0 {
        assert!(Instant::now() < deadline, "nothing broke");
        sleep(Duration::from_millis(10)).await;
    }
    let metrics = shared.metrics.text();
    assert!(metrics.contains("reason=\"internal\"") && !metrics.contains("caller_gone"), "{metrics}");
    workers.stop().await;
}

/// Where a reason is produced: the file and the test, or the promise of `tests/interop`.
const fn produced(reason: Reason) -> &'static str {
    match reason {
        Reason::PlaintextRefused | Reason::PeerCertificateMissing | Reason::HandshakeFailed => {
            "strangers_and_other_protocols_are_refused"
        }
        Reason::PortUnknown => "plaintext_around_the_sidecar_does_not_get_in",
        Reason::RedirectLoop => "a_redirect_loop_is_refused",
        Reason::EgressRefused => "a_mesh_may_refuse_calls_to_the_outside",
        Reason::PeerRevoked => "a_revoked_svid_gets_no_connection_and_loses_those_it_has",
        Reason::PeerUntrusted | Reason::PeerExpired | Reason::PeerNotYetValid | Reason::PeerProfile => {
            "every_flawed_certificate_is_refused_with_its_reason"
        }
        Reason::HandshakeTimeout => "a_handshake_that_dawdles_is_ended_and_stalls_nobody",
        Reason::RequestMalformed | Reason::FramingAmbiguous | Reason::HostInvalid | Reason::PathInvalid => {
            "ambiguous_messages_are_refused_and_never_reach_the_application"
        }
        Reason::HeadTooLarge | Reason::HeadTimeout => "heads_that_are_too_large_too_many_or_too_slow_are_refused_by_name",
        Reason::BodyTooLarge | Reason::BodyIncomplete | Reason::BodyAmbiguous => {
            "a_body_that_a_policy_reads_is_bounded_and_unambiguous"
        }
        Reason::MethodNotSupported => "ambiguous_messages_are_refused_and_never_reach_the_application",
        Reason::TokenMissing
        | Reason::TokenMalformed
        | Reason::TokenAlgorithm
        | Reason::TokenIssuerUnknown
        | Reason::TokenKeyUnknown
        | Reason::TokenSignature
        | Reason::TokenAudience
        | Reason::TokenExpired
        | Reason::TokenNotYetValid
        | Reason::TokenTwice
        | Reason::TokenClaim => "good_tokens_pass_and_every_bad_one_gets_401_with_a_challenge",
        Reason::TokenInactive => "an_opaque_token_is_asked_about_once_and_remembered_within_its_bounds",
        Reason::TokenScope | Reason::TokenStepUp => "rfc6750_3_rfc9470_3_and_rfc9728_5_1_a_challenge_says_what_would_do",
        Reason::TokenSender => "rfc8705_3_a_certificate_bound_token_is_of_use_to_its_holder_alone",
        Reason::DpopProof | Reason::DpopNonce => {
            "rfc9449_7_a_dpop_token_is_of_use_with_a_fresh_proof_and_a_nonce_of_this_sidecar"
        }
        Reason::TokenRevoked => "a_revoked_token_is_refused_though_it_is_remembered_and_others_go_on",
        Reason::IssuerUnavailable => "an_issuer_without_keys_fails_its_own_tokens_only_and_blocks_nothing",
        Reason::DeniedByPolicy => "a_websocket_is_carried_whole_and_ends_when_the_policy_no_longer_permits_it",
        Reason::NotPermitted => "no_policy_denies_everything",
        Reason::PolicyError => "a_policy_that_fails_denies_and_says_so",
        Reason::PeerUnexpected
        | Reason::UpstreamNoEndpoint
        | Reason::UpstreamConnect
        | Reason::UpstreamHandshake
        | Reason::IdentityRefused
        | Reason::UpstreamReset
        | Reason::UpstreamTimeout
        | Reason::UpstreamMalformed => "failures_of_an_upstream_are_told_as_its_own",
        Reason::ApplicationConnect | Reason::ApplicationReset | Reason::ApplicationTimeout | Reason::ApplicationMalformed => {
            "failures_of_the_application_are_told_as_its_own"
        }
        Reason::NotReady => "a_sidecar_without_an_identity_refuses_and_says_so",
        Reason::Overloaded => "requests_beyond_the_limit_wait_and_are_then_refused_by_name",
        Reason::CallerGone => "a_stream_that_its_caller_resets_is_told_as_such",
        Reason::Flooding => "streams_that_are_reset_as_fast_as_they_open_stall_nobody_and_cost_no_memory",
        Reason::IdleTimeout => "an_opaque_connection_that_nothing_moves_on_is_ended",
        Reason::ConnectionAge => "an_opaque_connection_ends_at_its_maximum_age",
        Reason::Draining => "an_opaque_connection_is_ended_by_a_drain",
        Reason::Internal => "a_request_that_a_broken_invariant_ends_is_told_as_the_sidecars_own_fault",
    }
}

#[test]
fn every_reason_is_produced_by_a_test() {
    let sources = [
        include_str!("applied.rs"),
        include_str!("attacks.rs"),
        include_str!("faults.rs"),
        include_str!("lifecycle.rs"),
        include_str!("opaque.rs"),
        include_str!("reasons.rs"),
        include_str!("resource_server.rs"),
        include_str!("tokens.rs"),
        include_str!("traffic.rs"),
        include_str!("../../../../tests/scenarios/identity.rs"),
    ]
    .concat();
    let promises = include_str!("../../../../tests/interop/main.rs");
    for reason in Reason::ALL {
        let test = produced(reason);
        let promised = promises.split_once(&format!("(\"{test}\", capture::")).and_then(|(_, rest)| rest.split_once(')'));
        let (text, function) = match promised {
            Some((function, _)) => (include_str!("../../../../tests/interop/capture.rs"), function),
            None => (sources.as_str(), test),
        };
        let found = text.split_once(&format!("fn {function}(")).and_then(|(_, rest)| rest.split_once("\n}\n"));
        let (body, _) = found.unwrap_or_else(|| panic!("{reason}: there is no test `{test}`"));
        // One of them takes each word from a table of the testkit.
        let words = [reason.as_str().to_owned(), format!("Reason::{reason:?}"), "flaw.reason()".to_owned()];
        assert!(words.iter().any(|word| body.contains(word)), "{reason}: `{test}` does not look for it");
    }
}
