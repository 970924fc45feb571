//! Decision records: back as they went, cut where they are too large, refused where they are not what they should be.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn record() -> DecisionRecord {
    DecisionRecord {
        id: DecisionId::from_random([7; 16]),
        at: Timestamp::from_millis(1_795_514_400_123),
        workload: "shop/ledger".into(),
        resource: "shop/ledger".into(),
        effect: Effect::Deny,
        reason: Some(Reason::NotPermitted.as_str().to_owned()),
        detail: Some("denied by policy".into()),
        status: 403,
        revision: Revision(9),
        principal: Some("spiffe://shop.example/ns/shop/sa/web".into()),
        user: Some("ann".into()),
        action: "POST".into(),
        path: "/transfers".into(),
        explanation: Some(Explanation {
            policies: vec![policy("a", Outcome::Applied, &[]), policy("b", Outcome::NotApplied, &["x", "y"])],
            attributes: vec![("context.user.limit".into(), "1000".into())],
            nearest_miss: Some("would be allowed if".into()),
        }),
        shadow: Some(Shadowed {
            would: Would::Allow,
            policies: vec![PolicyId::new("shop/rules", "c")],
            detail: Some("forbidden by".into()),
        }),
    }
}

fn policy(name: &str, outcome: Outcome, failed: &[&str]) -> PolicyOutcome {
    PolicyOutcome {
        id: PolicyId::new("shop/rules", name),
        kind: "permit".into(),
        position: "p.yaml:3".into(),
        outcome,
        failed: failed.iter().map(ToString::to_string).collect(),
    }
}

fn any_explanation() -> impl Strategy<Value = Explanation> {
    let outcome = proptest::sample::select(vec![Outcome::Applied, Outcome::NotApplied, Outcome::Errored]);
    let policy = (any::<String>(), any::<String>(), any::<String>(), outcome, vec(any::<String>(), 0..4));
    let policy = policy.prop_map(|(id, kind, position, outcome, failed)| PolicyOutcome {
        id: PolicyId::from_text(&id),
        kind,
        position,
        outcome,
        failed,
    });
    (vec(policy, 0..4), vec(any::<(String, String)>(), 0..4), any::<Option<String>>())
        .prop_map(|(policies, attributes, nearest_miss)| Explanation { policies, attributes, nearest_miss })
}

fn any_record() -> impl Strategy<Value = DecisionRecord> {
    let present = || proptest::option::of("[a-z]{1,9}");
    let reason = proptest::option::of(proptest::sample::select(Reason::ALL.to_vec()));
    let numbers = (any::<[u8; 16]>(), any::<u64>(), any::<u16>(), any::<u64>());
    let texts = (present(), present(), proptest::option::of(any::<String>()), any::<String>(), any::<String>());
    (numbers, reason, texts, proptest::option::of(any_explanation())).prop_map(
        |((id, at, status, revision), reason, (detail, principal, user, action, path), explanation)| DecisionRecord {
            id: DecisionId::from_random(id),
            at: Timestamp::from_millis(at),
            effect: if reason.is_some() { Effect::Deny } else { Effect::Allow },
            reason: reason.map(|reason| reason.as_str().to_owned()),
            detail,
            status,
            revision: Revision(revision),
            principal,
            user,
            action,
            path,
            explanation,
            ..record()
        },
    )
}

proptest! {
    #[test]
    fn any_record_of_an_ordinary_size_comes_back_as_it_went(record in any_record()) {
        let bytes = record_to_wire(&record).encode_to_vec();
        let wire = proto::DecisionRecord::decode(bytes.as_slice()).expect("bytes");
        prop_assert_eq!(record_from_wire(wire), Ok(record));
    }

    /// Nobody can make a record that the control plane refuses: neither by a long path nor by a thousand policies.
    #[test]
    fn a_record_of_any_size_fits_and_is_not_cut_again(
        policies in 0_usize..300,
        lines in 0_usize..300,
        attributes in 0_usize..300,
        texts in vec(0_usize..9000, 6),
        wide in any::<bool>(),
    ) {
        let text = |at: usize| if wide { "ß€".repeat(texts[at] / 5) } else { "x".repeat(texts[at]) };
        let mut large = record();
        (large.path, large.user, large.detail) = (text(0), Some(text(1)), Some("d".repeat(9000)));
        let of = PolicyOutcome { position: text(2), failed: vec![text(3); lines], ..policy("a", Outcome::NotApplied, &[]) };
        let attribute = ("context.request.path".to_owned(), text(4));
        large.explanation = Some(Explanation {
            policies: vec![of; policies],
            attributes: vec![attribute; attributes],
            nearest_miss: Some(text(5)),
        });
        let wire = record_to_wire(&large);
        prop_assert!(wire.encoded_len() <= RECORD_BYTES_MAX, "{}", wire.encoded_len());
        let read = record_from_wire(wire.clone()).expect("what is sent is taken");
        prop_assert_eq!(record_to_wire(&read), wire);
    }
}

