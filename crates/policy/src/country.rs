//! The country of a call: who reads it, and what is wrong with one that could not be looked up.

use crate::compile::Policies;
use crate::reads::{Reads, children, path_of};
use cedar_policy::pst::{Expr, Literal};
use model::authz::Question;
use model::{Country, CountryCode};
use std::collections::BTreeSet;

/// The path of the country in a policy.
pub(crate) const COUNTRY: [&str; 3] = ["context", "source", "country"];

impl Policies {
    /// Whether a policy of this action reads the country of the call.
    pub fn reads_country(&self, action: &str) -> bool {
        self.actions.get(action).is_some_and(|action| action.slice.reads_country)
    }

    /// Whether a policy of any action does.
    pub fn reads_any_country(&self) -> bool {
        self.actions.values().any(|action| action.slice.reads_country)
    }
}

/// Whether something that reads `reads` can tell one country from another, or from none.
pub(crate) fn is_read(reads: &Reads) -> bool {
    reads.see(&COUNTRY)
}

/// Why nothing can be decided by the country of this call, in words.
pub(crate) fn flaw(question: &Question<'_>) -> Option<&'static str> {
    match question.country {
        Country::Known(_) | Country::Unknown => None,
        Country::Unavailable => Some("the country could not be looked up: the sidecar's database of countries cannot be read"),
        Country::Contradictory => Some("the trusted caller says more than one country: it must replace what its own caller says"),
    }
}

/// Adds what `expression` compares the country of a call with, and what no country is called.
pub(crate) fn unknown(expression: &Expr, found: &mut BTreeSet<String>) {
    if let Expr::BinaryOp { left, right, .. } = expression {
        for (one, other) in [(left, right), (right, left)] {
            if path_of(one).is_some_and(|path| path == COUNTRY) {
                add_unknown(other, found);
            }
        }
    }
    children(expression).into_iter().for_each(|child| unknown(child, found));
}

fn add_unknown(value: &Expr, found: &mut BTreeSet<String>) {
    match value {
        Expr::Literal(Literal::String(text)) if CountryCode::parse(text).is_none() => {
            found.insert(text.to_string());
        }
        Expr::Set(elements) => elements.iter().for_each(|element| add_unknown(element, found)),
        _ => {}
    }
}
