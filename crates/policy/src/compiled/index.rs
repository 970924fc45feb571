//! Which policies a call can meet.

use super::code::{Binary, Code, Fact, Range};
use super::evaluate::{Failure, View};
use super::translate::Names;
use crate::conjuncts::conjuncts;
use crate::reads::Reads;
use crate::slice::USER;
use crate::vocabulary::BodyShape;
use cedar_policy::pst::{EntityOrSlot, PrincipalConstraint, Template};
use foldhash::fast::RandomState;
use model::{Question, Roles};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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

    /// The condition without which the policy cannot apply and that singles out best. What stands before it must not fail, for then the
    /// policy would fail, and deny.
    fn key(&self, action: &str) -> Key<'_> {
        let sure = self.conditions.iter().take_while(|condition| !condition.code.can_fail(action));
        sure.map(|condition| Key::of(&condition.code)).max_by_key(Key::rank).unwrap_or(Key::None)
    }
}

/// What a call must have for a policy to apply.
enum Key<'a> {
    /// A fact that says this text.
    Says(&'a Fact, &'a str),
    /// A user in one of these roles.
    Roles(&'a [Box<str>]),
    /// A path that begins so.
    Begins(&'a str),
    /// An address in this range.
    Within(Range),
    None,
}

impl<'a> Key<'a> {
    fn of(code: &'a Code) -> Self {
        match code {
            Code::Says(fact, text) => Self::Says(fact, text),
            Code::UserIn(roles) => Self::Roles(roles),
            Code::Like(of, pattern) => match (of.as_ref(), &*pattern.pieces) {
                (Code::Fact(Fact::Path), [first, _, ..]) if !first.is_empty() => Self::Begins(first),
                _ => Self::None,
            },
            Code::Binary(Binary::IsInRange, two) => match two.as_ref() {
                [Code::Fact(Fact::Address), Code::Address(range)] => Self::Within(*range),
                _ => Self::None,
            },
            _ => Self::None,
        }
    }

    /// How few of the calls have it, as a rule.
    fn rank(&self) -> u8 {
        match self {
            Self::Says(Fact::Path, _) => 5,
            Self::Says(..) => 4,
            Self::Roles(_) => 3,
            Self::Begins(_) => 2,
            Self::Within(_) => 1,
            Self::None => 0,
        }
    }
}

/// The policies of one action, by what a call must have for them to apply. Numbers are positions in the list of all rules.
#[derive(Debug, Default)]
pub(crate) struct Index {
    any: Bucket,
    /// By the principal that the scope names.
    named: Table<Box<str>, Bucket>,
}

type Table<K, T = Vec<u32>> = HashMap<K, T, RandomState>;

#[derive(Debug, Default)]
struct Bucket {
    says: BTreeMap<Fact, Table<Box<str>>>,
    by_role: Table<Box<str>>,
    /// By the beginning of the path; its lengths in bytes, each once.
    begins: Table<Box<str>>,
    lengths: BTreeSet<usize>,
    /// By the bits that count, for each family and number of them.
    within: BTreeMap<(bool, u8), Table<u128>>,
    rest: Vec<u32>,
    /// All permits that speak of the user.
    of_user: Vec<u32>,
}

/// For facts that have nothing to do with a body.
static NO_BODY: BodyShape = BodyShape::new();

impl Index {
    /// Adds a policy.
    pub(crate) fn add(&mut self, number: u32, policy: &Template, program: &Program, is_permit: bool, action: &str) {
        let bucket = match &policy.principal {
            PrincipalConstraint::Eq(EntityOrSlot::Entity(uid)) => self.named.entry(uid.eid.as_str().into()).or_default(),
            _ => &mut self.any,
        };
        match program.key(action) {
            Key::Says(fact, text) => bucket.says.entry(fact.clone()).or_default().entry(text.into()).or_default().push(number),
            Key::Roles(roles) => roles.iter().for_each(|role| bucket.by_role.entry(role.clone()).or_default().push(number)),
            Key::Begins(prefix) => {
                bucket.lengths.insert(prefix.len());
                bucket.begins.entry(prefix.into()).or_default().push(number);
            }
            Key::Within(range) => {
                let table = bucket.within.entry((range.address.is_ipv4(), range.prefix)).or_default();
                table.entry(range.bits(range.prefix)).or_default().push(number);
            }
            Key::None => bucket.rest.push(number),
        }
        if is_permit && program.speaks_of_user() {
            bucket.of_user.push(number);
        }
    }

    /// Every policy that can apply, some of them more than once.
    pub(crate) fn each<'a>(&'a self, question: &'a Question<'a>, roles: &'a Roles, mut meet: impl FnMut(u32)) {
        let view = View { question, shape: &NO_BODY, roles };
        for bucket in self.buckets(question) {
            bucket.rest.iter().copied().for_each(&mut meet);
            bucket.each(&view, |found| found.into_iter().flatten().copied().for_each(&mut meet));
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

impl Bucket {
    /// Everything that is found by a key.
    fn each<'a>(&'a self, view: &View<'a>, mut meet: impl FnMut(Option<&Vec<u32>>)) {
        for (fact, table) in &self.says {
            if let Some(said) = view.text(fact) {
                meet(table.get(said));
            }
        }
        if let Some(user) = view.question.user.filter(|_| !self.by_role.is_empty()) {
            for role in &user.roles {
                meet(self.by_role.get(role.as_str()));
                view.roles.above(role).iter().for_each(|above| meet(self.by_role.get(above.as_str())));
            }
        }
        for length in &self.lengths {
            // In the midst of a character no beginning ends.
            meet(view.question.path.get(..*length).and_then(|begin| self.begins.get(begin)));
        }
        if !self.within.is_empty() {
            let own = Range::only(view.question.address);
            for ((is_ipv4, prefix), table) in &self.within {
                meet(table.get(&own.bits(*prefix)).filter(|_| *is_ipv4 == own.address.is_ipv4()));
            }
        }
    }
}
