//! A policy's conditions as a list: all of them must hold.

use cedar_policy::pst::{BinaryOp, Clause, Expr, UnaryOp};
use std::sync::Arc;

/// The conditions that must all hold for `clauses` to hold, in the order in which Cedar evaluates them.
///
/// `when` is split at its top-level `&&`; `unless { a || b }` becomes `!a`, `!b`. Evaluating them from left to right and
/// stopping at the first that does not hold gives exactly what the clauses give.
pub(crate) fn conjuncts(clauses: &[Clause]) -> Vec<Arc<Expr>> {
    let mut all = Vec::new();
    for clause in clauses {
        match clause {
            Clause::When(condition) => split(condition, &mut all),
            Clause::Unless(condition) => split_negated(condition, &mut all),
        }
    }
    all
}

fn split(condition: &Arc<Expr>, all: &mut Vec<Arc<Expr>>) {
    match condition.as_ref() {
        Expr::BinaryOp { op: BinaryOp::And, left, right } => {
            split(left, all);
            split(right, all);
        }
        Expr::UnaryOp { op: UnaryOp::Not, expr } => split_negated(expr, all),
        _ => all.push(Arc::clone(condition)),
    }
}

fn split_negated(condition: &Arc<Expr>, all: &mut Vec<Arc<Expr>>) {
    match condition.as_ref() {
        Expr::BinaryOp { op: BinaryOp::Or, left, right } => {
            split_negated(left, all);
            split_negated(right, all);
        }
        Expr::UnaryOp { op: UnaryOp::Not, expr } => split(expr, all),
        _ => all.push(Arc::new(Expr::UnaryOp { op: UnaryOp::Not, expr: Arc::clone(condition) })),
    }
}
