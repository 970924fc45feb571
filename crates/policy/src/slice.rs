//! The policies of one action, cut so that a request meets few that cannot apply to it.

use crate::compile::Rule;
use crate::compiled::index::Index;
use crate::conjuncts::conjuncts;
use crate::country;
use crate::headers::{self, HeaderNames};
use crate::reads::Reads;
use crate::unreadable::{to_policy, with_unreadable_body};
use crate::vocabulary::BodyShape;
use cedar_policy::pst::{ActionConstraint, Clause, EntityOrSlot, PrincipalConstraint, Template};
use cedar_policy::{Effect, Policy, PolicySet};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The path of the user in a policy.
pub(crate) const USER: [&str; 2] = ["context", "user"];
/// The path of the body in a policy.
pub(crate) const BODY: [&str; 3] = ["context", "request", "body"];

/// The facts that are built for a request only where a policy reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    /// `context.user`.
    pub(crate) user: bool,
    /// `context.request.path`.
    pub(crate) path: bool,
    /// `context.request.host`.
    pub(crate) host: bool,
    /// `context.source.country`.
    pub(crate) country: bool,
    /// `context.source.address`.
    pub(crate) address: bool,
    /// `context.now`.
    pub(crate) now: bool,
    /// Attributes of the principal.
    pub(crate) principal: bool,
    /// Attributes of the resource.
    pub(crate) resource: bool,
}

impl Wants {
    pub(crate) const ALL: Self =
        Self { user: true, path: true, host: true, country: true, address: true, now: true, principal: true, resource: true };

    fn of(reads: &Reads) -> Self {
        Self {
            user: reads.touch(&USER),
            path: reads.touch(&["context", "request", "path"]),
            host: reads.touch(&["context", "request", "host"]),
            country: reads.touch(&["context", "source", "country"]),
            address: reads.touch(&["context", "source", "address"]),
            now: reads.touch(&["context", "now"]),
            principal: reads.touch_below(&["principal"]),
            resource: reads.touch_below(&["resource"]),
        }
    }
}

/// Policies by the principal that their scope names.
///
/// Leaving out a policy whose scope names another principal changes nothing: Cedar evaluates the scope first, and a
/// comparison of two entities cannot fail.
#[derive(Debug, Default)]
pub(crate) struct ByPrincipal {
    any: PolicySet,
    named: HashMap<String, PolicySet>,
}

impl ByPrincipal {
    fn add(&mut self, principal: &PrincipalConstraint, policy: Policy) -> Result<(), String> {
        let set = match principal {
            PrincipalConstraint::Eq(EntityOrSlot::Entity(uid)) => self.named.entry(uid.eid.to_string()).or_default(),
            _ => &mut self.any,
        };
        set.add(policy).map_err(|error| error.to_string())
    }

    /// The policies that could apply to this principal, in at most two sets.
    pub(crate) fn of(&self, principal: &str) -> impl Iterator<Item = &PolicySet> {
        self.named.get(principal).into_iter().chain((!self.any.is_empty()).then_some(&self.any))
    }
}

/// Policies of one action that see the same body, as the reference evaluator takes them.
#[derive(Debug)]
pub(crate) struct Group {
    /// The body's declared fields. Empty: none of these policies reads the body.
    pub(crate) shape: Arc<BodyShape>,
    /// What these policies read.
    pub(crate) wants: Wants,
    /// The headers that these policies read.
    pub(crate) headers: Vec<String>,
    /// For a call without a body, or with one that can be read.
    pub(crate) readable: Sets,
    /// For a call with a body that cannot.
    pub(crate) unreadable: Sets,
}

/// Policies, and what is left of them without the user.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) policies: ByPrincipal,
    /// For each permit that speaks of the user: the same without its conditions on the user.
    pub(crate) without_user: ByPrincipal,
}

/// The policies that could apply to one action, or to several that share the same ones.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Those that were translated.
    pub(crate) index: Index,
    /// Those that were not, by body shape.
    pub(crate) interpreted: Vec<Group>,
    /// Whether some policy reads the user.
    pub(crate) reads_user: bool,
    /// Whether some policy reads the country.
    pub(crate) reads_country: bool,
    /// The headers that some policy reads, in their order.
    pub(crate) headers: Vec<String>,
    /// The body fields that some policy reads.
    pub(crate) body_fields: Option<BodyShape>,
}

/// A field that two resources declare with different types. The index is that of the later rule.
pub(crate) struct Conflict {
    pub(crate) rule: usize,
    pub(crate) message: String,
}

/// Whether the scope of a policy admits the action.
pub(crate) fn admits(constraint: &ActionConstraint, action: &str, group: Option<&str>) -> bool {
    let admits = |id: &str| id == action || Some(id) == group;
    match constraint {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid.eid == action,
        ActionConstraint::In(uids) => uids.iter().any(|uid| admits(&uid.eid)),
    }
}

