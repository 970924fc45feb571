//! JUnit XML, as build servers read it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One test case.
pub(super) struct Row<'a> {
    pub(super) suite: &'a str,
    pub(super) name: &'a str,
    pub(super) place: String,
    /// Why it failed; `None` if it passed.
    pub(super) problem: Option<&'a str>,
    pub(super) detail: Option<&'a str>,
}

/// The document of all rows.
pub(super) fn document<'a>(rows: impl Iterator<Item = Row<'a>>) -> String {
    let mut suites: BTreeMap<&str, Vec<Row<'_>>> = BTreeMap::new();
    rows.for_each(|row| suites.entry(row.suite).or_default().push(row));
    let failed = |rows: &[Row<'_>]| rows.iter().filter(|row| row.problem.is_some()).count();
    let tests: usize = suites.values().map(Vec::len).sum();
    let failures: usize = suites.values().map(|rows| failed(rows)).sum();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ok = writeln!(out, "<testsuites name=\"rondel authz test\" tests=\"{tests}\" failures=\"{failures}\">");
    for (suite, rows) in &suites {
        let (name, tests, failures) = (escaped(suite), rows.len(), failed(rows));
        let _ok = writeln!(out, "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\">");
        for row in rows {
            let (case, place) = (escaped(row.name), escaped(&row.place));
            let _ok = write!(out, "    <testcase classname=\"{name}\" name=\"{case}\" file=\"{place}\"");
            match row.problem {
                None => out.push_str("/>\n"),
                Some(problem) => {
                    let detail = escaped(row.detail.unwrap_or_default());
                    let _ok = writeln!(out, "><failure message=\"{}\">{detail}</failure></testcase>", escaped(problem));
                }
            }
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

/// Text and attribute values of XML 1.0 (§2.2, §2.4): what it cannot hold is replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_and_nothing_that_is_written_breaks_out_of_its_place() {
        let row = |name, problem| Row { suite: "s<1>", name, place: "a.yaml:3".into(), problem, detail: Some("x & y") };
        let text = document([row("good", None), row("\"bad\"\u{1}", Some("expected <allow>"))].into_iter());
        for part in [
            "<testsuites name=\"rondel authz test\" tests=\"2\" failures=\"1\">",
            "<testsuite name=\"s&lt;1&gt;\" tests=\"2\" failures=\"1\">",
            "name=\"good\" file=\"a.yaml:3\"/>",
            "name=\"&quot;bad&quot;\u{fffd}\" file=\"a.yaml:3\"><failure message=\"expected &lt;allow&gt;\">x &amp; y</failure>",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
