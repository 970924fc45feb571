//! An authority that an operator's own signs, and its rotation as an operator sees it.

use crate::plane::{DEADLINE, MESH, Plane, call, command};
use identity::bundle::pem_section;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use wire::client::ControlClient;

/// An operator's root in files, which names no trust domain.
fn root(dir: &Path) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let now = testkit::pki::now();
    testkit::pki::set_life(&mut params, now.minus(Duration::from_secs(3600)), now.plus(Duration::from_secs(86_400)));
    let der = params.self_signed(&key).unwrap().der().to_vec();
    std::fs::write(dir.join("ca.pem"), pem_section("CERTIFICATE", &der)).unwrap();
    std::fs::write(dir.join("ca.key"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(dir.join("ca.key"), Permissions::from_mode(0o600)).unwrap();
    der
}

fn with_upstream(upstream: &str) -> String {
    MESH.replace("lifetime: 10s", &format!("lifetime: 10s, upstream: {upstream}"))
}

#[tokio::test]
async fn an_authority_under_an_operators_root_signs_and_is_rotated_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let path = dir.path().display();
    let mesh = with_upstream(&format!("{{ files: {{ certificate: {path}/ca.pem, key: {path}/ca.key }} }}"));
    let plane = Plane::start_with(&mesh).await;
    assert_eq!(
        plane.bundles().to_model()[0].authorities,
        std::slice::from_ref(&root),
        "sidecars trust the operator's root alone"
    );
    let own = plane.joined("shop/client").await;
    assert_eq!(own.svid().chain().len(), 2);

    let mut operator = plane.operator().await.unwrap();
    let before = operator.authority_status(DEADLINE).await.unwrap();
    assert_eq!((before.authorities.len(), before.authorities[0].source.as_str()), (1, "files"));
    assert_eq!(own.svid().authority_key_id(), Some(before.authorities[0].id.as_str()));
    let begun = operator.rotate_authority(DEADLINE).await.unwrap();
    assert_eq!(begun.authorities.len(), 2);
    let again = operator.rotate_authority(DEADLINE).await.unwrap_err().to_string();
    assert!(again.contains("a rotation is under way"), "{again}");
    // The client is not connected: it holds the rotation up until its SVID ends, and is named.
    let held = operator.authority_status(DEADLINE).await.unwrap().held_up_by;
    assert!(held.iter().any(|(who, why)| who == "shop/client" && why.contains("is away")), "{held:?}");
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let now = operator.authority_status(DEADLINE).await.unwrap();
        if now.next_step.is_none() {
            assert_ne!(now.authorities[0].id, before.authorities[0].id);
            break;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(plane.bundles().to_model()[0].authorities, [root], "the root is the same");
    let keys = std::fs::read_dir(plane.state().join("keys")).unwrap().count();
    assert_eq!(keys, 2, "the keys of the old one are gone");
}

#[tokio::test]
async fn a_signer_that_fails_is_told_and_changes_nothing() {
    let plane = Plane::start().await;
    let before = plane.bundles();
    let mut operator = plane.operator().await.unwrap();
    let edit = |upstream: &str| std::fs::write(plane.config("mesh.yaml"), with_upstream(upstream)).unwrap();
    for (revision, upstream, told) in [
        (2, "{ command: [/nowhere/sign] }", "run `/nowhere/sign`"),
        (3, "{ command: [sh, -c, 'cat > /dev/null; echo the vault is sealed >&2; exit 3'] }", "the vault is sealed"),
        (4, "{ command: [sh, -c, 'cat > /dev/null; echo hello'] }", "0 certificates"),
        (5, "{ command: [cat] }", "not PEM with certificates only"),
        (6, "{ files: { certificate: /nowhere/ca.pem, key: /nowhere/ca.key } }", "read `/nowhere/ca.pem`"),
    ] {
        edit(upstream);
        plane.until(upstream, |status| status.revision.0 == revision).await;
        let said = operator.rotate_authority(DEADLINE).await.unwrap_err().to_string();
        assert!(said.contains(told), "{upstream}: {said}");
    }
    assert_eq!(operator.authority_status(DEADLINE).await.unwrap().next_step, None);
    assert_eq!(plane.bundles(), before);
    assert_eq!(std::fs::read_dir(plane.state().join("keys")).unwrap().count(), 2);
    // Nor does a mesh begin under one.
    let config = tempfile::tempdir().unwrap();
    std::fs::write(config.path().join("mesh.yaml"), with_upstream("{ command: [false] }")).unwrap();
    let (state, free) = (plane.dir.path().join("fresh"), testkit::ports::free);
    let mut child = command(config.path(), &state, free(), free());
    let output = child.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("upstream authority: `false` ended with"), "{said}");
}

#[tokio::test]
async fn a_full_disk_issues_nothing_loses_nothing_and_is_over_when_there_is_room() {
    let mut plane = Plane::start_with(&MESH.replace("lifetime: 10s", "lifetime: 1h")).await;
    let own = plane.joined("shop/client").await;
    // A store that may not grow: what the kernel answers is what it answers on a full disk.
    let bytes = std::fs::metadata(plane.state().join("control.redb")).unwrap().len();
    plane.restart_limited(bytes / 512 + 2).await;
    let client = ControlClient::new(plane.proven(&own).await);
    let mut refused = None;
    for _ in 0..3000 {
        let (_, request) = crate::plane::asked("client");
        if let Err(failure) = client.issue(call("shop/client", request, None), DEADLINE).await {
            refused = Some(failure.to_string());
            break;
        }
    }
    let refused = refused.expect("the store is full in the end");
    assert!(refused.contains("the control plane's log says why"), "{refused}");
    assert!(plane.log().contains("no SVID issued"), "{}", plane.log());
    plane.until("it answers its operator", |_| true).await;
    plane.unlimit();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (_, request) = crate::plane::asked("client");
        match client.issue(call("shop/client", request, None), DEADLINE).await {
            Ok(_) => break,
            Err(failure) => assert!(Instant::now() < deadline, "{failure}\n{}", plane.log()),
        }
        sleep(Duration::from_millis(100)).await;
    }
    plane.restart().await;
    let again = plane.joined("shop/client").await;
    assert_eq!(again.svid().authority_key_id(), own.svid().authority_key_id(), "the authority is the same");
}
