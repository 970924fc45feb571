//! What stands on disk: kept over a crash, refused when it is not what this program wrote.

use crate::plane::{DEADLINE, MESH, Plane, call, command};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs a control plane that must not start: what it says on its way out.
fn refused(mut command: Command) -> String {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("it runs");
        }
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_broken_directory_keeps_the_last_good_configuration_also_over_a_crash() {
    let mut plane = Plane::start().await;
    let root = plane.bundles().to_pem();
    std::fs::write(plane.config("mesh.yaml"), MESH.replace("admin: 127.0.0.1:15002", "admin: nowhere")).unwrap();
    let status = plane.until("the error is shown", |status| !status.errors.is_empty()).await;
    let error = status.errors.iter().find(|error| error.file == "mesh.yaml").unwrap();
    assert_eq!((error.file.as_str(), error.line, status.revision.0), ("mesh.yaml", 12, 1), "{error:?}");
    assert!(error.message.contains("nowhere"), "{error:?}");
    plane.restart().await;
    let status = plane.until("it runs", |_| true).await;
    assert_eq!((status.revision.0, status.workloads.len(), !status.errors.is_empty()), (1, 2, true), "{status:?}");
    assert_eq!(plane.bundles().to_pem(), root, "the authority is the same");
    std::fs::write(plane.config("mesh.yaml"), MESH.replace("15102", "15103")).unwrap();
    let status = plane.until("mended", |status| status.errors.is_empty()).await;
    assert_eq!(status.revision.0, 2);
}

#[tokio::test]
async fn a_crash_forgets_no_authority_no_used_join_token_and_no_svid() {
    let mut plane = Plane::start().await;
    let used = plane.join_token("shop/server").await;
    let client = wire::client::ControlClient::new(plane.anonymous().await);
    client.issue(call("shop/server", crate::plane::asked("server").1, Some(used.clone())), DEADLINE).await.unwrap();
    let waiting = plane.join_token("shop/client").await;
    let own = plane.joined("shop/client").await;
    plane.restart().await;
    // The SVID of before still opens a connection: the authority is the same.
    let again = wire::client::ControlClient::new(plane.proven(&own).await);
    again.issue(call("shop/client", crate::plane::asked("client").1, None), DEADLINE).await.unwrap();
    let client = wire::client::ControlClient::new(plane.anonymous().await);
    client.issue(call("shop/server", crate::plane::asked("server").1, Some(used)), DEADLINE).await.unwrap_err();
    client.issue(call("shop/client", crate::plane::asked("client").1, Some(waiting)), DEADLINE).await.unwrap();
    let status = plane.until("it runs", |_| true).await;
    assert!(status.workloads.iter().all(|each| each.serial.is_some()), "{status:?}");
}

#[tokio::test]
async fn a_state_that_cannot_be_used_is_named_and_nothing_is_made_anew() {
    let plane = Plane::start().await;
    let (config, free) = (plane.config(""), testkit::ports::free);
    // Another control plane holds it.
    let said = refused(command(&config, &plane.state(), free(), free()));
    assert!(said.contains("open the store") || said.contains("another control plane"), "{said}");
    let root = plane.dir.path();
    // A file where the directory should be.
    std::fs::write(root.join("file"), "x").unwrap();
    let said = refused(command(&config, &root.join("file"), free(), free()));
    assert!(said.contains("make the state directory"), "{said}");
    // A store that is garbage, and one that is cut short: a new authority would cut off the whole mesh.
    let good = std::fs::read(plane.state().join("control.redb")).unwrap();
    for (name, bytes) in [("garbage", vec![7; 8192]), ("cut", good[..good.len() / 2].to_vec())] {
        let state = root.join(name);
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("control.redb"), &bytes).unwrap();
        let said = refused(command(&config, &state, free(), free()));
        assert!(said.contains("store"), "{name}: {said}");
        assert!(!state.join("bundle.pem").exists(), "{name}");
    }
    // A directory without a mesh, and no earlier good one.
    let said = refused(command(&root.join("nowhere"), &root.join("fresh"), free(), free()));
    assert!(said.contains("nowhere"), "{said}");
    // The port is taken.
    let said = refused(command(&config, &root.join("other"), plane.listen, free()));
    assert!(said.contains("listen at"), "{said}");
}
