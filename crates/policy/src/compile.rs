//! From policy texts to what decisions are made with: parsed, validated and cut once, when a configuration arrives.

use crate::compiled::index::Program;
use crate::compiled::translate;
use crate::decide::Numbers;
use crate::entities;
use crate::explain::Anatomy;
use crate::facts::{CONNECT, Names};
use crate::flaw::{Flaw, PolicyError};
use crate::headers::{self, HEADERS, HeaderNames};
use crate::known::Known;
use crate::reads::Reads;
use crate::retell::{UNSAFE, retell};
use crate::slice::{self, BODY, Group, Slice, admits};
pub use crate::text::TEXT_BYTES_MAX;
use crate::text::{Places, find_behind, is_read_as_written, looks_latin, survey};
use crate::vocabulary::{ACTIONS, BodyShape, Vocabulary};
use cedar_policy::ffi::DetailedError;
use cedar_policy::{Authorizer, Effect, Entity, Policy, PolicySet, ValidationMode, ValidationWarning, Validator, pst};
use model::Roles;
use model::authz::AttributeType;
use model::ids::PolicyId;
use model::snapshot::{AuthorizationPolicy, Sensitive, TokenIssuer};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

/// The annotation that says whether a policy decides, or is tried only.
const MODE: &str = "mode";
/// What it says of one that is tried only.
const SHADOW: &str = "shadow";

/// The longest `@id` in characters.
const ID_CHARACTERS_MAX: usize = 128;

/// LIMIT: errors that are reported of one resource.
const ERRORS_MAX: usize = 20;

/// LIMIT: reports of the validator that are looked at. It repeats itself for every action that a policy admits.
const REPORTS_MAX: usize = 400;

/// One policy, ready to be put into slices and to be explained.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) id: PolicyId,
    pub(crate) effect: Effect,
    /// `namespace/name` of the resource that holds it.
    pub(crate) resource: String,
    /// `file:line` of its first word.
    pub(crate) position: String,
    /// The byte offset of its first word in the resource's text.
    pub(crate) start: usize,
    /// As Cedar evaluates it.
    pub(crate) policy: Policy,
    /// As a tree.
    pub(crate) body: pst::Template,
    /// As the request path evaluates it; `None`: by the reference evaluator.
    pub(crate) program: Option<Program>,
    /// Its id as the list of those that determined a decision.
    pub(crate) alone: Arc<[PolicyId]>,
    /// What its conditions read.
    pub(crate) reads: Reads,
    /// Whether it is tried beside the live ones, and decides nothing.
    pub(crate) is_shadow: bool,
    /// The body that its resource declares.
    pub(crate) shape: Arc<BodyShape>,
    /// Taken apart for explanations, when the first one is asked for.
    anatomy: OnceLock<Anatomy>,
}

impl Rule {
    /// The policy taken apart.
    pub(crate) fn anatomy(&self) -> &Anatomy {
        self.anatomy.get_or_init(|| Anatomy::of(&self.body))
    }

    /// Whether it can tell one body from another.
    pub(crate) fn reads_body(&self) -> bool {
        !self.shape.is_empty() && self.reads.touch(&BODY)
    }
}

/// The policies of one workload, compiled. Immutable; share it in an `Arc`.
#[derive(Debug)]
pub struct Policies {
    /// In the order of the source.
    pub(crate) rules: Vec<Rule>,
    /// By action, as sent.
    pub(crate) actions: HashMap<&'static str, ActionSlice>,
    /// The declared user attributes.
    pub(crate) attributes: BTreeMap<String, AttributeType>,
    /// Which roles are within which.
    pub(crate) roles: Roles,
    /// Every header that some policy names.
    pub(crate) headers: Vec<String>,
    /// What is not told of a decision.
    pub(crate) sensitive: Sensitive,
    pub(crate) names: Names,
    pub(crate) authorizer: Authorizer,
    /// Every header that some policy names.
    header_names: HeaderNames,
    /// For the reference evaluator, when it is first asked.
    reference: OnceLock<HashMap<&'static str, Vec<Group>>>,
}

/// What is asked when this action is requested.
#[derive(Debug)]
pub(crate) struct ActionSlice {
    /// The action with the group that it is in.
    pub(crate) entity: Entity,
    pub(crate) slice: Arc<Slice>,
}

