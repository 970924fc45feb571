//! Loading the table, taking it away, and looking at it, by the program `nft`.

use crate::rules::Rules;
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For one run of `nft`.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// LIMIT: bytes of its output that are read.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// The rules could not be put in force, taken away or looked at.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The program is not there.
    #[error("`nft` cannot be run ({0}): install the package `nftables`")]
    Missing(std::io::Error),
    /// The caller may not change the rules of this network namespace.
    #[error("no permission to change the rules of this network namespace: run as root, or with CAP_NET_ADMIN")]
    Permission,
    /// The kernel does not know what the rules need.
    #[error("the kernel lacks what the rules need (nf_tables with nat and redirect, and zones of connection tracking): {0}")]
    Unsupported(String),
    /// `nft` did not end.
    #[error("`nft` did not end within {} s and was ended", NFT_DEADLINE.as_secs())]
    Timeout,
    /// `nft` refused the rules.
    #[error("`nft` refused: {0}")]
    Refused(String),
    /// `nft` said what we cannot read.
    #[error("what `nft` says cannot be read: {0}")]
    Unreadable(serde_json::Error),
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Exactly the rules that were asked for.
    InForce,
    /// No table of ours.
    Absent,
    /// A table of ours that was made from other rules.
    OtherRules,
    /// A table of ours that was changed after it was loaded.
    Changed,
}

impl State {
    /// The word for people and scripts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Absent => "absent",
            Self::OtherRules => "other_rules",
            Self::Changed => "changed",
        }
    }
}

/// Puts the rules in force in this network namespace, whole, in place of what was there. Connections that are open already are
/// not touched.
///
/// # Errors
/// - [`CaptureError`]; nothing is changed then.
pub fn apply(rules: &Rules) -> Result<(), CaptureError> {
    run(&["-f", "-"], &rules.render()).map(drop)
}

/// Takes the table away; it is no error if there is none.
///
/// # Errors
/// - [`CaptureError`]; nothing is changed then.
pub fn remove() -> Result<(), CaptureError> {
    run(&["-f", "-"], "table inet rondel\ndelete table inet rondel\n").map(drop)
}

/// Compares what is in force with the rules.
///
/// # Errors
/// - [`CaptureError`] if it cannot be looked at.
pub fn check(rules: &Rules) -> Result<State, CaptureError> {
    let text = match run(&["-j", "list", "table", "inet", "rondel"], "") {
        Ok(text) => text,
        Err(CaptureError::Refused(detail)) if detail.contains("No such file") => return Ok(State::Absent),
        Err(error) => return Err(error),
    };
    let listed: Value = serde_json::from_str(&text).map_err(CaptureError::Unreadable)?;
    let objects = listed.get("nftables").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let chains = objects.iter().filter_map(|object| object.pointer("/chain/name")?.as_str());
    if !chains.into_iter().any(|name| name == rules.mark()) {
        return Ok(State::OtherRules);
    }
    Ok(if listing(objects) == rules.lines() { State::InForce } else { State::Changed })
}

/// What a listing says, written as [`Rules`] writes it: each chain but the mark, its hook, and its rules in their order. What it
/// has beyond our words is written as `?`, which no rule of ours is.
fn listing(objects: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for object in objects {
        if let Some(chain) = object.get("chain") {
            let name = text(chain, "/name");
            if name.starts_with("rules_") {
                continue;
            }
            lines.push(format!("chain {name} {{"));
            let (kind, hook, policy) = (text(chain, "/type"), text(chain, "/hook"), text(chain, "/policy"));
            let priority = chain.get("prio").and_then(Value::as_i64).unwrap_or_default();
            lines.push(format!("type {kind} hook {hook} priority {priority}; policy {policy};"));
            let rules = objects.iter().filter_map(|object| object.get("rule")).filter(|rule| text(rule, "/chain") == name);
            lines.extend(rules.map(rule));
        } else if !["metainfo", "table", "rule"].iter().any(|known| object.get(known).is_some()) {
            lines.push("?".to_owned());
        }
    }
    lines
}

fn text<'a>(value: &'a Value, at: &str) -> &'a str {
    value.pointer(at).and_then(Value::as_str).unwrap_or("?")
}

