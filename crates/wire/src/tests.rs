//! The stream's two state machines against each other, and against garbage.

use crate::convert::{Parts, resources};
use crate::{Publication, Subscription, Update, decode_snapshot, encode_snapshot, proto};
use model::authz::AttributeType;
use model::snapshot::{
    AuthorizationPolicy, ClaimMapping, CountryHeader, Endpoint, Inbound, JwtAlgorithm, KeySource, Protocol, TokenIssuer,
    TrustBundle, Upstream,
};
use model::{Limit, Limits, Revision, ServiceName, Snapshot, SpiffeId, TrustDomain, WorkloadName};
use proptest::prelude::*;
use prost::Message;
use proto::config_request::Message as Said;
use proto::resource::Body;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://shop.example/ns/shop/sa/{account}")).expect("id")
}

fn port(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn snapshot() -> Snapshot {
    let mut limits = Limits::default();
    limits.set(Limit::HandshakeMs, 4000).expect("in range");
    Snapshot {
        revision: Revision(1),
        workload: WorkloadName::parse("shop/web").expect("name"),
        identity: id("web"),
        service: ServiceName::parse("shop/web").expect("name"),
        bundles: vec![TrustBundle {
            trust_domain: TrustDomain::parse("shop.example").expect("domain"),
            authorities: vec![vec![1, 2]],
        }],
        inbound: vec![Inbound { listen: port(1), application: port(2), protocol: Protocol::Http }],
        upstreams: vec![Upstream {
            service: ServiceName::parse("shop/ledger").expect("name"),
            listen: port(3),
            protocol: Protocol::Tcp,
            endpoints: vec![Endpoint { address: port(4), identity: id("ledger") }],
        }],
        issuers: vec![TokenIssuer {
            name: "login".into(),
            issuer: "https://login.example".into(),
            audiences: vec!["shop".into()],
            keys: KeySource::JwksUri("https://login.example/jwks".into()),
            algorithms: JwtAlgorithm::ALL.to_vec(),
            roles_claim: Some("roles".into()),
            attributes: BTreeMap::from([("limit".into(), ClaimMapping { claim: "lim".into(), kind: AttributeType::Long })]),
        }],
        policies: vec![policy("z", "permit"), policy("a", "forbid")],
        country: Some(CountryHeader { header: "x-country".into(), trusted: vec![id("edge")] }),
        connection_age_max: Duration::from_secs(60),
        limits,
    }
}

fn policy(name: &str, text: &str) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: format!("shop/{name}"),
        file: "p.yaml".into(),
        line: 3,
        text: text.into(),
        body: BTreeMap::from([("amount".into(), AttributeType::StringSet)]),
    }
}

#[test]
fn a_snapshot_comes_back_as_it_went_and_always_gives_the_same_bytes() {
    let snapshot = snapshot();
    let bytes = encode_snapshot(&snapshot);
    assert_eq!(decode_snapshot(&bytes), Ok(snapshot.clone()));
    assert_eq!(encode_snapshot(&snapshot), bytes);
    assert!(decode_snapshot(&bytes[..bytes.len() - 1]).is_err(), "truncated");
    assert!(decode_snapshot(b"\xff\xff").is_err(), "garbage");
}

/// The good snapshot's parts with one of them changed.
fn changed(key: &str, change: impl FnOnce(&mut Body)) -> Result<Snapshot, String> {
    let mut parts: Parts = resources(&snapshot());
    change(parts.get_mut(key).and_then(|part| part.body.as_mut()).expect(key));
    crate::convert::assemble(1, &parts).map_err(|error| error.to_string())
}

macro_rules! refused {
    ($key:literal, $kind:ident, |$part:ident| $change:expr, $said:literal) => {
        let told = changed($key, |body| {
            let Body::$kind($part) = body else { panic!("kind") };
            $change;
        })
        .expect_err($said);
        assert!(told.contains($said), "{told}");
    };
}

