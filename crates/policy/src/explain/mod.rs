//! Why a decision came out as it did: every condition by itself, with the values that it read.

mod condition;
mod words;

pub(crate) use condition::Anatomy;

use crate::compile::{Policies, Rule};
use crate::compiled::evaluate::View;
use crate::conceal::REDACTED;
use crate::country::{self, COUNTRY};
use crate::facts::{self, Facts, Setting};
use crate::headers::{self, HEADERS};
use crate::reads::Path;
use crate::slice::Wants;
use crate::unreadable::{to_policy, with_unreadable_body};
use crate::vocabulary::BodyShape;
use cedar_policy::{AuthorizationError, Entity, EvalResult, Expression, PolicySet, eval_expression};
use condition::{Condition, Holding, Operand};
use model::authz::{AuthzRequest, Question};
use model::decision::{Decision, Explanation, Outcome, PolicyOutcome};
use model::ids::printable;
use std::collections::BTreeMap;
use std::str::FromStr;

/// LIMIT: policies of one explanation. More would not be read, and would not fit a record.
const POLICIES_MAX: usize = 200;
/// LIMIT: attributes of one explanation.
const ATTRIBUTES_MAX: usize = 200;
/// LIMIT: characters of one value. A path or a claim can be long.
const VALUE_CHARACTERS_MAX: usize = 300;
/// LIMIT: role names of one list.
const NAMES_MAX: usize = 12;

/// Explains a decision that [`crate::decide`] made with these policies for this request.
///
/// Every policy is taken apart into its scope and its conditions, and each is evaluated by itself with the reference
/// evaluator. A condition that reads something absent did not hold. Beyond 200 policies those that determined the
/// decision or admit the action are kept. Cost: some hundred microseconds per policy at first, tens later; never needed
/// to decide.
pub fn explain(policies: &Policies, request: &AuthzRequest, decision: &Decision) -> Explanation {
    let views = Views::new(policies, request);
    let findings: Vec<Finding<'_>> = selected(policies, request, decision).into_iter().map(|rule| views.find(rule)).collect();
    Explanation {
        attributes: views.attributes(&findings),
        nearest_miss: words::nearest_miss(&views, &findings, decision),
        policies: findings.iter().map(|finding| finding.outcome(&views)).collect(),
    }
}

fn selected<'a>(policies: &'a Policies, request: &AuthzRequest, decision: &Decision) -> Vec<&'a Rule> {
    let rules: Vec<&Rule> = policies.rules.iter().collect();
    if rules.len() <= POLICIES_MAX {
        return rules;
    }
    let group = crate::vocabulary::group_of(&request.action);
    let weight = |rule: &&Rule| match rule {
        rule if decision.determining.contains(&rule.id) => 0,
        rule if crate::slice::admits(&rule.body.action, &request.action, group) => 1,
        _ => 2,
    };
    let mut ranked: Vec<(usize, &Rule)> = rules.into_iter().enumerate().collect();
    ranked.sort_by_key(|(at, rule)| (weight(rule), *at));
    ranked.truncate(POLICIES_MAX);
    ranked.sort_by_key(|(at, _)| *at);
    ranked.into_iter().map(|(_, rule)| rule).collect()
}

/// One policy with what became of it.
struct Finding<'a> {
    rule: &'a Rule,
    outcome: Outcome,
    /// What failed in the policy as a whole, if it errored.
    error: Option<String>,
    scope: Vec<(&'a Condition, Holding)>,
    conditions: Vec<(&'a Condition, Holding)>,
}

impl Finding<'_> {
    fn outcome(&self, views: &Views<'_>) -> PolicyOutcome {
        let unknown = (!views.knows_action()).then(|| format!("the method `{}` is not known", printable(&views.request.action)));
        let unmet = self.scope.iter().chain(&self.conditions).filter(|(_, holding)| *holding != Holding::Held);
        let failed = match (self.outcome, &self.error) {
            (Outcome::Applied, _) => Vec::new(),
            (Outcome::Errored, Some(error)) => vec![error.clone()],
            _ => unknown.into_iter().chain(unmet.map(|(condition, holding)| views.line(self.rule, condition, holding))).collect(),
        };
        PolicyOutcome {
            id: self.rule.id.clone(),
            kind: self.rule.effect.to_string(),
            position: self.rule.position.clone(),
            outcome: self.outcome,
            failed,
        }
    }
}

/// The request as policies with each body shape see it.
struct Views<'a> {
    policies: &'a Policies,
    request: &'a AuthzRequest,
    question: Question<'a>,
    by_shape: BTreeMap<&'a BodyShape, Result<Facts, String>>,
    /// The headers that the decision failed on, with the reason.
    flaws: Vec<(&'a str, String)>,
}

