//! Keycloak: its access tokens, realm roles, and a rotation of its keys while calls run.

use super::bound::{self, Holder};
use super::{Flow, Loopback, Made, access_token, believe, called, curl, expect, fetched, has, until};
use crate::Shown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(super) const FLOWS: [Flow<Server>; 4] = [
    ("keycloak_discovery_and_client_credentials", discovery),
    ("keycloak_realm_roles_decide", roles),
    ("keycloak_binds_tokens_to_a_key_dpop", to_a_key),
    ("keycloak_rotates_its_keys_under_load", rotation),
];

/// A first start makes its database: half a minute on two free cores.
const START_DEADLINE: Duration = Duration::from_secs(180);
const ADMIN: &str = "interop";

pub(super) fn missing() -> Option<String> {
    if !has("java") || !has("curl") {
        return Some("java or curl is not installed".to_owned());
    }
    (!fetched("keycloak/bin/kc.sh").exists()).then(|| "Keycloak is not there".to_owned())
}

/// The server and the mesh beside it.
pub(super) struct Server {
    loopback: Loopback,
    base: String,
    java: Child,
    dir: tempfile::TempDir,
}

impl Server {
    pub(super) fn start() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let failed = |error: std::io::Error| error.to_string();
        let realm = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop/issuers/shop-realm.json");
        // A database of its own each time: it is kept beside the programs.
        let data = fetched("keycloak/data");
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(failed)?;
        }
        std::fs::create_dir_all(data.join("import")).map_err(failed)?;
        std::fs::copy(realm, data.join("import/shop-realm.json")).map_err(failed)?;
        let port = testkit::ports::free();
        let log = std::fs::File::create(dir.path().join("keycloak.log")).map_err(failed)?;
        let mut command = Command::new(fetched("keycloak/bin/kc.sh"));
        command.args(["start-dev", "--import-realm", "--cache=local", "--http-host=127.0.0.1"]);
        command.arg(format!("--http-port={}", port.port()));
        command.env("KC_BOOTSTRAP_ADMIN_USERNAME", ADMIN).env("KC_BOOTSTRAP_ADMIN_PASSWORD", ADMIN);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        let java = command.spawn().map_err(failed)?;
        // The mesh starts beside it.
        let settings = "  limits: { jwksRefetchFloorMs: 1000, jwksRefreshMs: 2000 }";
        let started = Loopback::start_as(&Made { settings, ..Made::default() });
        let mut java = java;
        let loopback = match started {
            Ok(loopback) => loopback,
            Err(error) => {
                crate::pods::end(&mut java);
                return Err(error);
            }
        };
        let server = Self { loopback, base: format!("http://{port}"), java, dir };
        let begun = Instant::now();
        let document = format!("{}/realms/shop/.well-known/openid-configuration", server.base);
        while curl(&["--fail", &document]).is_err() {
            if begun.elapsed() > START_DEADLINE {
                return Err(format!("Keycloak does not answer: {}", server.log()));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(server)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("keycloak.log")).unwrap_or_default()
    }

    /// A token of this client.
    fn token(&self, client: &str) -> Result<String, String> {
        let (user, url) =
            (format!("{client}:{client}-secret"), format!("{}/realms/shop/protocol/openid-connect/token", self.base));
        access_token(&curl(&["-u", &user, "-d", "grant_type=client_credentials", &url])?)
    }

    fn believe(&self, more: &str, condition: &str) -> Result<(), String> {
        let spec = format!("  issuer: {}/realms/shop\n  audiences: [shop]\n{more}", self.base);
        believe(&self.loopback, &spec, condition)
    }

    /// A call of the admin API.
    fn admin(&self, method: &str, path: &str, body: &str) -> Result<serde_json::Value, String> {
        let url = format!("{}/realms/master/protocol/openid-connect/token", self.base);
        let (name, word) = (format!("username={ADMIN}"), format!("password={ADMIN}"));
        let form = ["-d", "grant_type=password", "-d", "client_id=admin-cli", "-d", &name, "-d", &word, &url];
        let bearer = format!("authorization: Bearer {}", access_token(&curl(&form)?)?);
        let url = format!("{}/admin/realms/shop/{path}", self.base);
        let mut arguments = vec!["--fail-with-body", "-X", method, "-H", &bearer, &url];
        if !body.is_empty() {
            arguments.extend(["-H", "content-type: application/json", "-d", body]);
        }
        curl(&arguments)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        crate::pods::end(&mut self.java);
    }
}

