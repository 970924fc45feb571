//! JSON in which no object has a key twice, at any depth. RFC 8259 leaves to each reader which one counts, and two readers
//! that disagree are a hole: RFC 7515 §4 and RFC 7519 §4 let us refuse.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// A JSON value. Debug prints no content: it may be claims.
#[derive(Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Boolean(bool),
    /// Written without fraction and exponent, and in the range.
    Integer(i64),
    /// Any other number.
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Object),
}

/// The members of an object.
pub(crate) type Object = BTreeMap<String, Json>;

/// Why bytes are not such a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonFault {
    /// Not JSON, not UTF-8, or nested more than 128 deep.
    Syntax,
    /// A key stands twice in one object.
    DuplicateKey,
}

/// Parses a whole text; nothing but white space may follow the value.
pub(crate) fn parse(bytes: &[u8]) -> Result<Json, JsonFault> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| match error.classify() {
        // Every type is welcome, so the only complaint about data is our own.
        serde_json::error::Category::Data => JsonFault::DuplicateKey,
        _ => JsonFault::Syntax,
    })
}

impl Json {
    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The texts, if it is a list of nothing else.
    pub(crate) fn texts(&self) -> Option<Vec<&str>> {
        match self {
            Self::List(items) => items.iter().map(Self::text).collect(),
            _ => None,
        }
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json(…)")
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Json;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Number(value as f64), Json::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Object::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict)?;
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_difference_between_whole_and_not() {
        for (text, expected) in [
            ("0", Json::Integer(0)),
            ("-9223372036854775808", Json::Integer(i64::MIN)),
            ("9223372036854775807", Json::Integer(i64::MAX)),
            ("9223372036854775808", Json::Number(9_223_372_036_854_775_808.0)),
            ("1.0", Json::Number(1.0)),
            ("1e3", Json::Number(1000.0)),
            ("null", Json::Null),
            ("true", Json::Boolean(true)),
            ("\"\\u0061\"", Json::Text("a".to_owned())),
            (" [ ] ", Json::List(Vec::new())),
        ] {
            assert!(parse(text.as_bytes()) == Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_told_from_bad_syntax() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for (text, expected) in [
            (r#"{"a":1,"a":1}"#, JsonFault::DuplicateKey),
            (r#"{"a":1,"\u0061":2}"#, JsonFault::DuplicateKey),
            (r#"{"x":[{"a":1,"b":2,"a":3}]}"#, JsonFault::DuplicateKey),
            ("", JsonFault::Syntax),
            ("{", JsonFault::Syntax),
            ("{} {}", JsonFault::Syntax),
            ("{a:1}", JsonFault::Syntax),
            ("[1,]", JsonFault::Syntax),
            ("NaN", JsonFault::Syntax),
            ("1e999", JsonFault::Syntax),
            (r#""\ud800""#, JsonFault::Syntax),
            (deep.as_str(), JsonFault::Syntax),
        ] {
            assert_eq!(parse(text.as_bytes()).expect_err(text), expected, "{text}");
        }
        assert_eq!(parse(b"\"\xff\"").expect_err("not UTF-8"), JsonFault::Syntax);
        assert!(parse(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok(), "the same key in different objects");
    }
}
