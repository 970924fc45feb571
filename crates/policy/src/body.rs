//! The JSON body as policies may read it: declared fields, exact types, and nothing that two readers could read differently.

use model::authz::{AttributeType, AttributeValue};
use model::reason::Reason;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// LIMIT: where the JSON parser's own bound would take over, and call the body no JSON.
const DEPTH_MAX: usize = 126;

/// What policies may know of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyFacts {
    /// The declared fields that are there with the declared type; at least one. A policy sees the body only if all fields
    /// that its own resource declares are among them.
    Fields(BTreeMap<String, AttributeValue>),
    /// There is a body, and no declared field can be read.
    Unreadable {
        /// Why, for the explanation. Holds no value of the body.
        why: String,
    },
}

/// A body that two readers could read differently. The caller must send an unambiguous one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyRefusal {
    /// An object, at any depth, holds the same key twice, perhaps once in an escaped form.
    #[error("key `{path}` stands twice in the body")]
    DuplicateKey {
        /// From the top, with dots: `payments.amount`; `[]` stands for an element of an array.
        path: String,
    },
    /// A key differs from a declared field by upper and lower case alone. Some readers take it for that field.
    #[error("key `{key}` differs from the field `{field}` by case alone")]
    KeyCase {
        /// The key in the body.
        key: String,
        /// The declared field.
        field: String,
    },
    /// Objects and arrays are nested deeper than `policyBodyDepth`.
    #[error("the body is nested deeper than `policyBodyDepth` ({max})")]
    TooDeep {
        /// The limit.
        max: usize,
    },
}

impl BodyRefusal {
    /// The reason that the caller is told.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::DuplicateKey { .. } | Self::KeyCase { .. } | Self::TooDeep { .. } => Reason::BodyAmbiguous,
        }
    }
}

/// Reads the declared fields of a JSON body.
///
/// `content_type` and `content_encoding`: the headers' values. `bytes`: the whole body, already bounded. `declared`: from
/// [`crate::Policies::body_fields`]. `depth_max`: how many objects and arrays may be open at once; more than 126 means 126. A `Long`
/// is a JSON integer (RFC 8259 §6) without fraction or exponent that fits 64 bits, signed, and not `-0`.
///
/// # Errors
/// - [`BodyRefusal::DuplicateKey`], [`BodyRefusal::KeyCase`], [`BodyRefusal::TooDeep`]: only for a body that claims to be
///   JSON. Anything that is not JSON is [`BodyFacts::Unreadable`].
pub fn read_body(
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    bytes: &[u8],
    declared: &BTreeMap<String, AttributeType>,
    depth_max: usize,
) -> Result<BodyFacts, BodyRefusal> {
    let absent = |why: &str| Ok(BodyFacts::Unreadable { why: why.to_owned() });
    if !is_plain(content_encoding) {
        return absent("the body is compressed");
    }
    if !is_json(content_type) {
        return absent("the content type is not JSON in UTF-8");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return absent("the body is not UTF-8") };
    let refusal = RefCell::new(None);
    let reading = Reading { declared, depth_max: depth_max.min(DEPTH_MAX), refusal: &refusal };
    let mut json = serde_json::Deserializer::from_str(text);
    let top = Node { reading: &reading, depth: 0, path: None }.deserialize(&mut json);
    if let Some(refusal) = refusal.into_inner() {
        return Err(refusal);
    }
    let Ok(top) = top else { return absent("the body is not JSON") };
    if json.end().is_err() {
        return absent("the body has something after its JSON");
    }
    let Found::Object(found) = top else { return absent("the body is not a JSON object") };
    Ok(select(found, declared))
}

fn select(mut found: BTreeMap<String, Found>, declared: &BTreeMap<String, AttributeType>) -> BodyFacts {
    let mut fields = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, kind) in declared {
        match found.remove(name) {
            None => missing.push(format!("the body has no field `{name}`")),
            Some(value) => match value.typed(*kind) {
                Ok(value) => {
                    fields.insert(name.clone(), value);
                }
                Err(other) => missing.push(format!("the body's field `{name}` is {other}, not {}", kind.as_str())),
            },
        }
    }
    if fields.is_empty() { BodyFacts::Unreadable { why: missing.join(", ") } } else { BodyFacts::Fields(fields) }
}

/// No encoding, or `identity` (RFC 9110 §8.4).
fn is_plain(content_encoding: Option<&str>) -> bool {
    content_encoding.is_none_or(|value| value.trim().is_empty() || value.trim().eq_ignore_ascii_case("identity"))
}

/// `application/json` or `application/…+json` (RFC 6839 §3.1), with no charset but UTF-8.
fn is_json(content_type: Option<&str>) -> bool {
    let Some(value) = content_type else { return false };
    let mut parts = value.split(';').map(str::trim);
    let kind = parts.next().unwrap_or("").to_ascii_lowercase();
    let json =
        kind.strip_prefix("application/").is_some_and(|rest| rest == "json" || (rest.ends_with("+json") && rest.len() > 5));
    let utf8 = |part: &str| match part.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    };
    json && parts.all(utf8)
}

