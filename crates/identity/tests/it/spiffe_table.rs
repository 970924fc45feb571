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
    assert!(count > 70, "{count} rows");
}

#[test]
fn every_clause_test_stands_in_the_table() {
    let text = fs::read_to_string(root().join("docs/spiffe.md")).expect("docs/spiffe.md");
    for file in ["spiffe_id", "spiffe_x509_svid", "jwt_svid"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{file}.rs"));
        let source = fs::read_to_string(path).expect("text");
        for test in source.split("#[test]\nfn ").skip(1) {
            let name = test.split('(').next().expect("a name");
            let is_clause = name.split('_').any(|word| word.chars().all(|c| c.is_ascii_digit()));
            assert!(!is_clause || text.contains(&format!("`{name}`")), "{name}");
        }
    }
}