impl Policies {
    /// Whether there is no policy. Then everything is denied.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The policies that are left to the reference evaluator, which costs hundreds of times as much. Only a condition that needs a record
    /// as a value, an attribute of something else than a name, or what a later Cedar brings, is among them.
    pub fn interpreted(&self) -> impl Iterator<Item = &PolicyId> {
        self.rules.iter().filter(|rule| rule.program.is_none()).map(|rule| &rule.id)
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// A policy by its position, with its translation.
    pub(crate) fn program(&self, number: u32) -> Option<(&Rule, &Program)> {
        let rule = self.rules.get(usize::try_from(number).ok()?)?;
        Some((rule, rule.program.as_ref()?))
    }

    /// The ids at these positions, sorted.
    pub(crate) fn ids(&self, numbers: &Numbers) -> Arc<[PolicyId]> {
        let rule = |number: u32| self.rules.get(usize::try_from(number).ok()?);
        match numbers.only_or_all() {
            Ok(only) => rule(only).map(|rule| Arc::clone(&rule.alone)).unwrap_or_default(),
            Err(all) => {
                let mut ids: Vec<PolicyId> = all.filter_map(|number| Some(rule(number)?.id.clone())).collect();
                ids.sort();
                ids.into()
            }
        }
    }

    /// The position of the policy with this id.
    pub(crate) fn number_of(&self, id: &str) -> Option<u32> {
        self.rules.iter().position(|rule| rule.id.as_str() == id).and_then(|at| u32::try_from(at).ok())
    }

    /// All policies of an action, as the reference evaluator takes them. Built when they are first asked for.
    pub(crate) fn reference(&self, action: &str) -> &[Group] {
        let all = self.reference.get_or_init(|| {
            let of = |(action, group): (&'static str, Option<&str>)| {
                let admitting = self.rules.iter().enumerate().filter(|(_, rule)| admits(&rule.body.action, action, group));
                let groups = slice::groups(&admitting.collect::<Vec<_>>(), &self.header_names);
                Some((action, groups.ok()?))
            };
            ACTIONS.into_iter().filter_map(of).collect()
        });
        all.get(action).map_or(&[], Vec::as_slice)
    }

    /// Every policy's id, and whether it is a permit, in the order of the source.
    pub fn each(&self) -> impl Iterator<Item = (&PolicyId, bool)> {
        self.rules.iter().map(|rule| (&rule.id, rule.effect == Effect::Permit))
    }

    /// Whether a policy that could apply to this action reads the time.
    pub fn reads_time(&self, action: &str) -> bool {
        self.touches(action, &["context", "now"])
    }

    /// Whether a policy that could apply to this action reads the caller's address.
    pub fn reads_address(&self, action: &str) -> bool {
        self.touches(action, &["context", "source", "address"])
    }

    fn touches(&self, action: &str, path: &[&str]) -> bool {
        let group = crate::vocabulary::group_of(action);
        self.rules.iter().any(|rule| admits(&rule.body.action, action, group) && rule.reads.touch(path))
    }

    /// The body fields to read for this action, with their types: of every resource whose policies could apply to the
    /// action and read `context.request.body`. `None`: no policy looks at the body, so that it can stream.
    pub fn body_fields(&self, action: &str) -> Option<&BTreeMap<String, AttributeType>> {
        self.actions.get(action)?.slice.body_fields.as_ref()
    }

    /// The names, in lower case, of the request headers that policies of this action read, each once. All of them must be among
    /// [`model::Question::headers`], also those that are absent.
    pub fn header_names(&self, action: &str) -> &[String] {
        self.actions.get(action).map_or(&[], |action| action.slice.headers.as_slice())
    }
}

/// Which policies of a resource are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Those that decide: one that says `@mode("shadow")` is passed over, whatever else is wrong with it.
    Live,
    /// All of them.
    All,
}

/// Parses, validates and cuts the policies that select one workload. One that says `@mode("shadow")` is passed over:
/// [`crate::Shadow::compile`] takes it.
///
/// `issuers` say which attributes a user has, `roles` which role is within which. Cost: milliseconds for a few policies, at most seconds at
/// [`TEXT_BYTES_MAX`]; call it off the request path.
///
/// # Errors
/// All that is wrong, in the order of the sources: syntax, types, unknown attributes, policies that could never apply,
/// confusable characters, templates, unknown annotations, an `@id` that stands twice, a body that is read but not
/// declared, a header that policies cannot read, declarations that contradict each other, a text beyond its bounds.
pub fn compile(policies: &[AuthorizationPolicy], issuers: &[TokenIssuer], roles: &Roles) -> Result<Policies, Vec<PolicyError>> {
    compile_taking(Take::Live, policies, issuers, roles)
}