#[test]
fn unknown_missing_and_malformed_fields_are_refused_with_their_path() {
    assert!(changed("workload/self", |_| {}).is_ok());
    refused!("workload/self", Workload, |part| part.identity = "spiffe://Shop/x".into(), "`workload/self.identity`");
    refused!("workload/self", Workload, |part| part.name.clear(), "`workload/self.name`");
    refused!("workload/self", Workload, |part| part.connection_age_max_ms = 0, "connection_age_max_ms");
    refused!("workload/self", Workload, |part| part.inbound[0].listen = "here".into(), "`workload/self.inbound[0].listen`");
    refused!("workload/self", Workload, |part| part.inbound[0].protocol = 7, "inbound[0].protocol");
    refused!("workload/self", Workload, |part| part.inbound[0].protocol = 0, "inbound[0].protocol");
    refused!("workload/self", Workload, |part| part.limits[0].name = "other".into(), "limits[0]");
    refused!("workload/self", Workload, |part| part.limits[0].value = 0, "limits[0]");
    refused!("workload/self", Workload, |part| part.policy_order[0] = "policy/none".into(), "policy_order[0]");
    refused!("workload/self", Workload, |part| part.policy_order.truncate(1), "does not name");
    refused!("upstream/shop/ledger@127.0.0.1:3", Upstream, |part| part.listen = "10.0.0.1:3".into(), "not a loopback");
    refused!("upstream/shop/ledger@127.0.0.1:3", Upstream, |part| part.endpoints[0].identity.clear(), "endpoints[0].identity");
    refused!("issuer/login", Issuer, |part| part.audiences.clear(), "`issuer/login.audiences`");
    refused!("issuer/login", Issuer, |part| part.algorithms.push(9), "algorithms[3]");
    refused!("issuer/login", Issuer, |part| part.attributes[0].r#type = 0, "attributes[0].type");
    refused!("policy/shop/a", Policy, |part| part.body[0].r#type = 99, "body[0].type");
    refused!("bundle/shop.example", Bundle, |part| part.authorities.clear(), "authorities");
    refused!("bundle/shop.example", Bundle, |part| part.trust_domain = "other.example".into(), "missing: the bundle");
}

/// Lets a subscription answer an update; true if it accepts.
fn answer(subscription: &mut Subscription, publication: &mut Publication, update: proto::ConfigUpdate, accepts: bool) -> bool {
    let candidate = subscription.receive(Update(update)).expect("readable");
    let said = match accepts {
        true => subscription.accept(candidate),
        false => subscription.refuse(candidate, "no"),
    };
    match said.0.message.expect("a message") {
        Said::Ack(ack) => publication.ack(&ack.nonce).map(|_| true).expect("under way"),
        Said::Nack(nack) => publication.nack(&nack.nonce, &nack.reason).map(|_| false).expect("under way"),
        Said::Hello(_) => panic!("hello"),
    }
}

#[test]
fn only_what_changed_is_sent_and_what_is_gone_is_removed() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let mut desired = snapshot();
    let first = publication.next(&desired, Vec::new).expect("the first is whole");
    assert_eq!(first.changed.len(), 6);
    assert!(publication.next(&desired, Vec::new).is_none(), "one at a time");
    assert!(answer(&mut subscription, &mut publication, first, true));
    assert!(publication.next(&desired, Vec::new).is_none(), "nothing is new");

    desired.revision = Revision(2);
    desired.policies[0].text = "forbid".into();
    desired.upstreams.clear();
    let second = publication.next(&desired, Vec::new).expect("a change");
    assert_eq!(second.changed.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["shop/z"]);
    assert_eq!(second.removed, ["upstream/shop/ledger@127.0.0.1:3"]);
    assert!(answer(&mut subscription, &mut publication, second, true));
    assert_eq!(publication.acked_revision(), Revision(2));

    desired.revision = Revision(3);
    let third = publication.next(&desired, Vec::new).expect("a revision alone is told too");
    assert!(third.changed.is_empty() && third.removed.is_empty());
}

#[test]
fn what_was_refused_is_offered_again_only_when_it_changes() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let mut desired = snapshot();
    let update = publication.next(&desired, Vec::new).expect("first");
    assert!(!answer(&mut subscription, &mut publication, update, false));
    assert_eq!(publication.rejected(), Some((Revision(1), "no")));
    assert!(publication.next(&desired, Vec::new).is_none(), "the same again");
    desired.revision = Revision(2);
    desired.policies.pop();
    let update = publication.next(&desired, Vec::new).expect("changed");
    assert_eq!(update.changed.len(), 5, "nothing was acknowledged, so all of it");
    assert!(answer(&mut subscription, &mut publication, update, true));
    assert_eq!(publication.rejected(), None);
}

