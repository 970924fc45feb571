//! One error, with its place and what to write instead.

use std::fmt;

/// Something in the configuration is wrong. The user who wrote it must mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, relative to the directory.
    pub file: String,
    /// From 1; 1 where the whole file is meant.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// What is wrong and how to mend it.
    pub message: String,
    /// A stable code: that of the policy's flaw, or `RA001` for everything else.
    pub code: &'static str,
}

/// The code of what is wrong elsewhere than in a policy.
pub const RESOURCE: &str = "RA001";
/// The code of a policy that selects nobody.
pub(crate) const SELECTS_NOBODY: &str = "RA007";

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The directory as a whole has no place within itself.
        if self.file == "." {
            return f.write_str(&self.message);
        }
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// `; did you mean `x`?` if one of the known words is near, else nothing.
pub fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|word| (distance(wrong, word), word)).min();
    match near {
        Some((steps, word)) if steps <= 1 + word.chars().count() / 3 => format!("; did you mean `{word}`?"),
        Some(_) | None => String::new(),
    }
}

/// Levenshtein's distance, without regard to case. The inputs are names: at most a few dozen characters are compared.
fn distance(one: &str, other: &str) -> usize {
    let chars = |text: &str| text.chars().take(64).flat_map(char::to_lowercase).collect::<Vec<_>>();
    let (one, other) = (chars(one), chars(other));
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, b) in row.iter_mut().skip(1).zip(&other) {
            let steps = (diagonal + usize::from(a != b)).min(left + 1).min(*slot + 1);
            diagonal = *slot;
            left = steps;
            *slot = steps;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_word_is_suggested_and_a_far_one_is_not() {
        let known = ["trustDomain", "certificates", "limits"];
        assert_eq!(suggestion("trustdomain", known), "; did you mean `trustDomain`?");
        assert_eq!(suggestion("limit", known), "; did you mean `limits`?");
        assert_eq!(suggestion("policies", known), "");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