/// The same, for the policies that are wanted.
pub(crate) fn compile_taking(
    take: Take,
    policies: &[AuthorizationPolicy],
    issuers: &[TokenIssuer],
    roles: &Roles,
) -> Result<Policies, Vec<PolicyError>> {
    compile_knowing(None, take, policies, issuers, roles)
}

/// The same; what `known` knows to be valid is not validated once more.
pub(crate) fn compile_knowing(
    known: Option<&Known>,
    take: Take,
    policies: &[AuthorizationPolicy],
    issuers: &[TokenIssuer],
    roles: &Roles,
) -> Result<Policies, Vec<PolicyError>> {
    let at_first = |message: String| {
        let (file, line) = policies.first().map_or((String::new(), 1), |first| (first.file.clone(), first.line));
        vec![PolicyError { file, line, column: 1, policy: None, message, flaw: Flaw::Declaration }]
    };
    let names = Names::parse().map_err(at_first)?;
    let vocabulary = if policies.is_empty() { Vocabulary::empty() } else { Vocabulary::of(issuers).map_err(at_first)? };
    let (rules, headers) = sound_rules(known, take, policies, &vocabulary)?;
    let actions = cut(&rules, &headers, &names).map_err(|conflict| {
        let resource = rules.get(conflict.rule).and_then(|rule| policies.iter().find(|each| each.name == rule.resource));
        resource.map_or_else(
            || at_first(conflict.message.clone()),
            |resource| vec![Reading::of(resource, &vocabulary).error(Flaw::Declaration, 0, None, conflict.message.clone())],
        )
    })?;
    Ok(Policies {
        rules,
        actions,
        attributes: vocabulary.attributes,
        roles: roles.clone(),
        headers: headers.iter().cloned().collect(),
        sensitive: Sensitive::default(),
        names,
        authorizer: Authorizer::new(),
        header_names: headers,
        reference: OnceLock::new(),
    })
}

/// The Cedar schema, in Cedar's syntax, that the policies of one resource are checked against: with the body that it declares, and
/// every header that policies of the workload name.
///
/// # Errors
/// - Cedar's text, if declarations contradict each other or cannot stand in a schema.
pub fn schema(policies: &Policies, issuers: &[TokenIssuer], body: &BTreeMap<String, AttributeType>) -> Result<String, String> {
    Vocabulary::of(issuers)?.text(body, &policies.headers.iter().cloned().collect())
}

/// The rules of all resources, validated, and the headers that they name.
///
/// The headers are known only when all resources have been parsed: each is validated against the names of all, so that a policy that
/// looks at the headers as a whole is checked against what it will see.
fn sound_rules(
    known: Option<&Known>,
    take: Take,
    policies: &[AuthorizationPolicy],
    vocabulary: &Vocabulary,
) -> Result<(Vec<Rule>, HeaderNames), Vec<PolicyError>> {
    let mut resources = HashSet::new();
    let mut headers = HeaderNames::new();
    let mut parsed = Vec::new();
    for resource in policies {
        let reading = Reading::of(resource, vocabulary);
        let found = if resources.insert(resource.name.as_str()) {
            reading.rules(take, &mut headers)
        } else {
            Err(vec![reading.error(Flaw::Form, 0, None, format!("authorization policy `{}` stands twice", resource.name))])
        };
        parsed.push((reading, found));
    }
    let (mut rules, mut errors) = (Vec::new(), Vec::new());
    let mut validators = BTreeMap::new();
    for (reading, found) in parsed {
        let wrong = match found {
            Ok(found) => {
                let known = known.map(|known| (known, known.name(take, reading.resource, vocabulary, &headers)));
                let wrong = match known {
                    Some((known, name)) if known.has(name) => Vec::new(),
                    _ => reading.validate(&found, &headers, &mut validators),
                };
                if let Some((known, name)) = known.filter(|_| wrong.is_empty()) {
                    known.add(name);
                }
                rules.extend(found);
                wrong
            }
            Err(wrong) => wrong,
        };
        errors.extend(reading.bounded(wrong));
    }
    if errors.is_empty() { Ok((rules, headers)) } else { Err(errors) }
}

