//! Real applications that know nothing of Rondel, in pods, through two sidecars with mutual TLS, and others' software that
//! holds SVIDs of the mesh, on loopback. One line per promise.
//!
//! Run it with `make interop`. What is not installed is skipped and named; `RONDEL_INTEROP=required` makes a skip a failure.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods, reason = "tests")]

mod bank;
mod capture;
#[path = "../scenarios/http.rs"]
#[expect(dead_code, reason = "the scenarios use all of it")]
mod http;
mod identity;
mod issuers;
#[path = "../scenarios/mesh.rs"]
#[expect(dead_code, reason = "the scenarios use all of it")]
mod mesh;
mod pods;
mod protocols;

use pods::Pods;
use std::process::ExitCode;

/// What a check found: what was shown, or what is missing on this machine.
pub(crate) enum Shown {
    Yes(String),
    Skipped(String),
}

/// One promise: its name and how it is kept.
type Check = (&'static str, fn(&mut Pods) -> Result<Shown, String>);

/// One promise that needs no pods.
type LoopbackCheck = (&'static str, fn(&mut identity::Loopback) -> Result<Shown, String>);

const LOOPBACK: [LoopbackCheck; 8] = [
    ("openssl_holds_an_svid_and_calls_a_sidecar", identity::openssl::client),
    ("openssl_is_called_by_a_sidecar", identity::openssl::server),
    ("envoy_holds_an_svid_and_calls_a_sidecar", identity::envoy::client),
    ("envoy_is_called_by_a_sidecar", identity::envoy::server),
    ("h2spec_over_mutual_tls_passes_what_nghttpd_passes_beside_it", identity::h2spec::over_mutual_tls),
    ("spiffe_of_python_asks_the_workload_api_of_a_sidecar", identity::workload::python),
    ("a_sidecar_takes_its_identity_from_a_workload_api", identity::workload::source),
    ("a_clock_that_is_five_minutes_off_is_borne_and_measured", identity::skew::five_minutes),
];

/// One promise that makes a mesh of its own.
type LoneCheck = (&'static str, fn() -> Result<Shown, String>);

const ALONE: [LoneCheck; 2] = [
    ("spire_gives_a_sidecar_its_identity_under_the_same_root", identity::spire::source),
    ("spire_is_a_federation_peer_in_both_directions", identity::spire::federation),
];

const MESH: &str = r#"
apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: { name: shop }
spec:
  trustDomain: shop.example
  limits: { drainMs: 3000, responseHeadMs: 8000 }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: client, namespace: shop }
spec:
  captured: true
  admin: 127.0.0.1:15000
  upstreams:
    - { service: shop/server }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: server, namespace: shop }
spec:
  captured: true
  admin: 127.0.0.1:15000
  inbound:
    - { listen: "10.77.1.2:80", protocol: http }
    - { listen: "[fd77::12]:80", protocol: http }
    - { listen: "10.77.1.2:81", protocol: http }
    - { listen: "10.77.1.2:2525" }
    - { listen: "10.77.1.2:5432", protocol: tcp }
    - { listen: "10.77.1.2:6379" }
    - { listen: "10.77.1.2:8080" }
    - { listen: "10.77.1.2:9000" }
    - { listen: "10.77.1.2:50051", protocol: http }
---
apiVersion: rondel.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: old, namespace: shop }
spec: { selector: { account: server }, mode: permissive, ports: [81, 9000] }
---
apiVersion: rondel.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: server, namespace: shop }
spec:
  selector: { account: server }
  policies: |
    @id("client")
    permit (principal == Workload::"spiffe://shop.example/ns/shop/sa/client", action, resource);
    @id("old")
    permit (principal == Workload::"unauthenticated", action in [Action::"read", Action::"connect"], resource)
    when { context.request.path != "/big" };
    @id("conformance")
    permit (principal == Workload::"unauthenticated", action, resource) when { context.request.path == "/page" };
