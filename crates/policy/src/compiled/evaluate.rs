//! Evaluating code against a question. Allocates nothing, but for large sets that are compared with each other.

use super::code::{Arithmetic, Code, Fact, Kind, Range};
use super::{extension, sets};
use crate::facts::{CONNECT, type_of};
use crate::vocabulary::{BodyShape, group_of};
use model::authz::{AttributeValue, HeaderRead, User};
use model::{Question, Roles};
use std::collections::BTreeMap;

/// What a policy sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) question: &'a Question<'a>,
    /// The body fields that the policy's resource declares.
    pub(crate) shape: &'a BodyShape,
    pub(crate) roles: &'a Roles,
}

/// What an expression gives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Boolean(bool),
    Long(i64),
    Text(&'a str),
    Entity(Entity<'a>),
    Set(sets::Set<'a>),
    Decimal(i64),
    Address(Range),
    Datetime(i64),
    Duration(i64),
}

/// An entity: by its id, or the user, whose id has two parts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entity<'a> {
    Of(Kind, &'a str),
    User(&'a User),
}

/// Why there is no value. Any failure denies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure<'a> {
    /// Nothing is there.
    Absent(&'a Fact),
    /// There is a body that policies cannot read.
    Body,
    /// A number, a moment or a duration beyond 64 bits.
    Overflow,
    /// An operand of another type than the operator takes. The validator leaves none.
    Type,
}

impl Failure<'_> {
    /// In words.
    pub(crate) fn told(&self, view: &View<'_>) -> String {
        match self {
            Self::Absent(fact) => format!("{} is absent", fact.text()),
            Self::Body => view.unreadable_body().unwrap_or_else(|| "the body cannot be read".to_owned()),
            Self::Overflow => "a result does not fit 64 bits".to_owned(),
            Self::Type => "an operand has the wrong type".to_owned(),
        }
    }
}

type Evaluated<'a> = Result<Value<'a>, Failure<'a>>;

impl<'a> View<'a> {
    /// Whether a condition is true.
    pub(crate) fn holds(&self, code: &'a Code) -> Result<bool, Failure<'a>> {
        Ok(match code {
            Code::Boolean(truth) => *truth,
            Code::Not(inner) => !self.holds(inner)?,
            Code::And(parts) => {
                for part in parts {
                    if !self.holds(part)? {
                        return Ok(false);
                    }
                }
                true
            }
            Code::Or(parts) => {
                for part in parts {
                    if self.holds(part)? {
                        return Ok(true);
                    }
                }
                false
            }
            Code::If(three) => {
                let [condition, then, otherwise] = three.as_ref();
                return self.holds(if self.holds(condition)? { then } else { otherwise });
            }
            Code::Has { of, facts } => return self.has(of, facts),
            Code::Says(fact, text) => matches!(self.read(fact)?, Value::Text(said) if said == &**text),
            Code::UserIn(roles) => {
                let user = self.question.user.ok_or(Failure::Absent(&Fact::User))?;
                user.roles.iter().any(|role| roles.iter().any(|target| self.is_role_within(role, target)))
            }
            Code::Equal(two) => {
                let (left, right) = self.both(two)?;
                return self.equal(left, right);
            }
            Code::Less(two) => compare(self.both(two)?)?.is_lt(),
            Code::LessOrEqual(two) => compare(self.both(two)?)?.is_le(),
            Code::In(two) => {
                let (left, right) = self.both(two)?;
                return self.is_in(left, right);
            }
            Code::Contains(two) => match self.both(two)? {
                (Value::Set(set), value) => return set.contains(value, self),
                _ => return Err(Failure::Type),
            },
            Code::ContainsAll(two) => match self.both(two)? {
                (Value::Set(set), Value::Set(all)) => return set.contains_all(all, self),
                _ => return Err(Failure::Type),
            },
            Code::ContainsAny(two) => match self.both(two)? {
                (Value::Set(set), Value::Set(any)) => return set.contains_any(any, self),
                _ => return Err(Failure::Type),
            },
            Code::IsEmpty(one) => match self.value(one)? {
                Value::Set(set) => set.is_empty(),
                _ => return Err(Failure::Type),
            },
            Code::Like(one, pattern) => match self.value(one)? {
                Value::Text(text) => pattern.matches(text),
                _ => return Err(Failure::Type),
            },
            Code::Is(one, kind) => match self.value(one)? {
                Value::Entity(entity) => entity.kind() == *kind,
                _ => return Err(Failure::Type),
            },
            other => match self.value(other)? {
                Value::Boolean(truth) => truth,
                _ => return Err(Failure::Type),
            },
        })
    }

    /// What an expression gives.
    pub(crate) fn value(&self, code: &'a Code) -> Evaluated<'a> {
        Ok(match code {
            Code::Long(number) => Value::Long(*number),
            Code::Text(text) => Value::Text(text),
            Code::Entity(kind, id) => Value::Entity(Entity::Of(*kind, id)),
            Code::Decimal(number) => Value::Decimal(*number),
            Code::Address(range) => Value::Address(*range),
            Code::Datetime(moment) => Value::Datetime(*moment),
            Code::Duration(length) => Value::Duration(*length),
            Code::Texts(texts) => Value::Set(sets::Set::Sorted(texts)),
            Code::Set(elements) => {
                // All are evaluated, as Cedar does: one that fails fails the set.
                for element in elements {
                    self.value(element)?;
                }
                Value::Set(sets::Set::Elements(elements))
            }
            Code::Fact(fact) => return self.read(fact),
            Code::If(three) => {
                let [condition, then, otherwise] = three.as_ref();
                return self.value(if self.holds(condition)? { then } else { otherwise });
            }
            Code::Arithmetic(operation, two) => {
                let (Value::Long(left), Value::Long(right)) = self.both(two)? else { return Err(Failure::Type) };
                let result = match operation {
                    Arithmetic::Add => left.checked_add(right),
                    Arithmetic::Subtract => left.checked_sub(right),
                    Arithmetic::Multiply => left.checked_mul(right),
                };
                Value::Long(result.ok_or(Failure::Overflow)?)
            }
            Code::Negate(one) => match self.value(one)? {
                Value::Long(number) => Value::Long(number.checked_neg().ok_or(Failure::Overflow)?),
                _ => return Err(Failure::Type),
            },
            Code::Unary(method, one) => return extension::unary(*method, self.value(one)?),
            Code::Binary(method, two) => return extension::binary(*method, self.both(two)?),
            condition => Value::Boolean(self.holds(condition)?),
        })
    }

    fn both(&self, two: &'a [Code; 2]) -> Result<(Value<'a>, Value<'a>), Failure<'a>> {
        let [left, right] = two;
        Ok((self.value(left)?, self.value(right)?))
    }

    fn read(&self, fact: &'a Fact) -> Evaluated<'a> {
        self.find(fact)?.ok_or(Failure::Absent(fact))
    }

    /// What a fact says, if it is there and is a text.
    pub(crate) fn text(&self, fact: &'a Fact) -> Option<&'a str> {
        match self.find(fact) {
            Ok(Some(Value::Text(text))) => Some(text),
            _ => None,
        }
    }

    fn has(&self, of: &'a Fact, facts: &'a [Fact]) -> Result<bool, Failure<'a>> {
        if !self.is_there(of)? {
            return Err(Failure::Absent(of));
        }
        for fact in facts {
            if !self.is_there(fact)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_there(&self, fact: &'a Fact) -> Result<bool, Failure<'a>> {
        Ok(match fact {
            Fact::Frame => true,
            Fact::Headers => self.is_request(),
            Fact::Body => self.body()?.is_some(),
            _ => self.find(fact)?.is_some(),
        })
    }

    /// An opaque connection has no path, host, headers or body.
    fn is_request(&self) -> bool {
        self.question.action != CONNECT
    }

    fn find(&self, fact: &'a Fact) -> Result<Option<Value<'a>>, Failure<'a>> {
        let question = self.question;
        let workload = || question.principal.workload();
        let user = || question.user.map(|user| user.as_ref());
        let request = |text: &'a str| self.is_request().then_some(Value::Text(text));
        Ok(match fact {
            Fact::Principal => Some(Value::Entity(Entity::Of(Kind::Workload, question.principal.as_str()))),
            Fact::PrincipalId => Some(Value::Text(question.principal.as_str())),
            Fact::TrustDomain => Some(Value::Text(workload().map_or("", |id| id.trust_domain().as_str()))),
            Fact::Namespace => workload().and_then(|id| id.namespace_and_account()).map(|(namespace, _)| Value::Text(namespace)),
            Fact::Account => workload().and_then(|id| id.namespace_and_account()).map(|(_, account)| Value::Text(account)),
            Fact::Action => Some(Value::Entity(Entity::Of(Kind::Action, question.action))),
            Fact::Resource => Some(Value::Entity(Entity::Of(Kind::Service, question.resource.as_str()))),
            Fact::ResourceNamespace => {
                Some(Value::Text(question.resource.as_str().split_once('/').map_or("", |(space, _)| space)))
            }
            Fact::ResourceName => {
                let whole = question.resource.as_str();
                Some(Value::Text(whole.split_once('/').map_or(whole, |(_, name)| name)))
            }
            Fact::User => user().map(|user| Value::Entity(Entity::User(user))),
            Fact::Issuer => user().map(|user| Value::Text(&user.issuer)),
            Fact::Subject => user().map(|user| Value::Text(&user.subject)),
            Fact::Scopes => user().map(|user| Value::Set(sets::Set::Texts(&user.scopes))),
            Fact::Attribute(name) => user().and_then(|user| user.attributes.get(&**name)).map(value_of),
            Fact::Path => request(question.path),
            Fact::Host => request(question.host),
            Fact::Header(name) if self.is_request() => question.header(name).and_then(HeaderRead::value).map(Value::Text),
            Fact::Field(name) => self.body()?.and_then(|body| body.get(&**name)).map(value_of),
            Fact::Address => Some(Value::Address(Range::only(question.address))),
            Fact::Country => question.country.known().map(|country| Value::Text(country.as_str())),
            Fact::Now => Some(Value::Datetime(i64::try_from(question.now.millis()).map_err(|_| Failure::Overflow)?)),
            Fact::Header(_) | Fact::Frame | Fact::Headers | Fact::Body => None,
        })
    }

    /// The body, if there is one with all fields that the policy's resource declares.
    fn body(&self) -> Result<Option<&'a BTreeMap<String, AttributeValue>>, Failure<'a>> {
        match (self.question.body, self.question.body_note) {
            _ if self.shape.is_empty() => Ok(None),
            (Some(body), _) if fits(body, self.shape) => Ok(Some(body)),
            (None, None) => Ok(None),
            _ => Err(Failure::Body),
        }
    }

    /// Why the body cannot be read, if there is one and it cannot.
    pub(crate) fn unreadable_body(&self) -> Option<String> {
        self.body().err()?;
        Some(match (self.question.body, self.question.body_note) {
            (Some(body), _) => unfit(body, self.shape),
            (None, note) => note.unwrap_or_default().to_owned(),
        })
    }

    /// Whether two values are equal; of different types they are not.
    pub(crate) fn equal(&self, left: Value<'a>, right: Value<'a>) -> Result<bool, Failure<'a>> {
        Ok(match (left, right) {
            (Value::Boolean(a), Value::Boolean(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::Entity(a), Value::Entity(b)) => a.is(b),
            (Value::Set(a), Value::Set(b)) => return Ok(a.contains_all(b, self)? && b.contains_all(a, self)?),
            (Value::Address(a), Value::Address(b)) => a == b,
            (Value::Long(a), Value::Long(b))
            | (Value::Decimal(a), Value::Decimal(b))
            | (Value::Datetime(a), Value::Datetime(b))
            | (Value::Duration(a), Value::Duration(b)) => a == b,
            _ => false,
        })
    }

    fn is_in(&self, left: Value<'a>, right: Value<'a>) -> Result<bool, Failure<'a>> {
        let Value::Entity(entity) = left else { return Err(Failure::Type) };
        match right {
            Value::Entity(target) => Ok(self.is_within(entity, target)),
            Value::Set(set) => set.any_entity(self, |target| self.is_within(entity, target)),
            _ => Err(Failure::Type),
        }
    }

    /// Whether an entity is another one or below it.
    fn is_within(&self, entity: Entity<'a>, target: Entity<'a>) -> bool {
        if entity.is(target) {
            return true;
        }
        let Entity::Of(kind, id) = target else { return false };
        match (entity.kind(), kind) {
            // Only the user of this very call has roles.
            (Kind::User, Kind::Role) => {
                let user = self.question.user.filter(|user| entity.is(Entity::User(user)));
                user.is_some_and(|user| user.roles.iter().any(|role| self.is_role_within(role, id)))
            }
            (Kind::Action, Kind::Action) => {
                entity.is(Entity::Of(Kind::Action, self.question.action)) && group_of(self.question.action) == Some(id)
            }
            _ => false,
        }
    }
}

impl<'a> View<'a> {
    fn is_role_within(&self, role: &str, target: &str) -> bool {
        role == target || self.roles.above(role).contains(target)
    }
}

impl Entity<'_> {
    fn kind(&self) -> Kind {
        match self {
            Self::Of(kind, _) => *kind,
            Self::User(_) => Kind::User,
        }
    }

    fn is(&self, other: Entity<'_>) -> bool {
        match (self, other) {
            (Self::Of(a, one), Entity::Of(b, two)) => *a == b && *one == two,
            (Self::User(one), Entity::User(two)) => one.issuer == two.issuer && one.subject == two.subject,
            (Self::User(user), Entity::Of(kind, id)) => kind == Kind::User && is_id_of(id, user),
            (Self::Of(kind, id), Entity::User(user)) => *kind == Kind::User && is_id_of(id, user),
        }
    }
}

/// Whether `id` is `ISSUER#SUBJECT`.
fn is_id_of(id: &str, user: &User) -> bool {
    let subject = id.strip_prefix(user.issuer.as_str()).and_then(|rest| rest.strip_prefix('#'));
    subject == Some(user.subject.as_str())
}

fn value_of(from: &AttributeValue) -> Value<'_> {
    match from {
        AttributeValue::Long(number) => Value::Long(*number),
        AttributeValue::Boolean(truth) => Value::Boolean(*truth),
        AttributeValue::String(text) => Value::Text(text),
        AttributeValue::StringSet(texts) => Value::Set(sets::Set::Texts(texts)),
    }
}

/// Whether the body has every field of the shape, of its type.
pub(crate) fn fits(body: &BTreeMap<String, AttributeValue>, shape: &BodyShape) -> bool {
    shape.iter().all(|(name, kind)| body.get(name).is_some_and(|value| type_of(value) == *kind))
}

/// What the body lacks.
fn unfit(body: &BTreeMap<String, AttributeValue>, shape: &BodyShape) -> String {
    let lacks = shape.iter().filter(|(name, kind)| body.get(*name).is_none_or(|value| type_of(value) != **kind));
    let lacks: Vec<String> = lacks.map(|(name, kind)| format!("no `{name}` of type {}", kind.as_str())).collect();
    format!("the body has {}", lacks.join(" and "))
}

fn compare<'a>(two: (Value<'a>, Value<'a>)) -> Result<std::cmp::Ordering, Failure<'a>> {
    match two {
        (Value::Long(a), Value::Long(b))
        | (Value::Datetime(a), Value::Datetime(b))
        | (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(&b)),
        _ => Err(Failure::Type),
    }
}
