//! A request as Cedar sees it.

use crate::compiled::evaluate::fits;
use crate::headers;
use crate::slice::Wants;
use crate::vocabulary::BodyShape;
use cedar_policy::{Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression as Value};
use model::authz::{AttributeType, AttributeValue, Question, User};
use model::{Roles, SpiffeId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::str::FromStr;

/// The action of an opaque connection.
pub(crate) const CONNECT: &str = "connect";

/// The names of the schema's entity types, parsed once.
#[derive(Debug)]
pub(crate) struct Names {
    workload: EntityTypeName,
    service: EntityTypeName,
    user: EntityTypeName,
    role: EntityTypeName,
    action: EntityTypeName,
}

impl Names {
    /// # Errors
    /// - Cedar's text; never for these names.
    pub(crate) fn parse() -> Result<Self, String> {
        let name = |text| EntityTypeName::from_str(text).map_err(|error| error.to_string());
        Ok(Self {
            workload: name("Workload")?,
            service: name("Service")?,
            user: name("User")?,
            role: name("Role")?,
            action: name("Action")?,
        })
    }

    /// The entity of an action, and of a group of actions.
    pub(crate) fn action(&self, id: &str) -> EntityUid {
        uid(&self.action, id)
    }
}

/// What a request is asked with.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) request: Request,
    pub(crate) entities: Entities,
}

/// The parts of the question that do not come with the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) names: &'a Names,
    /// The entity of the request's action, with its groups.
    pub(crate) action: &'a Entity,
    /// The declared user attributes.
    pub(crate) attributes: &'a BTreeMap<String, AttributeType>,
    /// Which roles are within which.
    pub(crate) roles: &'a Roles,
    /// The declared body fields.
    pub(crate) shape: &'a BodyShape,
    /// The headers that are worth building, if they are there.
    pub(crate) headers: &'a [String],
    /// What else is worth building.
    pub(crate) wants: Wants,
}

impl Facts {
    /// Builds what the policies of one group see.
    ///
    /// # Errors
    /// - a text, if a value cannot be expressed.
    pub(crate) fn of(question: &Question<'_>, setting: Setting<'_>) -> Result<Self, String> {
        let Setting { names, action, wants, .. } = setting;
        let principal = uid(&names.workload, question.principal.as_str());
        let resource = uid(&names.service, question.resource.as_str());
        let mut entities = vec![action.clone()];
        if wants.principal {
            entities.push(entity(principal.clone(), principal_attributes(question), HashSet::new())?);
        }
        if wants.resource {
            entities.push(entity(resource.clone(), resource_attributes(question), HashSet::new())?);
        }
        let mut context = Vec::with_capacity(4);
        if let Some(user) = question.user.filter(|_| wants.user) {
            let id = uid(&names.user, &format!("{}#{}", user.issuer, user.subject));
            let roles = user.roles.iter().map(|role| uid(&names.role, role)).collect();
            entities.push(entity(id.clone(), user_attributes(user, setting.attributes), roles)?);
            for role in nested(&user.roles, setting.roles) {
                let above = setting.roles.above(role).iter().map(|above| uid(&names.role, above)).collect();
                entities.push(entity(uid(&names.role, role), HashMap::new(), above)?);
            }
            context.push(("user".to_owned(), Value::new_entity_uid(id)));
        }
        context.push(("request".to_owned(), request_record(question, setting)?));
        context.push(("source".to_owned(), source_record(question, wants)?));
        if wants.now {
            context.push(("now".to_owned(), Value::new_datetime(question.now.to_string())));
        }
        let context = Context::from_pairs(context).map_err(|error| error.to_string())?;
        let request = Request::new(principal, action.uid(), resource, context, None).map_err(|error| error.to_string())?;
        let entities = Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        Ok(Self { request, entities })
    }
}

/// The user's roles that are within others, each once.
fn nested<'a>(held: &'a [String], roles: &Roles) -> BTreeSet<&'a String> {
    held.iter().filter(|role| !roles.above(role).is_empty()).collect()
}

/// The body as policies with this shape see it: all declared fields with their declared types, or no body.
pub(crate) fn body_fields<'a>(
    question: &Question<'a>,
    shape: &'a BodyShape,
) -> Option<impl Iterator<Item = (&'a String, &'a AttributeValue)>> {
    let body = question.body.filter(|_| !shape.is_empty())?;
    fits(body, shape).then(|| body.iter().filter(|(name, _)| shape.contains_key(*name)))
}

