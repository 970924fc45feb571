//! Who gets an SVID, and whose.

use crate::plane::{CLIENT, DEADLINE, Plane, asked, call, credentials, id};
use testkit::pki;
use tokio::time::sleep;
use tonic::Code;
use wire::client::{CallFailure, ControlClient, IssueCall};

fn code<T>(outcome: Result<T, CallFailure>) -> Code {
    match outcome {
        Ok(_) => Code::Ok,
        Err(CallFailure::Refused { code, .. }) => code,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_join_token_gives_its_own_identity_once_whatever_the_request_says() {
    let plane = Plane::start().await;
    let client = ControlClient::new(plane.anonymous().await);
    let (key, request) = asked("server");
    assert_eq!(
        code(client.issue(call("shop/client", request.clone(), None), DEADLINE).await),
        Code::PermissionDenied,
        "no attestation"
    );
    let long = "x".repeat(100_000);
    for wrong in ["garbage", "rondel-join-", &format!("rondel-join-{}", "0".repeat(64)), &long] {
        assert_eq!(
            code(client.issue(call("shop/client", request.clone(), Some(wrong.to_owned())), DEADLINE).await),
            Code::PermissionDenied
        );
    }
    // A key for `client`, asked for in the name of `server`.
    let token = plane.join_token("shop/client").await;
    let issued = client.issue(call("shop/client", request.clone(), Some(token.clone())), DEADLINE).await.unwrap();
    assert_eq!(credentials(&key, issued).svid().id(), &id("client"));
    let again = client.issue(call("shop/client", request, Some(token)), DEADLINE).await.unwrap_err();
    assert!(again.to_string().contains("used already"), "{again}");
    // A token is made for what is configured, and for nothing else.
    let unknown = model::WorkloadName::parse("shop/nobody").unwrap();
    assert_eq!(code(plane.operator().await.unwrap().create_join_token(&unknown, DEADLINE).await), Code::NotFound);
}

#[tokio::test]
async fn a_request_without_a_good_proof_of_its_key_gets_nothing() {
    let plane = Plane::start().await;
    let (_, good) = asked("server");
    let mut touched = good.clone();
    *touched.last_mut().unwrap() ^= 1;
    for (name, request) in
        [("empty", Vec::new()), ("garbage", vec![7; 300]), ("cut", good[..good.len() - 1].to_vec()), ("touched", touched)]
    {
        let client = ControlClient::new(plane.anonymous().await);
        let token = plane.join_token("shop/server").await;
        assert_eq!(
            code(client.issue(call("shop/server", request, Some(token)), DEADLINE).await),
            Code::InvalidArgument,
            "{name}"
        );
    }
    // More than a message may have.
    let client = ControlClient::new(plane.anonymous().await);
    let token = plane.join_token("shop/server").await;
    assert_eq!(code(client.issue(call("shop/server", vec![0; 2 * 1024 * 1024], Some(token)), DEADLINE).await), Code::OutOfRange);
}

#[tokio::test]
async fn an_svid_renews_itself_and_no_other() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let client = ControlClient::new(plane.proven(&own).await);
    // Asked for in another's name, and with another's join token: the SVID of the connection counts.
    let (key, request) = asked("server");
    let token = plane.join_token("shop/server").await;
    let issued = client.issue(call("shop/client", request, Some(token)), DEADLINE).await.unwrap();
    let renewed = credentials(&key, issued);
    assert_eq!(renewed.svid().id(), &id("client"));
    assert_ne!(renewed.svid().serial(), own.svid().serial());
    let status = plane.until("rotation", |status| status.workloads.iter().any(|each| each.rotations == 1)).await;
    let client = status.workloads.iter().find(|each| each.identity == id("client")).unwrap();
    assert_eq!(client.serial.as_deref(), Some(renewed.svid().serial()));
}

#[tokio::test]
async fn an_applications_svid_does_not_speak_for_its_sidecar() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let (key, request) = asked("client");
    let call_for = IssueCall { for_application: true, ..call("shop/client", request, None) };
    let lent = ControlClient::new(plane.proven(&own).await).issue(call_for, DEADLINE).await.unwrap();
    let lent = credentials(&key, lent);
    let client = ControlClient::new(plane.proven(&lent).await);
    for for_application in [false, true] {
        let call = IssueCall { for_application, ..call("shop/client", asked("client").1, None) };
        let refused = client.issue(call, DEADLINE).await.unwrap_err();
        assert!(refused.to_string().contains("is an application's"), "{refused}");
    }
    assert_eq!(code(client.issue_jwt(vec!["ledger".to_owned()], DEADLINE).await), Code::PermissionDenied);
    let workload = model::WorkloadName::parse("shop/client").unwrap();
    let hello = wire::client::Hello { workload, version: "test".to_owned(), revision: model::Revision(0) };
    assert_eq!(code(client.config(hello, 1 << 20, DEADLINE).await), Code::PermissionDenied);
    let status = plane.until("it is not connected", |_| true).await;
    assert!(status.workloads.iter().all(|each| !each.connected), "{status:?}");
    // Over a restart too.
    let mut plane = plane;
    plane.restart().await;
    let client = ControlClient::new(plane.proven(&lent).await);
    assert_eq!(code(client.issue(call("shop/client", asked("client").1, None), DEADLINE).await), Code::PermissionDenied);
}

