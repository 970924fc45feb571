//! Snapshots: back as they went, and nothing else is read.

use super::{Parts, assemble, decode_snapshot, encode_snapshot, resources};
use crate::fixture::{any_snapshot, snapshot};
use crate::proto;
use model::Snapshot;
use proptest::prelude::*;
use prost::Message;
use proto::resource::Body;

proptest! {
    #[test]
    fn any_snapshot_comes_back_as_it_went(snapshot in any_snapshot()) {
        let bytes = encode_snapshot(&snapshot);
        prop_assert_eq!(decode_snapshot(&bytes), Ok(snapshot.clone()));
        // The digest that is signed must not depend on an order that means nothing.
        let mut turned = snapshot;
        turned.bundles.reverse();
        turned.upstreams.reverse();
        turned.issuers.reverse();
        prop_assert_eq!(encode_snapshot(&turned), bytes);
    }

    #[test]
    fn no_beginning_of_a_snapshot_reads_as_a_smaller_one(snapshot in any_snapshot(), at in any::<prop::sample::Index>()) {
        let bytes = encode_snapshot(&snapshot);
        prop_assert!(decode_snapshot(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _outcome = decode_snapshot(&bytes);
    }
}

#[test]
fn the_order_of_policies_is_part_of_a_snapshot() {
    let mut turned = snapshot();
    turned.policies.reverse();
    assert_ne!(encode_snapshot(&turned), encode_snapshot(&snapshot()));
    assert_eq!(decode_snapshot(&encode_snapshot(&turned)), Ok(turned));
}

/// What is refused when the good snapshot's parts are changed: `path: problem`.
fn refused(change: impl FnOnce(&mut Parts)) -> String {
    let mut parts = resources(&snapshot());
    change(&mut parts);
    assemble(1, &parts).expect_err("must be refused").to_string()
}

/// Changes one part's body.
fn body<T>(parts: &mut Parts, key: &str, of: fn(&mut Body) -> Option<&mut T>, change: impl FnOnce(&mut T)) {
    change(parts.get_mut(key).and_then(|part| part.body.as_mut()).and_then(of).expect(key));
}

/// The field, what is said of it, and what makes it wrong.
type Row<T> = (&'static str, &'static str, fn(&mut T));

fn all_refused<T>(key: &str, of: fn(&mut Body) -> Option<&mut T>, rows: &[Row<T>]) {
    for (field, problem, change) in rows {
        let told = refused(|parts| body(parts, key, of, *change));
        assert!(told.starts_with(&format!("`{key}.{field}`: ")), "{field}: {told}");
        assert!(told.contains(problem), "{field}: {told}");
    }
}

#[test]
fn a_workload_with_any_field_missing_unknown_or_too_large_is_refused_with_its_path() {
    fn of(body: &mut Body) -> Option<&mut proto::Workload> {
        match body {
            Body::Workload(workload) => Some(workload),
            _ => None,
        }
    }
    all_refused(
        "workload/self",
        of,
        &[
            ("name", "namespace/name", |part| part.name.clear()),
            ("name", "is not a name", |part| part.name = format!("shop/{}", "x".repeat(64))),
            ("identity", "spiffe://", |part| part.identity.clear()),
            ("identity", "trust domain", |part| part.identity = "spiffe://Shop/x".into()),
            ("identity", "longer than", |part| part.identity.extend(std::iter::repeat_n('x', 3000))),
            ("service", "namespace/name", |part| part.service.clear()),
            ("service", "is not a name", |part| part.service = "shop/a/b".into()),
            ("connection_age_max_ms", "0", |part| part.connection_age_max_ms = 0),
            ("inbound[0].listen", "not an address", |part| part.inbound[0].listen = "here".into()),
            ("inbound[0].listen", "not an address", |part| part.inbound[0].listen = "127.0.0.1:0".into()),
            ("inbound[0].listen", "not an address", |part| part.inbound[0].listen = "127.0.0.1:65536".into()),
            ("inbound[0].application", "not an address", |part| part.inbound[0].application.clear()),
            ("inbound[0].protocol", "unknown value 0", |part| part.inbound[0].protocol = 0),
            ("inbound[0].protocol", "unknown value 7", |part| part.inbound[0].protocol = 7),
            ("country.header", "lower case", |part| part.country.as_mut().expect("country").header.clear()),
            ("country.header", "lower case", |part| part.country.as_mut().expect("country").header = "X-Country".into()),
            ("country.header", "lower case", |part| part.country.as_mut().expect("country").header = "x country".into()),
            ("country_database", "absolute", |part| part.country_database = "country.mmdb".into()),
            ("country.trusted[0]", "SPIFFE", |part| part.country.as_mut().expect("country").trusted[0] = "shop/edge".into()),
            ("limits[0]", "no limit of this name", |part| part.limits[0].name = "other".into()),
            ("limits[0]", "outside 100 to 60000", |part| part.limits[0].value = 99),
            ("limits[0]", "outside 100 to 60000", |part| part.limits[0].value = 60_001),
            ("policy_order[0]", "no policy `policy/none`", |part| part.policy_order[0] = "policy/none".into()),
            ("policy_order[1]", "no policy `policy/shop/z`", |part| part.policy_order[1] = "policy/shop/z".into()),
        ],
    );
    let forgotten = refused(|parts| body(parts, "workload/self", of, |part: &mut proto::Workload| part.policy_order.truncate(1)));
    assert!(forgotten.starts_with("`policy/shop/a`: ") && forgotten.contains("does not name"), "{forgotten}");
}

#[test]
fn roles_that_do_not_nest_are_refused_with_their_path() {
    fn of(body: &mut Body) -> Option<&mut proto::Roles> {
        match body {
            Body::Roles(roles) => Some(roles),
            _ => None,
        }
    }
    let role =
        |name: &str, within: &[&str]| proto::Role { name: name.into(), within: within.iter().map(|&name| name.into()).collect() };
    let many = |count: usize| (0..count).map(|number| role(&number.to_string(), &[])).collect::<Vec<_>>();
    for (place, problem, roles) in [
        ("roles", "empty", vec![]),
        ("roles", "within itself", vec![role("a", &["b"]), role("b", &["a"])]),
        ("roles", "not declared", vec![role("a", &["b"])]),
        ("roles", "1 to 128", vec![role("", &[])]),
        ("roles[1]", "stands twice", vec![role("a", &[]), role("a", &["b"])]),
        ("roles[1000]", "more roles than there may be", many(1001)),
        ("roles[0]", "more roles than there may be", vec![role("a", &["b"; 65])]),
    ] {
        let told = refused(|parts| body(parts, "roles/self", of, |wire: &mut proto::Roles| wire.roles = roles));
        assert!(told.starts_with(&format!("`roles/self.{place}`: ")) && told.contains(problem), "{told}");
    }
}

#[test]
fn an_upstream_with_any_field_missing_unknown_or_too_large_is_refused_with_its_path() {
    fn of(body: &mut Body) -> Option<&mut proto::Upstream> {
        match body {
            Body::Upstream(upstream) => Some(upstream),
            _ => None,
        }
    }
    all_refused(
        "upstream/shop/ledger@127.0.0.1:3",
        of,
        &[
            ("service", "namespace/name", |part| part.service.clear()),
            ("listen", "not an address", |part| part.listen.clear()),
            ("listen", "not a loopback address", |part| part.listen = "10.0.0.1:3".into()),
            ("listen", "not a loopback address", |part| part.listen = "0.0.0.0:3".into()),
            ("listen", "not a loopback address", |part| part.listen = "[::]:3".into()),
            ("protocol", "unknown value 0", |part| part.protocol = 0),
            ("protocol", "unknown value -1", |part| part.protocol = -1),
            ("endpoints[0].address", "not an address", |part| part.endpoints[0].address = "ledger:80".into()),
            ("endpoints[0].identity", "spiffe://", |part| part.endpoints[0].identity.clear()),
            ("endpoints[0].identity", "no path", |part| part.endpoints[0].identity = "spiffe://shop.example".into()),
            ("name", "`upstream/shop/other@127.0.0.1:3`", |part| part.service = "shop/other".into()),
            ("name", "`upstream/shop/ledger@127.0.0.1:9`", |part| part.listen = "127.0.0.1:9".into()),
        ],
    );
}

#[test]
fn an_issuer_or_a_policy_with_any_field_missing_or_unknown_is_refused_with_its_path() {
    fn issuer(body: &mut Body) -> Option<&mut proto::TokenIssuer> {
        match body {
            Body::Issuer(issuer) => Some(issuer),
            _ => None,
        }
    }
    all_refused(
        "issuer/login",
        issuer,
        &[
            ("name", "empty", |part| part.name.clear()),
            ("name", "`issuer/other`", |part| part.name = "other".into()),
            ("issuer", "empty", |part| part.issuer.clear()),
            ("audiences", "empty", |part| part.audiences.clear()),
            ("algorithms", "empty", |part| part.algorithms.clear()),
            ("algorithms[1]", "unknown value 0", |part| part.algorithms[1] = 0),
            ("algorithms[10]", "unknown value 99", |part| part.algorithms.push(99)),
            ("jwks", "in two places", |part| part.jwks = "{}".into()),
            ("jwks_file", "not an absolute path", |part| (part.jwks_uri, part.jwks_file) = (String::new(), "jwks.json".into())),
            ("jwt_svid", "not a trust domain", |part| (part.jwks_uri, part.jwt_svid) = (String::new(), "Other".into())),
            ("introspection.client_id", "empty", |part| {
                part.introspection.as_mut().expect("introspection").client_id.clear();
            }),
            ("introspection.authentication", "missing", |part| {
                part.introspection.as_mut().expect("introspection").authentication = None;
            }),
            ("introspection.client_secret_basic", "not an absolute path", |part| {
                let authentication = proto::introspection::Authentication::ClientSecretBasic("secret".into());
                part.introspection.as_mut().expect("introspection").authentication = Some(authentication);
            }),
            ("attributes[0].attribute", "empty", |part| part.attributes[0].attribute.clear()),
            ("attributes[0].claim", "empty", |part| part.attributes[0].claim.clear()),
            ("attributes[0].claim", "double quotes", |part| part.attributes[0].claim = "https://a.b".into()),
            ("roles_claim", "empty", |part| part.roles_claim = "a.".into()),
            ("require.claims[0].claim", "empty", |part| part.require.as_mut().unwrap().claims[0].claim.clear()),
            ("require.claims[0].values", "empty", |part| part.require.as_mut().unwrap().claims[0].values.clear()),
            ("require.claims[1]", "twice", |part| {
                let require = part.require.as_mut().unwrap();
                require.claims.push(require.claims[0].clone());
            }),
            ("require.scopes[0]", "empty", |part| part.require.as_mut().unwrap().scopes[0].clear()),
            ("require.acr[0]", "empty", |part| part.require.as_mut().unwrap().acr[0].clear()),
            ("require.sender", "unknown value 9", |part| part.require.as_mut().unwrap().sender = 9),
            ("attributes[0].type", "unknown value 0", |part| part.attributes[0].r#type = 0),
            ("attributes[0].type", "unknown value 5", |part| part.attributes[0].r#type = 5),
            ("attributes[1]", "twice", |part| part.attributes.push(part.attributes[0].clone())),
        ],
    );
    fn policy(body: &mut Body) -> Option<&mut proto::AuthorizationPolicy> {
        match body {
            Body::Policy(policy) => Some(policy),
            _ => None,
        }
    }
    all_refused(
        "policy/shop/a",
        policy,
        &[
            ("name", "empty", |part| part.name.clear()),
            ("name", "`policy/shop/b`", |part| part.name = "shop/b".into()),
            ("line", "from 1", |part| part.line = 0),
            ("body[0].name", "empty", |part| part.body[0].name.clear()),
            ("body[0].type", "unknown value 0", |part| part.body[0].r#type = 0),
            ("body[0].type", "unknown value 99", |part| part.body[0].r#type = 99),
            ("body[1]", "twice", |part| part.body.push(part.body[0].clone())),
        ],
    );
}

#[test]
fn a_bundle_is_refused_unless_it_is_whole_and_the_own_one_is_there() {
    fn of(body: &mut Body) -> Option<&mut proto::TrustBundle> {
        match body {
            Body::Bundle(bundle) => Some(bundle),
            _ => None,
        }
    }
    all_refused(
        "bundle/shop.example",
        of,
        &[
            ("trust_domain", "not a trust domain", |part| part.trust_domain.clear()),
            ("trust_domain", "not a trust domain", |part| part.trust_domain = "x".repeat(256)),
            ("authorities", "empty", |part| part.authorities.clear()),
            ("name", "`bundle/other.example`", |part| part.trust_domain = "other.example".into()),
        ],
    );
    let missing = refused(|parts| drop(parts.remove("bundle/shop.example")));
    assert_eq!(missing, "`bundle/shop.example`: missing: the bundle of the workload's own trust domain");
}

#[test]
fn the_workload_is_there_once_and_every_part_is_of_a_known_kind() {
    assert_eq!(refused(|parts| drop(parts.remove("workload/self"))), "`workload/self`: missing");
    let second = refused(|parts| {
        let copy = parts["workload/self"].clone();
        parts.insert("workload/other".into(), copy);
    });
    assert_eq!(second, "`workload/other.name`: its content is that of `workload/self`");
    let unknown = refused(|parts| parts.get_mut("issuer/login").expect("issuer").body = None);
    assert!(unknown.starts_with("`issuer/login`: a resource of a kind"), "{unknown}");
}

#[test]
fn a_file_in_which_a_part_stands_twice_is_refused() {
    let mut whole = proto::ConfigUpdate::decode(encode_snapshot(&snapshot()).as_slice()).expect("bytes");
    whole.changed.push(whole.changed[0].clone());
    let told = decode_snapshot(&whole.encode_to_vec()).expect_err("twice").to_string();
    assert_eq!(told, "`bundle/shop.example`: it stands twice");
}

#[test]
fn a_kind_of_a_later_version_is_refused_not_skipped() {
    // Field 15 of `Resource` does not exist: a decoder keeps the name and drops the body.
    let later = [0x0a, 1, b'x', 0x7a, 0];
    let mut bytes = encode_snapshot(&snapshot());
    bytes.extend([0x1a, 5]);
    bytes.extend(later);
    let told = decode_snapshot(&bytes).expect_err("unknown").to_string();
    assert!(told.starts_with("`x`: a resource of a kind"), "{told}");
}

/// `Resource` as it was before there were policies in shadow mode.
#[derive(Clone, PartialEq, prost::Message)]
struct Older {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "5")]
    policy: Option<proto::AuthorizationPolicy>,
}

#[test]
fn a_policy_in_shadow_mode_travels_as_a_kind_that_an_older_sidecar_refuses() {
    let parts = resources(&snapshot());
    assert!(matches!(parts["shadow/shop/b"].body, Some(Body::ShadowPolicy(_))) && !parts.contains_key("policy/shop/b"));
    // One that knows the kinds before it reads a name and nothing else, which it refuses.
    let older = Older::decode(parts["shadow/shop/b"].encode_to_vec().as_slice()).expect("a resource");
    assert_eq!((older.name.as_str(), older.policy), ("shop/b", None));
    assert!(Older::decode(parts["policy/shop/a"].encode_to_vec().as_slice()).expect("a resource").policy.is_some());
}

#[test]
fn a_snapshot_without_anything_optional_is_read() {
    let bare = Snapshot {
        inbound: Vec::new(),
        upstreams: Vec::new(),
        issuers: Vec::new(),
        policies: Vec::new(),
        roles: model::Roles::default(),
        shadow: Vec::new(),
        sensitive: model::snapshot::Sensitive::default(),
        country: None,
        country_database: None,
        limits: model::Limits::default(),
        ..snapshot()
    };
    assert_eq!(decode_snapshot(&encode_snapshot(&bare)), Ok(bare));
}
