//! The configuration stream, the records, and what is the operator's alone.

use crate::plane::{CLIENT, DEADLINE, Plane};
use identity::Credentials;
use model::{DecisionId, DecisionRecord, Reason, Revision, ServiceName, Timestamp, WorkloadName};
use tokio::time::timeout;
use tonic::Code;
use wire::Subscription;
use wire::client::{Answers, CallFailure, ControlClient, Hello, Received, Updates};
use wire::proto;

fn hello(workload: &str, revision: u64) -> Hello {
    Hello { workload: WorkloadName::parse(workload).unwrap(), version: "test".to_owned(), revision: Revision(revision) }
}

pub(crate) async fn opened(plane: &Plane, own: &Credentials, workload: &str) -> Result<(Answers, Updates), CallFailure> {
    ControlClient::new(plane.proven(own).await).config(hello(workload, 0), 1 << 20, DEADLINE).await
}

async fn next(updates: &mut Updates) -> wire::Update {
    match timeout(DEADLINE, updates.next()).await.unwrap().unwrap().unwrap() {
        Received::Update(update) => *update,
        Received::Rehearsal(order) => panic!("{order:?}"),
    }
}

pub(crate) fn record(workload: &str, number: u8) -> DecisionRecord {
    let name = WorkloadName::parse(workload).unwrap();
    let service = ServiceName::parse(workload).unwrap();
    let id = DecisionId::from_random([number; 16]);
    DecisionRecord::refused(id, Timestamp::from_seconds(1_800_000_000), &name, &service, Reason::NotPermitted, 403, Revision(1))
}

#[tokio::test]
async fn a_workload_learns_its_own_configuration_and_of_no_other() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let (_answers, mut updates) = opened(&plane, &own, "shop/client").await.unwrap();
    let update = next(&mut updates).await;
    let candidate = Subscription::new().receive(update).unwrap();
    assert_eq!(candidate.snapshot.workload.as_str(), "shop/client");
    let mut words = Vec::new();
    for other in ["shop/server", "shop/nobody"] {
        let Err(CallFailure::Refused { code: Code::PermissionDenied, message }) = opened(&plane, &own, other).await else {
            panic!("{other}")
        };
        words.push(message.replace(other, "?"));
    }
    assert_eq!(words[0], words[1], "whether a workload exists is not told");
    let nameless = ControlClient::new(plane.anonymous().await).config(hello("shop/client", 0), 1 << 20, DEADLINE).await;
    assert!(matches!(nameless, Err(CallFailure::Refused { code: Code::Unauthenticated, .. })));
}

#[tokio::test]
async fn a_refused_configuration_is_shown_until_it_is_taken() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let (answers, mut updates) = opened(&plane, &own, "shop/client").await.unwrap();
    let mut subscription = Subscription::new();
    let candidate = subscription.receive(next(&mut updates).await).unwrap();
    answers.send(subscription.refuse(candidate, "the port is taken")).await.unwrap();
    let of = |status: &wire::operator::MeshStatus| {
        status.workloads.iter().find(|each| each.name.as_str() == "shop/client").cloned().unwrap()
    };
    let status = plane.until("the refusal", |status| of(status).rejected.is_some()).await;
    assert_eq!(of(&status).rejected.as_deref(), Some("revision 1: the port is taken"));
    assert!(of(&status).connected && of(&status).revision == Revision(0));
    std::fs::write(plane.config("client.yaml"), CLIENT.replace("15201", "15202")).unwrap();
    let candidate = subscription.receive(next(&mut updates).await).unwrap();
    assert_eq!(candidate.snapshot.revision, Revision(2));
    answers.send(subscription.accept(candidate)).await.unwrap();
    plane.until("the ack", |status| of(status).rejected.is_none() && of(status).revision == Revision(2)).await;
}

