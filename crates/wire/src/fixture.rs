//! Snapshots for tests: one that has everything once, and any.

use model::authz::AttributeType;
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::{
    AuthorizationPolicy, ClaimMapping, CountryHeader, Egress, Endpoint, Inbound, JwtAlgorithm, KeySource, Protocol, RevokedSvid,
    Sensitive, TokenIssuer, TrustBundle, Upstream,
};
use model::token::{Requirements, RevokedTokens, SenderConstraint, TokenUse};
use model::{ClaimPath, Limit, Limits, Revision, Roles, ServiceName, Snapshot, SpiffeId, Timestamp, TrustDomain, WorkloadName};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://shop.example/ns/shop/sa/{account}")).expect("id")
}

fn service(name: &str) -> ServiceName {
    ServiceName::parse(&format!("shop/{name}")).expect("name")
}

fn path(text: &str) -> ClaimPath {
    ClaimPath::parse(text).expect("path")
}

fn port(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub(crate) fn policy(name: &str, text: &str) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: format!("shop/{name}"),
        file: "p.yaml".into(),
        line: 3,
        text: text.into(),
        body: BTreeMap::from([("amount".into(), AttributeType::StringSet)]),
    }
}

fn demanding() -> Requirements {
    Requirements {
        at_jwt: true,
        scopes: vec!["pay".into()],
        claims: BTreeMap::from([(path("\"a.b\".c"), vec!["x".into()])]),
        acr: vec!["gold".into()],
        max_age: Some(Duration::from_secs(60)),
        sender: SenderConstraint::Any,
        dpop_nonce: true,
        clock_skew: Some(Duration::ZERO),
    }
}

fn everywhere() -> TokenUse {
    TokenUse {
        header: "x-token".into(),
        cookie: Some("session".into()),
        query: Some("access_token".into()),
        strip: true,
        claims: BTreeMap::from([("x-user".into(), path("sub"))]),
        resource: Some("https://shop.example/api".into()),
    }
}

/// Every field is filled, and no list is empty.
pub(crate) fn snapshot() -> Snapshot {
    let mut limits = Limits::default();
    limits.set(Limit::HandshakeMs, 4000).expect("in range");
    Snapshot {
        revision: Revision(1),
        workload: WorkloadName::parse("shop/web").expect("name"),
        identity: id("web"),
        service: service("web"),
        bundles: vec![TrustBundle {
            trust_domain: TrustDomain::parse("shop.example").expect("domain"),
            authorities: vec![vec![1, 2]],
            jwt_authorities: vec![b"{}".to_vec()],
            tainted: vec!["0a".into()],
        }],
        inbound: vec![Inbound { listen: port(1), application: port(2), protocol: Protocol::Http, permissive: true }],
        upstreams: vec![Upstream {
            service: service("ledger"),
            listen: Some(port(3)),
            protocol: Protocol::Tcp,
            endpoints: vec![Endpoint { address: port(4), identity: id("ledger") }],
        }],
        issuers: vec![TokenIssuer {
            name: "login".into(),
            issuer: "https://login.example".into(),
            audiences: vec!["shop".into()],
            keys: KeySource::JwksUri("https://login.example/jwks".into()),
            introspection: Some(Introspection {
                endpoint: Some("https://login.example/introspect".into()),
                prefix: "op_".into(),
                client_id: "rondel".into(),
                authentication: ClientAuthentication::SecretBasic { secret_file: "/run/secret".into() },
            }),
            algorithms: JwtAlgorithm::ALL.to_vec(),
            roles_claim: Some(path("realm_access.roles")),
            attributes: BTreeMap::from([("limit".into(), ClaimMapping { claim: path("lim"), kind: AttributeType::Long })]),
            require: demanding(),
        }],
        token: everywhere(),
        policies: vec![policy("z", "permit"), policy("a", "forbid")],
        roles: roles(&[("head", &["teller"]), ("teller", &[])]),
        shadow: vec![policy("b", "forbid")],
        sensitive: sensitive(["pin", "salary", "x-account"].map(|name| vec![name.to_owned()])),
        country: Some(CountryHeader { header: "x-country".into(), trusted: vec![id("edge")] }),
        country_database: Some("/var/lib/country.mmdb".into()),
        forwarders: vec![id("edge")],
        captured: false,
        egress: Egress::Refuse,
        connection_age_max: Duration::from_secs(60),
        limits,
        revoked_tokens: vec![RevokedTokens {
            issuer: Some("login".into()),
            jti: Some("j".into()),
            subject: Some("s".into()),
            client: Some("c".into()),
            issued_before: Some(Timestamp::from_millis(8)),
            until: Timestamp::from_millis(9),
        }],
        revoked: vec![RevokedSvid { serial: "0badcafe".into(), until: Timestamp::from_millis(9) }],
        post_quantum_required: true,
    }
}

