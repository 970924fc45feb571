//! Which policies a call can meet.

use super::code::{Code, Fact};
use super::evaluate::{Failure, View};
use super::translate::Names;
use crate::conjuncts::conjuncts;
use crate::reads::Reads;
use crate::slice::USER;
use cedar_policy::pst::{EntityOrSlot, PrincipalConstraint, Template};
use foldhash::fast::RandomState;
use model::{Question, Roles};
use std::collections::HashMap;

/// A policy as conditions: it applies if all of them hold.
#[derive(Debug)]
pub(crate) struct Program {
    conditions: Box<[Condition]>,
}

#[derive(Debug)]
struct Condition {
    code: Code,
    /// Whether it mentions the user.
    is_of_user: bool,
}

impl Program {
    /// Translates a policy; `None` if it must be left to the reference evaluator.
    pub(crate) fn of(policy: &Template, names: Names<'_>) -> Option<Self> {
        let scope = names.scope(&policy.principal, &policy.resource)?;
        let mut conditions: Vec<Condition> = scope.into_iter().map(|code| Condition { code, is_of_user: false }).collect();
        for conjunct in conjuncts(policy.clauses()) {
            let is_of_user = Reads::of(&conjunct).touch(&USER);
            conditions.push(Condition { code: names.code(&conjunct)?, is_of_user });
        }
        Some(Self { conditions: conditions.into() })
    }

    /// Whether the policy applies.
    pub(crate) fn applies<'a>(&'a self, view: &View<'a>) -> Result<bool, Failure<'a>> {
        for condition in &self.conditions {
            if !view.holds(&condition.code)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether it would apply if it said nothing of the user.
    pub(crate) fn applies_but_for_the_user<'a>(&'a self, view: &View<'a>) -> bool {
        let mut others = self.conditions.iter().filter(|condition| !condition.is_of_user);
        others.all(|condition| matches!(view.holds(&condition.code), Ok(true)))
    }

    /// Whether some condition mentions the user.
    pub(crate) fn speaks_of_user(&self) -> bool {
        self.conditions.iter().any(|condition| condition.is_of_user)
    }

    /// A condition without which the policy cannot apply and that can be looked up: the path before a role of the user. What stands before
    /// it must not fail, for then the policy would fail, and deny.
    fn key(&self, action: &str) -> Key<'_> {
        let mut key = Key::None;
        for Condition { code, .. } in self.conditions.iter().take_while(|condition| !condition.code.can_fail(action)) {
            match code {
                Code::Says(Fact::Path, path) => return Key::Path(path),
                Code::UserIn(roles) if matches!(key, Key::None) => key = Key::Roles(roles),
                _ => {}
            }
        }
        key
    }
}

enum Key<'a> {
    Path(&'a str),
    Roles(&'a [Box<str>]),
    None,
}

/// The policies of one action, by what a call must have for them to apply. Numbers are positions in the list of all rules.
#[derive(Debug, Default)]
pub(crate) struct Index {
    any: Bucket,
    /// By the principal that the scope names.
    named: Table<Bucket>,
}

type Table<T> = HashMap<Box<str>, T, RandomState>;

#[derive(Debug, Default)]
struct Bucket {
    by_path: Table<Vec<u32>>,
    by_role: Table<Vec<u32>>,
    rest: Vec<u32>,
    /// All permits that speak of the user.
    of_user: Vec<u32>,
}

impl Index {
    /// Adds a policy.
    pub(crate) fn add(&mut self, number: u32, policy: &Template, program: &Program, is_permit: bool, action: &str) {
        let bucket = match &policy.principal {
            PrincipalConstraint::Eq(EntityOrSlot::Entity(uid)) => self.named.entry(uid.eid.as_str().into()).or_default(),
            _ => &mut self.any,
        };
        match program.key(action) {
            Key::Path(path) => bucket.by_path.entry(path.into()).or_default().push(number),
            Key::Roles(roles) => roles.iter().for_each(|role| bucket.by_role.entry(role.clone()).or_default().push(number)),
            Key::None => bucket.rest.push(number),
        }
        if is_permit && program.speaks_of_user() {
            bucket.of_user.push(number);
        }
    }

    /// Every policy that can apply, some of them more than once.
    pub(crate) fn each(&self, question: &Question<'_>, roles: &Roles, mut meet: impl FnMut(u32)) {
        for bucket in self.buckets(question) {
            bucket.rest.iter().copied().for_each(&mut meet);
            if !bucket.by_path.is_empty() {
                bucket.by_path.get(question.path).into_iter().flatten().copied().for_each(&mut meet);
            }
            let Some(user) = question.user.filter(|_| !bucket.by_role.is_empty()) else { continue };
            for role in &user.roles {
                bucket.by_role.get(role.as_str()).into_iter().flatten().copied().for_each(&mut meet);
                for above in roles.above(role) {
                    bucket.by_role.get(above.as_str()).into_iter().flatten().copied().for_each(&mut meet);
                }
            }
        }
    }

    /// Every permit that speaks of the user and could be meant for this principal.
    pub(crate) fn of_user(&self, question: &Question<'_>) -> impl Iterator<Item = u32> {
        self.buckets(question).flat_map(|bucket| bucket.of_user.iter().copied())
    }

    fn buckets(&self, question: &Question<'_>) -> impl Iterator<Item = &Bucket> {
        std::iter::once(&self.any).chain(self.named.get(question.principal.as_str()))
    }
}