/// The type of a value.
pub(crate) fn type_of(value: &AttributeValue) -> AttributeType {
    match value {
        AttributeValue::Long(_) => AttributeType::Long,
        AttributeValue::Boolean(_) => AttributeType::Boolean,
        AttributeValue::String(_) => AttributeType::String,
        AttributeValue::StringSet(_) => AttributeType::StringSet,
    }
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn entity(id: EntityUid, attributes: HashMap<String, Value>, parents: HashSet<EntityUid>) -> Result<Entity, String> {
    Entity::new(id, attributes, parents).map_err(|error| error.to_string())
}

fn principal_attributes(question: &Question<'_>) -> HashMap<String, Value> {
    let principal = question.principal;
    let domain = principal.workload().map_or("", |id| id.trust_domain().as_str());
    let mut attributes = HashMap::from([("id".to_owned(), text(principal.as_str())), ("trust_domain".to_owned(), text(domain))]);
    let service = principal.workload().and_then(SpiffeId::service);
    if let Some((namespace, account)) = service.as_ref().and_then(|service| service.as_str().split_once('/')) {
        attributes.insert("namespace".to_owned(), text(namespace));
        attributes.insert("account".to_owned(), text(account));
    }
    attributes
}

fn resource_attributes(question: &Question<'_>) -> HashMap<String, Value> {
    let (namespace, name) = question.resource.as_str().split_once('/').unwrap_or(("", question.resource.as_str()));
    HashMap::from([("namespace".to_owned(), text(namespace)), ("name".to_owned(), text(name))])
}

/// The user attribute that has not the type which the policies were checked with, in words.
///
/// A token may have been verified under an older configuration. Comparing values of different types would be false rather than an error,
/// and so could silence a forbid.
pub(crate) fn misfit(user: &User, declared: &BTreeMap<String, AttributeType>) -> Option<String> {
    let unfit = |(name, found): &(&String, &AttributeValue)| declared.get(*name).is_some_and(|kind| type_of(found) != *kind);
    let (name, found) = user.attributes.iter().find(unfit)?;
    let (found, kind) = (type_of(found).as_str(), declared.get(name)?.as_str());
    Some(format!("user attribute `{name}` is {found}, and the policies were checked with {kind}"))
}

fn user_attributes(user: &User, declared: &BTreeMap<String, AttributeType>) -> HashMap<String, Value> {
    let mut attributes = HashMap::from([
        ("issuer".to_owned(), text(&user.issuer)),
        ("subject".to_owned(), text(&user.subject)),
        ("scopes".to_owned(), texts(&user.scopes)),
    ]);
    for name in declared.keys() {
        let Some(found) = user.attributes.get(name) else { continue };
        attributes.insert(name.clone(), value(found));
    }
    attributes
}

fn request_record(question: &Question<'_>, setting: Setting<'_>) -> Result<Value, String> {
    let Setting { shape, wants, headers, .. } = setting;
    let mut fields = Vec::with_capacity(4);
    // An opaque connection has none of them: a policy that asks for one cannot be decided, and so denies.
    let is_request = question.action != CONNECT;
    if wants.path && is_request {
        fields.push(("path".to_owned(), text(question.path)));
    }
    if wants.host && is_request {
        fields.push(("host".to_owned(), text(question.host)));
    }
    if !headers.is_empty() && is_request {
        let found = headers::values(question, headers).map(|(name, found)| (name.clone(), text(found)));
        fields.push(("headers".to_owned(), record(found)?));
    }
    if let Some(body) = body_fields(question, shape) {
        fields.push(("body".to_owned(), record(body.map(|(name, found)| (name.clone(), value(found))))?));
    }
    record(fields)
}

fn source_record(question: &Question<'_>, wants: Wants) -> Result<Value, String> {
    let mut fields = Vec::with_capacity(2);
    if wants.address {
        // An IPv4 caller on a dual-stack socket must match IPv4 ranges.
        fields.push(("address".to_owned(), Value::new_ip(question.address.to_canonical().to_string())));
    }
    if let Some(country) = question.country.known().filter(|_| wants.country) {
        fields.push(("country".to_owned(), text(country.as_str())));
    }
    record(fields)
}

fn record(fields: impl IntoIterator<Item = (String, Value)>) -> Result<Value, String> {
    Value::new_record(fields).map_err(|error| error.to_string())
}

fn text(content: &str) -> Value {
    Value::new_string(content.to_owned())
}

fn texts(contents: &[String]) -> Value {
    Value::new_set(contents.iter().map(|content| text(content)))
}

fn value(from: &AttributeValue) -> Value {
    match from {
        AttributeValue::Long(number) => Value::new_long(*number),
        AttributeValue::Boolean(truth) => Value::new_bool(*truth),
        AttributeValue::String(content) => text(content),
        AttributeValue::StringSet(contents) => texts(contents),
    }
}
