//! The repository's own rules, each failure with file, line and what to do.

#![expect(clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom among ours (docs/architecture.md, "Direction"). A new edge is a decision: write a record in docs/decisions.
const DIRECTION: [(&str, &[&str]); 15] = [
    ("model", &[]),
    ("message", &[]),
    ("config", &["model", "policy", "token"]),
    ("identity", &["model"]),
    ("token", &["model"]),
    ("policy", &["model"]),
    ("capture", &[]),
    ("wire", &["model"]),
    ("proxy", &["capture", "identity", "message", "model", "policy", "token", "wire"]),
    ("control", &["config", "identity", "model", "policy", "wire"]),
    ("cli", &["config", "model", "policy", "token", "wire"]),
    ("testkit", &["identity", "model"]),
    ("fuzz", &["message", "model", "policy", "proxy"]),
    ("bank", &["config", "identity", "model", "testkit"]),
    ("scenarios", &["config", "identity", "model", "policy", "testkit", "token", "wire"]),
];

/// Heavy libraries and the crates that may name them.
const KEEPERS: [(&str, &[&str]); 10] = [
    ("rustls", &["identity", "testkit"]),
    ("tokio-rustls", &["identity", "testkit"]),
    ("rustls-webpki", &["identity"]),
    ("rcgen", &["identity", "testkit"]),
    ("x509-parser", &["identity"]),
    ("cedar-policy", &["policy"]),
    ("maxminddb", &["proxy"]),
    ("prost", &["wire"]),
    ("serde-saphyr", &["config"]),
    ("redb", &["control"]),
];

/// Type names that say nothing (docs/style.md).
const EMPTY_WORDS: [&str; 9] = ["Manager", "Helper", "Util", "Utils", "Common", "Info", "Wrapper", "Impl", "Processor"];

/// Files and functions that are longer than the rule; the list may only shrink.
const LONGER: [&str; 0] = [];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every tracked-looking file below the root with one of these endings, without build output.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | ".git" | ".rondel") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push((relative, fs::read_to_string(&path).expect("text file")));
            }
        }
    }
    found.sort();
    found
}

fn complain(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The dependencies of one manifest: normal and build ones; test-only ones are free.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if matches!(section, "[dependencies]" | "[build-dependencies]")
            && let Some((name, _)) = line.split_once(['=', '.'])
        {
            names.push(name.trim().to_owned());
        }
    }
    names
}

fn package(manifest: &str) -> String {
    let line = manifest.lines().find(|line| line.starts_with("name = ")).expect("package name");
    line.trim_start_matches("name = ").trim_matches('"').to_owned()
}

#[test]
fn crates_depend_only_in_the_direction_that_the_architecture_says() {
    let allowed: BTreeMap<&str, &[&str]> = DIRECTION.into_iter().collect();
    let mut wrong = Vec::new();
    for (file, text) in files(&["Cargo.toml"]).into_iter().filter(|(file, _)| file != "Cargo.toml") {
        let name = package(&text);
        let Some(may) = allowed.get(name.as_str()) else {
            wrong.push(format!("{file}: crate `{name}` is not in the table of tests/tidy.rs"));
            continue;
        };
        for used in dependencies(&text) {
            if allowed.contains_key(used.as_str()) && !may.contains(&used.as_str()) {
                wrong.push(format!("{file}: `{name}` must not use `{used}`; see docs/architecture.md"));
            }
            if let Some((_, keepers)) = KEEPERS.iter().find(|(library, _)| *library == used)
                && !keepers.contains(&name.as_str())
            {
                wrong.push(format!("{file}: only {keepers:?} may name `{used}`"));
            }
        }
    }
    complain(&wrong);
}

/// The product part of a source file: what stands before its test module.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/") || file.starts_with("tests/") || file.contains("testkit/")
}

