use super::*;
use crate::fixture::shape;
use model::authz::AttributeType::{Boolean, Long, String as Text, StringSet};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const JSON: Option<&str> = Some("application/json");

fn declared() -> BTreeMap<String, AttributeType> {
    shape(&[("amount", Long), ("note", Text), ("urgent", Boolean), ("tags", StringSet)])
}

fn read(body: &str) -> Result<BodyFacts, BodyRefusal> {
    read_body(JSON, None, body.as_bytes(), &declared(), 32)
}

fn only_amount(bytes: &[u8]) -> Result<BodyFacts, BodyRefusal> {
    read_body(JSON, None, bytes, &shape(&[("amount", Long)]), 32)
}

fn amount(value: i64) -> BodyFacts {
    BodyFacts::Fields(BTreeMap::from([("amount".to_owned(), AttributeValue::Long(value))]))
}

fn why(facts: Result<BodyFacts, BodyRefusal>) -> String {
    match facts {
        Ok(BodyFacts::Unreadable { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn declared_fields_are_read_with_their_types_and_others_are_ignored() {
    let body = r#" {"amount": 5, "note": "caf\u00e9 \ud83d\ude00", "urgent": false, "tags": ["a", "b", "a"], "more": {"amount": [1.5, null]}} "#;
    let expected = BTreeMap::from([
        ("amount".to_owned(), AttributeValue::Long(5)),
        ("note".to_owned(), AttributeValue::String("café 😀".into())),
        ("tags".to_owned(), AttributeValue::StringSet(vec!["a".into(), "b".into(), "a".into()])),
        ("urgent".to_owned(), AttributeValue::Boolean(false)),
    ]);
    assert_eq!(read(body), Ok(BodyFacts::Fields(expected)));
    assert_eq!(
        read(r#"{"tags": []}"#),
        Ok(BodyFacts::Fields(BTreeMap::from([("tags".into(), AttributeValue::StringSet(vec![]))])))
    );
    // A field that is missing or mistyped does not hide the others: another resource may read them.
    assert_eq!(read(r#"{"amount": 5, "note": 7}"#), Ok(amount(5)));
}

#[test]
fn a_long_is_an_integer_as_it_is_written() {
    for (number, expected) in [
        ("0", 0),
        ("-1", -1),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
        ("9007199254740993", 9_007_199_254_740_993),
    ] {
        assert_eq!(only_amount(format!("{{\"amount\":{number}}}").as_bytes()), Ok(amount(expected)), "{number}");
    }
    for number in
        ["1e3", "1E0", "1.0", "0.5", "-0", "-0.0", "9223372036854775808", "-9223372036854775809", "18446744073709551616"]
    {
        let found = why(only_amount(format!("{{\"amount\":{number}}}").as_bytes()));
        assert_eq!(
            found, "the body's field `amount` is a number with a fraction or exponent, or beyond 64 bits, not Long",
            "{number}"
        );
    }
    for (value, expected) in
        [("\"5\"", "a string"), ("null", "null"), ("true", "a Boolean"), ("[5]", "an array"), ("{\"amount\":5}", "an object")]
    {
        let found = why(only_amount(format!("{{\"amount\":{value}}}").as_bytes()));
        assert_eq!(found, format!("the body's field `amount` is {expected}, not Long"), "{value}");
    }
}

#[test]
fn other_types_are_as_strict() {
    for (body, expected) in [
        (r#"{"note": 5}"#, "`note` is an integer, not String"),
        (r#"{"urgent": "true"}"#, "`urgent` is a string, not Boolean"),
        (r#"{"urgent": 1}"#, "`urgent` is an integer, not Boolean"),
        (r#"{"tags": "a"}"#, "`tags` is a string, not StringSet"),
        (r#"{"tags": ["a", 1]}"#, "`tags` is an array with other things than strings, not StringSet"),
        (r#"{"tags": ["a", ["b"]]}"#, "`tags` is an array with other things than strings, not StringSet"),
        (r#"{"tags": {"a": "b"}}"#, "`tags` is an object, not StringSet"),
        ("{}", "the body has no field `amount`"),
    ] {
        let found = why(read(body));
        assert!(found.contains(expected), "{body}: {found}");
    }
}

#[test]
fn what_is_not_one_json_object_is_absent() {
    for (bytes, expected) in [
        (&b""[..], "not JSON"),
        (b" ", "not JSON"),
        (b"amount=5", "not JSON"),
        (b"{\"amount\":05}", "not JSON"),
        (b"{\"amount\":-05}", "not JSON"),
        (b"{\"amount\":+5}", "not JSON"),
        (b"{\"amount\":.5}", "not JSON"),
        (b"{\"amount\":0x5}", "not JSON"),
        (b"{\"amount\":NaN}", "not JSON"),
        (b"{\"amount\":1e999}", "not JSON"),
        (b"{\"amount\":5", "not JSON"),
        (b"{\"amount\":5,}", "not JSON"),
        (b"{'amount':5}", "not JSON"),
        (b"{amount:5}", "not JSON"),
        (b"{\"amount\":5}//", "after its JSON"),
        (b"{\"amount\":5}{\"amount\":6}", "after its JSON"),
        (b"{\"amount\":5}\0", "after its JSON"),
        (b"{\"amount\":5} x", "after its JSON"),
        (b"\xef\xbb\xbf{\"amount\":5}", "not JSON"),
        (b"{\"amount\":5,\"a\":\"\xff\"}", "not UTF-8"),
        (b"{\"amount\":5,\"a\":\"\xc0\xaf\"}", "not UTF-8"),
        (b"{\"amount\":5,\"a\":\"\xed\xa0\x80\"}", "not UTF-8"),
        (b"{\"amount\":5,\"a\":\"\\ud800\"}", "not JSON"),
        (b"{\"amount\":5,\"a\":\"\n\"}", "not JSON"),
        (b"{\0\"\0a\0\"", "not JSON"),
        (b"5", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\"amount\"", "not a JSON object"),
        (b"[{\"amount\":5}]", "not a JSON object"),
    ] {
        let found = why(only_amount(bytes));
        assert!(found.contains(expected), "{:?}: {found}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_key_that_stands_twice_is_refused_at_any_depth_and_however_it_is_written() {
    for (body, expected) in [
        (r#"{"amount": 5, "amount": 6}"#, "amount"),
        (r#"{"amount": 5, "amount": 5}"#, "amount"),
        (r#"{"amount": 5, "\u0061mount": 6}"#, "amount"),
        (r#"{"\u0061mount": 5, "amount": 6}"#, "amount"),
        (r#"{"a/b": 1, "a\/b": 2}"#, "a/b"),
        (r#"{"x": 1, "x": 2, "amount": 5}"#, "x"),
        (r#"{"amount": 5, "x": {"y": {"z": 1, "z": 2}}}"#, "x.y.z"),
        (r#"{"amount": 5, "x": [0, [{"z": 1, "\u007a": 2}]]}"#, "x.[].[].z"),
        (r#"{"": 1, "": 2}"#, ""),
        (r#"{"\ud83d\ude00": 1, "😀": 2}"#, "😀"),
        // Though it is broken afterwards.
        (r#"{"amount": 5, "amount": 6"#, "amount"),
    ] {
        assert_eq!(read(body), Err(BodyRefusal::DuplicateKey { path: expected.into() }), "{body}");
    }
    for body in [
        r#"{"amount": 5, "x": {"amount": 6}, "y": [{"amount": 1}, {"amount": 2}]}"#,
        r#"{"amount": 5, "\u00e9": 1, "e\u0301": 2}"#,
    ] {
        assert_eq!(read(body), Ok(amount(5)), "{body}");
    }
    let refusal = BodyRefusal::DuplicateKey { path: "a".into() };
    assert_eq!((refusal.reason(), refusal.to_string().as_str()), (Reason::BodyAmbiguous, "key `a` stands twice in the body"));
}

#[test]
fn a_key_that_a_careless_reader_takes_for_a_field_is_refused() {
    for (body, key) in [
        (r#"{"amount": 5, "Amount": 5000}"#, "Amount"),
        (r#"{"AMOUNT": 5000}"#, "AMOUNT"),
        (r#"{"amount": 5, "tag\u017f": []}"#, "tagſ"),
        (r#"{"\u0041mount": 5}"#, "Amount"),
    ] {
        let found = read(body).expect_err(body);
        assert!(matches!(&found, BodyRefusal::KeyCase { key: found, .. } if found == key), "{body}: {found}");
        assert_eq!(found.reason(), Reason::BodyAmbiguous);
    }
    assert_eq!(read(r#"{"amount": 5, "x": {"Amount": 6}, "amounts": 7}"#), Ok(amount(5)));
    let both = shape(&[("amount", Long), ("Amount", Long)]);
    let found = read_body(JSON, None, br#"{"amount": 5, "Amount": 6}"#, &both, 32);
    assert!(matches!(found, Ok(BodyFacts::Fields(fields)) if fields.len() == 2), "both are declared");
}

#[test]
fn nesting_is_bounded_at_the_bound_and_not_before() {
    let nested = |depth: usize| format!("{{\"amount\":5,\"x\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    for max in [1, 2, 32, 126] {
        let depth = |depth: usize| read_body(JSON, None, nested(depth).as_bytes(), &shape(&[("amount", Long)]), max);
        if max > 1 {
            assert_eq!(depth(max), Ok(amount(5)), "{max}");
        }
        assert_eq!(depth(max + 1), Err(BodyRefusal::TooDeep { max }), "{max}");
    }
    for body in ["[".repeat(1_000_000), "{\"a\":".repeat(1_000_000), nested(127), nested(500)] {
        let found = read_body(JSON, None, body.as_bytes(), &declared(), usize::MAX);
        assert_eq!(found, Err(BodyRefusal::TooDeep { max: 126 }));
    }
    assert_eq!(read_body(JSON, None, b"{}", &declared(), 0), Err(BodyRefusal::TooDeep { max: 0 }));
}

#[test]
fn a_huge_body_is_read_in_linear_time() {
    let started = Instant::now();
    let keys: String = (0..200_000).map(|at| format!("\"k{at}\":{at},")).collect();
    assert_eq!(only_amount(format!("{{{keys}\"amount\":5}}").as_bytes()), Ok(amount(5)));
    let long = format!("{{\"x\":\"{}\",\"amount\":5}}", "y".repeat(16 << 20));
    assert_eq!(only_amount(long.as_bytes()), Ok(amount(5)));
    let digits = format!("{{\"amount\":{}}}", "9".repeat(1 << 20));
    assert!(matches!(only_amount(digits.as_bytes()), Ok(BodyFacts::Unreadable { .. })));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[test]
fn only_plain_json_is_read() {
    let read = |kind: Option<&str>, encoding: Option<&str>| {
        let found = read_body(kind, encoding, br#"{"amount":5}"#, &shape(&[("amount", Long)]), 32);
        match found.expect("not refused") {
            BodyFacts::Fields(_) => "read".to_owned(),
            BodyFacts::Unreadable { why } => why,
        }
    };
    for kind in [
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        " application/json ; a=b",
        "application/problem+json",
        "application/vnd.bank.transfer+json",
    ] {
        assert_eq!(read(Some(kind), None), "read", "{kind}");
    }
    for kind in [
        "",
        "text/plain",
        "text/json",
        "application/jsonp",
        "application/json+xml",
        "application/+json",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/json; charset=iso-8859-1",
        "application/json, text/plain",
        "json",
    ] {
        assert_eq!(read(Some(kind), None), "the content type is not JSON in UTF-8", "{kind}");
    }
    assert_eq!(read(None, None), "the content type is not JSON in UTF-8");
    for encoding in ["gzip", "br", "deflate", "identity, gzip", "x"] {
        assert_eq!(read(JSON, Some(encoding)), "the body is compressed", "{encoding}");
    }
    for encoding in ["", "identity", "Identity "] {
        assert_eq!(read(JSON, Some(encoding)), "read", "{encoding}");
    }
    // What is not read is not refused either.
    assert!(matches!(
        read_body(Some("text/plain"), None, br#"{"a":1,"a":2}"#, &declared(), 32),
        Ok(BodyFacts::Unreadable { .. })
    ));
}

/// JSON text, its value, and no key twice in one object.
fn some_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        "\\PC{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[a-z]{1,3}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_field_is_read_exactly_if_a_plain_parser_finds_it(
        value in some_json(), other in some_json(), pretty in any::<bool>(), kind in prop::sample::select(AttributeType::ALL.to_vec()),
    ) {
        let document = serde_json::json!({ "field": value, "other": other });
        let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let found = read_body(JSON, None, text.expect("JSON").as_bytes(), &shape(&[("field", kind)]), 32);
        let strings = || value.as_array()?.iter().map(|each| each.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        let expected = match kind {
            Long => value.as_i64().map(AttributeValue::Long),
            Boolean => value.as_bool().map(AttributeValue::Boolean),
            Text => value.as_str().map(|text| AttributeValue::String(text.to_owned())),
            StringSet => strings().map(AttributeValue::StringSet),
        };
        match (found.expect("no key twice"), expected) {
            (BodyFacts::Fields(fields), Some(expected)) => prop_assert_eq!(&fields["field"], &expected),
            (BodyFacts::Unreadable { .. }, None) => {}
            (found, expected) => prop_assert!(false, "{:?} {:?}", found, expected),
        }
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\":,a0-9eE.+\\\\u -]{0,64}") {
        let _ = only_amount(&bytes);
        let _ = only_amount(text.as_bytes());
    }
}
