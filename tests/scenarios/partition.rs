//! A sidecar that runs and cannot reach the control plane: the wire between them is cut while the authority rotates.

use crate::http::serve;
use crate::identity::{Load, plan, stage, third};
use crate::mesh::{CHANGE_DEADLINE, Mesh, Plan, program};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::ports::free;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// A wire to the control plane. While it is cut nothing arrives and nobody is told, as with packets that are dropped.
struct Wire {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self { address: listener.local_addr().unwrap(), is_cut: Arc::default() };
        let is_cut = Arc::clone(&wire.is_cut);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let is_cut = Arc::clone(&is_cut);
                tokio::spawn(async move {
                    whole(&is_cut).await;
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, &is_cut), carry(far_in, near_out, &is_cut));
                });
            }
        });
        wire
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }
}

async fn whole(is_cut: &AtomicBool) {
    while is_cut.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_cut: &AtomicBool) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        // The end of a connection gets no further than its bytes.
        whole(is_cut).await;
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            let _ended = to.shutdown().await;
            return;
        }
    }
}

/// A sidecar that `up` does not run; it ends with the test.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn attest(mesh: &Mesh, home: &Path) {
    let (code, said) = mesh.rondel(&["join-token", "shop/third", "--out", &home.display().to_string()]);
    assert_eq!(code, 0, "{said}");
}

/// The workload `third` of a mesh that runs already, by hand, over this wire.
async fn beside(mesh: &Mesh, control: SocketAddr, workload: &str) -> Beside {
    let path = mesh.dir.path().join("mesh.yaml");
    let text = std::fs::read_to_string(&path).unwrap() + workload;
    let fresh = mesh.dir.path().join(".mesh.yaml.new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, &path).unwrap();
    mesh.until("the third workload is known", |now| now["workloads"].as_array().is_some_and(|all| all.len() == 3)).await;
    let home = mesh.dir.path().join("third");
    std::fs::create_dir(&home).unwrap();
    attest(mesh, &home);
    let log = std::fs::File::create(home.join("log")).unwrap();
    let mut command = Command::new(program("rondel-proxy"));
    command.args(["--workload", "shop/third", "--control", &control.to_string(), "--workers", "1"]);
    command.arg("--admin").arg(free().to_string()).arg("--state").arg(home.join("state"));
    command.arg("--join-token-file").arg(home.join("join-token")).arg("--trust-bundle").arg(home.join("bundle.pem"));
    Beside(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
}

async fn answered(to: SocketAddr) {
    let deadline = Instant::now() + CHANGE_DEADLINE;
    while crate::http::get(to, "/").await.map(|(status, _)| status) != Ok(200) {
        assert!(Instant::now() < deadline, "no answer");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_cut_off_from_the_control_plane_holds_a_rotation_up_and_recovers() {
    let (third, more) = third();
    let mesh = Mesh::start(&Plan { lifetime: "20s", ..plan(serve().await, "", String::new()) }).await;
    let control: SocketAddr = mesh.processes()["control"]["listen"].as_str().unwrap().parse().unwrap();
    let wire = Wire::to(control).await;
    let _sidecar = beside(&mesh, wire.address, &more).await;
    let calls = third.upstreams[0].1;
    answered(calls).await;
    let (load, own) = (Load::start(mesh.to_server()), Load::start(calls));
    let third_holds =
        |now: &serde_json::Value| now["held_up_by"].as_array().unwrap().iter().any(|each| each["who"] == "shop/third");

    // For a moment: it is waited for, and not even its own calls fail.
    wire.cut(true);
    let (code, text) = mesh.rondel(&["ca", "rotate", "--no-wait", "--output", "json"]);
    assert_eq!(code, 0, "{text}");
    mesh.until_authorities("it holds the rotation up", third_holds).await;
    sleep(Duration::from_secs(2)).await;
    let held = mesh.authorities().unwrap();
    assert!(third_holds(&held) && stage(&held, "prepared").is_some(), "nothing signs that it does not know: {held}");
    wire.cut(false);
    mesh.until_authorities("the rotation ends", |now| now["next_step"].is_null()).await;
    let (count, failed) = own.stop().await;
    assert!(failed.is_empty() && count > 0, "{} of {count} of its own calls failed, first {:?}", failed.len(), failed.first());

    // Until its certificate has ended: it is waited for no longer, and comes back with its attestation.
    wire.cut(true);
    let (code, text) = mesh.rondel(&["ca", "rotate", "--no-wait", "--output", "json"]);
    assert_eq!(code, 0, "{text}");
    mesh.until_authorities("it holds the rotation up again", third_holds).await;
    mesh.until_authorities("the rotation ends without it", |now| now["next_step"].is_null()).await;
    attest(&mesh, &mesh.dir.path().join("third"));
    wire.cut(false);
    answered(calls).await;
    let (count, failed) = load.stop().await;
    assert!(failed.is_empty() && count > 500, "{} of {count} failed, first {:?}", failed.len(), failed.first());
    println!("two rotations with a sidecar cut off: {count} requests of the others, none failed");
}
