//! What the walk prints, and what it remembers for the summary.

use std::io::{IsTerminal, Write};

/// Columns that lines are broken at.
const COLUMNS: usize = 100;
/// Columns of a row of the summary besides its promise: mark, step, and the spaces between.
const ROW_COLUMNS: usize = 16;

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
        let text = format!("{promise}: {seen}");
        let mut lines = broken(&text, COLUMNS - 8).into_iter();
        say(&format!("   {} {}", mark(is_kept), lines.next().unwrap_or_default()));
        lines.for_each(|line| say(&format!("          {line}")));
        self.rows.push(Row { step, promise: promise.to_owned(), seen: seen.to_owned(), is_kept });
    }

    /// Prints the summary; true if every promise was kept.
    pub(crate) fn summary(&self) -> bool {
        let width = self.rows.iter().map(|row| row.promise.chars().count()).max().unwrap_or(0);
        say(&format!("\n{}", bold("Summary")));
        for row in &self.rows {
            let seen = cut(&row.seen, COLUMNS.saturating_sub(ROW_COLUMNS + width));
            say(&format!("{} {:8} {:width$}  {seen}", mark(row.is_kept), row.step, row.promise));
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

/// Lines, indented by `indent` columns and broken where they are too long.
pub(crate) fn quote(indent: usize, text: &str) {
    for line in text.lines() {
        for part in broken(line, COLUMNS - indent) {
            say(&format!("{:indent$}{part}", ""));
        }
    }
}

/// A line in pieces of at most `columns` characters, broken at spaces; the pieces after the first stand four columns further in
/// than the line itself. A word that is longer stands whole in a line of its own.
fn broken(line: &str, columns: usize) -> Vec<String> {
    if line.chars().count() <= columns {
        return vec![line.to_owned()];
    }
    let begin = line.chars().take_while(|c| *c == ' ').count();
    let mut pieces = Vec::new();
    let mut piece = " ".repeat(begin);
    let mut is_empty = true;
    // Runs of spaces are columns of a table; they stay as they are.
    for word in line.trim().split(' ') {
        if !is_empty && piece.chars().count() + 1 + word.chars().count() > columns {
            let full = std::mem::replace(&mut piece, " ".repeat(begin + 4));
            pieces.push(full.trim_end().to_owned());
            is_empty = true;
        }
        if !is_empty {
            piece.push(' ');
        }
        piece.push_str(word);
        is_empty = false;
    }
    pieces.push(piece);
    pieces
}

/// At most `columns` characters; `…` tells that something is missing.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(columns.saturating_sub(1)).collect();
    out.push('…');
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken_at_spaces_and_loses_nothing() {
        assert_eq!(broken("  short", 10), ["  short"]);
        assert_eq!(broken("  one two three", 9), ["  one two", "      three"]);
        assert_eq!(broken("one  two  three", 9), ["one  two", "    three"]);
        assert_eq!(broken("  a wwwwwwwwwwwwwww b", 9), ["  a", "      wwwwwwwwwwwwwww", "      b"]);
        let line = "nearest   would be allowed by bank/payments/transfer if the user had the role teller (it has: auditor)";
        let pieces = broken(line, 40);
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 40), "{pieces:?}");
        let joined: Vec<&str> = pieces.iter().map(|piece| piece.trim_start()).collect();
        assert_eq!(joined.join(" "), line);
    }

    #[test]
    fn a_cut_text_says_that_it_was_cut() {
        assert_eq!(cut("12345", 5), "12345");
        assert_eq!(cut("123456", 5), "1234…");
    }

    #[test]
    fn one_promise_that_was_not_kept_is_enough() {
        let mut report = Report::default();
        report.promise("step", "one", "seen", true);
        assert!(report.summary());
        report.promise("step", "two", "seen", false);
        assert!(!report.summary());
    }
}
