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
        let table = self.table(all.len(), view)?;
        Ok(all.first(view, |value| Ok(!self.finds(&table, value, view)?))?.is_none())
    }

    /// Whether some element of `any` is in this set.
    pub(crate) fn contains_any(&self, any: Self, view: &View<'a>) -> Result<bool, Failure<'a>> {
        let table = self.table(any.len(), view)?;
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

    /// The texts in a table, if there would be many comparisons and they are all texts.
    fn table(&self, others: usize, view: &View<'a>) -> Result<Option<HashSet<&'a str>>, Failure<'a>> {
        if self.len().saturating_mul(others) <= COMPARISONS_MAX {
            return Ok(None);
        }
        let text = |element: &'a Code| match view.value(element)? {
            Value::Text(text) => Ok(Some(text)),
            _ => Ok(None),
        };
        match self {
            Self::Texts(texts) => Ok(Some(texts.iter().map(String::as_str).collect())),
            Self::Sorted(_) => Ok(None),
            Self::Elements(elements) => elements.iter().map(text).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compiled::code::Fact;
    use crate::fixture::transfer;
    use crate::vocabulary::BodyShape;
    use model::Roles;

    #[test]
    fn a_large_set_of_a_policy_is_put_into_a_table_whatever_stands_in_it() {
        let (request, shape, roles) = (transfer(), BodyShape::new(), Roles::default());
        let question = request.as_question();
        let view = View { question: &question, shape: &shape, roles: &roles };
        let mut elements: Vec<Code> = (0..5000).map(|number| Code::Text(format!("t{number}").into())).collect();
        elements.push(Code::Fact(Fact::Path));
        let own = Set::Elements(&elements);
        assert_eq!(own.table(0, &view).expect("texts"), None);
        let table = own.table(2, &view).expect("texts").expect("a table");
        assert_eq!(table.len(), 5001);
        let theirs: Vec<String> = [request.path.as_str(), "t4999", "other"].map(str::to_owned).to_vec();
        for (count, all, any) in [(2, true, true), (3, false, true)] {
            let theirs = Set::Texts(&theirs[..count]);
            assert_eq!(own.contains_all(theirs, &view).expect("texts"), all);
            assert_eq!(own.contains_any(theirs, &view).expect("texts"), any);
        }
        assert!(!own.contains_any(Set::Texts(&theirs[2..]), &view).expect("texts"));
        // Numbers are compared one by one.
        let numbers: Vec<Code> = (0..5000).map(Code::Long).collect();
        assert_eq!(Set::Elements(&numbers).table(5000, &view).expect("numbers"), None);
    }
}