#[test]
fn files_and_functions_are_short_enough_to_read() {
    let mut wrong = Vec::new();
    for (file, text) in files(&[".rs"]).into_iter().filter(|(file, _)| !is_test_file(file)) {
        let product = product(&text);
        let lines = product.lines().count();
        if lines > 600 && !LONGER.contains(&file.as_str()) {
            wrong.push(format!("{file}: {lines} lines; split it by what a reader looks for (600 at most)"));
        }
        let mut began: Option<(usize, usize, String)> = None;
        for (number, line) in product.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let trimmed = line.trim_start();
            let is_function = ["fn ", "pub fn ", "pub(crate) fn ", "async fn ", "pub async fn ", "const fn ", "pub const fn "];
            if began.is_none() && is_function.iter().any(|start| trimmed.starts_with(start)) && !trimmed.ends_with(';') {
                began = Some((number, indent, trimmed.to_owned()));
            }
            if let Some((start, at, name)) = &began
                && indent == *at
                && (trimmed.starts_with('}') || trimmed.ends_with('}'))
            {
                let long = number - start + 1;
                // A table of one row per variant is read like a table, not like code.
                let is_table = name.contains("fn row(");
                if long > 70 && !is_table && !LONGER.contains(&file.as_str()) {
                    wrong.push(format!("{file}:{}: `{name}` has {long} lines (70 at most)", start + 1));
                }
                began = None;
            }
        }
    }
    complain(&wrong);
}

#[test]
fn names_say_something() {
    let mut wrong = Vec::new();
    for (file, text) in files(&[".rs"]) {
        for (number, line) in text.lines().enumerate() {
            let declared = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| {
                let rest = line.trim_start().trim_start_matches("pub ").strip_prefix(kind)?;
                Some(rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned())
            });
            // tonic's trait demands this name.
            if let Some(name) = declared.filter(|name| name != "ConnectInfo")
                && EMPTY_WORDS.iter().any(|word| name.ends_with(word))
            {
                wrong.push(format!("{file}:{}: `{name}` says nothing about its job", number + 1));
            }
        }
    }
    complain(&wrong);
}

#[test]
fn unfinished_work_is_not_committed() {
    let words = [
        concat!("FIX", "ME"),
        concat!("dbg", "!("),
        concat!("to", "do!("),
        concat!("unimplemented", "!("),
        concat!("#[ig", "nore"),
    ];
    let mut wrong = Vec::new();
    for (file, text) in files(&[".rs", ".sh", ".yaml", ".md", ".proto"]) {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                wrong.push(format!("{file}:{}: `{word}` is unfinished work", number + 1));
            }
        }
    }
    complain(&wrong);
}

#[test]
fn every_invariant_of_the_architecture_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let sources: String = files(&[".rs"]).into_iter().map(|(_, text)| text).collect();
    let invariants: Vec<&str> = text.lines().filter(|line| line.starts_with("**Invariant")).collect();
    assert!(invariants.len() >= 10, "docs/architecture.md lists {} invariants", invariants.len());
    let mut wrong = Vec::new();
    for line in invariants {
        let names: Vec<&str> = line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.contains('_') && !name.contains([' ', '(', '.', ':']))
            .collect();
        let tests: Vec<&&str> = names.iter().filter(|name| is_test(&sources, name)).collect();
        if tests.is_empty() {
            wrong.push(format!("docs/architecture.md: no existing test is named by: {line}"));
        }
    }
    complain(&wrong);
}

/// A test function, or a promise in the table of the interoperability tests.
fn is_test(sources: &str, name: &str) -> bool {
    sources.contains(&format!("fn {name}(")) || sources.contains(&format!("(\"{name}\", "))
}

#[test]
fn every_row_of_the_failure_contract_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join("docs/failure-contract.md")).expect("docs/failure-contract.md");
    let sources: String = files(&[".rs"]).into_iter().map(|(_, text)| text).collect();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).skip(1).collect();
    assert!(rows.len() >= 20, "docs/failure-contract.md has {} rows", rows.len());
    let named = |row: &&&str| row.trim_end_matches(" |").rsplit('|').next().map(|cell| cell.trim_matches([' ', '`']).to_owned());
    let missing = rows.iter().filter(|row| !named(row).is_some_and(|name| is_test(&sources, &name)));
    let wrong: Vec<String> = missing.map(|row| format!("docs/failure-contract.md: no such test: {row}")).collect();
    complain(&wrong);
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let mut wrong = Vec::new();
    for (file, text) in files(&[".md"]) {
        for (number, line) in text.lines().enumerate() {
            for word in line.split('`').skip(1).step_by(2) {
                let is_path = ["crates/", "docs/", "deploy/", "proto/", "tests/"].iter().any(|start| word.starts_with(start))
                    && !word.contains(['*', ' ', '<', '{', '…']);
                let path = word.split(':').next().unwrap_or(word);
                if is_path && !root().join(path).exists() {
                    wrong.push(format!("{file}:{}: `{word}` does not exist", number + 1));
                }
            }
        }
    }
    complain(&wrong);
}

