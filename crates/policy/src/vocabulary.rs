//! What policies can speak of: the schema that every policy is validated against.

use crate::headers::HeaderNames;
use cedar_policy::{Schema, SchemaFragment};
use model::authz::AttributeType;
use model::snapshot::TokenIssuer;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The fields of a JSON body that a resource declares.
pub(crate) type BodyShape = BTreeMap<String, AttributeType>;

/// Every action and the group that it is in. An action that is not here is never allowed.
pub(crate) const ACTIONS: [(&str, Option<&str>); 8] = [
    ("GET", Some("read")),
    ("HEAD", Some("read")),
    ("OPTIONS", Some("read")),
    ("POST", Some("write")),
    ("PUT", Some("write")),
    ("PATCH", Some("write")),
    ("DELETE", Some("write")),
    ("connect", None),
];

/// The group that an action is in.
pub(crate) fn group_of(action: &str) -> Option<&'static str> {
    ACTIONS.iter().find(|(known, _)| *known == action).and_then(|(_, group)| *group)
}

/// The attributes that every user has.
const USER_ATTRIBUTES: [&str; 3] = ["issuer", "subject", "scopes"];

/// The words of one mesh: the fixed ones, and the user attributes that its issuers map.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// User attribute to type, over all issuers.
    pub(crate) attributes: BTreeMap<String, AttributeType>,
}

impl Vocabulary {
    /// The fixed words alone.
    pub(crate) fn empty() -> Self {
        Self { attributes: BTreeMap::new() }
    }

    /// Collects the user attributes of all issuers.
    ///
    /// # Errors
    /// - a text that names the attribute which two issuers type differently, or which every user has anyway.
    pub(crate) fn of(issuers: &[TokenIssuer]) -> Result<Self, String> {
        let mut attributes: BTreeMap<String, (AttributeType, &str)> = BTreeMap::new();
        for issuer in issuers {
            for (name, mapping) in &issuer.attributes {
                if USER_ATTRIBUTES.contains(&name.as_str()) {
                    return Err(format!("token issuer `{}` maps `{name}`, which every user has already", issuer.name));
                }
                let (kind, first) = *attributes.entry(name.clone()).or_insert((mapping.kind, &issuer.name));
                if kind != mapping.kind {
                    let (a, b) = (kind.as_str(), mapping.kind.as_str());
                    return Err(format!("user attribute `{name}` is {a} in issuer `{first}` and {b} in `{}`", issuer.name));
                }
            }
        }
        Ok(Self { attributes: attributes.into_iter().map(|(name, (kind, _))| (name, kind)).collect() })
    }

    /// The Cedar schema for policies that may read a body of this shape, and headers of these names. An empty shape: no body.
    ///
    /// # Errors
    /// - Cedar's text, if a declared name cannot stand in a schema.
    pub(crate) fn schema(&self, body: &BodyShape, headers: &HeaderNames) -> Result<Schema, String> {
        Schema::from_json_value(self.json(body, headers)).map_err(|error| error.to_string())
    }

    /// The same in Cedar's own syntax.
    ///
    /// # Errors
    /// - Cedar's text, if a declared name cannot stand in a schema.
    pub(crate) fn text(&self, body: &BodyShape, headers: &HeaderNames) -> Result<String, String> {
        let fragment = SchemaFragment::from_json_value(self.json(body, headers)).map_err(|error| error.to_string())?;
        Ok(compact(&fragment.to_cedarschema().map_err(|error| error.to_string())?))
    }

    fn json(&self, body: &BodyShape, headers: &HeaderNames) -> Value {
        let mut actions = Map::new();
        for group in ["read", "write"] {
            actions.insert(group.to_owned(), json!({}));
        }
        for (action, group) in ACTIONS {
            let groups: Vec<Value> = group.into_iter().map(|id| json!({ "id": id })).collect();
            let applies = json!({
                "principalTypes": ["Workload"], "resourceTypes": ["Service"], "context": context(body, headers),
            });
            actions.insert(action.to_owned(), json!({ "memberOf": groups, "appliesTo": applies }));
        }
        json!({ "": { "entityTypes": self.entity_types(), "actions": actions } })
    }

    fn entity_types(&self) -> Value {
        let text = || json!({ "type": "String" });
        let mut user = Map::new();
        user.insert("issuer".into(), text());
        user.insert("subject".into(), text());
        user.insert("scopes".into(), schema_type(AttributeType::StringSet, true));
        for (name, kind) in &self.attributes {
            user.insert(name.clone(), schema_type(*kind, false));
        }
        json!({
            "Namespace": {},
            "Role": { "memberOfTypes": ["Role"] },
            "Workload": { "shape": { "type": "Record", "attributes": {
                "id": text(), "trust_domain": text(),
                "namespace": schema_type(AttributeType::String, false),
                "account": schema_type(AttributeType::String, false),
            } } },
            "Service": { "shape": { "type": "Record", "attributes": { "namespace": text(), "name": text() } } },
            "User": { "memberOfTypes": ["Role"], "shape": { "type": "Record", "attributes": user } },
        })
    }