#[test]
fn what_is_left_out_is_marked_and_the_policies_are_kept_before_their_conditions() {
    let mut large = record();
    large.path = "/".repeat(TEXT_BYTES_MAX + 1);
    let line = "context.request.path like \"/x\"".repeat(20);
    let of = |_| policy("a", Outcome::NotApplied, &[line.as_str(); 9]);
    let attributes = vec![("context.user.limit".to_owned(), "1000".to_owned()); 201];
    large.explanation = Some(Explanation { policies: (0..201).map(of).collect(), attributes, nearest_miss: Some("if".into()) });
    let wire = record_to_wire(&large);
    assert!(wire.path.ends_with("/…") && wire.path.len() == TEXT_BYTES_MAX);
    let explanation = wire.explanation.expect("explanation");
    assert_eq!((explanation.policies.len(), explanation.attributes.len()), (200, 200));
    assert_eq!(explanation.nearest_miss.as_deref(), Some("if"));
    let (first, last) = (&explanation.policies[0].failed, &explanation.policies[199].failed);
    assert!(first.len() == 9 && first.iter().all(|kept| *kept == line), "the first ones are whole");
    assert_eq!(*last, ["…"], "the last ones say that something was there");

    let mut many = record();
    let policies = vec![policy("a", Outcome::NotApplied, &["x"; 201])];
    many.explanation = Some(Explanation { policies, ..Explanation::default() });
    let wire = record_to_wire(&many);
    let failed = wire.explanation.as_ref().map(|explanation| explanation.policies[0].failed.as_slice()).expect("explanation");
    assert_eq!((failed.len(), failed.last().map(String::as_str)), (200, Some("…")));
    assert!(record_from_wire(wire).is_ok(), "the mark has its place among the entries");
}

#[test]
fn a_text_is_taken_at_its_bound_and_refused_one_byte_over() {
    let at = |bytes: usize| {
        let wire = proto::DecisionRecord { path: "x".repeat(bytes), ..record_to_wire(&record()) };
        record_from_wire(wire).map_err(|error| error.to_string())
    };
    assert!(at(TEXT_BYTES_MAX).is_ok());
    assert_eq!(at(TEXT_BYTES_MAX + 1), Err("`path`: 4097 bytes, 4096 at most".to_owned()));
}

#[test]
fn a_record_is_taken_at_its_bound_and_refused_one_byte_over() {
    let mut wire = record_to_wire(&record());
    let lines = wire.explanation.as_mut().map(|explanation| &mut explanation.policies[0].failed).expect("policy");
    lines.extend(std::iter::repeat_n("x".repeat(4096), 15));
    lines.push("x".repeat(200));
    let missing = RECORD_BYTES_MAX - wire.encoded_len();
    let grow = |by: usize| {
        let mut grown = wire.clone();
        let explanation = grown.explanation.as_mut().expect("explanation");
        explanation.policies[0].failed[15].push_str(&"x".repeat(by));
        assert_eq!(grown.encoded_len(), wire.encoded_len() + by, "no length prefix grew");
        record_from_wire(grown).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(grow(missing), Ok(()));
    assert_eq!(grow(missing + 1), Err("`record`: 65537 bytes, 65536 at most".to_owned()));
}

#[test]
fn every_field_that_is_not_what_it_should_be_is_refused_with_its_path() {
    fn explanation(wire: &mut proto::DecisionRecord) -> &mut proto::Explanation {
        wire.explanation.as_mut().expect("explanation")
    }
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let long = long.as_str();
    type Change<'a> = Box<dyn Fn(&mut proto::DecisionRecord) + 'a>;
    let rows: Vec<(&str, &str, Change<'_>)> = vec![
        ("id", "not a decision id", Box::new(|wire| wire.id.clear())),
        ("id", "not a decision id", Box::new(|wire| wire.id = "d-1".into())),
        ("workload", "at most", Box::new(|wire| wire.workload = long.into())),
        ("resource", "at most", Box::new(|wire| wire.resource = long.into())),
        ("reason", "unknown word `because`", Box::new(|wire| wire.reason = "because".into())),
        ("reason", "an allowed call has none", Box::new(|wire| wire.allowed = true)),
        ("detail", "at most", Box::new(|wire| wire.detail = long.into())),
        ("status", "not an HTTP status", Box::new(|wire| wire.status = 65_536)),
        ("principal", "at most", Box::new(|wire| wire.principal = long.into())),
        ("user", "at most", Box::new(|wire| wire.user = Some(long.into()))),
        ("action", "at most", Box::new(|wire| wire.action = long.into())),
        ("path", "at most", Box::new(|wire| wire.path = long.into())),
        ("explanation.nearest_miss", "at most", Box::new(|wire| explanation(wire).nearest_miss = Some(long.into()))),
        ("explanation.policies[0].outcome", "unknown value 0", Box::new(|wire| explanation(wire).policies[0].outcome = 0)),
        ("explanation.policies[1].outcome", "unknown value 4", Box::new(|wire| explanation(wire).policies[1].outcome = 4)),
        ("explanation.policies[1].id", "at most", Box::new(|wire| explanation(wire).policies[1].id = long.into())),
        ("explanation.policies[1].kind", "at most", Box::new(|wire| explanation(wire).policies[1].kind = long.into())),
        ("explanation.policies[1].position", "at most", Box::new(|wire| explanation(wire).policies[1].position = long.into())),
        ("explanation.policies[1].failed[1]", "at most", Box::new(|wire| explanation(wire).policies[1].failed[1] = long.into())),
        (
            "explanation.policies[1].failed",
            "201 entries",
            Box::new(|wire| explanation(wire).policies[1].failed = vec![String::new(); 201]),
        ),
        (
            "explanation.policies",
            "201 entries",
            Box::new(|wire| explanation(wire).policies = vec![proto::PolicyOutcome::default(); 201]),
        ),
        (
            "explanation.attributes",
            "201 entries",
            Box::new(|wire| explanation(wire).attributes = vec![proto::Attribute::default(); 201]),
        ),
        ("explanation.attributes[0].path", "at most", Box::new(|wire| explanation(wire).attributes[0].path = long.into())),
        ("explanation.attributes[0].value", "at most", Box::new(|wire| explanation(wire).attributes[0].value = long.into())),
    ];
    for (path, problem, change) in rows {
        let mut wire = record_to_wire(&record());
        change(&mut wire);
        let error = record_from_wire(wire).expect_err(path);
        assert_eq!(error.path, path);
        assert!(error.problem.contains(problem), "{error}");
    }
}
