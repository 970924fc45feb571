//! The explanation in words.

use super::condition::{Condition, Form, Holding, Operator};
use super::{Finding, Views, listed, path_text};
use crate::compile::Rule;
use crate::slice::{BODY, USER};
use crate::vocabulary::ACTIONS;
use cedar_policy::Effect;
use model::decision::{Decision, Effect as Verdict, Outcome};
use model::ids::printable;
use model::reason::Reason;

/// LIMIT: conditions that one sentence names; the others are counted.
const NAMED_MAX: usize = 6;

/// What would have turned the answer; `None` if that is no one thing.
pub(super) fn nearest_miss(views: &Views<'_>, findings: &[Finding<'_>], decision: &Decision) -> Option<String> {
    if decision.effect == Verdict::Allow {
        return nearest_denial(views, findings);
    }
    Some(match decision.reason {
        Some(Reason::DeniedByPolicy) => forbidden(views, findings),
        Some(Reason::PolicyError) => failed(findings),
        _ => nearest_permit(views, findings),
    })
}

/// What would have denied an allowed call: a condition of the only permit that allows it, or what the nearest forbid asks for.
fn nearest_denial(views: &Views<'_>, findings: &[Finding<'_>]) -> Option<String> {
    let mut permits = findings.iter().filter(|found| found.rule.effect == Effect::Permit && found.outcome == Outcome::Applied);
    let only = permits.next().filter(|found| permits.next().is_none() && !found.conditions.is_empty());
    let rests = only.map(|found| {
        let mut why: Vec<String> =
            found.conditions.iter().take(NAMED_MAX).map(|(condition, _)| views.with_values(found.rule, condition)).collect();
        why.extend((found.conditions.len() > NAMED_MAX).then(|| "another of its conditions".to_owned()));
        format!("would be denied without {}: {} alone allows it", or(&why), found.rule.id)
    });
    let forbids = findings.iter().filter(|found| found.rule.effect == Effect::Forbid && found.outcome == Outcome::NotApplied);
    let near = forbids.filter(|found| unmet(&found.scope) == 0).min_by_key(|found| unmet(&found.conditions));
    let near = near.map(|found| (found, wishes(views, found))).filter(|(_, wishes)| !wishes.is_empty());
    let near = near.map(|(found, wishes)| format!("would be forbidden by {} if {}", found.rule.id, and(&wishes)));
    match (rests, near) {
        (Some(rests), Some(near)) => Some(format!("{rests}; {near}")),
        (one, other) => one.or(other),
    }
}

/// How many of these did not hold.
fn unmet(part: &[(&Condition, Holding)]) -> usize {
    part.iter().filter(|(_, holding)| *holding != Holding::Held).count()
}

fn forbidden(views: &Views<'_>, findings: &[Finding<'_>]) -> String {
    let applied = findings.iter().filter(|found| found.rule.effect == Effect::Forbid && found.outcome == Outcome::Applied);
    let each = applied.map(|found| {
        let why: Vec<String> = found.conditions.iter().map(|(condition, _)| views.with_values(found.rule, condition)).collect();
        let because = if why.is_empty() { "it has no conditions".to_owned() } else { and(&why) };
        format!("{} ({}) because {because}", found.rule.id, found.rule.position)
    });
    let each: Vec<String> = each.collect();
    if each.is_empty() {
        return "forbidden by a policy that is not listed".to_owned();
    }
    format!("forbidden by {}; {}", each.join("; by "), otherwise(views, findings))
}

/// What the answer would be if nothing forbade the call.
fn otherwise(views: &Views<'_>, findings: &[Finding<'_>]) -> String {
    let mut permits = findings.iter().filter(|found| found.rule.effect == Effect::Permit);
    match permits.find(|found| found.outcome == Outcome::Applied) {
        Some(found) => format!("{} would allow it otherwise", found.rule.id),
        None => format!("without that it would not be permitted either: {}", nearest_permit(views, findings)),
    }
}

