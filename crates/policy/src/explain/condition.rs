//! A policy taken apart: each part of its scope and each of its conditions as something to evaluate and to speak of.

use super::{path_text, shorten};
use crate::conjuncts::conjuncts;
use crate::reads::{Path, Reads, path_of};
use crate::slice::USER;
use cedar_policy::Expression;
use cedar_policy::pst::{
    ActionConstraint, BinaryOp, EntityOrSlot, Expr, Literal, PrincipalConstraint, ResourceConstraint, Template, UnaryOp,
};
use std::str::FromStr;

/// A policy's parts, in the order in which Cedar evaluates them.
#[derive(Debug)]
pub(crate) struct Anatomy {
    /// What the scope demands of principal, action and resource. A part that admits everything is left out.
    pub(super) scope: Vec<Condition>,
    /// The conditions: all must hold.
    pub(super) conditions: Vec<Condition>,
}

/// One part of a policy.
#[derive(Debug)]
pub(crate) struct Condition {
    /// As Cedar text.
    pub(super) text: String,
    /// To evaluate.
    pub(super) whole: Option<Expression>,
    /// The attributes that it reads.
    pub(super) reads: Vec<Path>,
    /// What it says, where there are words for it.
    pub(super) form: Form,
    /// Whether it is the opposite of `form` that must hold.
    pub(super) negated: bool,
}

/// The forms of conditions that are explained better than by their text.
#[derive(Debug)]
pub(super) enum Form {
    /// The scope's principal must be this workload.
    Principal(String),
    /// The scope's action must be one of these or in one of these groups.
    Action(Vec<String>),
    /// The scope's resource must be this service.
    Resource(String),
    /// The user must have one of these roles.
    Role(Vec<String>),
    /// The attribute at this path must be there.
    Has(Path),
    /// Two values must compare so.
    Compare(Box<Comparison>),
    /// Anything else.
    Other,
}

/// Two operands and how they compare.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) left: Operand,
    pub(super) operator: Operator,
    pub(super) right: Operand,
}

/// One side of a comparison.
#[derive(Debug)]
pub(super) struct Operand {
    /// To evaluate.
    pub(super) expression: Option<Expression>,
    /// What it shows.
    pub(super) reads: Reads,
}

/// How a comparison is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operator {
    /// `a < b`.
    Between(&'static str),
    /// `a.contains(b)`.
    Method(&'static str),
}

/// What became of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    /// It is true.
    Held,
    /// It is false.
    Failed,
    /// It reads this path, and nothing is there.
    Absent(String),
    /// Its evaluation failed otherwise.
    Errored(String),
}

impl Anatomy {
    /// Takes a policy apart.
    pub(crate) fn of(policy: &Template) -> Self {
        let parts = [principal(&policy.principal), action(&policy.action), resource(&policy.resource)];
        let scope = parts.into_iter().flatten().map(|(text, form)| Condition::of_scope(text, form)).collect();
        let conditions = conjuncts(policy.clauses()).iter().map(|conjunct| Condition::of(conjunct)).collect();
        Self { scope, conditions }
    }
}

impl Condition {
    fn of_scope(text: String, form: Form) -> Self {
        Self { whole: Expression::from_str(&text).ok(), text, reads: Vec::new(), form, negated: false }
    }

    fn of(conjunct: &Expr) -> Self {
        let (stated, negated) = match conjunct {
            Expr::UnaryOp { op: UnaryOp::Not, expr } => (expr.as_ref(), true),
            other => (other, false),
        };
        let reads = Reads::of(conjunct);
        let text = conjunct.to_string();
        Self {
            whole: Expression::from_str(&text).ok(),
            text: shorten(&text),
            // The paths that are read first are the ones whose absence is the cause.
            reads: reads.asked.into_iter().filter(|path| path.len() > 2).map(parent).chain(reads.values).collect(),
            form: form_of(stated),
            negated,
        }
    }

    /// Whether this is a plain `has` of the given path.
    pub(super) fn guards(&self, path: &str) -> bool {
        !self.negated && matches!(&self.form, Form::Has(asked) if path_text(asked) == path)
    }
}

fn parent(mut path: Path) -> Path {
    path.pop();
    path
}

