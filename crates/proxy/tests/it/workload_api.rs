//! The SPIFFE Workload API over its real socket: what the documents SPIFFE Workload API and SPIFFE Workload Endpoint ask of a server.

use crate::sidecar::{DEADLINE, Setup, Sidecar, application};
use identity::credentials::{Credentials, CredentialsError};
use identity::jwt_svid::{self, JwtAuthority, JwtKey};
use identity::key::PrivateKey;
use identity::{TrustBundles, X509Svid};
use model::SpiffeId;
use model::snapshot::{RevokedSvid, TrustBundle};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use testkit::pki::{self, LawlessClient, TestAuthority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tower::ServiceExt;
use wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use wire::workload::{
    self, JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};

const OWN: &str = "spiffe://shop.example/ns/shop/sa/server";

type Client = SpiffeWorkloadApiClient<Channel>;

/// A sidecar that serves the API.
async fn serving(setup: Setup) -> Sidecar {
    let arguments = ["--workload-api", "{dir}/api.sock"].map(str::to_owned).into();
    Sidecar::start(application().await, Setup { arguments, ..setup }).await
}

pub(crate) fn socket(sidecar: &Sidecar) -> PathBuf {
    sidecar.dir.path().join("api.sock")
}

/// Waits until somebody listens.
async fn channel(socket: &Path) -> Channel {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match workload::connect(socket, DEADLINE).await {
            Ok(channel) => return channel,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn client(sidecar: &Sidecar) -> Client {
    Client::new(channel(&socket(sidecar)).await)
}

async fn svids(client: &mut Client) -> Streaming<X509svidResponse> {
    client.fetch_x509svid(workload::request(X509svidRequest {})).await.unwrap().into_inner()
}

/// The next message, or the status that ends the stream.
async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    Ok(timeout(DEADLINE, stream.message()).await.expect("a message in time")?.expect("the stream goes on"))
}

/// How a call or its stream ends.
async fn refused<T>(call: Result<tonic::Response<Streaming<T>>, Status>) -> Code {
    match call {
        Err(status) => status.code(),
        Ok(stream) => next(&mut stream.into_inner()).await.err().map_or(Code::Ok, |status| status.code()),
    }
}

/// The own SVID of a message, checked as a peer would.
fn checked(message: &X509svidResponse) -> (X509Svid, PrivateKey) {
    assert_eq!(message.svids.len(), 1);
    let svid = &message.svids[0];
    let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
    let id = SpiffeId::parse(&svid.spiffe_id).unwrap();
    let own = TrustBundle::x509(id.trust_domain().clone(), cut(&svid.bundle));
    let bundles = Arc::new(TrustBundles::from_model(&[own]).unwrap());
    let credentials = Credentials::build(&key, cut(&svid.x509_svid), bundles, pki::now()).unwrap();
    assert_eq!(credentials.svid().id(), &id);
    (credentials.svid().clone(), key)
}

/// DER certificates that stand one after the other; each has a length of two bytes.
fn cut(mut der: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        assert_eq!(der[..2], [0x30, 0x82]);
        let (one, rest) = der.split_at(4 + usize::from(u16::from_be_bytes([der[2], der[3]])));
        found.push(one.to_vec());
        der = rest;
    }
    found
}

/// Every call of the API with this metadata.
async fn codes(channel: &Channel, headers: &[&'static str]) -> Vec<Code> {
    fn with<T>(message: T, headers: &[&'static str]) -> Request<T> {
        let mut request = Request::new(message);
        for value in headers {
            request.metadata_mut().append(workload::HEADER, MetadataValue::from_static(value));
        }
        request
    }
    let mut client = Client::new(channel.clone());
    let token = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: String::new() };
    let check = ValidateJwtsvidRequest { audience: "a".into(), svid: "b".into() };
    vec![
        refused(client.fetch_x509svid(with(X509svidRequest {}, headers)).await).await,
        refused(client.fetch_x509_bundles(with(X509BundlesRequest {}, headers)).await).await,
        refused(client.fetch_jwt_bundles(with(JwtBundlesRequest {}, headers)).await).await,
        client.fetch_jwtsvid(with(token, headers)).await.err().map_or(Code::Ok, |status| status.code()),
        client.validate_jwtsvid(with(check, headers)).await.err().map_or(Code::Ok, |status| status.code()),
    ]
}

/// The gRPC status of a call without a message, by its path.
async fn raw(channel: &Channel, path: &str, header: Option<&str>) -> String {
    let mut request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(value) = header {
        request = request.header(workload::HEADER, value);
    }
    let response = channel.clone().oneshot(request.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
    response.headers()["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn workload_endpoint_3_a_request_without_the_security_header_is_an_invalid_argument() {
    let sidecar = serving(Setup::default()).await;
    let channel = channel(&socket(&sidecar)).await;
    for headers in [&[][..], &["True"], &["1"], &["true", "true"], &["false"]] {
        assert_eq!(codes(&channel, headers).await, [Code::InvalidArgument; 5], "{headers:?}");
    }
    // Neither does a forged request learn what there is besides.
    for path in ["/SpiffeWorkloadAPI/FetchWITSVID", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        assert_eq!(raw(&channel, path, None).await, "3", "{path}");
    }
    assert_eq!(sidecar.control.lent.load(Ordering::Relaxed), 0, "a forged request made an SVID");
    let accepted = codes(&channel, &["true"]).await;
    assert_eq!(accepted, [Code::Ok, Code::Ok, Code::Ok, Code::Ok, Code::InvalidArgument], "the last holds no token");
}

#[tokio::test]
async fn workload_endpoint_6_what_is_not_offered_is_unimplemented() {
    let sidecar = serving(Setup::default()).await;
    let channel = channel(&socket(&sidecar)).await;
    for path in ["/SpiffeWorkloadAPI/FetchWITSVID", "/SpiffeWorkloadAPI/FetchWITBundles", "/Other/Call"] {
        assert_eq!(raw(&channel, path, Some("true")).await, "12", "{path}");
    }
}

#[tokio::test]
async fn workload_api_5_2_1_the_application_gets_a_whole_svid_of_its_own_key() {
    let sidecar = serving(Setup::default()).await;
    assert_eq!(sidecar.control.lent.load(Ordering::Relaxed), 0, "nobody has asked yet");
    let mut client = client(&sidecar).await;
    let mut stream = svids(&mut client).await;
    let message = next(&mut stream).await.unwrap();
    let (svid, key) = checked(&message);
    assert_eq!((svid.id().as_str(), message.svids[0].hint.as_str()), (OWN, ""));
    assert_eq!(cut(&message.svids[0].bundle), sidecar.control.bundle().authorities);
    assert!(message.crl.is_empty() && message.federated_bundles.is_empty());

    // The sidecar presents another certificate, and the application's key does not belong to it.
    let presented = sidecar.control.hostile.good(&SpiffeId::parse("spiffe://shop.example/ns/shop/sa/client").unwrap());
    let caller = LawlessClient::new().presenting(&presented.chain, &presented.key).alpn(&["http/1.1"]);
    let stream = caller.connect(TcpStream::connect(sidecar.inbound).await.unwrap()).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap();
    let chain: Vec<Vec<u8>> = shown.iter().map(|der| der.as_ref().to_vec()).collect();
    assert_ne!(chain, svid.chain());
    let bundles = Arc::new(TrustBundles::from_model(&[sidecar.control.bundle()]).unwrap());
    assert_eq!(Credentials::build(&key, chain, bundles, pki::now()).err(), Some(CredentialsError::KeyMismatch));

    assert_eq!(sidecar.metric("rondel_application_svids_total").await, 1);
    assert_eq!(sidecar.metric("rondel_workload_api_streams").await, 1);
    // Another process of the application is told the same.
    let again = next(&mut svids(&mut self::client(&sidecar).await).await).await.unwrap();
    assert_eq!(again, message);
}

#[tokio::test]
async fn workload_api_4_3_a_renewed_svid_is_sent_while_anybody_listens_and_a_fresh_one_to_who_asks_later() {
    let sidecar = serving(Setup { lifetime: Duration::from_secs(6), ..Setup::default() }).await;
    let mut client = client(&sidecar).await;
    let mut stream = svids(&mut client).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let message = next(&mut stream).await.unwrap();
        checked(&message);
        assert!(!keys.contains(&message.svids[0].x509_svid_key), "the key stayed");
        keys.push(message.svids[0].x509_svid_key.clone());
    }
    drop(stream);
    let deadline = Instant::now() + DEADLINE;
    while sidecar.metric("rondel_workload_api_streams").await != 0 {
        assert!(Instant::now() < deadline, "the stream is still counted");
        sleep(Duration::from_millis(20)).await;
    }
    let lent = sidecar.control.lent.load(Ordering::Relaxed);
    // Longer than two thirds of a life: with a listener it would have been renewed.
    sleep(Duration::from_secs(4)).await;
    assert_eq!(sidecar.control.lent.load(Ordering::Relaxed), lent, "renewed for nobody");
    let message = next(&mut svids(&mut client).await).await.unwrap();
    let (svid, _) = checked(&message);
    assert!(!keys.contains(&message.svids[0].x509_svid_key));
    assert!(svid.not_after().since(pki::now()) > Duration::from_secs(3), "not fresh");
}

/// Adds `bank.example` to the configuration in force, with a key for tokens or without.
async fn federate(sidecar: &mut Sidecar, key: Option<&JwtKey>) -> TestAuthority {
    let bank = TestAuthority::new("bank.example");
    let jwt_authorities = key.map(|key| key.public().to_jwk_json()).into_iter().collect();
    sidecar.snapshot.bundles.push(TrustBundle { jwt_authorities, ..bank.bundle() });
    sidecar.publish().await;
    bank
}

async fn unfederate(sidecar: &mut Sidecar) {
    sidecar.snapshot.bundles.truncate(1);
    sidecar.publish().await;
}

#[tokio::test]
async fn workload_endpoint_3_and_5_it_is_grpc_at_a_unix_socket_and_asks_for_no_tls_and_no_authentication() {
    let sidecar = serving(Setup::default()).await;
    let found = std::fs::metadata(socket(&sidecar)).unwrap();
    assert!(found.file_type().is_socket() && found.permissions().mode() & 0o777 == 0o660, "{found:?}");
    next(&mut svids(&mut client(&sidecar).await).await).await.unwrap();
    // Who asked is looked at, not asked.
    let (uid, pid, log) = (rustix::process::getuid().as_raw(), std::process::id(), sidecar.log());
    assert!(log.contains(&format!("\"uid\":{uid},")) && log.contains(&format!("\"pid\":{pid}")), "{log}");
}

#[tokio::test]
async fn workload_api_4_3_every_stream_begins_with_a_whole_message_at_once() {
    let sidecar = serving(Setup::default()).await;
    let mut client = client(&sidecar).await;
    next(&mut svids(&mut client).await).await.unwrap();
    let soon = Duration::from_secs(2);
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(next(&mut svids(&mut client).await).await.unwrap().svids.len(), 1);
        let x509 = client.fetch_x509_bundles(workload::request(X509BundlesRequest {})).await.unwrap();
        assert_eq!(next(&mut x509.into_inner()).await.unwrap().bundles.len(), 1);
        let jwt = client.fetch_jwt_bundles(workload::request(JwtBundlesRequest {})).await.unwrap();
        assert_eq!(next(&mut jwt.into_inner()).await.unwrap().bundles.len(), 1);
        assert!(begun.elapsed() < soon, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn workload_api_4_3_every_message_is_the_whole_and_sent_when_it_changed() {
    let mut sidecar = serving(Setup::default()).await;
    let mut whole = svids(&mut client(&sidecar).await).await;
    let first = next(&mut whole).await.unwrap();
    federate(&mut sidecar, None).await;
    let second = next(&mut whole).await.unwrap();
    assert_eq!((&second.svids, second.federated_bundles.len()), (&first.svids, 1), "the whole, not the difference");
    // A change of something else is no change here.
    sidecar.enforce("@id(\"none\") forbid (principal, action, resource);").await;
    assert!(timeout(Duration::from_millis(300), whole.message()).await.is_err(), "a message without a change");
}

#[tokio::test]
async fn workload_api_4_4_what_is_absent_is_taken_back() {
    let mut sidecar = serving(Setup::default()).await;
    let mut client = client(&sidecar).await;
    let mut whole = svids(&mut client).await;
    let mut x509 = client.fetch_x509_bundles(workload::request(X509BundlesRequest {})).await.unwrap().into_inner();
    let mut jwt = client.fetch_jwt_bundles(workload::request(JwtBundlesRequest {})).await.unwrap().into_inner();
    let before = (next(&mut whole).await.unwrap(), next(&mut x509).await.unwrap(), next(&mut jwt).await.unwrap());
    federate(&mut sidecar, Some(&JwtKey::generate().unwrap())).await;
    let during = (next(&mut whole).await.unwrap(), next(&mut x509).await.unwrap(), next(&mut jwt).await.unwrap());
    assert_eq!((during.0.federated_bundles.len(), during.1.bundles.len(), during.2.bundles.len()), (1, 2, 2));
    unfederate(&mut sidecar).await;
    let after = (next(&mut whole).await.unwrap(), next(&mut x509).await.unwrap(), next(&mut jwt).await.unwrap());
    assert_eq!(after, before);
}

#[tokio::test]
async fn workload_api_4_5_an_empty_mandatory_field_is_an_invalid_argument() {
    let sidecar = serving(Setup::default()).await;
    let mut client = client(&sidecar).await;
    for none in [&[][..], &[""], &["a", ""]] {
        assert_eq!(token(&mut client, none, "").await, Err(Code::InvalidArgument), "{none:?}");
    }
    let good = token(&mut client, &["a"], "").await.unwrap();
    for (audience, svid) in [("", good.as_str()), ("a", ""), ("", "")] {
        let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
        let refused = client.validate_jwtsvid(workload::request(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audience} {svid}");
    }
}

#[tokio::test]
async fn workload_api_4_6_a_foreign_bundle_stands_under_the_id_of_its_trust_domain() {
    let mut sidecar = serving(Setup::default()).await;
    let bank = federate(&mut sidecar, None).await;
    let message = next(&mut svids(&mut client(&sidecar).await).await).await.unwrap();
    assert_eq!(message.federated_bundles.keys().collect::<Vec<_>>(), ["spiffe://bank.example"]);
    assert_eq!(cut(&message.federated_bundles["spiffe://bank.example"]), bank.bundle().authorities);
    assert_eq!(cut(&message.svids[0].bundle), sidecar.control.bundle().authorities, "never merged");
}

#[tokio::test]
async fn workload_api_5_2_2_the_own_bundle_is_always_among_the_bundles() {
    let mut sidecar = serving(Setup::default()).await;
    let mut client = client(&sidecar).await;
    let mut stream = client.fetch_x509_bundles(workload::request(X509BundlesRequest {})).await.unwrap().into_inner();
    let alone = next(&mut stream).await.unwrap().bundles;
    assert_eq!(alone.keys().collect::<Vec<_>>(), ["spiffe://shop.example"]);
    assert_eq!(cut(&alone["spiffe://shop.example"]), sidecar.control.bundle().authorities);
    let bank = federate(&mut sidecar, None).await;
    let both = next(&mut stream).await.unwrap().bundles;
    assert_eq!((&both["spiffe://shop.example"], both.len()), (&alone["spiffe://shop.example"], 2));
    assert_eq!(cut(&both["spiffe://bank.example"]), bank.bundle().authorities);
}

#[tokio::test]
async fn workload_api_6_2_2_a_bundle_for_tokens_is_a_key_set_with_keys_for_tokens_alone() {
    let mut sidecar = serving(Setup::default()).await;
    let mut client = client(&sidecar).await;
    let mut stream = client.fetch_jwt_bundles(workload::request(JwtBundlesRequest {})).await.unwrap().into_inner();
    let alone = next(&mut stream).await.unwrap().bundles;
    assert_eq!(alone.keys().collect::<Vec<_>>(), ["spiffe://shop.example"]);
    let key = JwtKey::generate().unwrap();
    federate(&mut sidecar, Some(&key)).await;
    let both = next(&mut stream).await.unwrap().bundles;
    assert_eq!((&both["spiffe://shop.example"], both.len()), (&alone["spiffe://shop.example"], 2));
    for (domain, known) in
        [("shop.example", sidecar.control.bundle().jwt_authorities), ("bank.example", vec![key.public().to_jwk_json()])]
    {
        let set: serde_json::Value = serde_json::from_slice(&both[&format!("spiffe://{domain}")]).unwrap();
        let keys = set["keys"].as_array().unwrap();
        assert!(!keys.is_empty() && keys.iter().all(|jwk| jwk["use"] == "jwt-svid"), "{set}");
        let id = |jwk: &[u8]| JwtAuthority::from_jwk_json(jwk).unwrap().key_id().to_owned();
        let told: Vec<String> = keys.iter().map(|jwk| id(jwk.to_string().as_bytes())).collect();
        assert_eq!(told, known.iter().map(|jwk| id(jwk)).collect::<Vec<_>>(), "{domain}");
    }
}

#[tokio::test]
async fn workload_api_replaces_an_svid_that_is_revoked_or_whose_authority_is_tainted() {
    let mut sidecar = serving(Setup { lifetime: Duration::from_secs(40), ..Setup::default() }).await;
    let mut stream = svids(&mut client(&sidecar).await).await;
    let (first, _) = checked(&next(&mut stream).await.unwrap());
    sidecar.snapshot.revoked = vec![RevokedSvid { serial: first.serial().to_owned(), until: first.not_after() }];
    let at = Instant::now();
    sidecar.publish().await;
    let (second, _) = checked(&next(&mut stream).await.unwrap());
    assert_ne!(second.serial(), first.serial());
    assert!(at.elapsed() < Duration::from_secs(3), "a revoked SVID was served on");

    // Within a tenth of a life, so that a mesh does not do it all at once.
    sidecar.snapshot.bundles[0].tainted = vec![second.authority_key_id().unwrap().to_owned()];
    sidecar.publish().await;
    let (third, _) = checked(&next(&mut stream).await.unwrap());
    assert_ne!(third.serial(), second.serial());
    assert!(at.elapsed() < Duration::from_secs(12), "a tainted authority's SVID was renewed by its time only");
}

#[tokio::test]
async fn workload_endpoint_6_it_is_unavailable_when_the_last_good_svid_has_ended_and_nobody_gives_another() {
    let sidecar = serving(Setup { lifetime: Duration::from_secs(8), ..Setup::default() }).await;
    let mut client = client(&sidecar).await;
    let mut stream = svids(&mut client).await;
    let message = next(&mut stream).await.unwrap();
    sidecar.control.is_away.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + DEADLINE;
    while sidecar.metric("rondel_application_svid_failures_total").await == 0 {
        assert!(Instant::now() < deadline, "no attempt was made");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(next(&mut svids(&mut client).await).await.unwrap(), message, "the last good one");
    // At its end it is taken back.
    assert_eq!(next(&mut stream).await.map(|_| ()).unwrap_err().code(), Code::Unavailable);
    assert!(pki::now() >= end_of(&message), "taken back before its end");
    sidecar.control.is_away.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + DEADLINE;
    while next(&mut svids(&mut client).await).await.is_err() {
        assert!(Instant::now() < deadline, "it was not tried again");
        sleep(Duration::from_millis(50)).await;
    }
}

/// When the SVID of a message ends, also if it has ended.
fn end_of(message: &X509svidResponse) -> model::Timestamp {
    let own = TrustBundle::x509(SpiffeId::parse(OWN).unwrap().trust_domain().clone(), cut(&message.svids[0].bundle));
    let bundles = TrustBundles::from_model(&[own]).unwrap();
    let early = pki::now().minus(Duration::from_secs(60));
    X509Svid::parse(&cut(&message.svids[0].x509_svid), &bundles, early).unwrap().not_after()
}

#[tokio::test]
async fn workload_endpoint_6_without_an_identity_permission_is_denied() {
    let arguments = ["--workload-api", "{dir}/api.sock"].map(str::to_owned).into();
    let setup = Setup { arguments, join_token: "nobody's", ..Setup::default() };
    let sidecar = Sidecar::launch(application().await, setup).await;
    let channel = channel(&socket(&sidecar)).await;
    assert_eq!(codes(&channel, &["true"]).await, [Code::PermissionDenied; 5]);
    assert_eq!(sidecar.control.lent.load(Ordering::Relaxed), 0);
}

async fn token(client: &mut Client, audience: &[&str], spiffe_id: &str) -> Result<String, Code> {
    let audience = audience.iter().map(|&each| each.to_owned()).collect();
    let request = workload::request(JwtsvidRequest { audience, spiffe_id: spiffe_id.into() });
    let response = client.fetch_jwtsvid(request).await.map_err(|status| status.code())?.into_inner();
    assert_eq!(response.svids.len(), 1);
    let svid = &response.svids[0];
    assert_eq!((svid.spiffe_id.as_str(), svid.hint.as_str()), (OWN, ""));
    Ok(svid.svid.clone())
}

#[tokio::test]
async fn workload_api_6_2_1_a_token_is_for_the_audiences_that_are_named_and_for_no_other_identity() {
    let sidecar = serving(Setup::default()).await;
    let mut client = client(&sidecar).await;
    let signed = || sidecar.control.tokens.load(Ordering::Relaxed);
    for other in ["spiffe://shop.example/ns/shop/sa/other", "spiffe://shop.example", "x"] {
        assert_eq!(token(&mut client, &["a"], other).await, Err(Code::PermissionDenied), "{other}");
    }
    assert_eq!(signed(), 0, "refused before anybody is asked");
    let first = token(&mut client, &["a", "b"], OWN).await.unwrap();
    let bundles = jwt_svid::JwtBundles::from_model(&[sidecar.control.bundle()]).unwrap();
    for audience in ["a", "b"] {
        assert_eq!(jwt_svid::verify(&first, audience, &bundles, pki::now()).unwrap().id().as_str(), OWN);
    }
    // Remembered for the set, whatever its order.
    assert_eq!(token(&mut client, &["b", "a"], "").await.unwrap(), first);
    assert_eq!(signed(), 1);
    assert_ne!(token(&mut client, &["a"], "").await.unwrap(), first);
    assert_eq!(signed(), 2);
    // More than are remembered.
    for index in 0..70 {
        token(&mut client, &[&format!("many-{index}")], "").await.unwrap();
    }
    assert_eq!(token(&mut client, &["many-69"], "").await.map(|_| signed()), Ok(72));
}

#[tokio::test]
async fn workload_api_6_2_1_a_token_is_new_after_half_of_its_life_and_kept_while_the_control_plane_is_away() {
    let sidecar = serving(Setup::default()).await;
    *sidecar.control.jwt_lifetime.lock() = Duration::from_secs(6);
    let mut client = client(&sidecar).await;
    let first = token(&mut client, &["a"], "").await.unwrap();
    sidecar.control.is_away.store(true, Ordering::Relaxed);
    sleep(Duration::from_millis(3200)).await;
    assert_eq!(token(&mut client, &["a"], "").await.unwrap(), first, "half of its life is left");
    assert_eq!(token(&mut client, &["b"], "").await, Err(Code::Unavailable));
    sidecar.control.is_away.store(false, Ordering::Relaxed);
    assert_ne!(token(&mut client, &["a"], "").await.unwrap(), first);
}

#[tokio::test]
async fn workload_api_6_2_3_tokens_are_validated_by_the_rules_of_jwt_svid() {
    let mut sidecar = serving(Setup::default()).await;
    let key = JwtKey::generate().unwrap();
    federate(&mut sidecar, Some(&key)).await;
    let mut client = client(&sidecar).await;
    let own = token(&mut client, &["shop", "till"], "").await.unwrap();
    let minute = Duration::from_secs(60);
    let issue = |id: &str, now| {
        let id = SpiffeId::parse(id).unwrap();
        jwt_svid::issue(&key, &id, &["shop".to_owned()], minute, now).unwrap().token
    };
    let foreign = issue("spiffe://bank.example/teller", pki::now());
    let ended = issue("spiffe://bank.example/teller", pki::now().minus(minute * 2));
    let (head, _) = own.rsplit_once('.').unwrap();
    let tampered = format!("{head}.{}", foreign.rsplit_once('.').unwrap().1);
    let table = [
        ("own", "shop", own.as_str(), Ok(OWN)),
        ("own, second audience", "till", &own, Ok(OWN)),
        ("federated", "shop", &foreign, Ok("spiffe://bank.example/teller")),
        ("another audience", "bank", &own, Err(Code::InvalidArgument)),
        ("ended", "shop", &ended, Err(Code::InvalidArgument)),
        ("another signature", "shop", &tampered, Err(Code::InvalidArgument)),
        ("no token", "shop", "x.y.z", Err(Code::InvalidArgument)),
    ];
    for (name, audience, svid, expected) in table {
        let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
        let answer = client.validate_jwtsvid(workload::request(request)).await.map(tonic::Response::into_inner);
        match (answer, expected) {
            (Ok(answer), Ok(id)) => {
                assert_eq!(answer.spiffe_id, id, "{name}");
                let mut names: Vec<String> = answer.claims.unwrap().fields.into_keys().collect();
                names.sort();
                assert_eq!(names, ["aud", "exp", "iat", "sub"], "{name}");
            }
            (answer, expected) => assert_eq!(answer.map(|_| "").map_err(|status| status.code()), expected, "{name}"),
        }
    }
}

#[tokio::test]
async fn workload_api_6_3_a_token_is_validated_with_the_bundle_of_its_subjects_trust_domain() {
    let mut sidecar = serving(Setup::default()).await;
    let key = JwtKey::generate().unwrap();
    let mut client = client(&sidecar).await;
    let mut validated = async |id: &str| {
        let id = SpiffeId::parse(id).unwrap();
        let issued = jwt_svid::issue(&key, &id, &["shop".to_owned()], Duration::from_secs(60), pki::now()).unwrap();
        let request = ValidateJwtsvidRequest { audience: "shop".into(), svid: issued.token };
        let answer = client.validate_jwtsvid(workload::request(request)).await;
        answer.map(|answer| answer.into_inner().spiffe_id).map_err(|status| status.code())
    };
    let teller = "spiffe://bank.example/teller";
    assert_eq!(validated(teller).await, Err(Code::InvalidArgument), "no bundle of its trust domain");
    federate(&mut sidecar, Some(&key)).await;
    assert_eq!(validated(teller).await.as_deref(), Ok(teller));
    assert_eq!(validated(OWN).await, Err(Code::InvalidArgument), "another trust domain's key");
    unfederate(&mut sidecar).await;
    assert_eq!(validated(teller).await, Err(Code::InvalidArgument), "taken back");
}

#[tokio::test]
async fn workload_endpoint_6_streams_are_bounded_and_the_rest_is_shed_as_unavailable() {
    let sidecar = serving(Setup::default()).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut client = client(&sidecar).await;
        for _ in 0..32 {
            let mut stream = client.fetch_x509_bundles(workload::request(X509BundlesRequest {})).await.unwrap().into_inner();
            next(&mut stream).await.unwrap();
            open.push(stream);
        }
    }
    let mut client = client(&sidecar).await;
    let more = client.fetch_x509_bundles(workload::request(X509BundlesRequest {})).await;
    assert_eq!(refused(more).await, Code::Unavailable);
    drop(open.pop());
    let deadline = Instant::now() + DEADLINE;
    while refused(client.fetch_x509_bundles(workload::request(X509BundlesRequest {})).await).await != Code::Ok {
        assert!(Instant::now() < deadline, "a place that was left is not given to another");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn workload_api_bounds_its_connections_and_ends_those_that_say_nothing() {
    let sidecar = serving(Setup::default()).await;
    let mut silent = Vec::new();
    for number in 0..63 {
        let mut stream = UnixStream::connect(socket(&sidecar)).await.unwrap();
        // Some begin, and then do not go on.
        stream.write_all(b"PRI".get(..number % 4).unwrap()).await.unwrap();
        silent.push(stream);
    }
    // The last place, and the one that is one too many.
    let mut client = client(&sidecar).await;
    next(&mut svids(&mut client).await).await.unwrap();
    let mut over = UnixStream::connect(socket(&sidecar)).await.unwrap();
    let read = timeout(Duration::from_secs(5), over.read(&mut [0; 64])).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    for mut stream in silent {
        // What the server says of itself comes first.
        let end = timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await;
        let _closed_or_reset = end.expect("ended for its silence, or for its stutter");
    }
    next(&mut svids(&mut client).await).await.unwrap();
    next(&mut svids(&mut self::client(&sidecar).await).await).await.unwrap();
}

#[tokio::test]
async fn workload_api_takes_the_place_of_a_socket_that_nobody_serves_and_of_nothing_else() {
    let mut sidecar = serving(Setup::default()).await;
    sidecar.restart();
    // The join token was used before, and this control plane does not mind.
    sidecar.until_ready().await;
    checked(&next(&mut svids(&mut client(&sidecar).await).await).await.unwrap());

    let place = tempfile::tempdir().unwrap();
    let (file, answered) = (place.path().join("file"), place.path().join("answered"));
    std::fs::write(&file, "precious").unwrap();
    let _listener = UnixListener::bind(&answered).unwrap();
    for (path, said) in [(&file, "is not a socket"), (&answered, "somebody answers")] {
        let arguments = vec!["--workload-api".to_owned(), path.display().to_string()];
        let mut refusing = Sidecar::launch(application().await, Setup { arguments, ..Setup::default() }).await;
        assert!(!refusing.until_ended().await.success());
        assert!(refusing.log().contains(said), "{}", refusing.log());
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
