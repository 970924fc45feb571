//! Which connections are led through the sidecar, and the nftables table that does it.

use crate::cidr::Cidr;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Where the sidecar connects to prove that the table is in force in its own network namespace: the only destination whose
/// connections are redirected although the sidecar itself makes them. Nothing listens there.
pub const PROBE_V4: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), PROBE_PORT));
/// The same for IPv6.
pub const PROBE_V6: SocketAddr = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, PROBE_PORT, 0, 0));
/// Where the sidecar connects to prove that its own connections are left alone: one that runs under another user than the rules
/// exclude is redirected here too, and would be led back to itself by everything that it connects to.
pub const PROBE_OWN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 7), PROBE_PORT));
const PROBE_PORT: u16 = 15_099;
/// The sidecar's own ports that others may call: metrics, where the operator binds them beyond loopback, and health probes.
const OWN_PORTS: [u16; 2] = [15_000, 15_021];
/// The zone of connection tracking (`nf_conntrack`) in which the sidecar's own connections are remembered; the application's are in 0.
const OWN_ZONE: u16 = 1;

/// Which connections are captured.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Rules {
    /// User id under which the sidecar runs; its own connections are left alone
    #[arg(long, default_value_t = 2102, value_name = "UID")]
    pub proxy_uid: u32,
    /// Group id under which the sidecar runs, if that tells its connections apart instead of the user id
    #[arg(long, value_name = "GID", conflicts_with = "proxy_uid")]
    pub proxy_gid: Option<u32>,
    /// Port of the sidecar to which inbound connections are redirected
    #[arg(long, default_value_t = 15_006, value_name = "PORT", value_parser = port())]
    pub inbound_port: u16,
    /// Port of the sidecar to which outbound connections are redirected
    #[arg(long, default_value_t = 15_001, value_name = "PORT", value_parser = port())]
    pub outbound_port: u16,
    /// Capture these inbound ports only; all by default
    #[arg(long, value_delimiter = ',', value_name = "PORTS", value_parser = port())]
    pub include_inbound_ports: Vec<u16>,
    /// Inbound ports that are left alone; whoever reaches them is asked for no identity
    #[arg(long, value_delimiter = ',', value_name = "PORTS", value_parser = port())]
    pub exclude_inbound_ports: Vec<u16>,
    /// Outbound ports that are left alone
    #[arg(long, value_delimiter = ',', value_name = "PORTS", value_parser = port())]
    pub exclude_outbound_ports: Vec<u16>,
    /// Capture outbound connections to these ranges only; all by default
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    pub include_outbound_cidrs: Vec<Cidr>,
    /// Outbound ranges that are left alone
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    pub exclude_outbound_cidrs: Vec<Cidr>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            proxy_uid: 2102,
            proxy_gid: None,
            inbound_port: 15_006,
            outbound_port: 15_001,
            include_inbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_cidrs: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
        }
    }
}

impl Rules {
    /// The whole table as one nftables script, which replaces the table that is there in the same transaction.
    pub fn render(&self) -> String {
        let body = self.body();
        let digest = digest(&body);
        // The empty first declaration makes the deletion succeed where there is no table yet.
        format!(
            "table inet rondel\ndelete table inet rondel\ntable inet rondel {{\n    chain {digest} {{\n    }}\n{body}}}\n",
            digest = chain_name(digest)
        )
    }

    /// The name of the empty chain by which a loaded table says which rules it was made from.
    pub(crate) fn mark(&self) -> String {
        chain_name(digest(&self.body()))
    }

