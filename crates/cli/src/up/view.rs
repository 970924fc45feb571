//! What `rondel up` prints and writes about what runs.

use super::Places;
use super::child::{Kind, Supervised};
use crate::operator;
use crate::output::{Output, plain};
use crate::status;
use anyhow::Context;
use config::{Mesh, Workload};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use model::WorkloadName;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use wire::operator::{MeshStatus, WorkloadStatus};

/// A `/ready` answer is short.
const READY_BYTES_MAX: usize = 64 * 1024;

/// Remembers what was printed, so that only changes are.
#[derive(Debug)]
pub(super) struct View {
    output: Output,
    shown: BTreeMap<String, String>,
    troubles: Vec<String>,
    control_away: bool,
}

impl View {
    pub(super) const fn new(output: Output) -> Self {
        Self { output, shown: BTreeMap::new(), troubles: Vec::new(), control_away: false }
    }

    /// Progress, on standard error.
    pub(super) fn say(&self, text: &str) {
        match self.output {
            Output::Text => eprintln!("rondel: {text}"),
            Output::Json => eprintln!("{}", serde_json::json!({ "progress": text })),
        }
    }

    /// One line per workload whose state changed, on standard output.
    pub(super) fn show(&mut self, status: Option<&MeshStatus>, children: &[Supervised]) {
        let Some(status) = status else {
            if !std::mem::replace(&mut self.control_away, true) {
                self.say("the control plane does not answer; sidecars go on with their last good configuration");
            }
            return;
        };
        if std::mem::take(&mut self.control_away) {
            self.say("the control plane answers again");
        }
        for workload in &status.workloads {
            let restarts = restarts(&workload.name, children);
            let state = status::state(workload, status);
            let key = format!("{} {} {} {:?} {restarts}", workload.connected, state, workload.revision, workload.serial);
            if self.shown.insert(workload.name.to_string(), key.clone()).as_ref() != Some(&key) {
                self.print(workload, state, restarts);
            }
        }
        let troubles: Vec<String> = status.troubles.iter().map(|each| each.message.clone()).collect();
        for each in troubles.iter().filter(|each| !self.troubles.contains(each)) {
            self.say(&format!("TROUBLE: {}", plain(each)));
        }
        if troubles.is_empty() && !self.troubles.is_empty() {
            self.say("the trouble is over");
        }
        self.troubles = troubles;
        for error in &status.errors {
            let text = format!("{}:{}:{}: {}", error.file, error.line, error.column, error.message);
            if self.shown.insert(text.clone(), String::new()).is_none() {
                self.say(&format!("configuration refused, the last good one stays in force: {text}"));
            }
        }
        if status.errors.is_empty() {
            self.shown.retain(|_, key| !key.is_empty());
        }
    }

    fn print(&self, workload: &WorkloadStatus, state: &str, restarts: u32) {
        let left = status::left(workload.svid_expires_at, operator::now());
        let connected = if workload.connected { "connected" } else { "NOT CONNECTED" };
        match self.output {
            Output::Text => println!(
                "{:18} {}  certificate {left}  {connected}  {state} {}  restarts {restarts}",
                workload.name.as_str(),
                workload.identity,
                workload.revision
            ),
            Output::Json => println!(
                "{}",
                serde_json::json!({
                    "workload": workload.name, "identity": workload.identity, "certificate_left": left,
                    "connected": workload.connected, "state": state, "revision": workload.revision,
                    "serial": workload.serial, "restarts": restarts,
                })
            ),
        }
    }
}

/// Restarts of a workload's sidecar and application together.
fn restarts(name: &WorkloadName, children: &[Supervised]) -> u32 {
    let of = |child: &&Supervised| matches!(&child.kind, Kind::Proxy(each) | Kind::Application(each) if each == name);
    children.iter().filter(of).map(|child| child.restarts).sum()
}

/// Writes `up.json`: process ids and addresses, for whoever wants to find them.
pub(super) fn write_up_json(places: &Places, mesh: &Mesh, children: &[Supervised]) -> anyhow::Result<()> {
    let pid = |kind: &Kind| children.iter().find(|child| child.kind == *kind).and_then(Supervised::pid);
    let workloads = mesh.workloads.iter().map(|workload| {
        serde_json::json!({
            "name": workload.name,
            "identity": workload.identity,
            "proxy_pid": pid(&Kind::Proxy(workload.name.clone())),
            "application_pid": pid(&Kind::Application(workload.name.clone())),
            "admin": workload.admin,
            "namespace": places.pods.as_ref().and_then(|pods| pods.name(&workload.name)),
            "inbound": inbound(workload),
            "upstreams": upstreams(workload),
        })
    });
    let processes = children.iter().filter(|child| child.kind == Kind::Process);
    let processes = processes.map(|child| serde_json::json!({ "name": child.name, "pid": child.pid() }));
    let text = serde_json::json!({
        "pid": std::process::id(),
        "control": {
            "pid": pid(&Kind::Control), "listen": places.control_listen, "admin": places.control_admin,
            "operator": places.operator.socket(),
        },
        "processes": processes.collect::<Vec<_>>(),
        "workloads": workloads.collect::<Vec<_>>(),
    });
    let path = places.state.join("up.json");
    let fresh = places.state.join("up.json.new");
    let written = std::fs::write(&fresh, format!("{text:#}\n")).and_then(|()| std::fs::rename(&fresh, &path));
    written.with_context(|| format!("write `{}`", path.display()))
}

fn inbound(workload: &Workload) -> Vec<serde_json::Value> {
    let each = |inbound: &model::snapshot::Inbound| {
        serde_json::json!({
            "listen": inbound.listen, "application": inbound.application, "protocol": inbound.protocol.as_str(),
        })
    };
    workload.inbound.iter().map(each).collect()
}

fn upstreams(workload: &Workload) -> Vec<serde_json::Value> {
    let each = workload.upstreams.iter();
    each.map(|upstream| serde_json::json!({ "service": upstream.service, "listen": upstream.listen })).collect()
}

/// Asks a sidecar's admin port: `None` if it is ready, else what it says is missing.
pub(super) async fn ready(admin: SocketAddr) -> anyhow::Result<Option<String>> {
    let stream = tokio::net::TcpStream::connect(admin).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get("/ready").header("host", admin.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let is_ready = response.status() == hyper::StatusCode::OK;
    let body = Limited::new(response.into_body(), READY_BYTES_MAX).collect().await;
    driver.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok((!is_ready).then(|| String::from_utf8_lossy(&body).trim().to_owned()))
}
