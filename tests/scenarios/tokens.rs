//! What a person is told of a token is what the mesh does with it.

use crate::http::{Answer, call, serve};
use crate::mesh::{Mesh, Plan};
use ::http::{Request, Version};
use model::snapshot::JwtAlgorithm;
use serde_json::{Value, json};
use testkit::issuer::Issuer;
use testkit::pki;

const POLICY: &str = r#"@id("user")
permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action, resource) when { context has user };"#;

fn token(issuer: &Issuer, changes: &Value) -> String {
    let now = pki::now().seconds();
    let mut claims = json!({
        "iss": "https://login.shop.example", "sub": "tina", "aud": "shop", "exp": now + 600, "iat": now, "jti": "j1",
        "scope": "pay", "acr": "gold",
    });
    for (name, value) in changes.as_object().expect("object") {
        claims[name] = value.clone();
    }
    issuer.mint(&claims)
}

async fn sent(mesh: &Mesh, token: &str) -> Answer {
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    call(mesh.to_server(), Version::HTTP_11, request, "").await.expect("an answer")
}

/// What `rondel token check` says of a token, and its exit code.
fn told(mesh: &Mesh, token: &str) -> (i32, Value) {
    let (code, text) = mesh.rondel(&["token", "check", token, "--for", "shop/server", "--output", "json"]);
    (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_a_token_is_what_the_sidecar_answers() {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, "k1");
    let more = format!(
        "---\napiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{ name: login }}\nspec:\n  \
         issuer: https://login.shop.example\n  audiences: [shop]\n  jwks: {}\n  require: {{ scopes: [pay], acr: [gold], maxAge: 1h }}\n",
        issuer.jwks()
    );
    let plan = Plan { protocol: "http", application: serve().await, lifetime: "1h", policy: POLICY, more, settings: "" };
    let mesh = Mesh::start(&plan).await;
    let now = pki::now().seconds();
    let good = token(&issuer, &json!({ "auth_time": now }));
    let stranger = Issuer::generate(JwtAlgorithm::Es256, "k1");
    for (name, token) in [
        ("expired", token(&issuer, &json!({ "auth_time": now, "exp": now - 600 }))),
        ("another audience", token(&issuer, &json!({ "auth_time": now, "aud": "blog" }))),
        ("no scope", token(&issuer, &json!({ "auth_time": now, "scope": "read" }))),
        ("a weak login", token(&issuer, &json!({ "auth_time": now, "acr": "tin" }))),
        ("an old login", token(&issuer, &json!({ "auth_time": now - 7200 }))),
        ("forged", token(&stranger, &json!({ "auth_time": now }))),
        ("of nobody", token(&issuer, &json!({ "iss": "https://evil.example" }))),
        ("bound to what nobody knows", token(&issuer, &json!({ "auth_time": now, "cnf": { "kid": "k" } }))),
        ("opaque", "opaque".to_owned()),
    ] {
        let (answer, (code, said)) = (sent(&mesh, &token).await, told(&mesh, &token));
        assert!(code == 1 && said["verdict"] == "refused", "{name}: {said:#}");
        let challenges = answer.headers.get_all("www-authenticate").iter();
        let challenges: Vec<&str> = challenges.map(|value| value.to_str().expect("text")).collect();
        let expected = json!({
            "status": answer.status, "reason": answer.header("x-rondel-reason"), "www_authenticate": challenges,
        });
        assert_eq!(said["answer"], expected, "{name}");
    }
    let (code, said) = told(&mesh, &good);
    assert!(sent(&mesh, &good).await.status == 200 && code == 0, "{said:#}");
    assert_eq!((&said["verdict"], &said["provided"]), (&json!("good"), &json!([])), "a mesh knows what is revoked");
    assert_eq!(said["user"], json!({ "subject": "tina", "roles": [], "roles_within": [], "scopes": ["pay"], "attributes": {} }));
    let (code, text) = mesh.rondel(&["token", "revoke", "--jti", "j1"]);
    assert_eq!(code, 0, "{text}");
    let (answer, (code, said)) = (sent(&mesh, &good).await, told(&mesh, &good));
    assert_eq!((answer.status, answer.header("x-rondel-reason")), (401, "token_revoked"));
    assert!(code == 1 && said["answer"]["reason"] == "token_revoked", "{said:#}");
}