    /// The attributes that the thing at `path` can have; `None` where the path leads to no entity or record.
    pub(crate) fn names_at(&self, path: &[&str], body: &BodyShape) -> Option<Vec<String>> {
        let owned = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        match path {
            ["principal"] => owned(&["id", "trust_domain", "namespace", "account"]),
            ["resource"] => owned(&["namespace", "name"]),
            ["context"] => owned(&["user", "request", "source", "now"]),
            ["context", "request"] if body.is_empty() => owned(&["path", "host", "headers"]),
            ["context", "request"] => owned(&["path", "host", "headers", "body"]),
            ["context", "request", "body"] => Some(body.keys().cloned().collect()),
            ["context", "source"] => owned(&["address", "country"]),
            ["context", "user"] => {
                Some(USER_ATTRIBUTES.iter().map(|&name| name.to_owned()).chain(self.attributes.keys().cloned()).collect())
            }
            _ => None,
        }
    }
}

/// Actions that are told alike stand together, and names that nothing hides stand without their namespace.
fn compact(text: &str) -> String {
    let text = text.replace("__cedar::", "");
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    for block in text.trim().split("\n\n") {
        let action =
            block.strip_prefix("action ").and_then(|rest| rest.split_once(" in [").or_else(|| rest.split_once(" appliesTo")));
        let (name, rest) = match action {
            Some((name, _)) => (name, block.get("action ".len() + name.len()..).unwrap_or_default()),
            None => ("", block),
        };
        match blocks.iter_mut().find(|(known, names)| *known == rest && !names.contains(&"") && !name.is_empty()) {
            Some((_, names)) => names.push(name),
            None => blocks.push((rest, vec![name])),
        }
    }
    let told = |(rest, names): (&str, Vec<&str>)| match names.join(", ") {
        none if none.is_empty() => rest.to_owned(),
        names => format!("action {names}{rest}"),
    };
    blocks.into_iter().map(told).collect::<Vec<_>>().join("\n\n")
}

fn context(body: &BodyShape, headers: &HeaderNames) -> Value {
    let text = || json!({ "type": "String" });
    let mut request = Map::new();
    request.insert("path".into(), text());
    request.insert("host".into(), text());
    if !headers.is_empty() {
        let each = headers.iter().map(|name| (name.clone(), schema_type(AttributeType::String, false)));
        request.insert("headers".into(), json!({ "type": "Record", "attributes": each.collect::<Map<_, _>>() }));
    }
    if !body.is_empty() {
        let fields: Map<String, Value> = body.iter().map(|(name, kind)| (name.clone(), schema_type(*kind, true))).collect();
        request.insert("body".into(), json!({ "type": "Record", "attributes": fields, "required": false }));
    }
    json!({ "type": "Record", "attributes": {
        "user": { "type": "Entity", "name": "User", "required": false },
        "request": { "type": "Record", "attributes": request },
        "source": { "type": "Record", "attributes": {
            "address": { "type": "Extension", "name": "ipaddr" },
            "country": schema_type(AttributeType::String, false),
        } },
        "now": { "type": "Extension", "name": "datetime" },
    } })
}

fn schema_type(kind: AttributeType, required: bool) -> Value {
    match kind {
        AttributeType::Long => json!({ "type": "Long", "required": required }),
        AttributeType::String => json!({ "type": "String", "required": required }),
        AttributeType::Boolean => json!({ "type": "Boolean", "required": required }),
        AttributeType::StringSet => json!({ "type": "Set", "element": { "type": "String" }, "required": required }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_as_text_is_the_schema_that_policies_are_checked_with() {
        let vocabulary = Vocabulary { attributes: BTreeMap::from([("limit".to_owned(), AttributeType::Long)]) };
        let body = BTreeMap::from([("amount".to_owned(), AttributeType::Long)]);
        let headers = HeaderNames::from(["x-tenant".to_owned()]);
        let text = vocabulary.text(&body, &headers).expect("text");
        assert_eq!(text.matches("appliesTo").count(), 3, "reads, writes and connect: {text}");
        let (read, _) = SchemaFragment::from_cedarschema_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let again = compact(&read.to_cedarschema().expect("text"));
        assert_eq!(again, text);
        for part in [
            "\"GET\", \"HEAD\", \"OPTIONS\" in [Action::\"read\"]",
            "limit?: Long",
            "amount: Long",
            "\"x-tenant\"?: String",
            "entity Role in [Role]",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