fn roles(written: &[(&str, &[&str])]) -> Roles {
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Roles::new(written.iter().map(|(role, within)| ((*role).to_owned(), set(within))).collect()).expect("roles")
}

/// Roles, each within some of those before it.
fn any_roles() -> impl Strategy<Value = Roles> {
    vec(any::<u8>(), 0..6).prop_map(|masks| {
        let name = |number: usize| format!("role {number}");
        let role =
            |(number, mask): (usize, &u8)| (name(number), (0..number).filter(|bit| mask >> bit & 1 == 1).map(name).collect());
        Roles::new(masks.iter().enumerate().map(role).collect()).expect("roles")
    })
}

/// Names of body fields, user attributes and headers.
fn sensitive([body, user, headers]: [Vec<String>; 3]) -> Sensitive {
    let [body, user, headers] = [body, user, headers].map(|names| names.into_iter().collect());
    Sensitive { body, user, headers }
}

/// A DNS label; few enough that names meet again in the next snapshot.
fn label() -> impl Strategy<Value = String> {
    "[a-c]([a-c0-1-]{0,2}[a-c0-1])?"
}

/// Any text that is not empty: control characters, other scripts, nothing is special.
fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 1..6).prop_map(String::from_iter)
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::from), any::<Ipv6Addr>().prop_map(IpAddr::from)];
    (ip, 1_u16..).prop_map(SocketAddr::from)
}

fn loopback() -> impl Strategy<Value = SocketAddr> {
    let ip =
        prop_oneof![(0_u8.., 1_u8..255).prop_map(|(b, d)| IpAddr::from([127, b, 0, d])), Just(IpAddr::from(Ipv6Addr::LOCALHOST))];
    (ip, 1_u16..).prop_map(SocketAddr::from)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Http), Just(Protocol::Tcp), Just(Protocol::Detect)]
}

fn kind() -> impl Strategy<Value = AttributeType> {
    proptest::sample::select(AttributeType::ALL.to_vec())
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (address(), label()).prop_map(|(address, account)| Endpoint { address, identity: id(&account) })
}

fn upstreams(captured: bool) -> impl Strategy<Value = Vec<Upstream>> {
    let listen = (loopback().prop_map(Some), proptest::option::of(address()));
    let upstream = (label(), listen, protocol(), vec(endpoint(), 0..3));
    let upstream = upstream.prop_map(move |(name, (own, any), protocol, endpoints)| {
        let service = service(&name);
        let listen = if captured { any } else { own };
        let place = listen.map_or_else(|| protocol.as_str().to_owned(), |listen| listen.to_string());
        (format!("{service}@{place}"), Upstream { service, listen, protocol, endpoints })
    });
    by_key(upstream)
}

