//! `oidc-provider` of npm, over TLS with a certificate of a web of its own, in every flow that a resource server has with it.

use super::{Flow, Loopback, Made, access_token, believe, bound, called, curl, expect, fetched, has, until};
use crate::Shown;
use crate::identity::SERVER_ID;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(super) const FLOWS: [Flow<Server>; 7] = [
    ("oidc_provider_discovery_and_client_credentials", discovery),
    ("oidc_provider_introspection_by_client_secret", by_secret),
    ("oidc_provider_introspection_by_private_key_jwt", by_key),
    ("oidc_provider_introspection_by_mutual_tls_with_the_svid", by_svid),
    ("oidc_provider_binds_tokens_to_a_key_dpop", bound::to_a_key),
    ("oidc_provider_binds_tokens_to_a_certificate", bound::to_a_certificate),
    ("oidc_provider_away_fails_its_tokens_only", away),
];

/// What is believed of a user in every flow.
const CONDITION: &str = r#"context.user.subject == "web" && context.user.scopes.contains("read")"#;

pub(super) fn missing() -> Option<String> {
    if !has("node") || !has("curl") {
        return Some("node or curl is not installed".to_owned());
    }
    (!fetched("oidc-provider/node_modules/oidc-provider").exists())
        .then(|| "the package oidc-provider is not installed".to_owned())
}

/// The server and the mesh beside it.
pub(super) struct Server {
    pub(super) loopback: Loopback,
    pub(super) web: testkit::web::WebFiles,
    pub(super) url: String,
    pub(super) dir: tempfile::TempDir,
    node: Option<Child>,
    port: std::net::SocketAddr,
}

