//! Real authorization servers beside a mesh on loopback: the sidecars find their keys, ask them about opaque tokens and follow their
//! rotations. Needs neither pods nor root; what a server needs is fetched by `issuers.sh`.

mod bound;
mod keycloak;
mod oidc_provider;

use crate::Shown;
use crate::identity::{CLIENT_ID, Loopback, Made};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a change of configuration or keys may take to be in force.
const DEADLINE: Duration = Duration::from_secs(30);

/// One flow: its name and how it is shown.
type Flow<T> = (&'static str, fn(&mut T) -> Result<Shown, String>);

/// Every flow whose name is asked for, one line each; a server is started only if one of its flows is.
pub(crate) fn each(is_asked: &dyn Fn(&str) -> bool, told: &mut impl FnMut(&str, Result<Shown, String>) -> bool) {
    group("oidc_provider", &oidc_provider::FLOWS, oidc_provider::missing, oidc_provider::Server::start, is_asked, told);
    group("keycloak", &keycloak::FLOWS, keycloak::missing, keycloak::Server::start, is_asked, told);
}

fn group<T>(
    name: &str,
    flows: &[Flow<T>],
    missing: fn() -> Option<String>,
    start: fn() -> Result<T, String>,
    is_asked: &dyn Fn(&str) -> bool,
    told: &mut impl FnMut(&str, Result<Shown, String>) -> bool,
) {
    let mut flows = flows.iter().filter(|(name, _)| is_asked(name)).peekable();
    if flows.peek().is_none() {
        return;
    }
    if let Some(missing) = missing() {
        for (name, _) in flows {
            told(name, Ok(Shown::Skipped(missing.clone())));
        }
        return;
    }
    match start() {
        Ok(mut server) => {
            for (name, flow) in flows {
                told(name, flow(&mut server));
            }
        }
        Err(error) => {
            told(&format!("{name}_starts"), Err(error));
        }
    }
}

/// Where `issuers.sh` puts what it fetched.
fn fetched(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/interop").join(name)
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Writes the issuer and the policy of `server` into the mesh's directory and waits until every sidecar works by them.
///
/// - `spec`: the lines of the `TokenIssuer`'s spec, indented by two
/// - `condition`: what a caller's user must fulfil, in Cedar
fn believe(loopback: &Loopback, spec: &str, condition: &str) -> Result<(), String> {
    let mesh = &loopback.mesh;
    let before = mesh.status()["revision"].as_u64().unwrap_or_default();
    let text = format!(
        "apiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: {{ name: login }}\nspec:\n{spec}\n---\n\
         apiVersion: rondel.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: token, namespace: shop }}\nspec:\n  \
         selector: {{ account: server }}\n  policies: |\n    @id(\"token\")\n    permit (principal == Workload::\"{CLIENT_ID}\", action, resource)\n    \
         when {{ context has user && {condition} }};\n"
    );
    let (path, fresh) = (mesh.dir.path().join("issuer.yaml"), mesh.dir.path().join(".issuer.yaml.new"));
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(|error| error.to_string())?;
    until("every sidecar works by the new issuer", || {
        let status = mesh.status();
        let revision = status["revision"].as_u64().unwrap_or_default();
        let workloads = status["workloads"].as_array().cloned().unwrap_or_default();
        let is_current = |each: &serde_json::Value| each["connected"] == false || each["revision"].as_u64() == Some(revision);
        let is_in_force = revision > before && workloads.iter().all(is_current);
        if is_in_force { Ok(()) } else { Err(status.to_string()) }
    })
}

/// The status of a call of `client` to `server` with this token, and the answer's reason if there is one.
fn called(loopback: &Loopback, token: &str) -> Result<(u16, String), String> {
    let request = http::Request::get("/who").header("authorization", format!("Bearer {token}"));
    let answer = loopback.runtime.block_on(crate::http::call(loopback.mesh.to_server(), http::Version::HTTP_11, request, ""))?;
    let reason = answer.header("x-rondel-reason").to_owned();
    Ok((answer.status, if answer.status == 200 { answer.body } else { reason }))
}

/// That a call has this outcome.
fn expect(loopback: &Loopback, what: &str, token: &str, status: u16, word: &str) -> Result<(), String> {
    let (got, said) = called(loopback, token)?;
    if got == status && said.contains(word) {
        return Ok(());
    }
    let (_, issuers) = loopback.mesh.rondel(&["issuers"]);
    Err(format!("{what}: {got} {said}, expected {status} {word}\n{issuers}"))
}

fn until<T>(what: &str, mut seen: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match seen() {
            Ok(found) => return Ok(found),
            Err(last) if Instant::now() > deadline => return Err(format!("{what}: {last}")),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// `curl` with these arguments; what it said as JSON, or as a text if it said something else.
fn curl(arguments: &[&str]) -> Result<serde_json::Value, String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20"]).args(arguments);
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("curl: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
}

/// The access token of a token endpoint's answer.
fn access_token(answer: &serde_json::Value) -> Result<String, String> {
    answer["access_token"].as_str().map(str::to_owned).ok_or_else(|| format!("no token: {answer}"))
}