fn issuers() -> impl Strategy<Value = Vec<TokenIssuer>> {
    let keys = prop_oneof![
        Just(KeySource::Discovery),
        text().prop_map(KeySource::JwksUri),
        (text(), endpoint()).prop_map(|(uri, endpoint)| KeySource::Workload { uri, endpoint }),
        text().prop_map(KeySource::Inline),
        text().prop_map(|text| KeySource::File(format!("/{text}"))),
        Just(KeySource::JwtSvid(TrustDomain::parse("partner.example").expect("domain"))),
    ];
    let keys = (keys, proptest::option::of(introspection()));
    let mapping = (claim(), kind()).prop_map(|(claim, kind)| ClaimMapping { claim, kind });
    let algorithms = proptest::sample::subsequence(JwtAlgorithm::ALL.to_vec(), 1..=3);
    let rest = (
        text(),
        vec(text(), 1..3),
        keys,
        algorithms,
        proptest::option::of(claim()),
        btree_map(text(), mapping, 0..3),
        requirements(),
    );
    let issuer = (label(), rest).prop_map(
        |(name, (issuer, audiences, (keys, introspection), algorithms, roles_claim, attributes, require))| {
            (
                name.clone(),
                TokenIssuer { name, issuer, audiences, keys, introspection, algorithms, roles_claim, attributes, require },
            )
        },
    );
    by_key(issuer)
}

fn claim() -> impl Strategy<Value = ClaimPath> {
    let name = prop_oneof!["[a-z_:-]{1,4}", "[^\"]{1,5}"];
    vec(name, 1..4).prop_map(|names| {
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        path(&quoted.join("."))
    })
}

fn requirements() -> impl Strategy<Value = Requirements> {
    let duration = || proptest::option::of((0_u64..1 << 40).prop_map(Duration::from_millis));
    let sender = proptest::sample::select(SenderConstraint::ALL.to_vec());
    let claims = btree_map(claim(), vec(text(), 1..3), 0..3);
    let words = (vec(text(), 0..3), vec(text(), 0..3));
    (any::<[bool; 2]>(), words, claims, duration(), duration(), sender).prop_map(
        |([at_jwt, dpop_nonce], (scopes, acr), claims, max_age, clock_skew, sender)| Requirements {
            at_jwt,
            scopes,
            claims,
            acr,
            max_age,
            sender,
            dpop_nonce,
            clock_skew,
        },
    )
}

fn token_use() -> impl Strategy<Value = TokenUse> {
    let header = || "[a-z]([a-z-]{0,8}[a-z])?";
    let other = || proptest::option::of("[a-z_]{1,8}");
    let parts = (header(), other(), other(), any::<bool>(), btree_map(header(), claim(), 0..3), other());
    parts.prop_map(|(header, cookie, query, strip, claims, resource)| TokenUse { header, cookie, query, strip, claims, resource })
}

fn introspection() -> impl Strategy<Value = Introspection> {
    let file = || text().prop_map(|text| format!("/{text}"));
    let authentication = prop_oneof![
        file().prop_map(|secret_file| ClientAuthentication::SecretBasic { secret_file }),
        file().prop_map(|secret_file| ClientAuthentication::SecretPost { secret_file }),
        (file(), proptest::option::of(text()))
            .prop_map(|(key_file, key_id)| ClientAuthentication::PrivateKeyJwt { key_file, key_id }),
        Just(ClientAuthentication::Svid),
    ];
    let rest = (proptest::option::of(text()), proptest::option::of(text()), text(), authentication);
    rest.prop_map(|(endpoint, prefix, client_id, authentication)| Introspection {
        endpoint,
        prefix: prefix.unwrap_or_default(),
        client_id,
        authentication,
    })
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let rest = (text(), 1_u32.., text(), btree_map(text(), kind(), 0..3));
    let policy = (label(), rest).prop_map(|(name, (file, line, text, body))| {
        let name = format!("shop/{name}");
        (name.clone(), AuthorizationPolicy { name, file, line, text, body })
    });
    by_key(policy).prop_shuffle()
}

fn bundles() -> impl Strategy<Value = Vec<TrustBundle>> {
    let authorities = || vec(vec(any::<u8>(), 0..20), 1..3);
    let foreign = (label(), authorities());
    (authorities(), vec(foreign, 0..3)).prop_map(|(own, foreign)| {
        let foreign = foreign.into_iter().map(|(name, authorities)| (format!("{name}.example"), authorities));
        let all: BTreeMap<_, _> = foreign.chain([("shop.example".to_owned(), own)]).collect();
        let bundle = |(name, authorities): (String, _)| TrustBundle {
            jwt_authorities: vec![name.clone().into_bytes()],
            tainted: vec![name.clone()],
            ..TrustBundle::x509(TrustDomain::parse(&name).expect("domain"), authorities)
        };
        all.into_iter().map(bundle).collect()
    })
}