#[test]
fn an_answer_to_something_else_is_an_error_and_changes_nothing() {
    let mut publication = Publication::new();
    assert!(publication.ack("1-1").is_err(), "nothing is under way");
    let update = publication.next(&snapshot(), Vec::new).expect("first");
    assert!(publication.ack("other").is_err() && publication.nack("other", "x").is_err());
    assert_eq!(publication.ack(&update.nonce), Ok(Revision(1)));
    assert!(publication.ack(&update.nonce).is_err(), "twice");
}

#[test]
fn a_garbage_update_leaves_the_subscription_as_it_was() {
    let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
    let whole = publication.next(&snapshot(), Vec::new).expect("first");
    assert!(answer(&mut subscription, &mut publication, whole.clone(), true));
    let base = proto::ConfigUpdate { nonce: "n".into(), revision: 2, ..Default::default() };
    let twice = vec![whole.changed[0].clone(), whole.changed[0].clone()];
    for (name, update) in [
        ("no nonce", proto::ConfigUpdate { nonce: String::new(), ..base.clone() }),
        ("long nonce", proto::ConfigUpdate { nonce: "n".repeat(65), ..base.clone() }),
        ("revision back", proto::ConfigUpdate { revision: 0, ..base.clone() }),
        ("unknown kind", proto::ConfigUpdate { changed: vec![proto::Resource { name: "x".into(), body: None }], ..base.clone() }),
        ("a part twice", proto::ConfigUpdate { changed: twice, ..base.clone() }),
        ("removes nothing", proto::ConfigUpdate { removed: vec!["policy/none".into()], ..base.clone() }),
        ("dangling", proto::ConfigUpdate { removed: vec!["policy/shop/a".into()], ..base.clone() }),
        ("no workload", proto::ConfigUpdate { removed: vec!["workload/self".into()], ..base.clone() }),
    ] {
        assert!(subscription.receive(Update(update)).is_err(), "{name}");
    }
    let after = subscription.receive(Update(base)).expect("still sound");
    assert_eq!(after.snapshot.policies, snapshot().policies);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _outcome = decode_snapshot(&bytes);
    }

    #[test]
    fn after_any_edits_and_refusals_both_sides_agree(
        edits in proptest::collection::vec((0_u8..6, "[a-c]", any::<bool>()), 1..30),
    ) {
        let (mut publication, mut subscription) = (Publication::new(), Subscription::new());
        let mut desired = snapshot();
        let mut in_force = None;
        for (what, name, accepts) in edits {
            desired.revision = Revision(desired.revision.0 + 1);
            match what {
                0 => desired.policies.retain(|policy| policy.name != format!("shop/{name}")),
                1 => desired.policies.iter_mut().for_each(|policy| policy.text.push_str(&name)),
                2 if !desired.policies.iter().any(|policy| policy.name == format!("shop/{name}")) => desired.policies.insert(0, policy(&name, "x")),
                3 => desired.policies.reverse(),
                4 => desired.issuers.clear(),
                _ => desired.inbound.clear(),
            }
            if let Some(update) = publication.next(&desired, Vec::new) {
                // What travels is bytes.
                let update = proto::ConfigUpdate::decode(update.encode_to_vec().as_slice()).expect("bytes");
                let candidate = subscription.receive(Update(update.clone())).expect("readable");
                prop_assert_eq!(&candidate.snapshot, &desired);
                if answer(&mut subscription, &mut publication, update, accepts) {
                    in_force = Some(desired.clone());
                }
            }
            prop_assert_eq!(publication.acked_revision(), in_force.as_ref().map_or(Revision(0), |snapshot| snapshot.revision));
        }
    }
}