/// The slices of all actions. Actions with the same policies share one.
fn cut(
    rules: &[Rule],
    headers: &HeaderNames,
    names: &Names,
) -> Result<HashMap<&'static str, ActionSlice>, crate::slice::Conflict> {
    let mut shared: BTreeMap<(bool, Vec<usize>), Arc<Slice>> = BTreeMap::new();
    let mut actions = HashMap::new();
    for (action, group) in ACTIONS {
        let admitting = rules.iter().enumerate().filter(|(_, rule)| admits(&rule.body.action, action, group));
        let chosen: Vec<usize> = admitting.map(|(at, _)| at).collect();
        // What can be looked up differs where there is no path.
        let key = (action == CONNECT, chosen);
        let slice = match shared.get(&key) {
            Some(slice) => Arc::clone(slice),
            None => Arc::new(Slice::of(rules, &key.1, headers, action)?),
        };
        shared.insert(key, Arc::clone(&slice));
        let parents = group.map(|group| names.action(group)).into_iter().collect();
        actions.insert(action, ActionSlice { entity: Entity::new_no_attrs(names.action(action), parents), slice });
    }
    Ok(actions)
}

/// One resource while it is read.
struct Reading<'a> {
    resource: &'a AuthorizationPolicy,
    vocabulary: &'a Vocabulary,
    places: Places<'a>,
}

impl<'a> Reading<'a> {
    fn of(resource: &'a AuthorizationPolicy, vocabulary: &'a Vocabulary) -> Self {
        Self { resource, vocabulary, places: Places::of(&resource.text) }
    }

    /// At most [`ERRORS_MAX`], and one that says that there are more.
    fn bounded(&self, mut errors: Vec<PolicyError>) -> Vec<PolicyError> {
        if errors.len() > ERRORS_MAX {
            errors.truncate(ERRORS_MAX);
            errors.push(self.error(Flaw::Bound, 0, None, "this resource has more errors than are listed".to_owned()));
        }
        errors
    }

    fn error(&self, flaw: Flaw, offset: usize, policy: Option<PolicyId>, message: String) -> PolicyError {
        let (line, column) = self.places.place(offset);
        let line = self.resource.line.saturating_add(line).saturating_sub(1);
        PolicyError { file: self.resource.file.clone(), line, column, policy, message, flaw }
    }

    /// Parses the resource's policies, and adds the headers that they name to `headers`.
    fn rules(&self, take: Take, headers: &mut HeaderNames) -> Result<Vec<Rule>, Vec<PolicyError>> {
        let text = &self.resource.text;
        let ranges = survey(text).map_err(|oversize| vec![self.error(Flaw::Bound, oversize.offset, None, oversize.message)])?;
        let shape = Arc::new(self.resource.body.clone());
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        let mut ids = BTreeSet::new();
        for (position, range) in ranges.into_iter().enumerate() {
            let start = range.start;
            let own = text.get(range).unwrap_or("");
            // Each policy is parsed by itself: Cedar's reports hold, and hash, the whole source that they are about.
            match Policy::parse(None, own) {
                Err(found) => errors.extend(
                    found
                        .iter()
                        .take(REPORTS_MAX)
                        .map(|error| self.report(Flaw::Syntax, &DetailedError::from(error), start, None)),
                ),
                Ok(policy) if take == Take::Live && policy.annotation(MODE) == Some(SHADOW) => {}
                Ok(policy) => match self.rule(position, start, &policy, &shape) {
                    Err(error) => errors.push(error),
                    Ok(rule) if !ids.insert(rule.id.clone()) => {
                        errors.push(self.error(
                            Flaw::Form,
                            start,
                            Some(rule.id.clone()),
                            format!("policy id `{}` stands twice", rule.id),
                        ));
                    }
                    Ok(rule) => match self.check_headers(&rule, own, headers) {
                        Err(error) => errors.push(error),
                        Ok(()) => rules.push(rule),
                    },
                },
            }
            if errors.len() > ERRORS_MAX {
                return Err(errors);
            }
        }
        if errors.is_empty() { Ok(rules) } else { Err(errors) }
    }

    /// Cedar's own report on the policy that begins at `start`, at the place that it points to.
    fn report(&self, flaw: Flaw, detail: &DetailedError, start: usize, policy: Option<PolicyId>) -> PolicyError {
        let offset = start + detail.source_locations.first().map_or(0, |label| label.loc.start);
        self.error(flaw, offset, policy, retell(&detail.message, detail.help.as_deref()))
    }

