//! What is known about a policy text before Cedar reads it: how large it is, how deep, and where each policy begins.

use std::ops::Range;

/// LIMIT: bytes of one resource's policies. Parsing and validating this much takes well under a second.
pub const TEXT_BYTES_MAX: usize = 256 * 1024;

/// LIMIT: depth of one policy's tree. Cedar's parser, validator and printer recurse once or more per level, and a stack that
/// overflows ends the process. A chain such as `a || b || c` is a tree as deep as the chain is long.
pub(crate) const DEPTH_MAX: usize = 100;

/// How many levels a bracket counts for: the parser walks through every operator's precedence for each.
const BRACKET_LEVELS: usize = 3;

/// Why a text is not given to Cedar at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Oversize {
    /// Byte offset of the first character that is too much.
    pub(crate) offset: usize,
    /// What is too large, and the bound.
    pub(crate) message: String,
}

/// Cuts a text into its policies, each with its annotations and its `;`. Gives their byte ranges, in order.
///
/// Only strings, comments, brackets and `;` are told apart; whether the text is Cedar is for Cedar to say.
///
/// # Errors
/// - [`Oversize`] if the text is longer than [`TEXT_BYTES_MAX`], or one policy is deeper than [`DEPTH_MAX`].
pub(crate) fn survey(text: &str) -> Result<Vec<Range<usize>>, Oversize> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the policies are {} bytes long, more than {TEXT_BYTES_MAX}", text.len());
        return Err(Oversize { offset: 0, message });
    }
    let mut policies: Vec<Range<usize>> = Vec::new();
    let mut open: Option<(usize, Depth)> = None;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let offset = text.len() - rest.len();
        let (token, after) = rest.split_at_checked(token_length(rest, first)).unwrap_or((rest, ""));
        rest = after;
        if first.is_whitespace() || token.starts_with("//") {
            continue;
        }
        let (start, depth) = open.get_or_insert_with(|| (offset, Depth::default()));
        depth.take(token);
        if depth.total() > DEPTH_MAX {
            let message = format!("the policy is a tree deeper than {DEPTH_MAX}; split it, or compare with a set");
            return Err(Oversize { offset, message });
        }
        if token == ";" {
            policies.push(*start..offset + 1);
            open = None;
        }
    }
    policies.extend(open.map(|(start, _)| start..text.len()));
    Ok(policies)
}

/// An upper bound of how deep the tree of one policy is, kept up while its tokens go by.
#[derive(Default)]
struct Depth {
    current: Level,
    /// The brackets that are open around `current`, outermost first.
    around: Vec<Level>,
    /// The sum of `around`.
    around_total: usize,
}

/// The tokens between two brackets.
#[derive(Clone, Copy, Default)]
struct Level {
    /// Operators with two operands since the last comma: each is one level of a left-leaning tree.
    binary: usize,
    /// Attribute accesses and signs since the last such operator.
    run: usize,
    /// The longest such run since the last comma.
    run_max: usize,
    /// The deepest bracket that has been closed since the last comma.
    inner_max: usize,
    /// The deepest element before the last comma.
    element_max: usize,
}

impl Level {
    fn total(&self) -> usize {
        self.element_max.max(self.binary + self.run_max + self.inner_max)
    }
}

impl Depth {
    fn take(&mut self, token: &str) {
        let level = &mut self.current;
        match token {
            "&&" | "||" | "+" | "*" | "if" | "when" | "unless" => (level.binary, level.run) = (level.binary + 1, 0),
            // A minus is a sign or an operator: it is counted as both.
            "-" => (level.binary, level.run) = (level.binary + 1, level.run + 1),
            "." | "!" => level.run += 1,
            "," => *level = Level { element_max: level.total(), ..Level::default() },
            "(" | "[" | "{" => {
                self.around_total += level.total() + BRACKET_LEVELS;
                self.around.push(std::mem::take(level));
            }
            ")" | "]" | "}" => {
                let inner = level.total() + BRACKET_LEVELS;
                *level = self.around.pop().unwrap_or_default();
                self.around_total = self.around_total.saturating_sub(level.total() + BRACKET_LEVELS);
                level.inner_max = level.inner_max.max(inner);
            }
            _ => {}
        }
        self.current.run_max = self.current.run_max.max(self.current.run);
    }

    fn total(&self) -> usize {
        self.around_total + self.current.total()
    }
}