impl<'a> Views<'a> {
    fn new(policies: &'a Policies, request: &'a AuthzRequest) -> Self {
        let action = match policies.actions.get(request.action.as_str()) {
            Some(known) => known.entity.clone(),
            None => Entity::with_uid(policies.names.action(&request.action)),
        };
        let Policies { names, attributes, roles, .. } = policies;
        let question = request.as_question();
        let headers = policies.headers.as_slice();
        let setting = |shape, wants| Setting { names, action: &action, attributes, roles, shape, headers, wants };
        let facts = |shape, wants| Facts::of(&question, setting(shape, wants));
        let flaws = headers::flaws(&question, policies.header_names(&request.action));
        // A user whose attributes do not fit fails a decision only if a policy of the action reads the user.
        let reads_user = policies.actions.get(request.action.as_str()).is_some_and(|known| known.slice.reads_user);
        let misfit = request.user.as_deref().and_then(|user| facts::misfit(user, attributes));
        let mut by_shape = BTreeMap::new();
        for rule in &policies.rules {
            let shape: &BodyShape = &rule.shape;
            by_shape.entry(shape).or_insert_with(|| match &misfit {
                Some(misfit) if reads_user => Err(misfit.clone()),
                misfit => facts(shape, Wants { user: misfit.is_none(), ..Wants::ALL }),
            });
        }
        Self { policies, request, question, by_shape, flaws }
    }

    /// Whether the action is one that policies can allow.
    fn knows_action(&self) -> bool {
        self.policies.actions.contains_key(self.request.action.as_str())
    }

    /// What the policy sees; the error if a fact could not be expressed.
    fn facts(&self, rule: &Rule) -> Result<&Facts, &str> {
        match self.by_shape.get(&*rule.shape) {
            Some(Ok(facts)) => Ok(facts),
            Some(Err(error)) => Err(error),
            None => Err("the request was not read"),
        }
    }

    /// What is wrong with a header or the country that the policy reads, if it speaks of this action.
    fn flaw(&self, rule: &Rule) -> Option<&str> {
        let action = &self.request.action;
        let admits = || crate::slice::admits(&rule.body.action, action, crate::vocabulary::group_of(action));
        let header = self.flaws.iter().find(|(name, _)| headers::are_read(&rule.reads, name)).map(|(_, flaw)| flaw.as_str());
        let country = || country::flaw(&self.question).filter(|_| country::is_read(&rule.reads));
        let flaw = header.or_else(country)?;
        admits().then_some(flaw)
    }

