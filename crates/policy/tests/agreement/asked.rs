//! Requests of every kind, also such as a caller means no good by.

use super::dice::Dice;
use super::written::{HEADERS, NUMBERS, ROLES, TEXTS, Written};
use model::authz::{AttributeType, AttributeValue, AuthzRequest, Header, HeaderRead, Principal, Source, User};
use model::country::{Country, CountryCode};
use model::ids::{ServiceName, SpiffeId};
use model::time::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes a request for a mesh.
pub(crate) fn request(dice: &mut Dice<'_>, mesh: &Written) -> AuthzRequest {
    let action = dice.pick(&["POST", "GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "connect", "POST", "GET", "BREW"]);
    let is_request = action != "connect";
    let (body, body_note) = if is_request { body(dice, mesh) } else { (None, None) };
    let headers: Vec<_> = HEADERS.iter().map(|name| Header { name: (*name).into(), read: header(dice) }).collect();
    AuthzRequest {
        principal: principal(dice),
        user: (is_request && !dice.one_in(4)).then(|| Arc::new(user(dice, mesh))),
        action: action.to_owned(),
        resource: ServiceName::parse(dice.pick(&["bank/payments", "bank/ledger"])).expect("a name"),
        path: if is_request { dice.pick(&["/transfers", "/t/1", "/", "/caf\u{e9}*"]).to_owned() } else { "/".to_owned() },
        host: if is_request { dice.pick(&["bank", "acme", ""]).to_owned() } else { String::new() },
        headers: if is_request { headers } else { Vec::new() },
        body,
        body_note,
        source: Source {
            address: dice
                .pick(&["10.1.2.3", "10.0.0.0", "192.0.2.1", "::ffff:10.0.0.1", "2001:db8::1", "::1", "127.0.0.1", "224.0.0.1"])
                .parse()
                .expect("an address"),
            country: match dice.roll(12) {
                0 => Country::Unavailable,
                1..=3 => Country::Unknown,
                which => CountryCode::parse(if which < 8 { "CH" } else { "DE" }).into(),
            },
        },
        now: Timestamp::from_millis(*dice.pick(&[&1_795_514_400_000, &0, &1_795_478_400_000, &253_402_300_799_999])),
    }
}

fn principal(dice: &mut Dice<'_>) -> Principal {
    let id = dice.pick(&[
        "spiffe://bank.example/ns/bank/sa/web",
        "spiffe://bank.example/ns/bank/sa/fraud",
        "spiffe://other.example/ns/bank/sa/web",
        "spiffe://bank.example/batch",
        "spiffe://bank.example/ns/Bank/sa/web",
        "unauthenticated",
    ]);
    SpiffeId::parse(id).map_or(Principal::Unauthenticated, Into::into)
}

fn header(dice: &mut Dice<'_>) -> HeaderRead<'static> {
    match dice.roll(12) {
        0 => HeaderRead::Twice,
        1..=3 => HeaderRead::Absent,
        _ => HeaderRead::Value(dice.pick(&["acme", "CH", "", "/transfers"]).into()),
    }
}

fn user(dice: &mut Dice<'_>, mesh: &Written) -> User {
    let mut attributes = BTreeMap::new();
    for (name, mapping) in &mesh.issuer.attributes {
        if dice.one_in(3) {
            continue;
        }
        // Seldom a token that was verified when the claim had another type.
        let kind = if dice.one_in(40) { AttributeType::Long } else { mapping.kind };
        attributes.insert(name.clone(), value(dice, kind));
    }
    let issuer = if dice.one_in(5) { "other" } else { "login" };
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
    let subject = dice.pick(&["alice", "bob", "alice#login"]).to_owned();
    User { issuer: issuer.into(), subject, roles: owned(dice.some(&ROLES)), scopes: owned(dice.some(&TEXTS)), attributes }
}

/// All fields, some, none; of the declared types or of others; unreadable, or not there.
fn body(dice: &mut Dice<'_>, mesh: &Written) -> (Option<BTreeMap<String, AttributeValue>>, Option<String>) {
    match dice.roll(6) {
        0 => return (None, None),
        1 => return (None, Some("the body is not JSON".to_owned())),
        _ => {}
    }
    let mut fields = BTreeMap::new();
    let is_whole = dice.one_in(2);
    for (name, kind) in &mesh.fields {
        if !is_whole && dice.one_in(6) {
            continue;
        }
        let kind = if !is_whole && dice.one_in(8) { AttributeType::Boolean } else { *kind };
        fields.insert(name.clone(), value(dice, kind));
    }
    (Some(fields), None)
}

fn value(dice: &mut Dice<'_>, kind: AttributeType) -> AttributeValue {
    match kind {
        AttributeType::Long => AttributeValue::Long(NUMBERS[dice.roll(NUMBERS.len())]),
        AttributeType::Boolean => AttributeValue::Boolean(dice.one_in(2)),
        AttributeType::String => AttributeValue::String(dice.pick(&TEXTS).to_owned()),
        AttributeType::StringSet => AttributeValue::StringSet(dice.some(&TEXTS).into_iter().map(str::to_owned).collect()),
    }
}