#[tokio::test]
async fn a_later_stream_takes_over_and_an_answer_to_nothing_ends_one() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let (answers, mut first) = opened(&plane, &own, "shop/client").await.unwrap();
    let mut subscription = Subscription::new();
    let candidate = subscription.receive(next(&mut first).await).unwrap();
    answers.send(subscription.accept(candidate)).await.unwrap();
    let (_answers, _second) = opened(&plane, &own, "shop/client").await.unwrap();
    let ended = timeout(DEADLINE, first.next()).await.unwrap();
    assert!(matches!(&ended, Err(CallFailure::Refused { code: Code::Aborted, .. })), "{ended:?}");
    plane.until("the later stream is up", |status| status.workloads.iter().any(|each| each.connected)).await;

    let mut raw = proto::config_client::ConfigClient::new(plane.proven(&own).await);
    let say = |message| proto::ConfigRequest { message: Some(message) };
    let hello =
        say(proto::config_request::Message::Hello(proto::Hello { workload: "shop/client".to_owned(), ..Default::default() }));
    let lie = say(proto::config_request::Message::Ack(proto::Ack { nonce: "never sent".to_owned() }));
    let mut updates = raw.stream(tokio_stream::iter([hello, lie])).await.unwrap().into_inner();
    assert!(updates.message().await.unwrap().is_some());
    let ended = timeout(DEADLINE, updates.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::InvalidArgument, "{ended}");
    // No hello at all, and one that is no name.
    for first in [
        proto::config_request::Message::Ack(proto::Ack::default()),
        proto::config_request::Message::Hello(proto::Hello::default()),
    ] {
        let refused = raw.stream(tokio_stream::iter([say(first)])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn an_open_stream_ends_when_its_workload_becomes_somebody_elses() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let (answers, mut updates) = opened(&plane, &own, "shop/client").await.unwrap();
    let mut subscription = Subscription::new();
    let candidate = subscription.receive(next(&mut updates).await).unwrap();
    answers.send(subscription.accept(candidate)).await.unwrap();
    std::fs::write(plane.config("client.yaml"), CLIENT.replace("spec:\n", "spec:\n  account: another\n")).unwrap();
    let ended = timeout(DEADLINE, updates.next()).await.unwrap();
    assert!(matches!(&ended, Err(CallFailure::Refused { code: Code::PermissionDenied, .. })), "{ended:?}");
}

#[tokio::test]
async fn an_open_stream_ends_with_its_svid() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let (answers, mut updates) = opened(&plane, &own, "shop/client").await.unwrap();
    let mut subscription = Subscription::new();
    let candidate = subscription.receive(next(&mut updates).await).unwrap();
    answers.send(subscription.accept(candidate)).await.unwrap();
    let ended = timeout(DEADLINE * 2, updates.next()).await.unwrap();
    assert!(matches!(&ended, Err(CallFailure::Refused { code: Code::Unauthenticated, .. })), "{ended:?}");
}

#[tokio::test]
async fn a_workload_tells_of_its_own_decisions_alone() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    for (told, expected) in
        [("shop/client", Ok(1)), ("shop/server", Err(Code::PermissionDenied)), ("shop/nobody", Err(Code::PermissionDenied))]
    {
        let client = ControlClient::new(plane.proven(&own).await);
        let (sender, records) = tokio::sync::mpsc::channel(1);
        sender.send(record(told, 7)).await.unwrap();
        drop(sender);
        let got = client.report(records).await.map_err(|failure| match failure {
            CallFailure::Refused { code, .. } => code,
            other => panic!("{other}"),
        });
        assert_eq!(got, expected, "{told}");
    }
    let kept = plane.operator().await.unwrap().decision(DecisionId::from_random([7; 16]), DEADLINE).await.unwrap().unwrap();
    assert_eq!(kept.workload, "shop/client");
}

#[tokio::test]
async fn what_is_the_operators_is_not_served_to_workloads() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let mut client = proto::operator_client::OperatorClient::new(plane.proven(&own).await);
    let refused =
        client.create_join_token(proto::CreateJoinTokenRequest { workload: "shop/server".to_owned() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let mode = |file: &str| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(plane.state().join(file)).unwrap().permissions()) & 0o777
    };
    assert_eq!((mode(""), mode("operator.sock"), mode("control.redb")), (0o700, 0o600, 0o600));
}