fn failed(findings: &[Finding<'_>]) -> String {
    let errored = findings.iter().filter(|found| found.outcome == Outcome::Errored);
    let each: Vec<String> = errored
        .map(|found| {
            let id = &found.rule.id;
            format!("{id} ({}) failed: {}", found.rule.position, found.error.as_deref().unwrap_or("unknown"))
        })
        .collect();
    if each.is_empty() { "denied because a policy failed".to_owned() } else { format!("denied because {}", each.join("; ")) }
}

/// The permit with the fewest unmet parts. One whose scope is met comes first: one for another caller or another method
/// speaks of another call.
fn nearest_permit(views: &Views<'_>, findings: &[Finding<'_>]) -> String {
    let action = &views.request.action;
    if !views.knows_action() {
        let known: Vec<&str> = ACTIONS.iter().map(|(known, _)| *known).collect();
        return format!("the method `{}` is none that policies can allow: {}", printable(action), known.join(", "));
    }
    let permits = findings.iter().filter(|found| found.rule.effect == Effect::Permit && found.outcome != Outcome::Applied);
    let Some(nearest) = permits.min_by_key(|found| (unmet(&found.scope), unmet(&found.conditions))) else {
        return "no permit policy selects this workload".to_owned();
    };
    let wishes = wishes(views, nearest);
    if wishes.is_empty() {
        return format!("{} holds now, so the decision was made for other facts or by other policies", nearest.rule.id);
    }
    format!("would be allowed by {} if {}", nearest.rule.id, and(&wishes))
}

/// What would have to be so, and is not. Conditions on something that is absent as a whole are counted, not listed.
fn wishes(views: &Views<'_>, found: &Finding<'_>) -> Vec<String> {
    let mut wishes = Vec::new();
    let mut implied = 0_usize;
    let guarded =
        |path: &str| found.conditions.iter().any(|(condition, holding)| *holding != Holding::Held && condition.guards(path));
    for (condition, holding) in found.scope.iter().chain(&found.conditions) {
        match holding {
            Holding::Held => {}
            Holding::Absent(path) if guarded(path) && !matches!(condition.form, Form::Role(_)) => implied += 1,
            _ if wishes.len() >= NAMED_MAX => implied += 1,
            _ => wishes.push(views.wish(found.rule, condition, holding)),
        }
    }
    match implied {
        0 => {}
        1 => wishes.push("1 more condition held".to_owned()),
        more => wishes.push(format!("{more} more conditions held")),
    }
    wishes
}