"#;

const CHECKS: [Check; 17] = [
    ("a_pod_is_ready_only_when_its_traffic_is_captured", capture::readiness),
    ("plaintext_around_the_sidecar_does_not_get_in", capture::strict),
    ("a_redirect_loop_is_refused", capture::redirect_loop),
    ("nginx_and_curl", protocols::nginx),
    ("a_permissive_port_lets_plaintext_in_counts_it_and_decides_it", capture::permissive),
    ("calls_out_of_the_mesh_pass", capture::egress),
    ("a_mesh_may_refuse_calls_to_the_outside", capture::egress_refused),
    ("h2load_over_http1_loses_no_request", protocols::h2load_http1),
    ("h2load_over_http2_loses_no_request", protocols::h2load_http2),
    ("h2spec_on_a_plaintext_port_of_both_versions", protocols::h2spec),
    ("a_pod_that_is_cut_off_is_told_and_comes_back_by_itself", capture::cut_off),
    ("redis_on_an_undeclared_port", protocols::redis),
    ("postgresql", protocols::postgresql),
    ("a_server_that_speaks_first", protocols::server_first),
    ("websocket_of_nodejs", protocols::websocket),
    ("grpc_of_python", protocols::grpc),
    ("a_drained_sidecar_serves_its_application_to_the_end", capture::drain),
];

fn main() -> ExitCode {
    let required = std::env::var("RONDEL_INTEROP").is_ok_and(|value| value == "required");
    let (mut passed, mut failed) = (0, 0);
    let mut told = |name: &str, shown: Result<Shown, String>| {
        let is_kept = shown.is_ok();
        match shown {
            Ok(Shown::Yes(what)) => {
                println!("interop: {name} ... ok: {what}");
                passed += 1;
            }
            Ok(Shown::Skipped(what)) => {
                println!("interop: {name} ... skipped: {what}");
                failed += u32::from(required);
            }
            Err(error) => {
                println!("interop: {name} ... FAILED: {error}");
                failed += 1;
            }
        }
        is_kept
    };
    let only = std::env::args().nth(1);
    let is_asked = |name: &str| only.as_ref().is_none_or(|only| name.contains(only));
    if LOOPBACK.iter().any(|(name, _)| is_asked(name)) {
        match identity::Loopback::start() {
            Ok(mut loopback) => {
                for (name, check) in LOOPBACK.into_iter().filter(|(name, _)| is_asked(name)) {
                    told(name, check(&mut loopback));
                }
            }
            Err(error) => {
                told("a_mesh_on_loopback", Err(error));
            }
        }
    }
    for (name, check) in ALONE.into_iter().filter(|(name, _)| is_asked(name)) {
        told(name, check());
    }
    issuers::each(&is_asked, &mut told);
    if CHECKS.iter().any(|(name, _)| is_asked(name)) || is_asked("the_bank_runs_in_pods") {
        in_pods(&only, &mut told);
    }
    println!("test result: {}. {passed} passed; {failed} failed;", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The checks that need pods.
fn in_pods(only: &Option<String>, told: &mut impl FnMut(&str, Result<Shown, String>) -> bool) {
    if let Some(missing) = pods::missing() {
        told("pods", Ok(Shown::Skipped(missing)));
        return;
    }
    let mut pods = match Pods::start(MESH) {
        Ok(pods) => pods,
        Err(error) => {
            told("the_mesh_starts", Err(error));
            return;
        }
    };
    let mut kept = true;
    for (name, check) in CHECKS.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| name.contains(only))) {
        kept &= told(name, check(&mut pods));
    }
    if !kept {
        for workload in ["server", "client"] {
            let log = pods.access_log(workload);
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            println!("the end of the log of {workload}'s sidecar:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
    // One mesh at a time: the bridge has one name.
    drop(pods);
    told("the_bank_runs_in_pods", bank::walk());
}