fn form_of(stated: &Expr) -> Form {
    match stated {
        Expr::HasAttr { expr, attrs } => match path_of(expr) {
            Some(path) => Form::Has(path.into_iter().chain(attrs.iter().map(ToString::to_string)).collect()),
            None => Form::Other,
        },
        Expr::BinaryOp { op: BinaryOp::In, left, right } if path_of(left).is_some_and(|path| path == USER) => {
            roles(right).map_or_else(|| compare(left, Operator::Between("in"), right), Form::Role)
        }
        Expr::BinaryOp { op, left, right } => match operator(op) {
            Some(operator) => compare(left, operator, right),
            None => Form::Other,
        },
        _ => Form::Other,
    }
}

fn compare(left: &Expr, operator: Operator, right: &Expr) -> Form {
    let operand = |side: &Expr| Operand { expression: Expression::from_str(&side.to_string()).ok(), reads: Reads::of(side) };
    Form::Compare(Box::new(Comparison { left: operand(left), operator, right: operand(right) }))
}

fn operator(op: &BinaryOp) -> Option<Operator> {
    Some(match op {
        BinaryOp::Eq => Operator::Between("=="),
        BinaryOp::NotEq => Operator::Between("!="),
        BinaryOp::Less => Operator::Between("<"),
        BinaryOp::LessEq => Operator::Between("<="),
        BinaryOp::Greater => Operator::Between(">"),
        BinaryOp::GreaterEq => Operator::Between(">="),
        BinaryOp::In => Operator::Between("in"),
        BinaryOp::Contains => Operator::Method("contains"),
        BinaryOp::ContainsAll => Operator::Method("containsAll"),
        BinaryOp::ContainsAny => Operator::Method("containsAny"),
        BinaryOp::IsInRange => Operator::Method("isInRange"),
        _ => return None,
    })
}

/// The names, if `expression` is a role or a set of roles.
fn roles(expression: &Expr) -> Option<Vec<String>> {
    match expression {
        Expr::Literal(Literal::EntityUID(uid)) if uid.ty.to_string() == "Role" => Some(vec![uid.eid.to_string()]),
        Expr::Set(elements) if !elements.is_empty() => {
            let each: Option<Vec<Vec<String>>> = elements.iter().map(|element| roles(element)).collect();
            Some(each?.into_iter().flatten().collect())
        }
        _ => None,
    }
}

fn principal(constraint: &PrincipalConstraint) -> Option<(String, Form)> {
    match constraint {
        PrincipalConstraint::Any => None,
        PrincipalConstraint::Eq(EntityOrSlot::Entity(uid)) => {
            Some((format!("principal == {uid}"), Form::Principal(uid.eid.to_string())))
        }
        PrincipalConstraint::Is(kind) => Some((format!("principal is {kind}"), Form::Other)),
        PrincipalConstraint::In(EntityOrSlot::Entity(uid)) => Some((format!("principal in {uid}"), Form::Other)),
        PrincipalConstraint::IsIn(kind, EntityOrSlot::Entity(uid)) => {
            Some((format!("principal is {kind} in {uid}"), Form::Other))
        }
        // A slot: templates are refused when policies are compiled.
        _ => None,
    }
}

fn action(constraint: &ActionConstraint) -> Option<(String, Form)> {
    match constraint {
        ActionConstraint::Any => None,
        ActionConstraint::Eq(uid) => Some((format!("action == {uid}"), Form::Action(vec![uid.eid.to_string()]))),
        ActionConstraint::In(uids) => {
            let ids = uids.iter().map(|uid| uid.eid.to_string()).collect();
            let listed: Vec<String> = uids.iter().map(ToString::to_string).collect();
            let text = match listed.as_slice() {
                [one] => format!("action in {one}"),
                more => format!("action in [{}]", more.join(", ")),
            };
            Some((text, Form::Action(ids)))
        }
    }
}

fn resource(constraint: &ResourceConstraint) -> Option<(String, Form)> {
    match constraint {
        ResourceConstraint::Any => None,
        ResourceConstraint::Eq(EntityOrSlot::Entity(uid)) => {
            Some((format!("resource == {uid}"), Form::Resource(uid.eid.to_string())))
        }
        ResourceConstraint::Is(kind) => Some((format!("resource is {kind}"), Form::Other)),
        ResourceConstraint::In(EntityOrSlot::Entity(uid)) => Some((format!("resource in {uid}"), Form::Other)),
        ResourceConstraint::IsIn(kind, EntityOrSlot::Entity(uid)) => Some((format!("resource is {kind} in {uid}"), Form::Other)),
        // A slot: templates are refused when policies are compiled.
        _ => None,
    }
}