impl Slice {
    /// Cuts `rules` to those whose indices are given. `names`: every header that policies of this workload name.
    ///
    /// # Errors
    /// - [`Conflict`] if two of them read the same body field with different types.
    pub(crate) fn of(rules: &[Rule], chosen: &[usize], names: &HeaderNames, action: &str) -> Result<Self, Conflict> {
        let chosen: Vec<(usize, &Rule)> = chosen.iter().filter_map(|&at| Some((at, rules.get(at)?))).collect();
        let body_fields = merge_fields(&chosen)?;
        let mut index = Index::default();
        for (at, rule) in &chosen {
            if let (Some(program), Ok(number)) = (&rule.program, u32::try_from(*at)) {
                index.add(number, &rule.body, program, rule.effect == Effect::Permit, action);
            }
        }
        let interpreted: Vec<(usize, &Rule)> = chosen.iter().filter(|(_, rule)| rule.program.is_none()).copied().collect();
        let interpreted = groups(&interpreted, names)?;
        let reads_user = chosen.iter().any(|(_, rule)| rule.reads.touch(&USER));
        let reads_country = chosen.iter().any(|(_, rule)| country::is_read(&rule.reads));
        let is_read = |name: &&String| chosen.iter().any(|(_, rule)| headers::are_read(&rule.reads, name));
        let headers = names.iter().filter(is_read).cloned().collect();
        Ok(Self { index, interpreted, reads_user, reads_country, headers, body_fields })
    }
}

/// The policies for the reference evaluator, by the body that they see.
///
/// # Errors
/// - [`Conflict`] with Cedar's text; never for policies that Cedar itself took.
pub(crate) fn groups(chosen: &[(usize, &Rule)], names: &HeaderNames) -> Result<Vec<Group>, Conflict> {
    let mut shapes: Vec<Arc<BodyShape>> = Vec::new();
    for (_, rule) in chosen.iter().filter(|(_, rule)| rule.reads_body()) {
        if !shapes.contains(&rule.shape) {
            shapes.push(Arc::clone(&rule.shape));
        }
    }
    if shapes.is_empty() && !chosen.is_empty() {
        shapes.push(Arc::new(BodyShape::new()));
    }
    let mut groups = Vec::new();
    for (at, shape) in shapes.into_iter().enumerate() {
        // A policy that reads no body sees the same in every group: it goes into the first.
        let members = chosen.iter().filter(|(_, rule)| if rule.reads_body() { rule.shape == shape } else { at == 0 });
        groups.push(Group::of(members, Arc::clone(&shape), names)?);
    }
    Ok(groups)
}

impl Group {
    fn of<'a>(
        members: impl Iterator<Item = &'a (usize, &'a Rule)>,
        shape: Arc<BodyShape>,
        names: &HeaderNames,
    ) -> Result<Self, Conflict> {
        let mut reads = Reads::default();
        let (mut readable, mut unreadable) = (Sets::default(), Sets::default());
        for (at, rule) in members {
            let refused = |message: String| Conflict { rule: *at, message };
            reads.merge(&rule.reads);
            readable.add(rule, &rule.body).map_err(refused)?;
            unreadable.add(rule, &with_unreadable_body(&rule.body).map_err(refused)?).map_err(refused)?;
        }
        let headers = names.iter().filter(|name| headers::are_read(&reads, name)).cloned().collect();
        Ok(Self { shape, wants: Wants::of(&reads), headers, readable, unreadable })
    }
}

impl Sets {
    /// `body`: that of the rule, or what it comes to.
    fn add(&mut self, rule: &Rule, body: &Template) -> Result<(), String> {
        self.policies.add(&body.principal, to_policy(body.clone())?)?;
        if rule.effect == Effect::Permit && rule.reads.touch(&USER) {
            self.without_user.add(&body.principal, without_user_conditions(body)?)?;
        }
        Ok(())
    }
}

/// The permit with the same scope, and of its conditions those that do not mention the user.
fn without_user_conditions(body: &Template) -> Result<Policy, String> {
    let kept = conjuncts(body.clauses()).into_iter().filter(|conjunct| !Reads::of(conjunct).touch(&USER)).map(Clause::When);
    let (principal, action, resource) = (body.principal.clone(), body.action.clone(), body.resource.clone());
    let template = Template::new(body.id.clone(), body.effect, principal, action, resource)
        .try_with_clauses(kept)
        .map_err(|error| error.to_string())?;
    to_policy(template)
}

fn merge_fields(chosen: &[(usize, &Rule)]) -> Result<Option<BodyShape>, Conflict> {
    let mut merged: BTreeMap<&str, (&Rule, _)> = BTreeMap::new();
    for (at, rule) in chosen.iter().filter(|(_, rule)| rule.reads_body()) {
        for (field, kind) in rule.shape.iter() {
            let (first, known) = *merged.entry(field).or_insert((rule, *kind));
            if known != *kind {
                let (known, kind, resource) = (known.as_str(), kind.as_str(), &first.resource);
                let message = format!("body field `{field}` is {kind} here and {known} in `{resource}`, for the same action");
                return Err(Conflict { rule: *at, message });
            }
        }
    }
    let fields: BodyShape = merged.into_iter().map(|(field, (_, kind))| (field.to_owned(), kind)).collect();
    Ok((!fields.is_empty()).then_some(fields))
}
