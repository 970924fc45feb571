//! What can be wrong with a policy, and where.

use model::ids::PolicyId;

/// Why a policy cannot be enforced as it is written. Who wrote it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct PolicyError {
    /// The file that holds the policy, relative to the configuration's directory.
    pub file: String,
    /// The line of the file, from 1.
    pub line: u32,
    /// The column of the policy text, from 1, in characters. The text's indentation in the file is not counted.
    pub column: u32,
    /// The policy, where it is known.
    pub policy: Option<PolicyId>,
    /// What is wrong.
    pub message: String,
    /// Of which kind that is.
    pub flaw: Flaw,
}

/// The kinds of what can be wrong with a policy, each with a stable code (`docs/policy-checks.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// The text is not Cedar.
    Syntax,
    /// A type or an attribute is not that of the schema, or something optional is read without `has`.
    Schema,
    /// A body is read that the resource does not declare.
    Body,
    /// A header that policies cannot read.
    Header,
    /// It can never apply, whatever the call.
    Impossible,
    /// An `@id`, an annotation, a template, or a name that stands twice.
    Form,
    /// Beyond a bound.
    Bound,
    /// Two declarations contradict each other.
    Declaration,
    /// It reads otherwise than it looks.
    Confusable,
}

impl Flaw {
    /// The code, for people and tools.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Syntax => "RA002",
            Self::Schema => "RA003",
            Self::Body => "RA004",
            Self::Header => "RA005",
            Self::Impossible => "RA006",
            Self::Form => "RA008",
            Self::Bound => "RA009",
            Self::Declaration => "RA010",
            Self::Confusable => "RA011",
        }
    }
}
