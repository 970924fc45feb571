//! The clients against a server that answers as each test says.

use super::*;
use crate::fixture::snapshot;
use crate::operator::OperatorClient;
use crate::rehearsal::{Handshake, Phase, Step};
use crate::{Publication, Subscription};
use model::token::RevokedTokens;
use model::{DecisionId, Effect, Reason, ServiceName, SpiffeId};
use proto::config_request::Message;
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Mutex;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response};

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_millis(80);

/// What the server answers; `None` is no answer at all.
#[derive(Clone, Default)]
struct Plane {
    issued: Option<Result<proto::IssueResponse, Status>>,
    updates: Vec<proto::ConfigUpdate>,
    status: Option<proto::StatusResponse>,
    records: Vec<proto::DecisionRecord>,
    heard: Arc<Mutex<Heard>>,
}

/// What the server was told.
#[derive(Default)]
struct Heard {
    issue: Option<proto::IssueRequest>,
    config: Vec<Message>,
    records: Vec<DecisionRecord>,
    shadows: Vec<model::shadow::ShadowReport>,
    decisions: Option<proto::DecisionsRequest>,
}

#[tonic::async_trait]
impl proto::identity_server::Identity for Plane {
    async fn issue(&self, request: Request<proto::IssueRequest>) -> Result<Response<proto::IssueResponse>, Status> {
        self.heard.lock().await.issue = Some(request.into_inner());
        match self.issued.clone() {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn issue_jwt(&self, request: Request<proto::IssueJwtRequest>) -> Result<Response<proto::IssueJwtResponse>, Status> {
        let token = request.into_inner().audiences.join("+");
        Ok(Response::new(proto::IssueJwtResponse { token, expires_at_ms: 12 }))
    }
}

#[tonic::async_trait]
impl proto::config_server::Config for Plane {
    type StreamStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::ConfigUpdate, Status>> + Send>>;

    /// Sends every update, each after the answer to the one before, and then ends.
    async fn stream(&self, request: Request<Streaming<proto::ConfigRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        let mut answers = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let plane = self.clone();
        tokio::spawn(async move {
            for update in plane.updates {
                let said = answers.message().await.expect("stream").and_then(|request| request.message).expect("message");
                plane.heard.lock().await.config.push(said);
                sender.send(Ok(update)).await.expect("the sidecar listens");
            }
            if let Ok(Some(proto::ConfigRequest { message: Some(last) })) = answers.message().await {
                plane.heard.lock().await.config.push(last);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl proto::telemetry_server::Telemetry for Plane {
    async fn report(&self, request: Request<Streaming<proto::DecisionRecord>>) -> Result<Response<proto::ReportSummary>, Status> {
        let mut records = request.into_inner();
        let mut heard = self.heard.lock().await;
        while let Some(record) = records.message().await? {
            heard.records.push(convert::record_from_wire(record).map_err(|error| Status::invalid_argument(error.to_string()))?);
        }
        Ok(Response::new(proto::ReportSummary { kept: heard.records.len() as u64 }))
    }

    async fn shadow(&self, request: Request<proto::ShadowReport>) -> Result<Response<proto::ShadowReportSummary>, Status> {
        let report = convert::shadow_report_from_wire(request.into_inner());
        self.heard.lock().await.shadows.push(report.map_err(|error| Status::invalid_argument(error.to_string()))?);
        Ok(Response::new(proto::ShadowReportSummary {}))
    }
}

#[tonic::async_trait]
impl proto::operator_server::Operator for Plane {
    async fn create_join_token(
        &self,
        request: Request<proto::CreateJoinTokenRequest>,
    ) -> Result<Response<proto::CreateJoinTokenResponse>, Status> {
        let token = format!("for {}", request.into_inner().workload);
        Ok(Response::new(proto::CreateJoinTokenResponse { token, bundle_pem: "PEM".into() }))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        match self.status.clone() {
            Some(status) => Ok(Response::new(status)),
            None => std::future::pending().await,
        }
    }

    async fn workload_snapshot(
        &self,
        request: Request<proto::WorkloadSnapshotRequest>,
    ) -> Result<Response<proto::WorkloadSnapshotResponse>, Status> {
        let snapshot = crate::fixture::snapshot();
        match request.into_inner().workload {
            name if name == snapshot.workload.to_string() => {
                Ok(Response::new(proto::WorkloadSnapshotResponse { snapshot: crate::encode_snapshot(&snapshot) }))
            }
            _ => Ok(Response::new(proto::WorkloadSnapshotResponse { snapshot: b"garbage".to_vec() })),
        }
    }

    async fn decision(&self, request: Request<proto::DecisionRequest>) -> Result<Response<proto::DecisionResponse>, Status> {
        let id = request.into_inner().id;
        let record = self.records.iter().find(|record| record.id == id).cloned();
        Ok(Response::new(proto::DecisionResponse { record }))
    }

    async fn decisions(&self, request: Request<proto::DecisionsRequest>) -> Result<Response<proto::DecisionsResponse>, Status> {
        self.heard.lock().await.decisions = Some(request.into_inner());
        Ok(Response::new(proto::DecisionsResponse { records: self.records.clone() }))
    }

    async fn shadow(&self, request: Request<proto::ShadowRequest>) -> Result<Response<proto::ShadowResponse>, Status> {
        let proto::ShadowRequest { workload, since_ms } = request.into_inner();
        let report = proto::ShadowReport { workload, tried: since_ms, ..Default::default() };
        Ok(Response::new(proto::ShadowResponse { reports: vec![report] }))
    }

    async fn issuers(&self, request: Request<proto::IssuersRequest>) -> Result<Response<proto::IssuersResponse>, Status> {
        let report = proto::IssuerReport { name: "login".into(), ..Default::default() };
        let workload =
            proto::WorkloadIssuers { workload: request.into_inner().workload, told_at_ms: Some(7), issuers: vec![report] };
        Ok(Response::new(proto::IssuersResponse { workloads: vec![workload] }))
    }

    async fn authority_status(
        &self,
        _: Request<proto::AuthorityStatusRequest>,
    ) -> Result<Response<proto::AuthorityStatusResponse>, Status> {
        Ok(Response::new(authorities("")))
    }

    async fn rotate_authority(
        &self,
        _: Request<proto::RotateAuthorityRequest>,
    ) -> Result<Response<proto::AuthorityStatusResponse>, Status> {
        Ok(Response::new(authorities("activate")))
    }

    async fn rehearse(&self, _: Request<proto::RehearseRequest>) -> Result<Response<proto::RehearseResponse>, Status> {
        let call = proto::RehearsedCall { phase: "retire".into(), failure: "no".into(), ..Default::default() };
        let proxy = proto::RehearsedProxy { workload: "shop/web".into(), handshakes: vec![call], ..Default::default() };
        Ok(Response::new(proto::RehearseResponse {
            proxies: vec![proxy],
            issued: 3,
            took_ms: 4,
            signer: "files".into(),
            signer_failure: "gone".into(),
        }))
    }

    async fn revoke(&self, request: Request<proto::RevokeRequest>) -> Result<Response<proto::RevokeResponse>, Status> {
        let proto::RevokeRequest { what, reason } = request.into_inner();
        let revoked = proto::RevokedRecord { serial: what, reason, until_ms: 5, ..Default::default() };
        Ok(Response::new(proto::RevokeResponse { revoked: vec![revoked], revision: 6 }))
    }

    async fn revoke_tokens(
        &self,
        request: Request<proto::RevokeTokensRequest>,
    ) -> Result<Response<proto::RevokeTokensResponse>, Status> {
        let proto::RevokeTokensRequest { what, reason } = request.into_inner();
        let revoked = Some(proto::TokenRevocation { what, revoked_at_ms: 5, reason });
        Ok(Response::new(proto::RevokeTokensResponse { revoked, revision: 6 }))
    }

    async fn token_revocations(
        &self,
        _: Request<proto::TokenRevocationsRequest>,
    ) -> Result<Response<proto::TokenRevocationsResponse>, Status> {
        Ok(Response::new(proto::TokenRevocationsResponse { revoked: vec![proto::TokenRevocation::default()] }))
    }
}

async fn control(plane: &Plane) -> ControlClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = Server::builder()
        .add_service(proto::identity_server::IdentityServer::new(plane.clone()))
        .add_service(proto::config_server::ConfigServer::new(plane.clone()))
        .add_service(proto::telemetry_server::TelemetryServer::new(plane.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("address");
    ControlClient::new(endpoint.connect().await.expect("connect"))
}

async fn operator(plane: &Plane) -> (OperatorClient, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("operator.sock");
    let listener = UnixListener::bind(&socket).expect("socket");
    let server = Server::builder().add_service(proto::operator_server::OperatorServer::new(plane.clone()));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    (OperatorClient::connect(&socket, SOON).await.expect("connect"), dir)
}

fn bundle(trust_domain: &str) -> proto::TrustBundle {
    proto::TrustBundle { trust_domain: trust_domain.into(), authorities: vec![vec![9]], ..Default::default() }
}

fn issue_call(join_token: Option<&str>) -> IssueCall {
    let workload = "shop/web".to_owned();
    IssueCall { csr: vec![7], join_token: join_token.map(str::to_owned), workload, ..IssueCall::default() }
}

fn authorities(next_step: &str) -> proto::AuthorityStatusResponse {
    let active = proto::AuthorityRecord { id: "0a".into(), state: "active".into(), alive: 2, ..Default::default() };
    proto::AuthorityStatusResponse {
        trust_domain: "shop.example".into(),
        authorities: vec![active],
        next_step: next_step.into(),
        held_up_by: vec![proto::HoldUp { who: "shop/web".into(), why: "away".into() }],
        federated: vec![proto::FederatedBundle { trust_domain: "other.example".into(), ..Default::default() }],
        revoked: Vec::new(),
        bundle_endpoint: Some(proto::BundleEndpoint { listen: "1.2.3.4:5".into(), sequence: 7, ..Default::default() }),
    }
}

#[tokio::test]
async fn an_svid_comes_with_its_bundles_and_the_token_travels_only_if_there_is_one() {
    let answer =
        proto::IssueResponse { chain: vec![vec![1], vec![2]], bundles: vec![bundle("shop.example")], revision: 4, now_ms: 5 };
    let plane = Plane { issued: Some(Ok(answer)), ..Plane::default() };
    let client = control(&plane).await;
    let issued = client.issue(issue_call(Some("join")), SOON).await.expect("issued");
    assert_eq!(issued.chain, [vec![1], vec![2]]);
    assert_eq!((issued.revision, issued.now), (Revision(4), Timestamp::from_millis(5)));
    assert_eq!(issued.bundles.iter().map(|bundle| bundle.trust_domain.as_str()).collect::<Vec<_>>(), ["shop.example"]);
    let heard = plane.heard.lock().await.issue.take().expect("a request");
    assert_eq!((heard.csr, heard.join_token.as_str(), heard.workload.as_str()), (vec![7], "join", "shop/web"));
    client.issue(issue_call(None), SOON).await.expect("issued");
    assert_eq!(plane.heard.lock().await.issue.take().expect("a request").join_token, "");
}

#[tokio::test]
async fn an_answer_that_breaks_the_contract_is_refused_with_its_path() {
    let sound = bundle("shop.example");
    for (answer, told) in [
        (proto::IssueResponse { chain: Vec::new(), bundles: vec![sound.clone()], ..Default::default() }, "`chain`: empty"),
        (
            proto::IssueResponse { chain: vec![vec![1], Vec::new()], bundles: vec![sound.clone()], ..Default::default() },
            "`chain[1]`: empty",
        ),
        (proto::IssueResponse { chain: vec![vec![1]], bundles: Vec::new(), ..Default::default() }, "`bundles`: empty"),
        (
            proto::IssueResponse { chain: vec![vec![1]], bundles: vec![sound, bundle("A")], ..Default::default() },
            "`bundles[1].trust_domain`",
        ),
    ] {
        let plane = Plane { issued: Some(Ok(answer)), ..Plane::default() };
        let failure = control(&plane).await.issue(issue_call(None), SOON).await.expect_err(told);
        assert!(matches!(&failure, CallFailure::Convert(_)) && failure.to_string().contains(told), "{failure}");
    }
}

#[tokio::test]
async fn a_refusal_keeps_its_code_and_silence_ends_at_the_deadline() {
    let plane = Plane { issued: Some(Err(Status::permission_denied("the token was used"))), ..Plane::default() };
    let failure = control(&plane).await.issue(issue_call(None), SOON).await.expect_err("refused");
    assert!(
        matches!(&failure, CallFailure::Refused { code: Code::PermissionDenied, message } if message == "the token was used")
    );
    let failure = control(&Plane::default()).await.issue(issue_call(None), NEVER).await.expect_err("silence");
    assert_eq!(failure.to_string(), "no answer within 80 ms");
}

async fn update(updates: &mut Updates) -> Update {
    match updates.next().await.expect("stream").expect("message") {
        Received::Update(update) => *update,
        Received::Rehearsal(order) => panic!("{order:?}"),
    }
}

#[tokio::test]
async fn orders_of_a_rehearsal_are_read_and_reported() {
    let bundle = convert::bundle_from_wire(&bundle("shop.example")).expect("bundle");
    let orders = [Step::Prepare(bundle), Step::Shake, Step::End].map(|step| Order { id: "r-1".into(), step });
    let broken = proto::ConfigUpdate {
        rehearsal: Some(proto::Rehearsal { id: "r-1".into(), step: 1, bundle: None }),
        ..Default::default()
    };
    let updates = orders.iter().map(rehearsal::order_to_wire).chain([broken]).collect();
    let plane = Plane { updates, ..Plane::default() };
    let hello = Hello { workload: snapshot().workload, version: "1".into(), revision: Revision(3) };
    let (answers, mut received) = control(&plane).await.config(hello, 65_536, SOON).await.expect("open");
    let identity = SpiffeId::parse("spiffe://shop.example/ns/shop/sa/ledger").expect("id");
    let handshake = |phase, failure| Handshake {
        address: "127.0.0.1:9".parse().expect("address"),
        identity: identity.clone(),
        phase,
        failure,
    };
    let handshakes = vec![handshake(Phase::Activate, None), handshake(Phase::Retire, Some("é".repeat(2000)))];
    let report = Report { id: "r-1".into(), failure: None, handshakes };
    for order in orders {
        let Ok(Some(Received::Rehearsal(got))) = received.next().await else { panic!("an order") };
        assert_eq!(got, order);
        answers.report(report.clone()).await.expect("sent");
    }
    let failure = received.next().await.expect_err("no bundle").to_string();
    assert!(failure.contains("`rehearsal.bundle`: missing"), "{failure}");
    let heard = plane.heard.lock().await;
    let Some(Message::Rehearsed(told)) = heard.config.last() else { panic!("a report") };
    let told = rehearsal::report_from_wire(told.clone()).expect("readable");
    assert_eq!(told.handshakes[0], report.handshakes[0]);
    assert_eq!(told.handshakes[1].failure.as_ref().map(String::len), Some(1024), "cut to its bound");
    let many = vec![proto::RehearsedHandshake::default(); rehearsal::HANDSHAKES_MAX + 1];
    let flood = proto::RehearsalReport { id: "r-1".into(), handshakes: many, ..Default::default() };
    assert!(rehearsal::report_from_wire(flood).is_err());
}

#[tokio::test]
async fn the_authorities_a_rehearsal_and_a_revocation_are_told_as_they_are() {
    let plane = Plane::default();
    let (mut client, _dir) = operator(&plane).await;
    let status = client.authority_status(SOON).await.expect("status");
    assert_eq!((status.trust_domain.as_str(), status.next_step.as_deref()), ("shop.example", None));
    assert_eq!((status.authorities[0].id.as_str(), status.authorities[0].alive), ("0a", 2));
    assert_eq!(status.held_up_by, [("shop/web".to_owned(), "away".to_owned())]);
    assert_eq!((status.federated[0].trust_domain.as_str(), status.federated[0].fetched_at), ("other.example", None));
    let endpoint = status.bundle_endpoint.expect("endpoint");
    assert_eq!((endpoint.listen.as_str(), endpoint.sequence, endpoint.failure), ("1.2.3.4:5", 7, None));
    assert_eq!(client.rotate_authority(SOON).await.expect("status").next_step.as_deref(), Some("activate"));
    let rehearsed = client.rehearse(SOON).await.expect("rehearsed");
    assert_eq!((rehearsed.issued, rehearsed.took, &rehearsed.proxies[0].failure), (3, Duration::from_millis(4), &None));
    assert_eq!(rehearsed.proxies[0].handshakes[0].failure.as_deref(), Some("no"));
    assert_eq!((rehearsed.signer.as_str(), rehearsed.signer_failure.as_deref()), ("files", Some("gone")));
    let revocation = client.revoke("0b", "stolen", SOON).await.expect("revoked");
    assert_eq!((revocation.revision, revocation.revoked[0].serial.as_str()), (Revision(6), "0b"));
    assert_eq!((revocation.revoked[0].reason.as_str(), revocation.revoked[0].until.millis()), ("stolen", 5));
}

#[tokio::test]
async fn a_jwt_svid_comes_with_its_end() {
    let client = control(&Plane::default()).await;
    let jwt = client.issue_jwt(vec!["a".into(), "b".into()], SOON).await.expect("signed");
    assert_eq!((jwt.token.as_str(), jwt.expires_at), ("a+b", Timestamp::from_millis(12)));
    assert!(client.issue_jwt(vec![String::new()], SOON).await.is_err(), "an empty token");
}

#[tokio::test]
async fn the_stream_begins_with_hello_and_every_update_gets_its_answer() {
    let first = Publication::new().next(&snapshot(), || vec![5]).expect("whole");
    let second = proto::ConfigUpdate { nonce: "garbage".into(), ..Default::default() };
    let plane = Plane { updates: vec![first.clone(), second], ..Plane::default() };
    let hello = Hello { workload: snapshot().workload, version: "1".into(), revision: Revision(3) };
    let (answers, mut updates) = control(&plane).await.config(hello, 65_536, SOON).await.expect("open");

    let mut subscription = Subscription::new();
    let candidate = subscription.receive(update(&mut updates).await).expect("readable");
    assert_eq!((&candidate.snapshot, candidate.signature.as_slice()), (&snapshot(), [5].as_slice()));
    answers.send(subscription.accept(candidate)).await.expect("sent");
    let nack = subscription.receive(update(&mut updates).await).expect_err("revision 0");
    answers.send(nack.into()).await.expect("sent");
    assert!(updates.next().await.expect("a clean end").is_none());

    let heard = plane.heard.lock().await;
    let [Message::Hello(hello), Message::Ack(ack), Message::Nack(nack)] = heard.config.as_slice() else { panic!("order") };
    assert_eq!((hello.workload.as_str(), hello.revision), ("shop/web", 3));
    assert_eq!((ack.nonce.as_str(), nack.nonce.as_str()), (first.nonce.as_str(), "garbage"));
}

#[tokio::test]
async fn an_update_is_taken_at_the_bound_of_a_message_and_refused_one_byte_over() {
    let update = Publication::new().next(&snapshot(), Vec::new).expect("whole");
    let bytes = prost::Message::encoded_len(&update);
    for (bytes_max, taken) in [(bytes, true), (bytes - 1, false)] {
        let plane = Plane { updates: vec![update.clone()], ..Plane::default() };
        let hello = Hello { workload: snapshot().workload, version: "1".into(), revision: Revision(0) };
        let (_answers, mut updates) = control(&plane).await.config(hello, bytes_max, SOON).await.expect("open");
        match updates.next().await {
            Ok(Some(_)) => assert!(taken, "{bytes_max}"),
            Err(CallFailure::Refused { code: Code::OutOfRange, .. }) => assert!(!taken, "{bytes_max}"),
            other => panic!("{other:?}"),
        }
    }
}

fn record() -> DecisionRecord {
    let workload = WorkloadName::parse("shop/web").expect("name");
    let service = ServiceName::parse("shop/web").expect("name");
    let (id, at) = (DecisionId::from_random([3; 16]), Timestamp::from_millis(5));
    DecisionRecord::refused(id, at, &workload, &service, Reason::TokenExpired, 401, Revision(2))
}

#[tokio::test]
async fn records_arrive_in_their_order_and_the_end_of_the_queue_ends_the_report() {
    let plane = Plane::default();
    let client = control(&plane).await;
    let (sender, receiver) = mpsc::channel(4);
    let allowed = DecisionRecord { effect: Effect::Allow, reason: None, id: DecisionId::from_random([4; 16]), ..record() };
    for record in [record(), allowed.clone()] {
        sender.send(record).await.expect("room");
    }
    drop(sender);
    let told = model::shadow::ShadowReport {
        workload: "shop/web".into(),
        run: "1".into(),
        tried: 2,
        untried: 1,
        refused: None,
        tallies: Vec::new(),
    };
    assert_eq!(client.report(receiver).await.expect("reported"), 2);
    assert_eq!(plane.heard.lock().await.records, [record(), allowed]);
    client.shadow(&told, SOON).await.expect("told");
    assert_eq!(plane.heard.lock().await.shadows, [told]);
}

fn workload(name: &str, identity: &str) -> proto::WorkloadStatus {
    proto::WorkloadStatus {
        name: name.into(),
        identity: identity.into(),
        connected: true,
        revision: 4,
        rejected: Some("no".into()),
        svid_expires_at_ms: Some(77),
        serial: Some("0a".into()),
        rotations: 2,
        authority: Some("0b".into()),
        key_exchange: Some("X25519".into()),
        application_svids: 1,
    }
}

#[tokio::test]
async fn the_operator_gets_what_the_control_plane_knows() {
    let errors = vec![proto::ConfigProblem { file: "a.yaml".into(), line: 2, column: 3, message: "bad".into(), since_ms: 8 }];
    let workloads = vec![workload("shop/web", "spiffe://shop.example/ns/shop/sa/web")];
    let troubles = vec![proto::Trouble { message: "it ends".into(), since_ms: 0 }];
    let status = proto::StatusResponse { revision: 5, publish_to_last_ack_ms: Some(6), errors, workloads, troubles };
    let records = vec![convert::record_to_wire(&record())];
    let plane = Plane { status: Some(status), records, ..Plane::default() };
    let (mut client, _dir) = operator(&plane).await;

    let name = WorkloadName::parse("shop/web").expect("name");
    let token = client.create_join_token(&name, SOON).await.expect("token");
    assert_eq!((token.token.as_str(), token.bundle_pem.as_str()), ("for shop/web", "PEM"));

    let status = client.status(SOON).await.expect("status");
    assert_eq!((status.revision, status.publish_to_last_ack_ms), (Revision(5), Some(6)));
    assert_eq!((status.troubles[0].message.as_str(), status.troubles[0].since), ("it ends", None));
    let problem = &status.errors[0];
    assert_eq!((problem.file.as_str(), problem.line, problem.column, problem.since.millis()), ("a.yaml", 2, 3, 8));
    let seen = &status.workloads[0];
    assert_eq!((seen.name.as_str(), seen.identity.as_str()), ("shop/web", "spiffe://shop.example/ns/shop/sa/web"));
    assert_eq!((seen.connected, seen.revision, seen.rotations), (true, Revision(4), 2));
    assert_eq!((seen.rejected.as_deref(), seen.serial.as_deref()), (Some("no"), Some("0a")));
    assert_eq!(seen.svid_expires_at, Some(Timestamp::from_millis(77)));

    let what = RevokedTokens { jti: Some("j".into()), until: Timestamp::from_millis(9), ..RevokedTokens::default() };
    let revoked = client.revoke_tokens(&what, "lost", SOON).await.expect("revoked");
    assert_eq!((revoked.revoked.what, revoked.revoked.reason.as_str(), revoked.revision), (what, "lost", Revision(6)));
    // One that says nothing of the tokens would mean all.
    let failure = client.token_revocations(SOON).await.expect_err("nothing is said").to_string();
    assert!(failure.contains("`revoked[0].tokens[0]`"), "{failure}");

    assert_eq!(client.decision(record().id, SOON).await.expect("answer"), Some(record()));
    assert_eq!(client.decision(DecisionId::from_random([0; 16]), SOON).await.expect("answer"), None);
    assert_eq!(client.decisions(9, true, SOON).await.expect("answer"), [record()]);
    let snapshot = crate::fixture::snapshot();
    assert_eq!(client.snapshot(&snapshot.workload, SOON).await.expect("answer"), snapshot);
    let other = WorkloadName::parse("shop/other").expect("name");
    assert!(client.snapshot(&other, SOON).await.expect_err("garbage").to_string().contains("cannot be read"));
    let asked = plane.heard.lock().await.decisions.expect("asked");
    assert_eq!((asked.limit, asked.only_denied), (9, true));
    let (workload, since) = (WorkloadName::parse("shop/web").expect("name"), Timestamp::from_millis(7));
    let told = client.shadow(Some(&workload), Some(since), SOON).await.expect("answer");
    assert_eq!(told.iter().map(|report| (report.workload.as_str(), report.tried)).collect::<Vec<_>>(), [("shop/web", 7)]);
    let told = client.shadow(None, None, SOON).await.expect("answer");
    assert_eq!((told[0].workload.as_str(), told[0].tried), ("", 0));
}

#[tokio::test]
async fn an_operator_hears_which_workload_or_record_cannot_be_read() {
    let sound = workload("shop/web", "spiffe://shop.example/ns/shop/sa/web");
    for (broken, path) in
        [(workload("web", &sound.identity), "`workloads[1].name`"), (workload("shop/a", "x"), "`workloads[1].identity`")]
    {
        let status = proto::StatusResponse { workloads: vec![sound.clone(), broken], ..Default::default() };
        let (mut client, _dir) = operator(&Plane { status: Some(status), ..Plane::default() }).await;
        let failure = client.status(SOON).await.expect_err(path).to_string();
        assert!(failure.contains(path), "{failure}");
    }
    let records = vec![convert::record_to_wire(&record()), proto::DecisionRecord::default()];
    let (mut client, _dir) = operator(&Plane { records, ..Plane::default() }).await;
    let failure = client.decisions(9, false, SOON).await.expect_err("no id").to_string();
    assert!(failure.contains("`records[1].id`"), "{failure}");
}

#[tokio::test]
async fn nobody_at_the_socket_and_nobody_who_answers_are_told_apart() {
    let dir = tempfile::tempdir().expect("directory");
    let failure = OperatorClient::connect(&dir.path().join("none.sock"), SOON).await.expect_err("no socket");
    assert_eq!(failure.to_string(), "connect: No such file or directory (os error 2)");
    let (mut client, _dir) = operator(&Plane::default()).await;
    let failure = client.status(NEVER).await.expect_err("silence");
    assert!(matches!(failure, CallFailure::Timeout { after: NEVER }));
}