#[tokio::test]
async fn a_connection_outlives_its_svid_and_what_that_allowed_does_not() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let client = ControlClient::new(plane.proven(&own).await);
    assert_eq!(code(client.issue(call("shop/client", asked("client").1, None), DEADLINE).await), Code::Ok);
    let hello = || wire::client::Hello {
        workload: model::WorkloadName::parse("shop/client").unwrap(),
        version: "test".to_owned(),
        revision: model::Revision(0),
    };
    let (_answers, mut updates) = client.config(hello(), 1 << 20, DEADLINE).await.unwrap();
    let (told, records) = tokio::sync::mpsc::channel(1);
    let report = tokio::spawn({
        let client = client.clone();
        async move { client.report(records).await }
    });
    sleep(own.svid().not_after().since(pki::now()) + std::time::Duration::from_secs(2)).await;
    let refused = client.issue(call("shop/client", asked("client").1, None), DEADLINE).await.unwrap_err();
    assert!(refused.to_string().contains("the SVID of this connection ended"), "{refused}");
    assert_eq!(code(client.config(hello(), 1 << 20, DEADLINE).await), Code::Unauthenticated);
    told.send(crate::stream::record("shop/client", 1)).await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, report).await.unwrap().unwrap();
    assert_eq!(code(ended), Code::Unauthenticated);
    // The first update was never answered, so the stream waits for that; its end is the subject of another test.
    assert!(updates.next().await.unwrap().is_some());
}

#[tokio::test]
async fn a_workload_that_is_gone_from_the_configuration_gets_no_svid() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let waiting = plane.join_token("shop/client").await;
    let client = ControlClient::new(plane.proven(&own).await);
    std::fs::remove_file(plane.config("client.yaml")).unwrap();
    plane.until("the workload is gone", |status| status.workloads.len() == 1).await;
    for (client, token) in [(client.clone(), None), (ControlClient::new(plane.anonymous().await), Some(waiting))] {
        let refused = client.issue(call("shop/client", asked("client").1, token), DEADLINE).await.unwrap_err();
        assert!(refused.to_string().contains("no workload with the identity"), "{refused}");
    }
    std::fs::write(plane.config("client.yaml"), CLIENT).unwrap();
    plane.until("the workload is back", |status| status.workloads.len() == 2).await;
    assert_eq!(code(client.issue(call("shop/client", asked("client").1, None), DEADLINE).await), Code::Ok);
}

#[tokio::test]
async fn callers_without_an_svid_take_no_place_of_those_who_hold_one_and_do_not_stay() {
    let plane = Plane::start().await;
    let own = plane.joined("shop/client").await;
    let mut nameless = Vec::new();
    for _ in 0..256 {
        nameless.push(plane.anonymous().await);
    }
    // All places are taken: one more gets no answer, whoever holds an SVID does.
    let stream = tokio::net::TcpStream::connect(plane.listen).await.unwrap();
    let shaken =
        identity::handshake::connect_without_identity(stream, &plane.bundles(), &crate::plane::control_plane(), DEADLINE).await;
    if let Ok((mut stream, _)) = shaken {
        let read = tokio::time::timeout(DEADLINE, tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 64])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    let client = ControlClient::new(plane.proven(&own).await);
    assert_eq!(code(client.issue(call("shop/client", asked("client").1, None), DEADLINE).await), Code::Ok);
    sleep(std::time::Duration::from_secs(31)).await;
    let stale = ControlClient::new(nameless.swap_remove(0));
    let token = plane.join_token("shop/client").await;
    assert_ne!(code(stale.issue(call("shop/client", asked("client").1, Some(token.clone())), DEADLINE).await), Code::Ok);
    let fresh = ControlClient::new(plane.anonymous().await);
    assert_eq!(code(fresh.issue(call("shop/client", asked("client").1, Some(token)), DEADLINE).await), Code::Ok);
}