/// The bytes of the token at the beginning of `rest`: a comment, a string, a word, `&&`, `||`, or one character.
fn token_length(rest: &str, first: char) -> usize {
    if rest.starts_with("//") {
        return rest.find(['\n', '\r']).unwrap_or(rest.len());
    }
    if rest.starts_with("&&") || rest.starts_with("||") {
        return 2;
    }
    if first == '"' {
        return string_length(rest);
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    if word(first) { rest.find(|c| !word(c)).unwrap_or(rest.len()) } else { first.len_utf8() }
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

/// Where `name` stands as a word or a string behind the word `before`; the byte offset of its first character.
pub(crate) fn find_behind(text: &str, before: &str, name: &str) -> Option<usize> {
    let mut rest = text;
    let mut met = false;
    while let Some(first) = rest.chars().next() {
        let offset = text.len() - rest.len();
        let (token, after) = rest.split_at_checked(token_length(rest, first))?;
        rest = after;
        let content = token.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(token);
        if met && content == name {
            return Some(offset);
        }
        met |= token == before;
    }
    None
}

/// Whether a policy's id is what it seems to be, wherever it is told: nothing in it is invisible or turns the direction of what follows, and
/// Latin letters do not stand beside those of other scripts that look like them.
pub(crate) fn is_read_as_written(id: &str) -> bool {
    let is_hidden = |c| {
        matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}')
            || matches!(c, '\u{feff}' | '\u{ff01}'..='\u{ff5e}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
    };
    let is_mixed = id.contains(looks_latin) && id.contains(|c: char| c.is_ascii_alphabetic());
    !is_mixed && !id.contains(|c: char| c.is_control() || is_hidden(c))
}

/// Letters of scripts some of whose letters look like Latin ones: Greek, Cyrillic, Armenian, Cherokee.
pub(crate) const fn looks_latin(c: char) -> bool {
    matches!(c, '\u{370}'..='\u{58f}' | '\u{13a0}'..='\u{13ff}')
}

/// Turns byte offsets of a text into lines and columns.
pub(crate) struct Places<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines }
    }

    /// The line and column of a byte offset, both from 1; columns count characters.
    pub(crate) fn place(&self, offset: usize) -> (u32, u32) {
        let line = self.lines.partition_point(|&start| start <= offset);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..offset.min(self.text.len())).unwrap_or("");
        let column = before.chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_begins_at_its_first_annotation_or_word() {
        for (text, expected) in [
            ("", vec![]),
            ("  // only a comment; nothing\n", vec![]),
            ("permit(principal,action,resource);", vec![0]),
            ("\n // a;b\n@id(\"x;\\\"y\") permit(a); forbid(b);", vec![9, 33]),
            ("@id(\"a\\\\\"); b;", vec![0, 12]),
            ("\"open", vec![0]),
        ] {
            let starts: Vec<usize> = survey(text).expect(text).iter().map(|policy| policy.start).collect();
            assert_eq!(starts, expected, "{text}");
        }
    }

    #[test]
    fn a_name_is_found_behind_a_word_as_a_word_or_as_a_string() {
        for (text, expected) in [
            ("", None),
            ("a.x == b.x", None),
            ("x == h.x", Some(7)),
            ("// h.x\n\"h\" h has \"x\"", Some(17)),
            ("h[\"xy\"] h[\"x\"]", Some(10)),
        ] {
            assert_eq!(find_behind(text, "h", "x"), expected, "{text}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded_at_the_bound_and_not_before() {
        assert!(survey(&" ".repeat(TEXT_BYTES_MAX)).is_ok());
        assert!(survey(&" ".repeat(TEXT_BYTES_MAX + 1)).is_err());
        for bracket in ["(", "[", "{"] {
            assert!(survey(&bracket.repeat(DEPTH_MAX / BRACKET_LEVELS)).is_ok(), "{bracket}");
            assert!(survey(&bracket.repeat(DEPTH_MAX / BRACKET_LEVELS + 1)).is_err(), "{bracket}");
        }
        for step in ["!", ".a", " && a", " || a", " + a", " * a", " if ", " when ", " unless "] {
            assert!(survey(&step.repeat(DEPTH_MAX)).is_ok(), "{step}");
            let deep = survey(&step.repeat(DEPTH_MAX + 1)).expect_err(step);
            assert!(deep.offset >= DEPTH_MAX * step.trim().len(), "{step}");
        }
        assert!(survey(&"-".repeat(DEPTH_MAX)).is_err());
    }

    #[test]
    fn width_is_not_depth() {
        let wide = "a".to_owned() + &", b.c.d + 1".repeat(1000);
        for text in [
            format!("\"{}\"", "(".repeat(500)),
            format!("// {}", "(".repeat(500)),
            "a.b.c;".repeat(1000),
            format!("x in [{wide}]"),
            format!("f({wide}).g({wide})"),
            "a && (b || c.d) && ".repeat(20),
        ] {
            assert_eq!(survey(&text).err(), None, "{text}");
        }
        // Depth inside brackets counts on top of what stands before and after them.
        let half = DEPTH_MAX / 2;
        assert!(survey(&format!("{}({}b)", "a || ".repeat(half - BRACKET_LEVELS), "a || ".repeat(half))).is_ok());
        assert!(survey(&format!("{}({}b)", "a || ".repeat(half), "a || ".repeat(half))).is_err());
        assert!(survey(&format!("({}b){}", "a || ".repeat(half), " || a".repeat(half))).is_err());
    }

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "ab\nçd\n\nx";
        for (offset, expected) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (8, (4, 1)), (99, (4, 2))] {
            assert_eq!(Places::of(text).place(offset), expected, "{offset}");
        }
    }
}
