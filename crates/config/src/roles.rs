//! How roles of users nest.

use crate::build::Errors;
use crate::error::suggestion;
use crate::source::Document;
use model::Roles;
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;

/// How roles nest: the place of an error is that of the list that says so.
pub(crate) fn roles(
    document: Document<'_>,
    written: &BTreeMap<String, Spanned<Vec<Spanned<String>>>>,
    errors: &mut Errors,
) -> Roles {
    let within = |list: &Spanned<Vec<Spanned<String>>>| list.value.iter().map(|role| role.value.clone()).collect();
    Roles::new(written.iter().map(|(role, list)| (role.clone(), within(list))).collect()).unwrap_or_else(|error| {
        let list = written.get(&error.role);
        let parent = error.within.as_ref().and_then(|parent| list?.value.iter().find(|role| role.value == *parent));
        let place = parent.map(|parent| parent.defined).or_else(|| list.map(|list| list.defined)).unwrap_or(Location::UNKNOWN);
        let near =
            error.within.as_ref().map_or_else(String::new, |parent| suggestion(parent, written.keys().map(String::as_str)));
        errors.at(document, place, format!("{error}{near}"));
        Roles::default()
    })
}