/// Up to three, each key once, in the order of the keys: the order in which a snapshot is put together.
fn by_key<T: std::fmt::Debug>(keyed: impl Strategy<Value = (String, T)>) -> impl Strategy<Value = Vec<T>> {
    vec(keyed, 0..4).prop_map(|list| list.into_iter().collect::<BTreeMap<_, _>>().into_values().collect())
}

fn limits() -> impl Strategy<Value = Limits> {
    let chosen = (proptest::sample::select(Limit::ALL.to_vec()), any::<bool>());
    vec(chosen, 0..4).prop_map(|chosen| {
        let mut limits = Limits::default();
        for (limit, high) in chosen {
            let (min, max) = limit.range();
            limits.set(limit, if high { max } else { min }).expect("in range");
        }
        limits
    })
}

/// Any snapshot of the workload `shop/web`.
pub(crate) fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    any::<bool>().prop_flat_map(snapshot_of)
}

fn snapshot_of(captured: bool) -> impl Strategy<Value = Snapshot> {
    let inbound = (address(), address(), protocol(), any::<bool>())
        .prop_map(|(listen, application, protocol, permissive)| Inbound { listen, application, protocol, permissive });
    let trusted = vec(label().prop_map(|account| id(&account)), 0..3);
    let country = ("[a-z]([a-z-]{0,8}[a-z])?", trusted).prop_map(|(header, trusted)| CountryHeader { header, trusted });
    let database = proptest::option::of(text().prop_map(|text| format!("/{text}")));
    let country = (proptest::option::of(country), database);
    let shadow = policies().prop_map(|mut shadow| {
        shadow.sort_by(|one, other| one.name.cmp(&other.name));
        shadow
    });
    let parts = (bundles(), vec(inbound, 0..3), upstreams(captured), issuers(), policies(), shadow);
    let egress = prop_oneof![Just(Egress::Allow), Just(Egress::Refuse)];
    let forwarders = vec(label().prop_map(|account| id(&account)), 0..3);
    let rest = (country, 1_u64.., limits(), label(), egress, forwarders);
    let revoked = btree_map("[0-9a-f]{1,40}", any::<u64>(), 0..3).prop_map(|revoked| {
        let svid = |(serial, until)| RevokedSvid { serial, until: Timestamp::from_millis(until) };
        revoked.into_iter().map(svid).collect()
    });
    let hidden = [vec(text(), 0..2), vec(text(), 0..2), vec(text(), 0..2)].prop_map(sensitive);
    let tokens = btree_map(text(), any::<u64>(), 0..3).prop_map(|revoked| {
        let revoked = revoked.into_iter();
        revoked
            .map(|(jti, until)| RevokedTokens { jti: Some(jti), until: Timestamp::from_millis(until), ..Default::default() })
            .collect()
    });
    let whole = (parts, rest, revoked, any::<bool>(), any_roles(), hidden, (tokens, token_use()));
    whole.prop_map(
        move |(
            (bundles, inbound, upstreams, issuers, policies, shadow),
            ((country, country_database), age_ms, limits, name, egress, forwarders),
            revoked,
            post_quantum_required,
            roles,
            sensitive,
            (revoked_tokens, token),
        )| Snapshot {
            revoked_tokens,
            token,
            captured,
            egress,
            forwarders,
            service: service(&name),
            bundles,
            inbound,
            upstreams,
            issuers,
            policies,
            roles,
            shadow,
            sensitive,
            country,
            country_database,
            connection_age_max: Duration::from_millis(age_ms),
            limits,
            revoked,
            post_quantum_required,
            ..snapshot()
        },
    )
}
