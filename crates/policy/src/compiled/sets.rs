//! Sets, which stay where they are: in the policy, or in the token and the body that they came with.

use super::code::Code;
use super::evaluate::{Entity, Failure, Value, View};
use std::collections::HashSet;

/// From this many comparisons on, a set of texts is put into a table first: both may come from the caller.
const COMPARISONS_MAX: usize = 4096;

/// A set of values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Set<'a> {
    /// Texts as a token or a body lists them, perhaps one twice.
    Texts(&'a [String]),
    /// Texts of a policy, sorted.
    Sorted(&'a [Box<str>]),
    /// Expressions of a policy. All of them were evaluated once without failing.
    Elements(&'a [Code]),
}

impl<'a> Set<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Sorted(texts) => texts.len(),
            Self::Elements(elements) => elements.len(),
        }
    }

    pub(crate) fn contains(&self, value: Value<'a>, view: &View<'a>) -> Result<bool, Failure<'a>> {
        match (self, value) {
            (Self::Texts(texts), Value::Text(sought)) => Ok(texts.iter().any(|text| text == sought)),
            (Self::Sorted(texts), Value::Text(sought)) => Ok(texts.binary_search_by(|text| (**text).cmp(sought)).is_ok()),
            (Self::Texts(_) | Self::Sorted(_), _) => Ok(false),
            (Self::Elements(elements), sought) => {
                for element in *elements {
                    if view.equal(view.value(element)?, sought)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Whether every element of `all` is in this set.
    pub(crate) fn contains_all(&self, all: Self, view: &View<'a>) -> Result<bool, Failure<'a>> {
        let table = self.table(all.len());
        Ok(all.first(view, |value| Ok(!self.finds(&table, value, view)?))?.is_none())
    }

    /// Whether some element of `any` is in this set.
    pub(crate) fn contains_any(&self, any: Self, view: &View<'a>) -> Result<bool, Failure<'a>> {
        let table = self.table(any.len());
        Ok(any.first(view, |value| self.finds(&table, value, view))?.is_some())
    }

    /// Whether `holds` of some element.
    ///
    /// # Errors
    /// - [`Failure::Type`] if one of them is no entity, wherever it stands.
    pub(crate) fn any_entity(&self, view: &View<'a>, holds: impl Fn(Entity<'a>) -> bool) -> Result<bool, Failure<'a>> {
        let mut found = false;
        self.first(view, |value| match value {
            Value::Entity(entity) => {
                found |= holds(entity);
                Ok(false)
            }
            _ => Err(Failure::Type),
        })?;
        Ok(found)
    }

    /// The texts in a table, if there would be many comparisons.
    fn table(&self, others: usize) -> Option<HashSet<&'a str>> {
        match self {
            Self::Texts(texts) if texts.len().saturating_mul(others) > COMPARISONS_MAX => {
                Some(texts.iter().map(String::as_str).collect())
            }
            _ => None,
        }
    }

    fn finds(&self, table: &Option<HashSet<&'a str>>, value: Value<'a>, view: &View<'a>) -> Result<bool, Failure<'a>> {
        match (table, value) {
            (Some(table), Value::Text(text)) => Ok(table.contains(text)),
            (Some(_), _) => Ok(false),
            (None, value) => self.contains(value, view),
        }
    }

    /// The first element of which `is_sought` says so.
    fn first(
        &self,
        view: &View<'a>,
        mut is_sought: impl FnMut(Value<'a>) -> Result<bool, Failure<'a>>,
    ) -> Result<Option<Value<'a>>, Failure<'a>> {
        for at in 0..self.len() {
            let value = match self {
                Self::Texts(texts) => texts.get(at).map(|text| Value::Text(text)),
                Self::Sorted(texts) => texts.get(at).map(|text| Value::Text(text)),
                Self::Elements(elements) => elements.get(at).map(|element| view.value(element)).transpose()?,
            };
            if let Some(value) = value
                && is_sought(value)?
            {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}
