//! Which attributes an expression reads, as paths from a variable: `context.user.limit`.

use crate::slice::USER;
use cedar_policy::pst::{Expr, Literal, Var};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A path of attribute names, beginning with `principal`, `action`, `resource` or `context`.
pub(crate) type Path = Vec<String>;

/// The attributes that some expressions read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    /// Every value that is read, by its longest path. `[context]` alone: the whole context.
    pub(crate) values: BTreeSet<Path>,
    /// Every attribute that a `has` asks for.
    pub(crate) asked: BTreeSet<Path>,
    /// Whether an attribute of something that is not named by a path is read: `(if a then principal else b).id`.
    pub(crate) opaque: bool,
}

impl Reads {
    /// Collects what `expression` reads.
    pub(crate) fn of(expression: &Expr) -> Self {
        let mut reads = Self::default();
        reads.add(expression);
        reads
    }

    /// Adds what `expression` reads.
    pub(crate) fn add(&mut self, expression: &Expr) {
        if let Some(path) = path_of(expression) {
            self.values.insert(path);
            return;
        }
        match expression {
            // A user that is written out has attributes and roles if it is the user of the call.
            Expr::Literal(Literal::EntityUID(uid)) if uid.ty.0.id.as_str() == "User" => {
                self.values.insert(USER.map(str::to_owned).to_vec());
            }
            Expr::HasAttr { expr, attrs } => {
                let Some(mut path) = path_of(expr) else {
                    self.opaque = true;
                    return self.add(expr);
                };
                for attribute in attrs {
                    path.push(attribute.to_string());
                    self.asked.insert(path.clone());
                }
            }
            Expr::GetAttr { expr, .. } => {
                self.opaque = true;
                self.add(expr);
            }
            _ => children(expression).into_iter().for_each(|child| self.add(child)),
        }
    }

    /// Whether anything at, above or below `path` is read or asked for.
    pub(crate) fn touch(&self, path: &[&str]) -> bool {
        self.opaque || self.all().any(|read| read.iter().zip(path).all(|(a, b)| a == b))
    }

    /// Whether the value at `path` is read or asked for, by itself or as a part of more. To ask whether there is more does not count.
    pub(crate) fn see(&self, path: &[&str]) -> bool {
        self.opaque
            || self.values.iter().any(|read| read.iter().zip(path).all(|(a, b)| a == b))
            || self.asked.iter().any(|asked| starts_with(asked, path))
    }

    /// Whether an attribute below `path` is read or asked for. Mentioning `path` itself does not count.
    pub(crate) fn touch_below(&self, path: &[&str]) -> bool {
        self.opaque || self.all().any(|read| read.len() > path.len() && starts_with(read, path))
    }

    /// Whether `path`, or an attribute below it, is named.
    pub(crate) fn name(&self, path: &[&str]) -> bool {
        self.all().any(|read| starts_with(read, path))
    }

    /// The names of the attributes directly below `path` that are read or asked for, some of them twice.
    pub(crate) fn names_below<'a>(&'a self, path: &'a [&str]) -> impl Iterator<Item = &'a String> {
        self.all().filter(|read| starts_with(read, path)).filter_map(|read| read.get(path.len()))
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        self.values.iter().chain(&self.asked)
    }

    /// Takes in what `other` reads.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.values.extend(other.values.iter().cloned());
        self.asked.extend(other.asked.iter().cloned());
        self.opaque |= other.opaque;
    }
}

fn starts_with(read: &Path, path: &[&str]) -> bool {
    read.len() >= path.len() && read.iter().zip(path).all(|(a, b)| a == b)
}

/// The path of a variable or of a chain of attribute accesses that begins at one.
pub(crate) fn path_of(expression: &Expr) -> Option<Path> {
    match expression {
        Expr::Var(variable) => Some(vec![variable_name(variable).to_owned()]),
        Expr::GetAttr { expr, attr } => {
            let mut path = path_of(expr)?;
            path.push(attr.to_string());
            Some(path)
        }
        _ => None,
    }
}

fn variable_name(variable: &Var) -> &'static str {
    match variable {
        Var::Principal => "principal",
        Var::Action => "action",
        Var::Resource => "resource",
        Var::Context => "context",
    }
}

/// The direct subexpressions.
pub(crate) fn children(expression: &Expr) -> Vec<&Arc<Expr>> {
    match expression {
        Expr::UnaryOp { expr, .. } | Expr::GetAttr { expr, .. } | Expr::HasAttr { expr, .. } | Expr::Like { expr, .. } => {
            vec![expr]
        }
        Expr::BinaryOp { left, right, .. } => vec![left, right],
        Expr::Is { expr, in_expr, .. } => std::iter::once(expr).chain(in_expr).collect(),
        Expr::IfThenElse { cond, then_expr, else_expr } => vec![cond, then_expr, else_expr],
        Expr::Set(elements) => elements.iter().collect(),
        Expr::Record(fields) => fields.values().collect(),
        // `Expr` is non-exhaustive. What is left has no subexpressions in the features that we build Cedar with.
        _ => Vec::new(),
    }
}
