//! How answers are printed.

use std::io::IsTerminal;

/// Text for people or JSON for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// One JSON document (or, for `up`, one JSON object a line).
    Json,
}

/// The exit code of a program that SIGPIPE ended, as shells tell it.
const NOBODY_READS: i32 = 128 + 13;

/// Ends the process without a word when what it prints is read no more, as in `rondel status | head`. Call it before anything is printed.
///
/// `println!` can fail in no other way than by a panic. SIGPIPE is no way out: a control plane that closes its connection would end us too.
pub(crate) fn end_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            std::process::exit(NOBODY_READS);
        }
        usual(panic);
    }));
}

/// What a sidecar or another server said, on one line: a control character could rewrite what stands on the operator's terminal.
pub(crate) fn plain(text: &str) -> String {
    // The others turn the direction of what follows.
    let is_harmful = |letter: char| letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            harmful if is_harmful(harmful) => out.extend(harmful.escape_default()),
            harmless => out.push(harmless),
        }
    }
    out
}

/// Left-aligned columns, two spaces apart, without trailing blanks.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `58m 12s`, `3h 5m`, `9s`: the two largest units.
pub(crate) fn short(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

/// Bold where a person looks at it and has not asked for plain text (`NO_COLOR`).
pub(crate) fn bold(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !std::io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\u{1b}[1m{text}\u{1b}[0m") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn durations_show_their_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (90_000, "1d 1h")] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn tables_align_and_leave_no_trailing_blanks() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(table(&rows), "a    bb\nccc\n");
    }

    #[test]
    fn what_others_said_moves_no_cursor_and_begins_no_line() {
        let said = "no room\r\x1b[2Jall is well\n\u{9b}1A\u{202e}x é";
        assert_eq!(plain(said), "no room\\r\\u{1b}[2Jall is well\\n\\u{9b}1A\\u{202e}x é");
        let rows = [vec!["a".to_owned(), said.to_owned()]];
        assert_eq!(table(&rows), format!("a  {}\n", plain(said)));
    }
}
