//! The mesh's files: a copy with short certificates and moved ports, and whether those ports are free.

use anyhow::{Context, bail, ensure};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

/// The life of a certificate in the walk.
pub(crate) const SHORT_LIFETIME: &str = "20s";
/// What the mesh says instead; the walk needs it there, or nothing would rotate while one watches.
const LONG_LIFETIME: &str = "lifetime: 1h";
const HOST: &str = "127.0.0.1:";

/// What a copy came to.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// Every loopback port that the files name.
    pub(crate) ports: BTreeSet<u16>,
    shortened: usize,
}

/// Copies the YAML with short certificates and every port moved by `offset`.
pub(crate) fn copy(from: &Path, to: &Path, offset: u16) -> anyhow::Result<Copied> {
    let mut copied = Copied::default();
    copy_into(from, to, offset, &mut copied)?;
    ensure!(copied.shortened == 1, "`{LONG_LIFETIME}` stands {} times in its files, and must stand once", copied.shortened);
    Ok(copied)
}

fn copy_into(from: &Path, to: &Path, offset: u16, copied: &mut Copied) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        // The state of a mesh that was started right here, among others.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_into(&entry.path(), &target, offset, copied)?;
        } else {
            let text = std::fs::read_to_string(entry.path())?;
            copied.shortened += text.matches(LONG_LIFETIME).count();
            let text = text.replace(LONG_LIFETIME, &format!("lifetime: {SHORT_LIFETIME}"));
            std::fs::write(target, moved(&text, offset, &mut copied.ports)?)?;
        }
    }
    Ok(())
}

/// Adds `offset` to every `127.0.0.1:PORT` of a text, and notes the ports that come of it.
fn moved(text: &str, offset: u16, ports: &mut BTreeSet<u16>) -> anyhow::Result<String> {
    let mut parts = text.split(HOST);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (port, rest) = part.split_at(digits);
        let to = port.parse::<u16>().ok().and_then(|port| port.checked_add(offset));
        let to = to.with_context(|| format!("port {port} cannot be moved by {offset}: a port is at most 65535"))?;
        ports.insert(to);
        out.push_str(&format!("{HOST}{to}{rest}"));
    }
    Ok(out)
}

/// Says which of these ports are taken, before anything is started.
pub(crate) fn check_free(ports: &BTreeSet<u16>) -> anyhow::Result<()> {
    let bound = |port: u16| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let taken: Vec<String> =
        ports.iter().filter_map(|port| bound(*port).err().map(|error| format!("\n  {HOST}{port}: {error}"))).collect();
    if !taken.is_empty() {
        bail!(
            "these addresses cannot be used:{}\nend what uses them (`ss -ltnp` shows it), or move all ports: --port-offset 100",
            taken.concat()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_moved_and_nothing_else() {
        let text = "listen: \"127.0.0.1:15102\", command: [--country, 127.0.49.0/24=DE]\nissuer: http://127.0.0.1:18100\n";
        let mut ports = BTreeSet::new();
        assert_eq!(moved(text, 0, &mut ports).expect("moved"), text);
        let expected = "listen: \"127.0.0.1:15107\", command: [--country, 127.0.49.0/24=DE]\nissuer: http://127.0.0.1:18105\n";
        assert_eq!(moved(text, 5, &mut ports).expect("moved"), expected);
        assert_eq!(ports, [15_102, 15_107, 18_100, 18_105].into());
        let error = moved(text, 50_000, &mut ports).expect_err("no such port").to_string();
        assert!(error.contains("18100") && error.contains("50000"), "{error}");
    }

    #[test]
    fn a_taken_port_is_named_with_the_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = taken.local_addr().expect("address").port();
        let error = check_free(&[port].into()).expect_err("taken").to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port-offset"), "{error}");
        drop(taken);
        check_free(&[port].into()).expect("free again");
    }

    #[test]
    fn the_copy_of_the_banks_mesh_is_a_good_configuration_with_short_certificates() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh");
        let dir = tempfile::tempdir().expect("directory");
        let copied = copy(&source, dir.path(), 7).expect("copied");
        // Four services with an admin and an application port each, the issuer, three inbound ports, four for upstreams.
        assert_eq!(copied.ports.len(), 16, "{:?}", copied.ports);
        let read = |path: &Path| config::read(path).and_then(|sources| config::parse(&sources).map_err(|mut all| all.remove(0)));
        let (own, short) = (read(&source).expect("a good mesh"), read(dir.path()).expect("a good mesh"));
        assert_eq!((own.workloads.len(), own.issuers.len(), own.policies.len()), (4, 1, 4));
        assert_eq!(short.settings.svid_lifetime.as_secs(), 20);
        assert_eq!(short.issuers[0].issuer, "http://127.0.0.1:18107");
    }
}
