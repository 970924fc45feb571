//! From Cedar's tree to code.

use super::code::{Arithmetic, Binary, Code, Fact, Kind, Pattern, Unary};
use super::constant;
use crate::reads::path_of;
use crate::vocabulary::BodyShape;
use cedar_policy::pst::{BinaryOp, EntityOrSlot, EntityType, EntityUID, Expr, Literal, PatternElem, UnaryOp};
use cedar_policy::pst::{PrincipalConstraint, ResourceConstraint};
use model::authz::AttributeType;
use std::collections::BTreeMap;

/// What the names in a policy can stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The declared user attributes.
    pub(crate) attributes: &'a BTreeMap<String, AttributeType>,
    /// The declared body fields.
    pub(crate) shape: &'a BodyShape,
}

impl Names<'_> {
    /// The code of a condition; `None` if some part of it has no translation.
    pub(crate) fn code(&self, expression: &Expr) -> Option<Code> {
        match expression {
            Expr::Literal(literal) => literal_code(literal),
            Expr::Var(_) | Expr::GetAttr { .. } => match self.fact(&path_of(expression)?)? {
                Fact::Frame | Fact::Headers | Fact::Body => None,
                fact => Some(Code::Fact(fact)),
            },
            Expr::HasAttr { expr, attrs } => {
                let mut path = path_of(expr)?;
                let of = self.fact(&path)?;
                let mut facts = Vec::new();
                for attribute in attrs {
                    path.push(attribute.to_string());
                    facts.push(self.fact(&path)?);
                }
                Some(Code::Has { of, facts: facts.into() })
            }
            Expr::UnaryOp { op, expr } => self.unary(*op, expr),
            Expr::BinaryOp { op, left, right } => self.binary(*op, left, right),
            Expr::Like { expr, pattern: elements } => Some(Code::Like(self.boxed(expr)?, pattern(elements))),
            Expr::Is { expr, entity_type, in_expr } => {
                let is = Code::Is(self.boxed(expr)?, kind(entity_type)?);
                match in_expr {
                    None => Some(is),
                    Some(within) => Some(Code::And([is, self.within(expr, within)?].into())),
                }
            }
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                Some(Code::If(Box::new([self.code(cond)?, self.code(then_expr)?, self.code(else_expr)?])))
            }
            Expr::Set(elements) => {
                let elements: Vec<Code> = elements.iter().map(|element| self.code(element)).collect::<Option<_>>()?;
                Some(set(elements))
            }
            // Records as values, slots, tags, and whatever Cedar learns one day.
            _ => None,
        }
    }

    /// The scope's demands on principal and resource as conditions. A principal that is named is not among them: the index leads only
    /// that principal to the policy.
    pub(crate) fn scope(&self, principal: &PrincipalConstraint, resource: &ResourceConstraint) -> Option<Vec<Code>> {
        let mut all = Vec::new();
        let entity = |of: &EntityOrSlot| match of {
            EntityOrSlot::Entity(uid) => entity(uid),
            EntityOrSlot::Slot(_) => None,
        };
        let is = |fact, kind| Code::Is(Box::new(Code::Fact(fact)), kind);
        let two = |fact, code| Box::new([Code::Fact(fact), code]);
        match principal {
            PrincipalConstraint::Any => {}
            PrincipalConstraint::Eq(of) => matches!(entity(of)?, Code::Entity(Kind::Workload, _)).then_some(())?,
            PrincipalConstraint::In(of) => all.push(Code::In(two(Fact::Principal, entity(of)?))),
            PrincipalConstraint::Is(of) => all.push(is(Fact::Principal, kind(of)?)),
            PrincipalConstraint::IsIn(of, within) => {
                all.extend([is(Fact::Principal, kind(of)?), Code::In(two(Fact::Principal, entity(within)?))]);
            }
        }
        match resource {
            ResourceConstraint::Any => {}
            ResourceConstraint::Eq(of) => all.push(Code::Equal(two(Fact::Resource, entity(of)?))),
            ResourceConstraint::In(of) => all.push(Code::In(two(Fact::Resource, entity(of)?))),
            ResourceConstraint::Is(of) => all.push(is(Fact::Resource, kind(of)?)),
            ResourceConstraint::IsIn(of, within) => {
                all.extend([is(Fact::Resource, kind(of)?), Code::In(two(Fact::Resource, entity(within)?))]);
            }
        }
        Some(all)
    }

    fn boxed(&self, expression: &Expr) -> Option<Box<Code>> {
        self.code(expression).map(Box::new)
    }

    fn two(&self, left: &Expr, right: &Expr) -> Option<Box<[Code; 2]>> {
        Some(Box::new([self.code(left)?, self.code(right)?]))
    }

    fn unary(&self, operator: UnaryOp, operand: &Expr) -> Option<Code> {
        let method = match operator {
            UnaryOp::Not => return Some(Code::Not(self.boxed(operand)?)),
            UnaryOp::Neg => return Some(Code::Negate(self.boxed(operand)?)),
            UnaryOp::IsEmpty => return Some(Code::IsEmpty(self.boxed(operand)?)),
            UnaryOp::Ip | UnaryOp::Decimal | UnaryOp::Datetime | UnaryOp::Duration => match operand {
                Expr::Literal(Literal::String(text)) => return constant::of(operator, text),
                _ => return None,
            },
            UnaryOp::IsIPv4 => Unary::IsIpv4,
            UnaryOp::IsIPV6 => Unary::IsIpv6,
            UnaryOp::IsLoopback => Unary::IsLoopback,
            UnaryOp::IsMulticast => Unary::IsMulticast,
            UnaryOp::ToDate => Unary::ToDate,
            UnaryOp::ToTime => Unary::ToTime,
            UnaryOp::ToMilliseconds => Unary::ToMilliseconds,
            UnaryOp::ToSeconds => Unary::ToSeconds,
            UnaryOp::ToMinutes => Unary::ToMinutes,
            UnaryOp::ToHours => Unary::ToHours,
            UnaryOp::ToDays => Unary::ToDays,
            _ => return None,
        };
        Some(Code::Unary(method, self.boxed(operand)?))
    }

    fn binary(&self, operator: BinaryOp, left: &Expr, right: &Expr) -> Option<Code> {
        let two = || self.two(left, right);
        let method = match operator {
            BinaryOp::And => return Some(Code::And([self.code(left)?, self.code(right)?].into())),
            BinaryOp::Or => return Some(Code::Or([self.code(left)?, self.code(right)?].into())),
            BinaryOp::Eq => return self.equal(left, right),
            BinaryOp::NotEq => return Some(Code::Not(Box::new(self.equal(left, right)?))),
            BinaryOp::Less => return Some(Code::Less(two()?)),
            BinaryOp::LessEq => return Some(Code::LessOrEqual(two()?)),
            // As Cedar does: the opposite of the other comparison, with the operands where they are.
            BinaryOp::Greater => return Some(Code::Not(Box::new(Code::LessOrEqual(two()?)))),
            BinaryOp::GreaterEq => return Some(Code::Not(Box::new(Code::Less(two()?)))),
            BinaryOp::Add => return Some(Code::Arithmetic(Arithmetic::Add, two()?)),
            BinaryOp::Sub => return Some(Code::Arithmetic(Arithmetic::Subtract, two()?)),
            BinaryOp::Mul => return Some(Code::Arithmetic(Arithmetic::Multiply, two()?)),
            BinaryOp::In => return self.within(left, right),
            BinaryOp::Contains => return Some(Code::Contains(two()?)),
            BinaryOp::ContainsAll => return Some(Code::ContainsAll(two()?)),
            BinaryOp::ContainsAny => return Some(Code::ContainsAny(two()?)),
            BinaryOp::IsInRange => Binary::IsInRange,
            BinaryOp::Offset => Binary::Offset,
            BinaryOp::DurationSince => Binary::DurationSince,
            BinaryOp::DecimalLessThan => Binary::DecimalLess,
            BinaryOp::DecimalLessEq => Binary::DecimalLessOrEqual,
            BinaryOp::DecimalGreater => Binary::DecimalGreater,
            BinaryOp::DecimalGreaterEq => Binary::DecimalGreaterOrEqual,
            _ => return None,
        };
        Some(Code::Binary(method, two()?))
    }

    fn equal(&self, left: &Expr, right: &Expr) -> Option<Code> {
        let two = self.two(left, right)?;
        Some(match *two {
            [Code::Fact(fact), Code::Text(text)] | [Code::Text(text), Code::Fact(fact)] => Code::Says(fact, text),
            two => Code::Equal(Box::new(two)),
        })
    }

    /// `left in right`. Only what the question shows has parents here: an entity that a policy writes out is left to the reference.
    fn within(&self, left: &Expr, right: &Expr) -> Option<Code> {
        let Code::Fact(fact) = self.code(left)? else { return None };
        let right = self.code(right)?;
        let roles: Option<Vec<Box<str>>> = match &right {
            Code::Entity(Kind::Role, role) => Some(vec![role.clone()]),
            Code::Set(elements) => elements.iter().map(role).collect(),
            _ => None,
        };
        Some(match (fact, roles) {
            (Fact::User, Some(roles)) => Code::UserIn(roles.into()),
            (fact, _) => Code::In(Box::new([Code::Fact(fact), right])),
        })
    }

    fn fact(&self, path: &[String]) -> Option<Fact> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        Some(match path.as_slice() {
            ["principal"] => Fact::Principal,
            ["principal", "id"] => Fact::PrincipalId,
            ["principal", "trust_domain"] => Fact::TrustDomain,
            ["principal", "namespace"] => Fact::Namespace,
            ["principal", "account"] => Fact::Account,
            ["action"] => Fact::Action,
            ["resource"] => Fact::Resource,
            ["resource", "namespace"] => Fact::ResourceNamespace,
            ["resource", "name"] => Fact::ResourceName,
            ["context"] | ["context", "request"] | ["context", "source"] => Fact::Frame,
            ["context", "now"] => Fact::Now,
            ["context", "source", "address"] => Fact::Address,
            ["context", "source", "country"] => Fact::Country,
            ["context", "user"] => Fact::User,
            ["context", "user", "issuer"] => Fact::Issuer,
            ["context", "user", "subject"] => Fact::Subject,
            ["context", "user", "scopes"] => Fact::Scopes,
            ["context", "user", name] if self.attributes.contains_key(*name) => Fact::Attribute((*name).into()),
            ["context", "request", "path"] => Fact::Path,
            ["context", "request", "host"] => Fact::Host,
            ["context", "request", "headers"] => Fact::Headers,
            ["context", "request", "headers", name] => Fact::Header((*name).into()),
            ["context", "request", "body"] => Fact::Body,
            ["context", "request", "body", name] if self.shape.contains_key(*name) => Fact::Field((*name).into()),
            _ => return None,
        })
    }
}

