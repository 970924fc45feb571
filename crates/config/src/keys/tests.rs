//! Where keys are found, whom opaque tokens are sent to, and which issuers a workload believes.

use crate::{ConfigError, Mesh, Source, Trust, parse};
use model::introspection::ClientAuthentication;
use model::snapshot::{KeySource, TokenIssuer};
use model::{Revision, WorkloadName};

const BASE: &str = "apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: { name: test }
spec: { trustDomain: shop.example, federation: [ { trustDomain: partner.example, bundleEndpoint: \"https://partner.example/\" } ] }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: web, namespace: shop }
spec: { admin: 127.0.0.1:15001 }
";

/// A key of RFC 7515 A.3.
const KEY: &str = "{ kty: EC, crv: P-256, kid: k1, x: f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU, y: x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0 }";
const CLIENT: &str = "clientId: rondel, authentication: client_secret_basic, secretFile: /run/secret";

fn issuer(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{ name: {name} }}\nspec: {{ audiences: [shop], {spec} }}\n"
    )
}

fn read(text: &str) -> Result<Mesh, Vec<ConfigError>> {
    parse(&[Source { file: "a.yaml".to_owned(), text: text.to_owned() }])
}

fn one(spec: &str) -> TokenIssuer {
    let mesh = read(&(BASE.to_owned() + &issuer("login", spec))).unwrap_or_else(|errors| panic!("{spec}: {errors:?}"));
    mesh.issuers[0].clone()
}

fn refused(text: &str) -> String {
    read(text).expect_err(text).iter().map(|error| format!("{error}\n")).collect()
}

#[test]
fn keys_are_found_in_one_of_five_places() {
    assert_eq!(one("issuer: https://login.example").keys, KeySource::Discovery);
    let uri = one("issuer: https://login.example, jwksUri: https://keys.example/jwks").keys;
    assert_eq!(uri, KeySource::JwksUri("https://keys.example/jwks".to_owned()));
    let file = one("issuer: https://login.example, jwksFile: /run/jwks.json").keys;
    assert_eq!(file, KeySource::File("/run/jwks.json".to_owned()));
    let KeySource::Inline(inline) = one(&format!("issuer: https://login.example, jwks: {{ keys: [ {KEY} ] }}")).keys else {
        panic!()
    };
    assert!(inline.contains(r#""kid":"k1""#) && inline.starts_with('{'), "{inline}");
    let svid = one("jwtSvid: { trustDomain: partner.example }");
    assert!(matches!(svid.keys, KeySource::JwtSvid(domain) if domain.as_str() == "partner.example"));
    assert_eq!(svid.issuer, "spiffe://partner.example");
    let own = one("jwtSvid: { trustDomain: shop.example }");
    assert!(matches!(own.keys, KeySource::JwtSvid(_)));
}

#[test]
fn each_way_to_show_who_asks_is_read() {
    let read =
        |spec: &str| one(&format!("issuer: https://login.example, introspection: {{ {spec} }}")).introspection.expect(spec);
    let basic = read(CLIENT);
    assert_eq!((basic.client_id.as_str(), basic.prefix.as_str(), basic.endpoint.as_deref()), ("rondel", "", None));
    assert_eq!(basic.authentication, ClientAuthentication::SecretBasic { secret_file: "/run/secret".to_owned() });
    let post = read(
        "clientId: r, authentication: client_secret_post, secretFile: /s, prefix: op_, endpoint: \"https://login.example/i\"",
    );
    assert_eq!(post.authentication, ClientAuthentication::SecretPost { secret_file: "/s".to_owned() });
    assert_eq!((post.prefix.as_str(), post.endpoint.as_deref()), ("op_", Some("https://login.example/i")));
    let key = read("clientId: r, authentication: private_key_jwt, keyFile: /k, keyId: k1").authentication;
    assert_eq!(key, ClientAuthentication::PrivateKeyJwt { key_file: "/k".to_owned(), key_id: Some("k1".to_owned()) });
    assert_eq!(read("clientId: r, authentication: tls_client_auth").authentication, ClientAuthentication::Svid);
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_to_write() {
    let login = "issuer: https://login.example";
    let asked = |spec: &str| format!("{login}, introspection: {{ {spec} }}");
    for (spec, said) in [
        (String::new(), "`issuer` is missing"),
        (format!("{login}, jwksUri: https://k.example/j, jwksFile: /j"), "an issuer's keys are found in one place"),
        (format!("{login}, jwksFile: /j, jwtSvid: {{ trustDomain: partner.example }}"), "found in one place"),
        (format!("{login}, jwtSvid: {{ trustDomain: partner.example }}"), "remove `issuer`"),
        ("jwtSvid: { trustDomain: other.example }".to_owned(), "no bundle of trust domain `other.example`"),
        ("jwtSvid: { trustDomain: Other }".to_owned(), "not a trust domain"),
        (format!("{login}, jwksFile: jwks.json"), "is not an absolute path"),
        (format!("{login}, jwks: {{ keys: [] }}"), "no usable key"),
        (format!("{login}, jwks: {{ keys: [ {KEY}, {{ kty: oct, k: AAAA }} ] }}"), "1 keys of `jwks` cannot be used"),
        (format!("{login}, jwks: {{ keys: [ {KEY}, {KEY} ] }}"), "two keys with the id `k1`"),
        (format!("{login}, jwks: [ {KEY} ]"), "not a JSON object"),
        (asked("clientId: r, authentication: client_secret_jwt, secretFile: /s"), "is not one of client_secret_basic"),
        (asked("clientId: r, authentication: client_secret_basic"), "needs `secretFile`"),
        (asked("clientId: r, authentication: client_secret_basic, secretFile: s"), "is not an absolute path"),
        (asked("clientId: r, authentication: tls_client_auth, secretFile: /s"), "has no use for `secretFile`"),
        (asked("clientId: r, authentication: client_secret_post, secretFile: /s, keyId: k"), "has no use for `keyId`"),
        (asked("clientId: r, authentication: private_key_jwt, secretFile: /s"), "needs `keyFile`"),
        (asked("clientId: \"\", authentication: tls_client_auth"), "`clientId` is empty"),
        (asked(&format!("{CLIENT}, endpoint: \"http://login.example/i\"")), "plaintext"),
        (asked(&format!("{CLIENT}, endpoint: \"https://169.254.169.254/i\"")), "metadata"),
        (asked(&format!("{CLIENT}, prefix: eyJ")), "no opaque token begins as every JWT does"),
        (asked(&format!("{CLIENT}, prefix: \"a b\"")), "characters that a token can hold"),
        (format!("jwtSvid: {{ trustDomain: partner.example }}, introspection: {{ {CLIENT} }}"), "no JWT-SVID is opaque"),
        ("jwtSvid: { trustDomain: partner.example }, algorithms: [ES256, EdDSA]".to_owned(), "no JWT-SVID is signed by it"),
        ("jwtSvid: { trustDomain: partner.example }, require: { profile: at+jwt }".to_owned(), "none is of RFC 9068"),
    ] {
        let told = refused(&(BASE.to_owned() + &issuer("login", &spec)));
        assert!(told.contains(said) && told.starts_with("a.yaml:"), "{spec}: {told}");
    }
}

#[test]
fn an_opaque_token_leads_to_one_issuer_at_each_workload() {
    let asked = |name: &str, prefix: &str| {
        issuer(name, &format!("issuer: https://{name}.example, introspection: {{ {CLIENT}{prefix} }}"))
    };
    for (two, is_clear) in [
        (["", ""], false),
        (["", ", prefix: a_"], false),
        ([", prefix: a_", ", prefix: a_b"], false),
        ([", prefix: a_", ", prefix: a_"], false),
        ([", prefix: a_", ", prefix: b_"], true),
    ] {
        let text = BASE.to_owned() + &asked("one", two[0]) + &asked("two", two[1]);
        assert_eq!(read(&text).is_ok(), is_clear, "{two:?}");
        if !is_clear {
            assert!(refused(&text).contains("could be meant for this issuer or for `one`"), "{two:?}");
            // A workload that believes one of them is told nothing.
            let chosen = text.replace("spec: { admin", "spec: { issuers: [two], admin");
            assert!(read(&chosen).is_ok(), "{two:?}: {:?}", read(&chosen));
        }
    }
}

#[test]
fn a_workload_believes_the_issuers_that_it_names_or_all() {
    let text = BASE.to_owned() + &issuer("one", "issuer: https://one.example") + &issuer("two", "issuer: https://two.example");
    let names = |text: &str| {
        let mesh = read(text).unwrap_or_else(|errors| panic!("{errors:?}"));
        let web = WorkloadName::parse("shop/web").expect("name");
        let snapshot = mesh.snapshot(&web, Revision(1), &Trust::default()).expect("snapshot");
        snapshot.issuers.into_iter().map(|issuer| issuer.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&text), ["one", "two"]);
    assert_eq!(names(&text.replace("spec: { admin", "spec: { issuers: [two], admin")), ["two"]);
    assert!(names(&text.replace("spec: { admin", "spec: { issuers: [], admin")).is_empty(), "none is none");
    let told = refused(&text.replace("spec: { admin", "spec: { issuers: [tow], admin"));
    assert!(told.contains("no `TokenIssuer` of the name `tow`; did you mean `two`?"), "{told}");
}