fn rule(rule: &Value) -> String {
    let parts = rule.get("expr").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    parts.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// A match, or what becomes of the connection.
fn part(part: &Value) -> String {
    if let Some(change) = part.get("mangle") {
        let (direction, key) = (text(change, "/key/ct/dir"), text(change, "/key/ct/key"));
        return format!("ct {direction} {key} set {}", change.get("value").unwrap_or(&Value::Null));
    }
    let Some(test) = part.get("match") else {
        return match (part.get("return"), part.pointer("/redirect/port").and_then(Value::as_u64)) {
            (Some(_), None) => "return".to_owned(),
            (None, Some(port)) => format!("redirect to :{port}"),
            _ => "?".to_owned(),
        };
    };
    let tested = match test.pointer("/left/meta/key").and_then(Value::as_str) {
        Some("iifname") => "iifname".to_owned(),
        Some(key) => format!("meta {key}"),
        None if test.pointer("/left/fib").is_some() => {
            format!("fib {} {}", text(test, "/left/fib/flags/0"), text(test, "/left/fib/result"))
        }
        None => format!("{} {}", text(test, "/left/payload/protocol"), text(test, "/left/payload/field")),
    };
    let right = test.get("right").unwrap_or(&Value::Null);
    let wanted = match (right.as_str(), right.pointer("/prefix/len"), right.get("set").and_then(Value::as_array)) {
        (Some(name), ..) if tested == "iifname" => format!("\"{name}\""),
        (Some(word), ..) => word.to_owned(),
        (None, Some(bits), _) => format!("{}/{bits}", text(right, "/prefix/addr")),
        (None, None, Some(set)) => format!("{{ {} }}", set.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        (None, None, None) => right.to_string(),
    };
    match text(test, "/op") {
        "==" => format!("{tested} {wanted}"),
        "!=" => format!("{tested} != {wanted}"),
        _ => "?".to_owned(),
    }
}

fn run(arguments: &[&str], input: &str) -> Result<String, CaptureError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(CaptureError::Missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended before it read everything says why on its standard error.
        let _ended = stdin.write_all(input.as_bytes());
    }
    let (out, complaint) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let succeeded = wait(&mut child)?;
    let (out, complaint) = (out.join().unwrap_or_default(), complaint.join().unwrap_or_default());
    if succeeded { Ok(out) } else { Err(classify(complaint.trim())) }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until the pipe broke is all there is to tell.
        let _ended = pipe.map(|pipe| pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[expect(clippy::disallowed_methods, reason = "a program that runs to its end, not a server")]
fn wait(child: &mut Child) -> Result<bool, CaptureError> {
    let deadline = Instant::now() + NFT_DEADLINE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => {
                let _killed = child.kill();
                let _reaped = child.wait();
                return Err(CaptureError::Timeout);
            }
        }
    }
}

fn classify(complaint: &str) -> CaptureError {
    let first: String = complaint.lines().next().unwrap_or("no word of why").chars().take(300).collect();
    if complaint.contains("Operation not permitted") || complaint.contains("must be root") {
        CaptureError::Permission
    } else if complaint.contains("not supported") || complaint.contains("Could not process rule: No such file") {
        CaptureError::Unsupported(first)
    } else {
        CaptureError::Refused(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1.0.6 lists of a table with every kind of rule that there is.
    const LISTED: &str = include_str!("nft/listed.json");

    #[test]
    fn a_listing_comes_to_the_rules_that_it_was_made_from_and_to_nothing_else() {
        let cidr = |text: &str| text.parse().expect("range");
        let rules = Rules {
            proxy_uid: 0,
            exclude_inbound_ports: vec![22],
            include_inbound_ports: vec![80, 90],
            exclude_outbound_ports: vec![25, 26],
            include_outbound_cidrs: ["10.0.0.0/8", "fd00::/8", "10.1.1.1", "0.0.0.0/0", "::/0"].map(cidr).to_vec(),
            exclude_outbound_cidrs: vec![cidr("::1/128")],
            ..Rules::default()
        };
        let comes_to = |text: &str| {
            let listed: Value = serde_json::from_str(text).expect("JSON");
            listing(listed["nftables"].as_array().expect("list"))
        };
        assert_eq!(comes_to(LISTED), rules.lines());
        for (was, is) in [
            (r#"{"redirect": {"port": 15006}}"#, r#"{"return": null}"#),
            (r#"{"redirect": {"port": 15006}}"#, r#"{"redirect": {"port": 15007}}"#),
            (r#""right": 22}"#, r#""right": 23}"#),
            (r#""len": 8"#, r#""len": 9"#),
            (r#""op": "!=""#, r#""op": "==""#),
            (r#""op": "==""#, r#""op": "<""#),
            (r#""hook": "prerouting""#, r#""hook": "input""#),
            (r#""name": "outbound""#, r#""name": "elsewhere""#),
            (r#"{"return": null}"#, r#"{"accept": null}"#),
            (r#""value": 1}"#, r#""value": 2}"#),
            (r#""dir": "original""#, r#""dir": "reply""#),
        ] {
            let changed = LISTED.replacen(was, is, 1);
            assert_ne!(changed, LISTED, "{was}");
            assert_ne!(comes_to(&changed), rules.lines(), "{was} to {is}");
        }
    }

    #[test]
    fn a_complaint_of_nft_becomes_what_to_do() {
        assert!(matches!(classify("Error: Could not process rule: Operation not permitted\n"), CaptureError::Permission));
        assert!(matches!(
            classify("netlink: Error: cache initialization failed: Operation not permitted"),
            CaptureError::Permission
        ));
        assert!(matches!(classify("/dev/stdin:1:1-2: Error: syntax error"), CaptureError::Refused(_)));
        assert!(matches!(classify("Error: Could not process rule: Operation not supported"), CaptureError::Unsupported(_)));
        assert!(CaptureError::Permission.to_string().contains("CAP_NET_ADMIN"));
    }
}
