//! Which role is within which: a user of a role is a user of every role that it is within.

use crate::ids::printable;
use std::collections::{BTreeMap, BTreeSet};

/// LIMIT: roles of one mesh that are said to be within others or others within them.
pub const ROLES_MAX: usize = 1000;
/// LIMIT: roles that one role is within, directly or through others. All of them are looked at in every decision about its user.
pub const ROLES_ABOVE_MAX: usize = 64;
/// LIMIT: characters of a role's name.
pub const ROLE_CHARACTERS_MAX: usize = 128;

static NONE: BTreeSet<String> = BTreeSet::new();

/// The roles of a mesh and the roles that each is within. No role is within itself, and every role that one is within is among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    within: BTreeMap<String, BTreeSet<String>>,
    /// The same, followed to its end. Roles within no other are left out.
    above: BTreeMap<String, BTreeSet<String>>,
}

/// Why roles cannot nest like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role `{}`: {flaw}", printable(.role))]
pub struct RoleError {
    /// The role that it is said of.
    pub role: String,
    /// The role that `role` is said to be within, if that is what is wrong.
    pub within: Option<String>,
    /// What is wrong, and how to mend it.
    pub flaw: String,
}

impl Roles {
    /// From each role and the roles that it is directly within. Cost: the roles times [`ROLES_ABOVE_MAX`].
    ///
    /// # Errors
    /// - [`RoleError`] for more than [`ROLES_MAX`] roles, a name that is empty, longer than [`ROLE_CHARACTERS_MAX`], has control
    ///   characters or white space at an end, a role that is within one that is not among them, within itself over any number of others,
    ///   or within more than [`ROLES_ABOVE_MAX`].
    pub fn new(within: BTreeMap<String, BTreeSet<String>>) -> Result<Self, RoleError> {
        for (number, (role, direct)) in within.iter().enumerate() {
            let flaw = |within: Option<&String>, flaw: String| RoleError { role: role.clone(), within: within.cloned(), flaw };
            if number >= ROLES_MAX {
                return Err(flaw(None, format!("more than {ROLES_MAX} roles")));
            }
            if role.trim().is_empty()
                || role.trim() != role
                || role.chars().count() > ROLE_CHARACTERS_MAX
                || role.chars().any(char::is_control)
            {
                let rule = format!("a role's name has 1 to {ROLE_CHARACTERS_MAX} printable characters, and no space at an end");
                return Err(flaw(None, rule));
            }
            if let Some(unknown) = direct.iter().find(|parent| !within.contains_key(*parent)) {
                let shown = printable(unknown);
                let mend = format!("it is within `{shown}`, which is not declared; add `{shown}: []` if it is a role");
                return Err(flaw(Some(unknown), mend));
            }
        }
        let mut above = BTreeMap::new();
        for role in within.keys() {
            let all = followed(&within, role)?;
            if !all.is_empty() {
                above.insert(role.clone(), all);
            }
        }
        Ok(Self { within, above })
    }

    /// Whether no role is declared.
    pub fn is_empty(&self) -> bool {
        self.within.is_empty()
    }

    /// Each role and the roles that it is directly within.
    pub const fn declared(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.within
    }

    /// Every role that a role is within, directly or through others; never itself. Empty for a role that nobody declared.
    pub fn above(&self, role: &str) -> &BTreeSet<String> {
        self.above.get(role).unwrap_or(&NONE)
    }
}

/// All that `role` is within.
fn followed(within: &BTreeMap<String, BTreeSet<String>>, role: &String) -> Result<BTreeSet<String>, RoleError> {
    let mut all = BTreeSet::new();
    let mut open: Vec<&String> = within.get(role).into_iter().flatten().collect();
    while let Some(parent) = open.pop() {
        if parent == role {
            let flaw = "it is within itself; remove one of the steps that lead back to it".to_owned();
            return Err(RoleError { role: role.clone(), within: None, flaw });
        }
        if !all.insert(parent.clone()) {
            continue;
        }
        if all.len() > ROLES_ABOVE_MAX {
            let flaw = format!("it is within more than {ROLES_ABOVE_MAX} roles, counted through others");
            return Err(RoleError { role: role.clone(), within: None, flaw });
        }
        open.extend(within.get(parent).into_iter().flatten());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(written: &[(&str, &[&str])]) -> Result<Roles, RoleError> {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Roles::new(written.iter().map(|(role, within)| ((*role).to_owned(), set(within))).collect())
    }

    #[test]
    fn a_role_is_within_all_that_its_own_are_within() {
        let nested = roles(&[
            ("head", &["teller", "auditor"]),
            ("teller", &["staff"]),
            ("auditor", &["staff", "reader"]),
            ("staff", &[]),
            ("reader", &[]),
        ])
        .expect("sound");
        let above = |role| nested.above(role).iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(above("head"), ["auditor", "reader", "staff", "teller"]);
        assert_eq!(above("teller"), ["staff"]);
        assert!(above("staff").is_empty() && above("stranger").is_empty());
        assert!(roles(&[]).expect("none").is_empty());
    }

    #[test]
    fn roles_that_do_not_nest_are_refused_with_the_role_and_what_is_wrong() {
        let long = "x".repeat(ROLE_CHARACTERS_MAX + 1);
        for (written, role, flaw) in [
            (&[("a", &["a"] as &[&str])] as &[(&str, &[&str])], "a", "within itself"),
            (&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])], "a", "within itself"),
            (&[("z", &["b"]), ("b", &["c"]), ("c", &["b"])], "b", "within itself"),
            (&[("a", &["b"])], "a", "within `b`, which is not declared"),
            (&[("", &[])], "", "1 to 128"),
            (&[(" a", &[])], " a", "1 to 128"),
            (&[("a\nb", &[])], "a\nb", "1 to 128"),
            (&[(long.as_str(), &[])], long.as_str(), "1 to 128"),
        ] {
            let error = roles(written).expect_err(flaw);
            assert!(error.role == role && error.flaw.contains(flaw), "{written:?}: {error}");
        }
    }

    #[test]
    fn the_bounds_are_kept_exactly() {
        let chain = |length: usize| {
            let name = |number: usize| format!("r{number:04}");
            let within = |number: usize| (number > 0).then(|| name(number - 1)).into_iter().collect::<BTreeSet<_>>();
            Roles::new((0..length).map(|number| (name(number), within(number))).collect())
        };
        assert!(chain(ROLES_ABOVE_MAX + 1).is_ok());
        assert!(chain(ROLES_ABOVE_MAX + 2).expect_err("too deep").flaw.contains("more than 64 roles"));
        let many = |count: usize| Roles::new((0..count).map(|number| (format!("r{number}"), BTreeSet::new())).collect());
        assert!(many(ROLES_MAX).is_ok());
        assert!(many(ROLES_MAX + 1).expect_err("too many").flaw.contains("more than 1000 roles"));
    }
}