fn discovery(server: &mut Server) -> Result<Shown, String> {
    server.believe("", "context.user.issuer == \"login\"")?;
    let token = server.token("web")?;
    expect(&server.loopback, "a token of Keycloak's", &token, 200, "x-rondel-user")?;
    expect(&server.loopback, "a token with a letter more", &format!("{token}A"), 401, "token_")?;
    until("rondel issuers shows its key, and that one is not for signatures", || {
        let (_, said) = server.loopback.mesh.rondel(&["issuers", "--workload", "shop/server"]);
        if said.contains(" RS256") && said.contains("1 keys cannot be used") { Ok(()) } else { Err(said) }
    })?;
    Ok(Shown::Yes("metadata of a realm, a token of RS256, its key for encryption left out".into()))
}

/// What Keycloak says of a user's roles in the realm decides; a role given there counts from the next token on.
fn roles(server: &mut Server) -> Result<Shown, String> {
    server.believe("  claims: { roles: realm_access.roles }", "context.user in Role::\"teller\"")?;
    let (teller, guest) = (server.token("web")?, server.token("guest")?);
    expect(&server.loopback, "a teller", &teller, 200, "x-rondel-user")?;
    expect(&server.loopback, "a guest", &guest, 403, "not_permitted")?;
    let found = server.admin("GET", "users?username=service-account-guest&exact=true", "")?;
    let guest_id = found[0]["id"].as_str().ok_or_else(|| format!("no user of the client `guest`: {found}"))?.to_owned();
    let role = server.admin("GET", "roles/teller", "")?;
    server.admin("POST", &format!("users/{guest_id}/role-mappings/realm"), &format!("[{role}]"))?;
    expect(&server.loopback, "the guest's token from before", &guest, 403, "not_permitted")?;
    expect(&server.loopback, "a guest who became a teller", &server.token("guest")?, 200, "x-rondel-user")?;
    Ok(Shown::Yes("`realm_access.roles`: a teller passes, a guest is 403 until the realm gives the role".into()))
}

/// The client `holder` gets tokens with a proof only, and they pass with one only.
fn to_a_key(server: &mut Server) -> Result<Shown, String> {
    if !has("node") || !fetched("oidc-provider/node_modules/jose").exists() {
        return Ok(Shown::Skipped("node or its package jose, which makes the proofs, is not there".into()));
    }
    server.believe("  require: { sender: dpop }", "context.user.issuer == \"login\"")?;
    if let Ok(token) = server.token("holder") {
        return Err(format!("Keycloak gave a token without a proof: {token}"));
    }
    let holder = |name: &str| Holder { client: "holder:holder-secret", key: server.dir.path().join(name), root: None };
    let (first, second) = (holder("first.jwk"), holder("second.jwk"));
    let token = first.token(&[&format!("{}/realms/shop/protocol/openid-connect/token", server.base)])?;
    bound::passes_with_proofs_alone(&server.loopback, &token, &first, &second)?;
    expect(&server.loopback, "a token that is bound to nobody", &server.token("web")?, 401, "token_sender")?;
    Ok(Shown::Yes("a token with proofs by jose: good ones once; none, foreign, misdirected and unbound are 401".into()))
}

/// A new key becomes active while calls run, then the old one goes: no call with a current token fails, and old tokens end.
fn rotation(server: &mut Server) -> Result<Shown, String> {
    server.believe("", "context.user.issuer == \"login\"")?;
    let old = server.token("web")?;
    expect(&server.loopback, "a token by the first key", &old, 200, "x-rondel-user")?;
    let next = r#"{"name":"next","providerId":"rsa-generated","providerType":"org.keycloak.keys.KeyProvider",
        "config":{"priority":["200"],"enabled":["true"],"active":["true"],"algorithm":["RS256"],"keySize":["2048"]}}"#;
    server.admin("POST", "components", next)?;
    let header = |token: &str| token.split('.').next().unwrap_or_default().to_owned();
    let mut calls = 0;
    let begun = Instant::now();
    let fresh = loop {
        // Whatever key Keycloak signs with at this moment, the call must pass.
        let token = server.token("web")?;
        expect(&server.loopback, "a current token in mid rotation", &token, 200, "x-rondel-user")?;
        expect(&server.loopback, "an old token in mid rotation", &old, 200, "x-rondel-user")?;
        calls += 2;
        if header(&token) != header(&old) && calls >= 20 {
            break token;
        }
        if begun.elapsed() > super::DEADLINE {
            return Err("Keycloak goes on signing with its first key".to_owned());
        }
    };
    let found = server.admin("GET", "components?type=org.keycloak.keys.KeyProvider", "")?;
    let first = found.as_array().into_iter().flatten().find(|each| each["name"] == "rsa-generated");
    let id = first.and_then(|each| each["id"].as_str()).ok_or_else(|| format!("no first key: {found}"))?;
    server.admin("DELETE", &format!("components/{id}"), "")?;
    until("a token by a key that is gone is refused", || match called(&server.loopback, &old)? {
        (401, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    expect(&server.loopback, "a token by the new key", &fresh, 200, "x-rondel-user")?;
    Ok(Shown::Yes(format!("{calls} calls through the rotation, none failed; tokens by the key that is gone are refused")))
}