    /// What the table says, a line for each chain, its hook and each rule: what a listing of it must come to.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.body().lines().map(str::trim).filter(|line| *line != "}").map(str::to_owned).collect()
    }

    /// What makes these rules useless or dangerous, in words for whoever wrote them.
    pub fn contradiction(&self) -> Option<&'static str> {
        (self.inbound_port == self.outbound_port).then_some(
            "`--inbound-port` and `--outbound-port` are the same: what comes in would be taken for what the application calls, \
             and be asked for no identity",
        )
    }

    fn body(&self) -> String {
        format!("{}{}{}", self.inbound(), self.outbound(), self.own())
    }

    /// What the sidecar sends by itself.
    fn proxy(&self) -> String {
        match self.proxy_gid {
            Some(gid) => format!("meta skgid {gid}"),
            None => format!("meta skuid {}", self.proxy_uid),
        }
    }

    /// The sidecar's own connections are remembered apart. Otherwise an attempt that nobody answered, which the kernel remembers for two
    /// minutes, would be taken for the beginning of whatever the application opens from the same port to the same place, and that
    /// would go around the sidecar. Answers on redirected connections belong to what is remembered of those.
    fn own(&self) -> String {
        let redirected = set(&[self.inbound_port, self.outbound_port]);
        format!(
            "    chain own {{\n        type filter hook output priority -300; policy accept;\n        {} tcp sport != {redirected} ct \
             original zone set {OWN_ZONE}\n    }}\n",
            self.proxy()
        )
    }

    fn inbound(&self) -> String {
        let mut out = String::from("    chain inbound {\n        type nat hook prerouting priority -100; policy accept;\n");
        let mut rule = |text: &str| writeln!(out, "        {text}").unwrap_or_default();
        rule("iifname \"lo\" return");
        rule("meta l4proto != tcp return");
        // What is only passing through is not the pod's.
        rule("fib daddr type != local return");
        rule(&format!("tcp dport {} return", set(&OWN_PORTS)));
        if !self.exclude_inbound_ports.is_empty() {
            rule(&format!("tcp dport {} return", set(&self.exclude_inbound_ports)));
        }
        if !self.include_inbound_ports.is_empty() {
            rule(&format!("tcp dport != {} return", set(&self.include_inbound_ports)));
        }
        rule(&format!("meta l4proto tcp redirect to :{}", self.inbound_port));
        out.push_str("    }\n");
        out
    }

    fn outbound(&self) -> String {
        let mut out = String::from("    chain outbound {\n        type nat hook output priority -100; policy accept;\n");
        let mut rule = |text: &str| writeln!(out, "        {text}").unwrap_or_default();
        rule(&format!("ip daddr {} tcp dport {PROBE_PORT} redirect to :{}", PROBE_V4.ip(), self.outbound_port));
        rule(&format!("ip6 daddr {} tcp dport {PROBE_PORT} redirect to :{}", PROBE_V6.ip(), self.outbound_port));
        // First of all, or the sidecar would be led back to itself for ever.
        rule(&format!("{} return", self.proxy()));
        rule("meta l4proto != tcp return");
        rule(&format!("ip daddr {} tcp dport {PROBE_PORT} redirect to :{}", PROBE_OWN.ip(), self.outbound_port));
        rule("ip daddr 127.0.0.0/8 return");
        rule("ip6 daddr ::1 return");
        rule("tcp dport 53 return");
        if !self.exclude_outbound_ports.is_empty() {
            rule(&format!("tcp dport {} return", set(&self.exclude_outbound_ports)));
        }
        for cidr in &self.exclude_outbound_cidrs {
            rule(&format!("{} return", destination(cidr)));
        }
        let redirect = format!("redirect to :{}", self.outbound_port);
        if self.include_outbound_cidrs.is_empty() {
            rule(&format!("meta l4proto tcp {redirect}"));
        }
        for cidr in &self.include_outbound_cidrs {
            rule(&format!("{} meta l4proto tcp {redirect}", destination(cidr)));
        }
        out.push_str("    }\n");
        out
    }
}

/// A port that can be connected to.
fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

/// As `nft` lists it, like the sets: what is compared must be written the same.
fn destination(cidr: &Cidr) -> String {
    format!("{} daddr {}", if cidr.is_ipv6() { "ip6" } else { "ip" }, cidr.shortest())
}

fn set(ports: &[u16]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    if let [port] = ports.as_slice() { port.clone() } else { format!("{{ {} }}", ports.join(", ")) }
}

fn chain_name(digest: u64) -> String {
    format!("rules_{digest:016x}")
}

/// FNV-1a: tells two rule sets apart; it guards against mistakes, not against an attacker, who could change the table anyway.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_table_is_exactly_this() {
        let text = Rules::default().render();
        let (head, body) = text.split_once("    chain inbound {").expect("chain");
        assert!(head.starts_with("table inet rondel\ndelete table inet rondel\ntable inet rondel {\n    chain rules_"), "{head}");
        let expected = r#"
        type nat hook prerouting priority -100; policy accept;
        iifname "lo" return
        meta l4proto != tcp return
        fib daddr type != local return
        tcp dport { 15000, 15021 } return
        meta l4proto tcp redirect to :15006
    }
    chain outbound {
        type nat hook output priority -100; policy accept;
        ip daddr 127.0.0.6 tcp dport 15099 redirect to :15001
        ip6 daddr ::1 tcp dport 15099 redirect to :15001
        meta skuid 2102 return
        meta l4proto != tcp return
        ip daddr 127.0.0.7 tcp dport 15099 redirect to :15001
        ip daddr 127.0.0.0/8 return
        ip6 daddr ::1 return
        tcp dport 53 return
        meta l4proto tcp redirect to :15001
    }
    chain own {
        type filter hook output priority -300; policy accept;
        meta skuid 2102 tcp sport != { 15001, 15006 } ct original zone set 1
    }
}
"#;
        assert_eq!(body, expected);
        assert_eq!(Rules::default().lines().len(), 15 + 6);
    }

    #[test]
    fn what_is_excluded_and_included_is_in_the_table() {
        let cidr = |text: &str| text.parse::<Cidr>().expect("range");
        let rules = Rules {
            proxy_uid: 7,
            include_inbound_ports: vec![9090, 8080, 8080],
            exclude_inbound_ports: vec![22],
            exclude_outbound_ports: vec![25],
            include_outbound_cidrs: vec![cidr("10.0.0.0/8"), cidr("fd00::/8")],
            exclude_outbound_cidrs: vec![cidr("10.9.0.0/16")],
            ..Rules::default()
        };
        let text = rules.render();
        for line in [
            "meta skuid 7 return",
            "tcp dport 22 return",
            "tcp dport != { 8080, 9090 } return",
            "tcp dport 25 return",
            "ip daddr 10.9.0.0/16 return",
            "ip daddr 10.0.0.0/8 meta l4proto tcp redirect to :15001",
            "ip6 daddr fd00::/8 meta l4proto tcp redirect to :15001",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("        meta l4proto tcp redirect to :15001"), "{text}");
        assert_ne!(rules.mark(), Rules::default().mark());
    }

    #[test]
    fn ports_that_would_let_plaintext_in_are_refused() {
        assert_eq!(Rules::default().contradiction(), None);
        let same = Rules { inbound_port: 15_001, ..Rules::default() };
        assert!(same.contradiction().is_some_and(|why| why.contains("asked for no identity")));
    }
}