/// A JSON value, as much of it as a field can need.
enum Found {
    Null,
    Boolean(bool),
    Integer(i64),
    Number,
    Text(String),
    Array(Vec<Found>),
    Object(BTreeMap<String, Found>),
    /// Below the top level, where no declared field is.
    Skipped(&'static str),
}

impl Found {
    fn typed(self, kind: AttributeType) -> Result<AttributeValue, &'static str> {
        match (kind, self) {
            (AttributeType::Long, Self::Integer(number)) => Ok(AttributeValue::Long(number)),
            (AttributeType::Boolean, Self::Boolean(truth)) => Ok(AttributeValue::Boolean(truth)),
            (AttributeType::String, Self::Text(text)) => Ok(AttributeValue::String(text)),
            (AttributeType::StringSet, Self::Array(elements)) => {
                let text = |element| {
                    if let Self::Text(text) = element { Ok(text) } else { Err("an array with other things than strings") }
                };
                elements.into_iter().map(text).collect::<Result<_, _>>().map(AttributeValue::StringSet)
            }
            (_, other) => Err(other.name()),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "a Boolean",
            Self::Integer(_) => "an integer",
            Self::Number => "a number with a fraction or exponent, or beyond 64 bits",
            Self::Text(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
            Self::Skipped(name) => name,
        }
    }
}

struct Reading<'a> {
    declared: &'a BTreeMap<String, AttributeType>,
    depth_max: usize,
    refusal: &'a RefCell<Option<BodyRefusal>>,
}

/// One value that is about to be read.
#[derive(Clone, Copy)]
struct Node<'a> {
    reading: &'a Reading<'a>,
    /// How many objects and arrays are open around it.
    depth: usize,
    path: Option<&'a Step<'a>>,
}

/// How a value was reached.
struct Step<'a> {
    name: &'a str,
    above: Option<&'a Step<'a>>,
}

impl Step<'_> {
    fn text(&self) -> String {
        let mut names = vec![model::ids::printable(self.name)];
        let mut at = self.above;
        while let Some(step) = at {
            names.push(model::ids::printable(step.name));
            at = step.above;
        }
        names.reverse();
        names.join(".")
    }
}

impl<'a> Node<'a> {
    fn refuse<E: serde::de::Error>(&self, refusal: BodyRefusal) -> E {
        self.reading.refusal.replace(Some(refusal));
        E::custom("refused")
    }

    /// One object or array deeper.
    fn enter<E: serde::de::Error>(self) -> Result<Self, E> {
        let max = self.reading.depth_max;
        if self.depth >= max {
            return Err(self.refuse(BodyRefusal::TooDeep { max }));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Found;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Found, E> {
        Ok(Found::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Found, E> {
        Ok(Found::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Found, E> {
        Ok(i64::try_from(value).map_or(Found::Number, Found::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<Found, E> {
        Ok(if self.depth <= 2 { Found::Text(value.to_owned()) } else { Found::Skipped("a string") })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Found, A::Error> {
        let inside = self.enter()?;
        let step = Step { name: "[]", above: self.path };
        let mut found = Vec::new();
        while let Some(element) = elements.next_element_seed(Node { path: Some(&step), ..inside })? {
            if inside.depth <= 2 {
                found.push(element);
            }
        }
        Ok(if inside.depth <= 2 { Found::Array(found) } else { Found::Skipped("an array") })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Found, A::Error> {
        let inside = self.enter()?;
        let mut seen = HashSet::new();
        let mut found = BTreeMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            let step = Step { name: &key, above: self.path };
            if seen.contains(&key) {
                return Err(inside.refuse(BodyRefusal::DuplicateKey { path: step.text() }));
            }
            if inside.depth == 1
                && let Some(field) = inside.reading.alike(&key)
            {
                let refusal = BodyRefusal::KeyCase { key: model::ids::printable(&key), field };
                return Err(inside.refuse(refusal));
            }
            let value = entries.next_value_seed(Node { path: Some(&step), ..inside })?;
            if inside.depth == 1 && inside.reading.declared.contains_key(&key) {
                found.insert(key.clone(), value);
            }
            seen.insert(key);
        }
        Ok(Found::Object(found))
    }
}

impl Reading<'_> {
    /// The declared field that `key` is not, but that a reader which ignores case takes it for.
    fn alike(&self, key: &str) -> Option<String> {
        if self.declared.contains_key(key) {
            return None;
        }
        let folded = fold(key);
        self.declared.keys().find(|field| fold(field) == folded).cloned()
    }
}

/// Upper case first, so that `ſ` and the Kelvin sign fold to `s` and `k`, as in readers that use simple case folding.
fn fold(text: &str) -> String {
    text.to_uppercase().to_lowercase()
}

#[cfg(test)]
mod tests;
