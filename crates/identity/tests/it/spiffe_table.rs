//! `docs/spiffe.md` says no more than the tests do, and no less.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push_str(&fs::read_to_string(&path).expect("text"));
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_clause_names_a_test_that_exists_or_says_why_there_is_none() {
    let text = fs::read_to_string(root().join("docs/spiffe.md")).expect("docs/spiffe.md");
    let mut known = String::new();
    sources(&root().join("crates"), &mut known);
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.starts_with("| clause"));
    let mut count = 0;
    for row in rows {
        count += 1;
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell");
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        let is_reason = ["does not bind us: ", "not done: "].iter().any(|start| cell.starts_with(start));
        assert!(is_reason || !names.is_empty(), "{row}");
        for name in names {
            assert!(is_reason || known.contains(&format!("fn {name}(")), "no such test: {row}");
        }
    }
    assert!(count > 130, "{count} rows");
}

#[test]
fn every_clause_test_stands_in_the_table() {
    let documents = ["spiffe_id_", "x509_svid_", "jwt_svid_", "bundle_", "federation_", "workload_endpoint_", "workload_api_"];
    let text = fs::read_to_string(root().join("docs/spiffe.md")).expect("docs/spiffe.md");
    let mut known = String::new();
    sources(&root().join("crates"), &mut known);
    let mut counts = documents.map(|_| 0);
    for name in known.split("fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
        let is_of = |document: &str| {
            name.strip_prefix(document).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        if let Some(at) = documents.iter().position(|document| is_of(document)) {
            counts[at] += 1;
            assert!(text.contains(&format!("`{name}`")), "{name}");
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}
