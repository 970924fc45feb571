//! Tokens that oidc-provider binds to whoever asked for them: to a key (RFC 9449) and to a certificate (RFC 8705).

use super::oidc_provider::Server;
use super::{Loopback, access_token, fetched};
use crate::Shown;
use crate::identity::Files;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the application of `client` calls, as its proofs say it.
const ADDRESS: &str = "http://server.shop/who";

/// Tokens that are JWTs and tokens that the server is asked about: both carry their binding.
const RESOURCES: [&str; 2] = ["urn:shop:es256", "urn:shop:opaque"];

const ASKED: &str = "  introspection: { clientId: rondel-svid, authentication: tls_client_auth }\n";

/// A token goes with proofs by the key that it was asked for with, each once; and with nothing else.
pub(super) fn to_a_key(server: &mut Server) -> Result<Shown, String> {
    server.believe(&format!("{ASKED}  require: {{ sender: dpop }}"))?;
    let url = format!("{}/token", server.url);
    let holder =
        |name: &str| Holder { client: "web:web-secret", key: server.dir.path().join(name), root: Some(&server.web.root) };
    let (first, second) = (holder("first.jwk"), holder("second.jwk"));
    for resource in RESOURCES {
        let token = first.token(&[&url, resource]).map_err(|error| format!("{error}\n{}", server.log()))?;
        passes_with_proofs_alone(&server.loopback, &token, &first, &second)?;
        let unbound = server.token(resource)?;
        let calls = Calls { loopback: &server.loopback, token: &unbound };
        calls.expect("a token that is bound to nobody", "Bearer", None, 401, "invalid_token")?;
    }
    server.believe(&format!("{ASKED}  require: {{ sender: dpop, dpopNonce: true }}"))?;
    let token = first.token(&[&url, RESOURCES[0]])?;
    let calls = Calls { loopback: &server.loopback, token: &token };
    let nonce = calls.expect("without a nonce", "DPoP", Some(&first.proof(ADDRESS, &token, &[])?), 401, "use_dpop_nonce")?;
    calls.expect("with the nonce", "DPoP", Some(&first.proof(ADDRESS, &token, &[&nonce])?), 200, "")?;
    Ok(Shown::Yes(
        "JWT and opaque tokens with proofs by jose: good ones once; none, foreign, misdirected and unbound are 401; a nonce"
            .into(),
    ))
}

/// A token that is bound to the first's key passes with a proof by it, once, and in no other way.
pub(super) fn passes_with_proofs_alone(
    loopback: &Loopback,
    token: &str,
    first: &Holder<'_>,
    second: &Holder<'_>,
) -> Result<(), String> {
    let calls = Calls { loopback, token };
    let good = first.proof(ADDRESS, token, &[])?;
    calls.expect("with a proof", "DPoP", Some(&good), 200, "")?;
    calls.expect("with that proof again", "DPoP", Some(&good), 401, "invalid_dpop_proof")?;
    calls.expect("without a proof", "DPoP", None, 401, "invalid_dpop_proof")?;
    calls.expect("as a bearer", "Bearer", None, 401, "invalid_token")?;
    let foreign = second.proof(ADDRESS, token, &[])?;
    calls.expect("with a proof by another key", "DPoP", Some(&foreign), 401, "invalid_dpop_proof")?;
    let elsewhere = first.proof("http://server.shop/other", token, &[])?;
    calls.expect("with a proof for another path", "DPoP", Some(&elsewhere), 401, "invalid_dpop_proof").map(drop)
}

