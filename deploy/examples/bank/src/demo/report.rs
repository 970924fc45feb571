//! What the walk prints, and what it remembers for the summary.

use std::io::{IsTerminal, Write};

/// Columns of the terminal that lines are cut to in the summary.
const SEEN_COLUMNS: usize = 58;

/// One promise and what was seen of it.
#[derive(Debug)]
struct Row {
    step: &'static str,
    promise: String,
    seen: String,
    is_kept: bool,
}

/// Every promise of the walk.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Begins a step.
    pub(crate) fn step(&self, number: u8, title: &str) {
        say(&format!("\n{}", bold(&format!("{number}. {title}"))));
    }

    /// Notes one promise and prints it.
    pub(crate) fn promise(&mut self, step: &'static str, promise: &str, seen: &str, is_kept: bool) {
        say(&format!("   {} {promise}: {seen}", mark(is_kept)));
        self.rows.push(Row { step, promise: promise.to_owned(), seen: seen.to_owned(), is_kept });
    }

    /// Prints the summary; true if every promise was kept.
    pub(crate) fn summary(&self) -> bool {
        let width = self.rows.iter().map(|row| row.promise.chars().count()).max().unwrap_or(0);
        say(&format!("\n{}", bold("Summary")));
        for row in &self.rows {
            let seen: String = row.seen.chars().take(SEEN_COLUMNS).collect();
            say(&format!(" {} {:9} {:width$}  {seen}", mark(row.is_kept), row.step, row.promise));
        }
        let kept = self.rows.iter().filter(|row| row.is_kept).count();
        say(&format!("\n{kept} of {} promises kept", self.rows.len()));
        kept == self.rows.len()
    }
}

/// One line on standard output, at once. A reader that went away does not end the walk.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Lines of another program, indented.
pub(crate) fn quote(text: &str) {
    for line in text.lines() {
        say(&format!("       {line}"));
    }
}

fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn bold(text: &str) -> String {
    if colours() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

fn mark(is_kept: bool) -> &'static str {
    match (is_kept, colours()) {
        (true, true) => "\u{1b}[32mok\u{1b}[0m  ",
        (false, true) => "\u{1b}[31mFAIL\u{1b}[0m",
        (true, false) => "ok  ",
        (false, false) => "FAIL",
    }
}