impl Views<'_> {
    /// A condition that did not hold, in source text with its values.
    pub(super) fn line(&self, rule: &Rule, condition: &Condition, holding: &Holding) -> String {
        let text = &condition.text;
        let truth = condition.negated;
        match (holding, &condition.form) {
            (Holding::Absent(path), _) => format!("{text}: {path} is absent"),
            (Holding::Errored(error), _) => format!("{text}: {error}"),
            (_, Form::Principal(_)) => format!("{text}: it is {}", self.request.principal),
            (_, Form::Action(_)) => format!("{text}: it is {}", printable(&self.request.action)),
            (_, Form::Resource(_)) => format!("{text}: it is {}", self.request.resource),
            (_, Form::Role(_)) => format!("{text}: {}", self.roles()),
            (_, Form::Has(path)) if truth => format!("{text}: {} is there", path_text(path)),
            (_, Form::Has(path)) if path == &BODY => format!("{text}: {} is absent: {}", path_text(path), self.body_note(rule)),
            (_, Form::Has(path)) => format!("{text}: {} is absent", path_text(path)),
            (_, Form::Compare(_) | Form::Other) => match self.values(rule, condition) {
                Some(values) => format!("{text}: {values} is {truth}"),
                None => format!("{text}: is false"),
            },
        }
    }

    /// A condition with its values behind it.
    fn with_values(&self, rule: &Rule, condition: &Condition) -> String {
        match (&condition.form, self.values(rule, condition)) {
            (Form::Role(_), _) => format!("{} ({})", condition.text, self.roles()),
            (Form::Compare(_) | Form::Other, Some(values)) => format!("{} ({values})", condition.text),
            _ => condition.text.clone(),
        }
    }

    /// What would have to be so: the second half of `would be allowed if …`.
    fn wish(&self, rule: &Rule, condition: &Condition, holding: &Holding) -> String {
        let request = self.request;
        let text = &condition.text;
        match &condition.form {
            Form::Principal(id) => format!("the caller were {id} (it is {})", request.principal),
            Form::Action(ids) => {
                format!("the method were {} (it is {})", or(&methods(ids)), printable(&request.action))
            }
            Form::Resource(id) => format!("the called service were {id} (it is {})", request.resource),
            Form::Role(roles) => self.role_wish(roles, condition.negated),
            Form::Has(path) if condition.negated => format!("{} were absent", path_text(path)),
            Form::Has(path) if path == &USER => "the call carried a user's token".to_owned(),
            Form::Has(path) if path == &BODY => format!("the request had a body that can be read ({})", self.body_note(rule)),
            Form::Has(path) => match path.split_last() {
                Some((name, above)) if above == USER => format!("the user had the attribute `{name}`"),
                Some((name, above)) if above == ["context", "source"] && name == "country" => {
                    "the country of the call were known".to_owned()
                }
                _ => format!("{} were there", path_text(path)),
            },
            Form::Compare(_) | Form::Other => match (holding, self.values(rule, condition)) {
                (Holding::Absent(path), _) => format!("{text} ({path} is absent)"),
                (Holding::Errored(error), _) => format!("{text} ({error})"),
                (_, Some(values)) => format!("{text} ({values})"),
                (_, None) => text.clone(),
            },
        }
    }

    fn role_wish(&self, roles: &[String], negated: bool) -> String {
        let verb = if negated { "did not have" } else { "had" };
        let roles = match roles {
            [one] => format!("the role {}", printable(one)),
            more => format!("one of the roles {}", listed(more)),
        };
        match self.request.user {
            Some(_) => format!("the user {verb} {roles} ({})", self.roles()),
            None => format!("the user {verb} {roles}"),
        }
    }

    /// `5000 <= 1000`, or `context.request.path = "/x"` for what is no comparison.
    fn values(&self, rule: &Rule, condition: &Condition) -> Option<String> {
        if let Form::Compare(comparison) = &condition.form {
            let left = self.operand(rule, &comparison.left)?;
            let right = self.operand(rule, &comparison.right)?;
            return Some(match comparison.operator {
                Operator::Between(symbol) => format!("{left} {symbol} {right}"),
                Operator::Method(name) => format!("{left}.{name}({right})"),
            });
        }
        let read = condition.reads.iter().filter(|path| path.len() > 1);
        let each = read.map(|path| {
            let value = self.value(rule, path).unwrap_or_else(|| "(absent)".to_owned());
            format!("{} = {value}", path_text(path))
        });
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| each.join(", "))
    }
}

/// The methods that a list of actions and groups stands for.
fn methods(ids: &[String]) -> Vec<String> {
    let stands_for = |id: &String| -> Vec<String> {
        let members = ACTIONS.iter().filter(|(_, group)| *group == Some(id.as_str())).map(|(action, _)| (*action).to_owned());
        let members: Vec<String> = members.collect();
        if members.is_empty() { vec![id.clone()] } else { members }
    };
    ids.iter().flat_map(stands_for).collect()
}

fn and(parts: &[String]) -> String {
    enumerated(parts, " and ")
}

fn or(parts: &[String]) -> String {
    enumerated(parts, " or ")
}

/// `a, b and c`.
fn enumerated(parts: &[String], last: &str) -> String {
    match parts.split_last() {
        Some((end, [])) => end.clone(),
        Some((end, before)) => format!("{}{last}{end}", before.join(", ")),
        None => String::new(),
    }
}
