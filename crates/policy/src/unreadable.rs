//! What a policy comes to for a call whose body is there and cannot be read: reading it, and asking for it, fails.

use crate::reads::path_of;
use crate::slice::BODY;
use cedar_policy::Policy;
use cedar_policy::pst::{self, BinaryOp, Clause, Expr, Literal, Template};
use std::sync::Arc;

/// The same policy with an expression that always fails in every place that looks at the body.
///
/// # Errors
/// - Cedar's text; never for a policy that Cedar itself took.
pub(crate) fn with_unreadable_body(policy: &Template) -> Result<Template, String> {
    let clauses = policy.clauses().iter().map(|clause| match clause {
        Clause::When(condition) => Clause::When(rewritten(condition)),
        Clause::Unless(condition) => Clause::Unless(rewritten(condition)),
    });
    let (principal, action, resource) = (policy.principal.clone(), policy.action.clone(), policy.resource.clone());
    pst::Template::new(policy.id.clone(), policy.effect, principal, action, resource)
        .try_with_clauses(clauses)
        .map_err(|error| error.to_string())
}

/// What Cedar evaluates.
///
/// # Errors
/// - Cedar's text; never for a policy that Cedar itself took.
pub(crate) fn to_policy(template: Template) -> Result<Policy, String> {
    let policy = pst::StaticPolicy::try_from(template).map_err(|error| error.to_string())?;
    Policy::from_pst(policy.into()).map_err(|error| error.to_string())
}

fn rewritten(expression: &Arc<Expr>) -> Arc<Expr> {
    if let Some(path) = path_of(expression) {
        // A part of the body, or something that the body is a part of.
        let meets = path.iter().zip(BODY).all(|(a, b)| a == b);
        return if meets { failing() } else { Arc::clone(expression) };
    }
    let again = |each: &Arc<Expr>| rewritten(each);
    Arc::new(match expression.as_ref() {
        Expr::HasAttr { expr, attrs } => match path_of(expr) {
            Some(base) => {
                let asked: Vec<&str> = base.iter().map(String::as_str).chain(attrs.iter().map(|name| name.as_str())).collect();
                return if asked.starts_with(&BODY) { failing() } else { Arc::clone(expression) };
            }
            None => Expr::HasAttr { expr: again(expr), attrs: attrs.clone() },
        },
        Expr::GetAttr { expr, attr } => Expr::GetAttr { expr: again(expr), attr: attr.clone() },
        Expr::UnaryOp { op, expr } => Expr::UnaryOp { op: *op, expr: again(expr) },
        Expr::BinaryOp { op, left, right } => Expr::BinaryOp { op: *op, left: again(left), right: again(right) },
        Expr::Like { expr, pattern } => Expr::Like { expr: again(expr), pattern: pattern.clone() },
        Expr::Is { expr, entity_type, in_expr } => {
            Expr::Is { expr: again(expr), entity_type: entity_type.clone(), in_expr: in_expr.as_ref().map(again) }
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            Expr::IfThenElse { cond: again(cond), then_expr: again(then_expr), else_expr: again(else_expr) }
        }
        Expr::Set(elements) => Expr::Set(elements.iter().map(again).collect()),
        Expr::Record(fields) => Expr::Record(fields.iter().map(|(name, field)| (name.clone(), again(field))).collect()),
        other => other.clone(),
    })
}

/// Overflows whenever it is evaluated.
fn failing() -> Arc<Expr> {
    let long = |number| Arc::new(Expr::Literal(Literal::Long(number)));
    Arc::new(Expr::BinaryOp { op: BinaryOp::Add, left: long(i64::MAX), right: long(1) })
}