    fn rule(&self, position: usize, start: usize, policy: &Policy, shape: &Arc<BodyShape>) -> Result<Rule, PolicyError> {
        for (name, _) in policy.annotations() {
            if !matches!(name, "id" | "description" | MODE) {
                let message = format!("unknown annotation `@{name}`; known are `@id`, `@description` and `@mode`");
                return Err(self.error(Flaw::Form, start, None, message));
            }
        }
        let is_shadow = match policy.annotation(MODE) {
            None | Some("enforce") => false,
            Some(SHADOW) => true,
            Some(other) => {
                let message = format!("`@mode(\"{}\")` is neither `enforce` nor `{SHADOW}`", model::ids::printable(other));
                return Err(self.error(Flaw::Form, start, None, message));
            }
        };
        let own = policy.annotation("id").map_or_else(|| format!("policy{position}"), str::to_owned);
        let sound = own.chars().count() <= ID_CHARACTERS_MAX && own.trim() == own && is_read_as_written(&own);
        if own.is_empty() || !sound {
            let own = model::ids::printable(&own);
            let message = format!(
                "`{own}` is not a policy id: 1 to {ID_CHARACTERS_MAX} printable characters, none of which looks like another"
            );
            return Err(self.error(Flaw::Form, start, None, message));
        }
        let id = PolicyId::new(&self.resource.name, &own);
        let wrong = |flaw: Flaw, message: String| self.error(flaw, start, Some(id.clone()), message);
        let policy = policy.new_id(cedar_policy::PolicyId::new(id.as_str()));
        let pst::Policy::Static(tree) = policy.to_pst().map_err(|error| wrong(Flaw::Form, error.to_string()))? else {
            return Err(wrong(Flaw::Form, "a template cannot be used here".to_owned()));
        };
        let body = tree.body().clone();
        let mut reads = Reads::default();
        for clause in body.clauses() {
            let (pst::Clause::When(condition) | pst::Clause::Unless(condition)) = clause;
            reads.add(condition);
        }
        if let pst::ActionConstraint::Eq(uid) = &body.action
            && ACTIONS.iter().any(|(_, group)| *group == Some(uid.eid.as_str()))
        {
            return Err(wrong(Flaw::Impossible, format!("{uid} is a group of methods: write `action in {uid}`")));
        }
        entities::check(&policy, &body.principal).map_err(|message| wrong(Flaw::Impossible, message))?;
        self.check_reads(&reads).map_err(|(flaw, message)| wrong(flaw, message))?;
        let line = self.error(Flaw::Form, start, None, String::new()).line;
        let names = translate::Names { attributes: &self.vocabulary.attributes, shape };
        Ok(Rule {
            id: id.clone(),
            alone: [id.clone()].into(),
            program: Program::of(&body, names),
            effect: policy.effect(),
            resource: self.resource.name.clone(),
            position: format!("{}:{line}", self.resource.file),
            start,
            policy,
            body,
            reads,
            is_shadow,
            shape: Arc::clone(shape),
            anatomy: OnceLock::new(),
        })
    }

