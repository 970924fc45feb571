//! What is known about a policy text before Cedar reads it: how large it is, how deep, and where each policy begins.

/// LIMIT: bytes of one resource's policies. Parsing and validating this much takes well under a second.
pub const TEXT_BYTES_MAX: usize = 256 * 1024;

/// LIMIT: open brackets of one policy. Cedar's parser and evaluator recurse once or more per bracket.
pub(crate) const NESTING_MAX: usize = 32;

/// LIMIT: operators, attribute accesses and clauses of one policy. A chain of them is a tree as deep as the chain is long.
pub(crate) const OPERATORS_MAX: usize = 400;

/// Why a text is not given to Cedar at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Oversize {
    /// Byte offset of the first character that is too much.
    pub(crate) offset: usize,
    /// What is too large, and the bound.
    pub(crate) message: String,
}

/// Gives the byte offset at which each policy (with its annotations) begins, in order.
///
/// Only strings, comments, brackets and `;` are told apart; whether the text is Cedar is for Cedar to say.
///
/// # Errors
/// - [`Oversize`] if the text is longer than [`TEXT_BYTES_MAX`], or one policy is nested or chained beyond its bound.
pub(crate) fn survey(text: &str) -> Result<Vec<usize>, Oversize> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the policies are {} bytes long, more than {TEXT_BYTES_MAX}", text.len());
        return Err(Oversize { offset: 0, message });
    }
    let mut starts = Vec::new();
    let mut inside = false;
    let (mut nesting, mut operators) = (0_usize, 0_usize);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let offset = text.len() - rest.len();
        let token = token_length(rest, first);
        let (token, after) = rest.split_at_checked(token).unwrap_or((rest, ""));
        rest = after;
        if first.is_whitespace() || token.starts_with("//") {
            continue;
        }
        if !inside {
            (inside, nesting, operators) = (true, 0, 0);
            starts.push(offset);
        }
        match token {
            ";" => inside = false,
            "(" | "[" | "{" => nesting += 1,
            ")" | "]" | "}" => nesting = nesting.saturating_sub(1),
            "&&" | "||" | "+" | "-" | "*" | "." | "!" | "if" | "when" | "unless" => operators += 1,
            _ => {}
        }
        if nesting > NESTING_MAX {
            return Err(Oversize { offset, message: format!("the policy has more than {NESTING_MAX} open brackets") });
        }
        if operators > OPERATORS_MAX {
            let message = format!("the policy has more than {OPERATORS_MAX} operators and attribute accesses; split it");
            return Err(Oversize { offset, message });
        }
    }
    Ok(starts)
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

/// The line and column of a byte offset, both from 1; columns count characters.
pub(crate) fn place(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().unwrap_or("").chars().count();
    (u32::try_from(line + 1).unwrap_or(u32::MAX), u32::try_from(column + 1).unwrap_or(u32::MAX))
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
            ("\n // a;b\n@id(\"x;\\\"y\") permit(a); forbid(b);", vec![9, 31]),
            ("@id(\"a\\\\\"); b;", vec![0, 12]),
            ("\"open", vec![0]),
        ] {
            assert_eq!(survey(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn size_nesting_and_length_are_bounded_at_the_bound_and_not_before() {
        assert!(survey(&" ".repeat(TEXT_BYTES_MAX)).is_ok());
        assert!(survey(&" ".repeat(TEXT_BYTES_MAX + 1)).is_err());
        assert!(survey(&"(".repeat(NESTING_MAX)).is_ok());
        assert_eq!(survey(&"(".repeat(NESTING_MAX + 1)).expect_err("deep").offset, NESTING_MAX);
        assert!(survey(&"!".repeat(OPERATORS_MAX)).is_ok());
        for operator in ["&&", "||", "!", "-", "+", "*", ".", " if ", " when ", " unless "] {
            assert!(survey(&operator.repeat(OPERATORS_MAX + 1)).is_err(), "{operator}");
        }
        assert!(survey(&format!("\"{}\"", "(".repeat(500))).is_ok(), "brackets in a string");
        assert!(survey(&"a.b.c;".repeat(1000)).is_ok(), "the bounds are per policy");
    }

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "ab\nçd\n\nx";
        for (offset, expected) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 2)), (8, (4, 1)), (99, (4, 2))] {
            assert_eq!(place(text, offset), expected, "{offset}");
        }
    }
}