#[test]
fn the_generated_pages_are_what_the_code_says() {
    let mut wrong = Vec::new();
    for (file, text) in [("docs/limits.md", limits_page()), ("docs/reasons.md", reasons_page())] {
        let path = root().join(file);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &text).expect("write the page");
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{file}: not what the code says; run `make doc`"));
        }
    }
    complain(&wrong);
}

fn limits_page() -> String {
    let mut page = String::from(
        "# Limits\n\nMade from `crates/model/src/limits.rs` by `make doc`.\nEach is set in `MeshConfig` under `spec.limits` by its name; an error that a limit causes says the name and the value.\n\n| name | default | least | most | what it bounds |\n| --- | ---: | ---: | ---: | --- |\n",
    );
    for limit in model::Limit::ALL {
        let (least, most) = limit.range();
        let _ok = writeln!(page, "| `{}` | {} | {least} | {most} | {} |", limit.name(), limit.default_value(), limit.about());
    }
    page.push_str(
        "\n## Fixed\n\nBounds of the data path that nobody needs to set, as they stand in the code.\n\n| constant | value | what it bounds |\n| --- | --- | --- |\n",
    );
    for (file, name, about) in FIXED {
        let text = std::fs::read_to_string(root().join(file)).expect(file);
        let value = text.split_once(&format!("const {name}: ")).and_then(|(_, rest)| rest.split_once(" = ")?.1.split_once(';'));
        let (value, _) = value.expect(name);
        let seconds = value.strip_prefix("Duration::from_secs(").and_then(|rest| rest.strip_suffix(')'));
        let value = seconds.map_or_else(|| value.to_owned(), |seconds| format!("{seconds} s"));
        let _ok = writeln!(page, "| `{name}` ({file}) | `{value}` | {about} |");
    }
    page
}

/// File, constant, and what it bounds.
const FIXED: [(&str, &str, &str); 14] = [
    (
        "crates/proxy/src/accept.rs",
        "HELLO_GRACE",
        "how long what an application says first waits on a permissive port for a peer's handshake",
    ),
    ("crates/proxy/src/accept.rs", "LAST_WORDS_DEADLINE", "for the answer on a connection that ends with it"),
    ("crates/proxy/src/connection.rs", "ENDING_GRACE", "for the other end to take notice that a connection is being ended"),
    ("crates/proxy/src/upstream/mod.rs", "KEEPALIVE_AFTER", "silence after which a kept connection is asked for a sign of life"),
    ("crates/proxy/src/upstream/mod.rs", "KEEPALIVE_EVERY", "between two of those questions"),
    ("crates/proxy/src/upstream/mod.rs", "KEEPALIVE_PROBES", "unanswered questions after which it is given up"),
    ("crates/proxy/src/upstream/mod.rs", "INTERIM_MAX", "interim responses (1xx) to one request"),
    (
        "crates/proxy/src/mux.rs",
        "PROBE_EVERY",
        "silence of a shared connection with open streams before it is asked, and again before it is given up",
    ),
    ("crates/proxy/src/mux.rs", "FRAME_BYTES_MAX", "bytes of one frame of a shared connection"),
    ("crates/proxy/src/mux.rs", "OUTPUT_BYTES_MAX", "bytes of all its streams that wait to be written"),
    (
        "crates/proxy/src/http2.rs",
        "SILENT_TICKS",
        "seconds of silence of an HTTP/2 connection with open streams before it is asked, and again before it is given up",
    ),
    (
        "crates/proxy/src/kept.rs",
        "IDLE_CONNECTIONS_MAX",
        "connections to one introspection endpoint that wait for the next question",
    ),
    ("crates/proxy/src/kept.rs", "IDLE", "how long one of them waits"),
    ("crates/proxy/src/kept.rs", "AGE_MAX", "the age at which one of them is not kept any more"),
];

fn reasons_page() -> String {
    let mut page = String::from(
        "# Reasons\n\nMade from `crates/model/src/reason.rs` by `make doc`.\nThe same word stands in the access log, in the metrics, in the response header `x-rondel-reason` and in decision records.\n\n| reason | side at fault | what the caller is told | what mends it |\n| --- | --- | --- | --- |\n",
    );
    for reason in model::Reason::ALL {
        let _ok = writeln!(page, "| `{reason}` | {} | {} | {} |", reason.side().as_str(), reason.public_text(), reason.fix());
    }
    page
}
