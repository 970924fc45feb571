//! Pods on one machine: a network namespace per workload, joined by a bridge, each with its sidecar's capture in force.
//!
//! Needs the right to make network namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN) and the programs `ip` and `nft`.

use anyhow::{Context, bail};
use config::{Mesh, Workload};
use model::WorkloadName;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The control plane's side of the bridge.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
const BRIDGE: &str = "rondel0";
/// The group under which sidecars run, by which their own connections are told from the application's.
pub(super) const PROXY_GID: u32 = 2102;
/// Where `ip netns` keeps the namespaces that it names.
const NAMESPACES: &str = "/run/netns";
/// For one run of `ip`.
const IP_DEADLINE: Duration = Duration::from_secs(10);
/// LIMIT: pods of one mesh: one interface each on one bridge.
const PODS_MAX: usize = 200;

/// Where a process of a pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    /// The namespace's file.
    pub(super) namespace: PathBuf,
    /// The group of the process, if not that of `rondel` itself.
    pub(super) gid: Option<u32>,
}

/// The namespaces of a mesh; taken away when it is dropped.
#[derive(Debug)]
pub(super) struct Pods {
    names: BTreeMap<WorkloadName, String>,
}

impl Pods {
    /// Makes the bridge, and a namespace with its addresses for every workload.
    ///
    /// # Errors
    /// - a workload that is not captured or has an address outside the bridge's, or what `ip` says. Everything that was made is
    ///   taken away again.
    pub(super) fn make(mesh: &Mesh) -> anyhow::Result<Self> {
        if mesh.workloads.len() > PODS_MAX {
            bail!("{} workloads are more than the {PODS_MAX} pods that one machine gets", mesh.workloads.len());
        }
        if let Some(workload) = mesh.workloads.iter().find(|workload| !workload.captured) {
            bail!("`--pods` needs `captured: true` in every workload; {} lacks it", workload.name);
        }
        let name = |workload: &Workload| {
            (workload.name.clone(), format!("{}-{}", workload.name.as_str().replace('/', "-"), std::process::id()))
        };
        // Before there is anything to take away again: a bridge that is there already is another mesh's.
        ip(&["link", "add", BRIDGE, "type", "bridge"])
            .context("make the bridge `rondel0`; if another mesh runs here, end it, and if none does, `ip link del rondel0`")?;
        let pods = Self { names: mesh.workloads.iter().map(name).collect() };
        ip(&["addr", "add", &format!("{GATEWAY}/16"), "dev", BRIDGE])?;
        ip(&["-6", "addr", "add", &format!("{GATEWAY_V6}/64"), "dev", BRIDGE, "nodad"])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        for (index, workload) in mesh.workloads.iter().enumerate() {
            pods.make_one(index, workload).with_context(|| format!("make the pod of {}", workload.name))?;
        }
        Ok(pods)
    }

    fn make_one(&self, index: usize, workload: &Workload) -> anyhow::Result<()> {
        let name = self.names.get(&workload.name).context("a pod's name")?;
        let link = link(index);
        ip(&["netns", "add", name])?;
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["link", "set", &link, "master", BRIDGE, "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        let (v4, v6) = addresses(index, workload)?;
        ip(&["-n", name, "addr", "add", &format!("{v4}/16"), "dev", "eth0"])?;
        ip(&["-n", name, "-6", "addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "route", "add", "default", "via", &GATEWAY.to_string()])?;
        ip(&["-n", name, "-6", "route", "add", "default", "via", &GATEWAY_V6.to_string()])
    }

    /// Where the sidecar of a workload runs.
    pub(super) fn sidecar(&self, workload: &WorkloadName) -> Option<Inside> {
        self.application(workload).map(|inside| Inside { gid: Some(PROXY_GID), ..inside })
    }

    /// Where the application of a workload runs.
    pub(super) fn application(&self, workload: &WorkloadName) -> Option<Inside> {
        let name = self.names.get(workload)?;
        Some(Inside { namespace: PathBuf::from(NAMESPACES).join(name), gid: None })
    }

    /// The namespace of a workload, as `ip netns` knows it.
    pub(super) fn name(&self, workload: &WorkloadName) -> Option<&str> {
        self.names.get(workload).map(String::as_str)
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        // A namespace lives on after its name for as long as the kernel has connections of it to end, so that its interface is
        // taken away by itself. What was never made cannot be taken away, and that is no fault.
        for (index, name) in self.names.values().enumerate() {
            let _absent = ip(&["link", "del", &link(index)]);
            let _absent = ip(&["netns", "del", name]);
        }
        let _absent = ip(&["link", "del", BRIDGE]);
    }
}

/// The bridge's side of a pod's interface.
fn link(index: usize) -> String {
    format!("rondel-{index}")
}

/// The addresses that a workload's inbound ports say; one that has none gets its own.
fn addresses(index: usize, workload: &Workload) -> anyhow::Result<(Ipv4Addr, Ipv6Addr)> {
    let number = u16::try_from(index)? + 1;
    let mut v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 255, 0)) + u32::from(number));
    let mut v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0xffff, number);
    for inbound in &workload.inbound {
        match inbound.listen.ip() {
            IpAddr::V4(ip) if ip.octets().starts_with(&[10, 77]) && ip != GATEWAY => v4 = ip,
            IpAddr::V6(ip) if ip.segments().starts_with(&[0xfd77, 0, 0, 0]) && ip != GATEWAY_V6 => v6 = ip,
            other => bail!("{other} is not in 10.77.0.0/16 or fd77::/64, or is the bridge's own"),
        }
    }
    Ok((v4, v6))
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let done = run("ip", arguments)?;
    if done.0 { Ok(()) } else { bail!("`ip {}`: {}", arguments.join(" "), done.1.trim()) }
}

/// Runs a program to its end and gives its success and what it complained of.
pub(super) fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let name = program.as_ref().to_string_lossy().into_owned();
    let mut command = Command::new("timeout");
    command.arg(IP_DEADLINE.as_secs().to_string()).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().with_context(|| format!("run `{name}`: is it installed?"))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}