impl Server {
    pub(super) fn start() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let web = testkit::web::write(dir.path());
        let environment = [("SSL_CERT_FILE".to_owned(), web.root.display().to_string())];
        let settings = "  limits: { introspectionCacheMs: 2000, introspectionInactiveMs: 1000, jwksRefreshMs: 2000 }";
        let loopback = Loopback::start_as(&Made { settings, environment: &environment, ..Made::default() })?;
        client_key(dir.path())?;
        let port = testkit::ports::free();
        let mut server = Self { loopback, web, url: format!("https://{port}"), dir, node: None, port };
        server.listen()?;
        Ok(server)
    }

    fn listen(&mut self) -> Result<(), String> {
        let log = std::fs::File::create(self.dir.path().join("node.log")).map_err(|error| error.to_string())?;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop/issuers/oidc-provider.mjs");
        let mut command = Command::new("node");
        command.arg(script).env("PORT", self.port.port().to_string()).env("MODULES", fetched("oidc-provider"));
        command.env("TLS_CERT", &self.web.certificate).env("TLS_KEY", &self.web.key);
        command.env("CLIENT_CA", &self.loopback.files.bundle).env("SVID", SERVER_ID);
        command.env("JWKS", self.dir.path().join("client.jwks"));
        // It ends with its standard input, and so with this test.
        command.stdin(Stdio::piped()).stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let node = command.spawn().map_err(|error| error.to_string())?;
        self.node = Some(node);
        until("oidc-provider listens", || std::net::TcpStream::connect(self.port).map(drop).map_err(|error| error.to_string()))
            .map_err(|error| format!("{error}\n{}", self.log()))
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("node.log")).unwrap_or_default()
    }

    fn end(&mut self) {
        if let Some(mut node) = self.node.take() {
            crate::pods::end(&mut node);
        }
    }

    /// A token of the client `web` for this resource.
    pub(super) fn token(&self, resource: &str) -> Result<String, String> {
        let (url, resource) = (format!("{}/token", self.url), format!("resource={resource}"));
        let form = ["-u", "web:web-secret", "-d", "grant_type=client_credentials", "-d", "scope=read"];
        let answer = self.curl(&[&form[..], &["-d", &resource, &url]].concat())?;
        access_token(&answer).map_err(|error| format!("{error}\n{}", self.log()))
    }

    /// `curl` that believes the server's certificate.
    pub(super) fn curl(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        curl(&[&["--cacert", &self.web.root.display().to_string()], arguments].concat())
    }

    /// Believes the server, which is asked about opaque tokens as the lines of `asked` say.
    pub(super) fn believe(&self, asked: &str) -> Result<(), String> {
        believe(&self.loopback, &format!("  issuer: {}\n  audiences: [shop]\n{asked}", self.url), CONDITION)
    }

    /// An opaque token is good, a made-up one is not, and a revoked one is not for longer than it is remembered.
    fn opaque(&self) -> Result<(), String> {
        let token = self.token("urn:shop:opaque")?;
        expect(&self.loopback, "an opaque token", &token, 200, "web")?;
        expect(&self.loopback, "an invented token", "invented", 401, "token_inactive")?;
        let jwt = self.token("urn:shop:es256")?;
        expect(&self.loopback, "a JWT beside", &jwt, 200, "web")?;
        let (url, form) = (format!("{}/token/revocation", self.url), format!("token={token}"));
        self.curl(&["-u", "web:web-secret", "-d", &form, &url])?;
        until("a revoked token is refused", || expect(&self.loopback, "a revoked token", &token, 401, "token_inactive"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The private key of the client `rondel-key`, and its public half as a key set.
fn client_key(dir: &Path) -> Result<(), String> {
    const SCRIPT: &str = "const c = require('node:crypto'), f = require('node:fs'); \
        const { privateKey, publicKey } = c.generateKeyPairSync('ec', { namedCurve: 'P-256' }); \
        f.writeFileSync('client.pem', privateKey.export({ type: 'pkcs8', format: 'pem' })); \
        f.writeFileSync('client.jwks', JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'c1', alg: 'ES256', use: 'sig' }] }));";
    let output = Command::new("node").args(["-e", SCRIPT]).current_dir(dir).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Discovery over TLS; JWT access tokens (RFC 9068) of four algorithms; one for another audience.
fn discovery(server: &mut Server) -> Result<Shown, String> {
    server.believe("")?;
    for algorithm in ["es256", "rs256", "ps256", "eddsa"] {
        let token = server.token(&format!("urn:shop:{algorithm}"))?;
        expect(&server.loopback, algorithm, &token, 200, "web")?;
        // Its last character but one: the last holds bits that are not the signature's.
        let mut forged = token.into_bytes();
        if let Some(byte) = forged.iter_mut().rev().nth(1) {
            *byte = if *byte == b'A' { b'B' } else { b'A' };
        }
        expect(&server.loopback, "a forged token", &String::from_utf8_lossy(&forged), 401, "token_signature")?;
    }
    expect(&server.loopback, "another audience", &server.token("urn:other")?, 401, "token_audience")?;
    expect(
        &server.loopback,
        "an opaque token that nobody is asked about",
        &server.token("urn:shop:opaque")?,
        401,
        "token_malformed",
    )?;
    let country = |wanted: &str| {
        let claims = "  claims: { attributes: { country: { claim: '\"https://shop.example/country\"', type: String } } }";
        let spec = format!("  issuer: {}\n  audiences: [shop]\n{claims}", server.url);
        super::believe(&server.loopback, &spec, &format!("context.user has country && context.user.country == \"{wanted}\""))
    };
    for (wanted, status, word) in [("DE", 200, "web"), ("CH", 403, "not_permitted")] {
        country(wanted)?;
        expect(&server.loopback, "a claim of the server's own", &server.token("urn:shop:es256")?, status, word)?;
    }
    server.believe("")?;
    until("rondel issuers shows the keys", || {
        let (_, said) = server.loopback.mesh.rondel(&["issuers", "--workload", "shop/server"]);
        let is_shown = ["es ES256", "rs RS256", "ps PS256", "ed EdDSA"].iter().all(|key| said.contains(key));
        if is_shown { Ok(()) } else { Err(said) }
    })?;
    Ok(Shown::Yes(
        "metadata over TLS, tokens of ES256, RS256, PS256 and EdDSA, forged and foreign ones refused, a claim of its own decides"
            .into(),
    ))
}

fn by_secret(server: &mut Server) -> Result<Shown, String> {
    let file = server.dir.path().join("secret");
    for (id, method, secret) in
        [("rondel-basic", "client_secret_basic", "a secret of %+& letters"), ("rondel-post", "client_secret_post", "post-secret")]
    {
        std::fs::write(&file, format!("{secret}\n")).map_err(|error| error.to_string())?;
        let asked = format!("{{ clientId: {id}, authentication: {method}, secretFile: {} }}", file.display());
        server.believe(&format!("  introspection: {asked}"))?;
        server.opaque().map_err(|error| format!("{method}: {error}\n{}", server.log()))?;
    }
    std::fs::write(&file, "wrong").map_err(|error| error.to_string())?;
    let token = server.token("urn:shop:opaque")?;
    expect(&server.loopback, "with a wrong secret", &token, 503, "issuer_unavailable")?;
    Ok(Shown::Yes(
        "client_secret_basic and client_secret_post from a file; good, invented and revoked tokens; a wrong secret is 503".into(),
    ))
}

fn by_key(server: &mut Server) -> Result<Shown, String> {
    let key = server.dir.path().join("client.pem");
    let asked = format!("clientId: rondel-key, authentication: private_key_jwt, keyFile: {}, keyId: c1", key.display());
    server.believe(&format!("  introspection: {{ {asked} }}"))?;
    server.opaque().map_err(|error| format!("{error}\n{}", server.log()))?;
    Ok(Shown::Yes("an assertion of ES256; good, invented and revoked tokens".into()))
}

fn by_svid(server: &mut Server) -> Result<Shown, String> {
    server.believe("  introspection: { clientId: rondel-svid, authentication: tls_client_auth }")?;
    server.opaque().map_err(|error| format!("{error}\n{}", server.log()))?;
    Ok(Shown::Yes("the sidecar's SVID as the client's certificate; good, invented and revoked tokens".into()))
}

/// The server ends: tokens by known keys go on, opaque ones are 503; it comes back with other keys, which are found.
fn away(server: &mut Server) -> Result<Shown, String> {
    let file = server.dir.path().join("secret");
    std::fs::write(&file, "a secret of %+& letters").map_err(|error| error.to_string())?;
    let asked = format!("clientId: rondel-basic, authentication: client_secret_basic, secretFile: {}", file.display());
    server.believe(&format!("  introspection: {{ {asked} }}"))?;
    let (jwt, opaque) = (server.token("urn:shop:es256")?, server.token("urn:shop:opaque")?);
    expect(&server.loopback, "a JWT", &jwt, 200, "web")?;
    server.end();
    expect(&server.loopback, "a JWT while the issuer is away", &jwt, 200, "web")?;
    expect(&server.loopback, "an opaque token while the issuer is away", &opaque, 503, "issuer_unavailable")?;
    until("rondel issuers tells it", || {
        let (code, said) = server.loopback.mesh.rondel(&["issuers"]);
        if code == 1 && said.contains("NO ANSWER") { Ok(()) } else { Err(format!("{code}: {said}")) }
    })?;
    server.listen()?;
    let fresh = server.token("urn:shop:es256")?;
    // The keys are others and have the old ids: only a refresh shows it.
    until("the new keys are found", || expect(&server.loopback, "a token by a new key", &fresh, 200, "web"))?;
    let (status, reason) = called(&server.loopback, &jwt)?;
    if status != 401 {
        return Err(format!("a token by a key that is gone: {status} {reason}"));
    }
    Ok(Shown::Yes(
        "known keys serve, opaque tokens are 503 and told by `rondel issuers`; new keys are found, old tokens end".into(),
    ))
}