fn literal_code(literal: &Literal) -> Option<Code> {
    Some(match literal {
        Literal::Bool(truth) => Code::Boolean(*truth),
        Literal::Long(number) => Code::Long(*number),
        Literal::String(text) => Code::Text(text.as_str().into()),
        Literal::EntityUID(uid) => entity(uid)?,
        _ => return None,
    })
}

fn entity(uid: &EntityUID) -> Option<Code> {
    Some(Code::Entity(kind(&uid.ty)?, uid.eid.as_str().into()))
}

fn kind(of: &EntityType) -> Option<Kind> {
    if !of.0.namespace.is_empty() {
        return None;
    }
    Some(match of.0.id.as_str() {
        "Workload" => Kind::Workload,
        "Service" => Kind::Service,
        "User" => Kind::User,
        "Role" => Kind::Role,
        "Action" => Kind::Action,
        "Namespace" => Kind::Namespace,
        _ => return None,
    })
}

fn role(code: &Code) -> Option<Box<str>> {
    if let Code::Entity(Kind::Role, role) = code { Some(role.clone()) } else { None }
}

/// Texts alone are sorted, so that one is found without a walk.
fn set(elements: Vec<Code>) -> Code {
    let text = |code: &Code| if let Code::Text(text) = code { Some(text.clone()) } else { None };
    match elements.iter().map(text).collect::<Option<Vec<_>>>() {
        Some(mut texts) => {
            texts.sort();
            texts.dedup();
            Code::Texts(texts.into())
        }
        None => Code::Set(elements.into()),
    }
}

fn pattern(elements: &[PatternElem]) -> Pattern {
    let mut pieces = vec![String::new()];
    for element in elements {
        match (element, pieces.last_mut()) {
            (PatternElem::Char(c), Some(piece)) => piece.push(*c),
            _ => pieces.push(String::new()),
        }
    }
    Pattern { pieces: pieces.into_iter().map(String::into_boxed_str).collect() }
}