/// A token goes with the SVID that it was asked for with, and with no other.
pub(super) fn to_a_certificate(server: &mut Server) -> Result<Shown, String> {
    let (Files { svid, key, .. }, url) = (&server.loopback.files, format!("{}/token", server.url));
    let [svid, key] = [svid, key].map(|path| path.display().to_string());
    for require in ["", "  require: { sender: mtls }"] {
        server.believe(&format!("{ASKED}{require}"))?;
        for resource in RESOURCES {
            let resource = format!("resource={resource}");
            let form = ["-u", "bound:bound-secret", "-d", "grant_type=client_credentials", "-d", "scope=read", "-d", &resource];
            let answer = server.curl(&[&["--cert", &svid, "--key", &key], &form[..], &[&url]].concat())?;
            let token = access_token(&answer).map_err(|error| format!("{error}\n{}", server.log()))?;
            let direct = |files: &Files| called_directly(&server.loopback, files, &token);
            let got = [direct(&server.loopback.files)?, direct(&server.loopback.other)?];
            // `other` may call nothing: it is refused for the token before a policy is asked.
            if got != [(200, String::new()), (401, "token_sender".to_owned())] {
                return Err(format!("{resource}, `{require}`: {got:?}"));
            }
            super::expect(&server.loopback, "through the sidecar of another workload", &token, 401, "token_sender")?;
            if !require.is_empty() {
                let unbound = server.token(resource.trim_start_matches("resource="))?;
                super::expect(&server.loopback, "a token that is bound to nobody", &unbound, 401, "token_sender")?;
            }
        }
    }
    Ok(Shown::Yes("JWT and opaque tokens of client `bound`: good with the SVID that asked for them, 401 with any other".into()))
}

/// Calls of the application of `client` with one token.
struct Calls<'a> {
    loopback: &'a Loopback,
    token: &'a str,
}

impl Calls<'_> {
    /// That a call has this status and a challenge with this word; the nonce that the answer hands out.
    fn expect(&self, what: &str, scheme: &str, proof: Option<&str>, status: u16, word: &str) -> Result<String, String> {
        let mut request = http::Request::get("/who").header("authorization", format!("{scheme} {}", self.token));
        if let Some(proof) = proof {
            request = request.header("dpop", proof);
        }
        let call = crate::http::call(self.loopback.mesh.to_server(), http::Version::HTTP_11, request, "");
        let answer = self.loopback.runtime.block_on(call)?;
        let challenges: Vec<_> =
            answer.headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok()).collect();
        if answer.status == status && challenges.join(", ").contains(word) {
            return Ok(answer.header("dpop-nonce").to_owned());
        }
        let reason = answer.header("x-rondel-reason");
        Err(format!("{what}: {} {reason} {challenges:?}, expected {status} {word}", answer.status))
    }
}

/// A call of `server`'s sidecar by whoever holds these files: the status and the reason.
fn called_directly(loopback: &Loopback, files: &Files, token: &str) -> Result<(u16, String), String> {
    let url = format!("https://{}/who", loopback.inbound());
    let mut command = Command::new("curl");
    // The sidecar's SVID names no host; who it is is not what this looks at.
    command.args(["--silent", "--show-error", "--insecure", "--http1.1", "--max-time", "20", "--output", "/dev/null"]);
    command.args(["--write-out", "%{http_code} %header{x-rondel-reason}", "--header", "host: server.shop"]);
    command.args(["--header", &format!("authorization: Bearer {token}"), "--cert"]).arg(&files.svid);
    command.arg("--key").arg(&files.key).arg(url);
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (status, reason) = said.split_once(' ').unwrap_or((&said, ""));
    let status = status.parse().map_err(|_| format!("curl: {said} {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((status, reason.to_owned()))
}

/// A client that holds a key.
pub(super) struct Holder<'a> {
    /// Its id and its secret, with `:` between.
    pub(super) client: &'a str,
    /// The file of its key.
    pub(super) key: PathBuf,
    /// The root that it believes, beside the system's.
    pub(super) root: Option<&'a Path>,
}

impl Holder<'_> {
    /// A token by its key.
    pub(super) fn token(&self, arguments: &[&str]) -> Result<String, String> {
        let answer = self.run(&[&["token"], arguments].concat())?;
        access_token(&serde_json::from_str(&answer).map_err(|_| format!("no token: {answer}"))?)
    }

    /// A proof by its key.
    pub(super) fn proof(&self, address: &str, token: &str, more: &[&str]) -> Result<String, String> {
        self.run(&[&["proof", "GET", address, token], more].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop/issuers/holder.mjs");
        let mut command = Command::new("node");
        command.arg(script).args(arguments).env("MODULES", fetched("oidc-provider"));
        command.env("CLIENT", self.client).env("KEY", &self.key).envs(self.root.map(|root| ("NODE_EXTRA_CA_CERTS", root)));
        let output = command.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("holder.mjs: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}