    fn find(&self, rule: &'a Rule) -> Finding<'a> {
        let anatomy = rule.anatomy();
        let judge = |condition: &'a Condition| (condition, self.judge(rule, condition));
        let scope = anatomy.scope.iter().map(judge).collect();
        let conditions = anatomy.conditions.iter().map(judge).collect();
        let (outcome, error) = self.evaluate(rule);
        Finding { rule, outcome, error, scope, conditions }
    }

    /// The policy as a whole, as the decision evaluated it.
    fn evaluate(&self, rule: &Rule) -> (Outcome, Option<String>) {
        let facts = match self.facts(rule) {
            Ok(facts) if self.knows_action() => facts,
            Ok(_) => return (Outcome::NotApplied, None),
            Err(error) => return (Outcome::Errored, Some(error.to_owned())),
        };
        if let Some(flaw) = self.flaw(rule) {
            return (Outcome::Errored, Some(flaw.to_owned()));
        }
        let is_unreadable = rule.reads_body() && self.view(rule).unreadable_body().is_some();
        let policy = match is_unreadable {
            true => with_unreadable_body(&rule.body).and_then(to_policy),
            false => Ok(rule.policy.clone()),
        };
        let set = policy
            .map_err(|error| error.to_string())
            .and_then(|policy| PolicySet::from_policies([policy]).map_err(|error| error.to_string()));
        let set = match set {
            Ok(set) => set,
            Err(error) => return (Outcome::Errored, Some(error)),
        };
        let response = self.policies.authorizer.is_authorized(&facts.request, &set, &facts.entities);
        if let Some(AuthorizationError::PolicyEvaluationError(error)) = response.diagnostics().errors().next() {
            let view = self.view(rule);
            let failure = rule.program.as_ref().and_then(|program| program.applies(&view).err());
            let told = failure.map_or_else(|| error.inner().to_string(), |failure| shorten(&failure.told(&view)));
            return (Outcome::Errored, Some(self.policies.error_of(rule, told)));
        }
        let applied = response.diagnostics().reason().next().is_some();
        (if applied { Outcome::Applied } else { Outcome::NotApplied }, None)
    }

    /// One condition by itself.
    fn judge(&self, rule: &Rule, condition: &Condition) -> Holding {
        let Ok(facts) = self.facts(rule) else { return Holding::Failed };
        let Some(whole) = &condition.whole else { return Holding::Errored("the condition could not be read alone".to_owned()) };
        match eval_expression(&facts.request, &facts.entities, whole) {
            Ok(EvalResult::Bool(true)) => Holding::Held,
            Ok(_) => Holding::Failed,
            Err(error) => match condition.reads.iter().find_map(|path| self.first_absent(rule, path)) {
                Some(absent) => Holding::Absent(absent),
                None => Holding::Errored(self.policies.error_of(rule, error.to_string())),
            },
        }
    }

    /// The shortest part of `path` that leads to nothing.
    fn first_absent(&self, rule: &Rule, path: &Path) -> Option<String> {
        (2..=path.len()).filter_map(|length| path.get(..length)).find(|part| self.value(rule, part).is_none()).map(path_text)
    }

    /// What stands at `path`; `None` if nothing does.
    fn value(&self, rule: &Rule, path: &[String]) -> Option<String> {
        let value = self.evaluated(rule, &Expression::from_str(&path_text(path)).ok()?)?;
        Some(if self.policies.hides(path) { REDACTED.to_owned() } else { value })
    }

    /// The value of one side of a comparison.
    fn operand(&self, rule: &Rule, operand: &Operand) -> Option<String> {
        let value = self.evaluated(rule, operand.expression.as_ref()?)?;
        Some(if self.policies.hides_any(&operand.reads) { REDACTED.to_owned() } else { value })
    }

    /// The value of an expression, printable, whatever it shows.
    fn evaluated(&self, rule: &Rule, operand: &Expression) -> Option<String> {
        let facts = self.facts(rule).ok()?;
        let value = eval_expression(&facts.request, &facts.entities, operand).ok()?;
        Some(shorten(&value.to_string()))
    }

    /// Every attribute that some policy reads, once, with its value.
    fn attributes(&self, findings: &[Finding<'_>]) -> Vec<(String, String)> {
        let mut all: BTreeMap<&Path, Option<String>> = BTreeMap::new();
        for rule in findings.iter().map(|finding| finding.rule) {
            for path in rule.reads.values.iter().chain(&rule.reads.asked).filter(|path| path.len() > 1) {
                let known = all.entry(path).or_default();
                if known.is_none() {
                    *known = self.value(rule, path);
                }
            }
        }
        let printed = |(path, value): (&Path, Option<String>)| {
            let value = value.unwrap_or_else(|| format!("({})", self.missing(path)));
            let text = path_text(path);
            let value = if text == "context.user" { self.with_roles(value) } else { value };
            (text, value)
        };
        all.into_iter().take(ATTRIBUTES_MAX).map(printed).collect()
    }

    /// Why there is no value at `path`.
    fn missing(&self, path: &Path) -> &str {
        if let Some(flaw) = country::flaw(&self.question).filter(|_| path == COUNTRY.as_slice()) {
            return flaw;
        }
        let header = path.strip_prefix(HEADERS.map(str::to_owned).as_slice()).and_then(<[String]>::first);
        let flaw = header.and_then(|header| self.flaws.iter().find(|(name, _)| name == header));
        flaw.map_or("absent", |(_, flaw)| flaw)
    }

    fn with_roles(&self, user: String) -> String {
        match self.request.user.as_deref().map(|user| user.roles.as_slice()) {
            None => user,
            Some([]) => format!("{user} without roles"),
            Some(roles) => format!("{user} with the roles {}", listed(&self.nested(roles))),
        }
    }

    /// Each role with those that it is within.
    fn nested(&self, held: &[String]) -> Vec<String> {
        let nested = |role: &String| match self.policies.roles.above(role) {
            above if above.is_empty() => printable(role),
            above => format!("{} (within {})", printable(role), listed(&above.iter().cloned().collect::<Vec<_>>())),
        };
        held.iter().take(NAMES_MAX + 1).map(nested).collect()
    }

    /// `it has: auditor, clerk`.
    fn roles(&self) -> String {
        match self.request.user.as_deref().map(|user| user.roles.as_slice()) {
            None | Some([]) => "it has none".to_owned(),
            Some(roles) => format!("it has: {}", listed(&self.nested(roles))),
        }
    }

    /// Why there is no body although a policy reads it.
    fn body_note(&self, rule: &Rule) -> String {
        self.view(rule).unreadable_body().map_or_else(|| "the request has no body".to_owned(), |note| shorten(&note))
    }

    fn view(&self, rule: &'a Rule) -> View<'_> {
        View { question: &self.question, shape: &rule.shape, roles: &self.policies.roles }
    }
}

/// A path as one writes it: `context.user.limit`, `context.request.body["the amount"]`.
fn path_text(path: &[String]) -> String {
    let mut text = String::new();
    for name in path {
        let plain =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit());
        let reserved = ["true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar", ""].contains(&name.as_str());
        match (text.is_empty(), plain && !reserved) {
            (true, _) => text.push_str(name),
            (false, true) => text.extend([".", name]),
            (false, false) => text.push_str(&format!("[\"{}\"]", name.escape_debug())),
        }
    }
    text
}

/// Names that a token or a policy says, printable.
fn listed(names: &[String]) -> String {
    let printed: Vec<String> = names.iter().take(NAMES_MAX).map(|name| shorten(name)).collect();
    let more = if names.len() > NAMES_MAX { ", …" } else { "" };
    format!("{}{more}", printed.join(", "))
}

/// Cuts a text to what one reads, with control characters escaped.
fn shorten(text: &str) -> String {
    let mut short = String::new();
    for (at, c) in text.chars().enumerate() {
        match c {
            _ if at == VALUE_CHARACTERS_MAX => {
                short.push('…');
                break;
            }
            c if c.is_control() => short.extend(c.escape_debug()),
            c => short.push(c),
        }
    }
    short
}

#[cfg(test)]
mod tests;