    /// What the validator lets pass, and what would then silently be false: a body that nobody declared, and a `has`
    /// with a misspelt attribute.
    fn check_reads(&self, reads: &Reads) -> Result<(), (Flaw, String)> {
        if self.resource.body.is_empty() && reads.name(&BODY) {
            let message = "the policy reads `context.request.body`, and the resource declares no `body` fields";
            return Err((Flaw::Body, message.to_owned()));
        }
        for path in &reads.asked {
            let Some((name, parent)) = path.split_last() else { continue };
            let parent: Vec<&str> = parent.iter().map(String::as_str).collect();
            match self.vocabulary.names_at(&parent, &self.resource.body) {
                Some(known) if !known.contains(name) => {
                    let (parent, known) = (parent.join("."), known.join("`, `"));
                    let advice = match parent.as_str() {
                        "context.user" if matches!(name.as_str(), "role" | "roles") => "; write `context.user in Role::\"…\"`",
                        "context.user" => "; `claims.attributes` of a `TokenIssuer` adds others",
                        _ => "",
                    };
                    return Err((Flaw::Schema, format!("`{parent}` has no attribute `{name}`; it can have `{known}`{advice}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the headers that `rule` names to `names`. `text`: the policy's own.
    fn check_headers(&self, rule: &Rule, text: &str, names: &mut HeaderNames) -> Result<(), PolicyError> {
        let wrong =
            |offset: usize, message: String| self.error(Flaw::Header, rule.start + offset, Some(rule.id.clone()), message);
        let as_a_whole = |path: &[String]| path == HEADERS;
        let mut named = rule.reads.names_below(&HEADERS).peekable();
        // To ask whether there are headers is no more than a step of asking for one: `has headers.tenant`.
        if rule.reads.values.iter().any(|path| as_a_whole(path))
            || (named.peek().is_none() && rule.reads.asked.iter().any(|path| as_a_whole(path)))
        {
            let message = "headers are read one by one: write `context.request.headers has \"x-tenant\"`";
            return Err(wrong(find_behind(text, "request", "headers").unwrap_or(0), message.to_owned()));
        }
        for name in named {
            headers::check(name).map_err(|message| wrong(find_behind(text, "headers", name).unwrap_or(0), message))?;
            names.insert(name.clone());
        }
        if names.len() > headers::NAMES_MAX {
            let message = format!("the policies of this workload read more than {} headers", headers::NAMES_MAX);
            return Err(wrong(0, message));
        }
        Ok(())
    }

    /// Validates strictly. A warning refuses too: a policy that can never apply, or that reads differently than it looks,
    /// is not enforced as it is written.
    fn validate(
        &self,
        rules: &[Rule],
        headers: &HeaderNames,
        validators: &mut BTreeMap<&'a BodyShape, Validator>,
    ) -> Vec<PolicyError> {
        let body = &self.resource.body;
        let validator = match validators.entry(body) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => match self.vocabulary.schema(body, headers) {
                Ok(schema) => place.insert(Validator::new(schema)),
                Err(message) => return vec![self.error(Flaw::Declaration, 0, None, message)],
            },
        };
        let policies = match PolicySet::from_policies(rules.iter().map(|rule| rule.policy.clone())) {
            Ok(policies) => policies,
            Err(error) => return vec![self.error(Flaw::Form, 0, None, error.to_string())],
        };
        let result = validator.validate(&policies, ValidationMode::Strict);
        let found = |(id, detail, flaw): (&cedar_policy::PolicyId, DetailedError, Flaw)| {
            let rule = rules.iter().find(|rule| rule.id.as_str() == AsRef::<str>::as_ref(id));
            self.report(flaw, &detail, rule.map_or(0, |rule| rule.start), rule.map(|rule| rule.id.clone()))
        };
        let errors = result.validation_errors().map(|error| (error.policy_id(), DetailedError::from(error), Flaw::Schema));
        // A policy with an error is mostly also one that can never apply; the error says why.
        let broken: HashSet<&str> = result.validation_errors().map(|error| error.policy_id().as_ref()).collect();
        let telling =
            |warning: &&ValidationWarning| refuses(warning) && !broken.contains(AsRef::<str>::as_ref(warning.policy_id()));
        let warnings = result.validation_warnings().filter(telling);
        let warnings = warnings.map(|warning| (warning.policy_id(), DetailedError::from(warning), flaw_of(warning)));
        let mut all: Vec<PolicyError> = errors.chain(warnings).take(REPORTS_MAX).map(found).collect();
        all.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
        // The same mistake once for every action: the first tells it.
        all.dedup_by(|a, b| (a.line, a.column) == (b.line, b.column));
        // Behind what is wrong the validator forgets every `has` before it: those that follow tell nothing.
        let mut told = HashSet::new();
        all.retain(|error| {
            let is_unsafe = error.message.starts_with(UNSAFE);
            if !is_unsafe {
                told.insert(error.policy.clone());
            }
            !is_unsafe || !told.contains(&error.policy)
        });
        all
    }
}

fn flaw_of(warning: &ValidationWarning) -> Flaw {
    match warning {
        ValidationWarning::ImpossiblePolicy(_) => Flaw::Impossible,
        _ => Flaw::Confusable,
    }
}

/// Whether the validator's warning refuses the policy. Scripts may be mixed in a string unless one of them has letters that
/// look like Latin ones: `tеller` with a Cyrillic `е` is another role than it seems.
fn refuses(warning: &ValidationWarning) -> bool {
    !matches!(warning, ValidationWarning::MixedScriptString(mixed) if !mixed.to_string().chars().any(looks_latin))
}

#[cfg(test)]
mod tests;
