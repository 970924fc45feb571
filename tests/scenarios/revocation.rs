//! A token that the operator revokes is refused from then on.

use crate::http::{call, serve};
use crate::mesh::{Mesh, Plan};
use ::http::{Request, Version};
use model::snapshot::JwtAlgorithm;
use serde_json::json;
use testkit::issuer::{Issuer, IssuerServer};
use tokio::net::TcpListener;
use tokio::time::Instant;

const USERS_ONLY: &str = r#"@id("users") permit (principal, action, resource) when { context has user };"#;

struct Tokens {
    issuer: Issuer,
    server: IssuerServer,
}

impl Tokens {
    async fn start() -> Self {
        let issuer = Issuer::generate(JwtAlgorithm::Es256, "key-1");
        let server = issuer.serve(TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
        Self { issuer, server }
    }

    fn yaml(&self) -> String {
        let url = self.server.url();
        format!(
            "---\napiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{ name: login }}\nspec: {{ issuer: \"{url}\", audiences: [shop] }}\n"
        )
    }

    /// Issued so many seconds ago.
    fn token(&self, jti: &str, subject: &str, client: &str, age: u64) -> String {
        let now = testkit::pki::now().seconds();
        self.issuer.mint(&json!({
            "iss": self.server.url(), "aud": "shop", "sub": subject, "jti": jti, "client_id": client,
            "iat": now - age, "exp": now + 3600,
        }))
    }
}

/// Status and reason of a call with this token.
async fn called(mesh: &Mesh, token: &str) -> (u16, String) {
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    let answer = call(mesh.to_server(), Version::HTTP_11, request, "").await.unwrap();
    (answer.status, answer.header("x-rondel-reason").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_refused_by_every_sidecar_once_the_command_has_ended() {
    let tokens = Tokens::start().await;
    let application = serve().await;
    let plan = Plan { protocol: "http", application, lifetime: "1h", policy: USERS_ONLY, more: tokens.yaml(), settings: "" };
    let mesh = Mesh::start(&plan).await;
    let stolen = tokens.token("stolen", "tina", "till", 10);
    for (revoke, ended, going_on) in [
        (vec!["--jti", "stolen"], stolen.clone(), tokens.token("other", "tina", "till", 10)),
        (vec!["--subject", "otto"], tokens.token("a", "otto", "till", 0), tokens.token("b", "tina", "till", 10)),
        (vec!["--client", "kiosk"], tokens.token("c", "tina", "kiosk", 0), tokens.token("d", "tina", "till", 10)),
        (
            vec!["--subject", "ada", "--issued-before", "now"],
            tokens.token("e", "ada", "till", 60),
            tokens.token("f", "tina", "till", 60),
        ),
    ] {
        // Both are remembered as good.
        for token in [&ended, &going_on] {
            assert_eq!(called(&mesh, token).await, (200, String::new()), "{revoke:?}");
        }
        let begun = Instant::now();
        let (code, said) = mesh.rondel(&[&["token", "revoke"], &revoke[..], &["--reason", "lost", "--output", "json"]].concat());
        assert_eq!(code, 0, "{said}");
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(said["behind"], json!([]), "{said}");
        assert_eq!(called(&mesh, &ended).await, (401, "token_revoked".to_owned()), "{revoke:?}");
        println!(
            "{revoke:?}: in force after {} ms, the command took {} ms",
            said["in_force_after_ms"],
            begun.elapsed().as_millis()
        );
        assert_eq!(called(&mesh, &going_on).await, (200, String::new()), "{revoke:?}");
    }
    // It stays in force when the control plane ends at once and comes back.
    let pid = mesh.processes()["control"]["pid"].as_u64().unwrap();
    crate::mesh::signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
    mesh.until("the control plane is back", |status| {
        status["workloads"].as_array().is_some_and(|list| list.len() == 2 && list.iter().all(|each| each["connected"] == true))
    })
    .await;
    assert_eq!(called(&mesh, &stolen).await, (401, "token_revoked".to_owned()));
    let (_, listed) = mesh.rondel(&["token", "revoked"]);
    assert!(["stolen", "otto", "kiosk", "ada"].iter().all(|each| listed.contains(each)), "{listed}");
    // What is issued after the revocation is not meant by it.
    let later = tokens.token("g", "ada", "till", 0);
    assert_eq!(called(&mesh, &later).await, (200, String::new()), "{listed}");
}
