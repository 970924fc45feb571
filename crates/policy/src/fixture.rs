//! The bank of the tests: its policies, its issuer, and requests to change one fact of.

use crate::{Denied, Permit, Policies, PolicyError, compile, decide};
use model::Roles;
use model::authz::{AttributeType, AttributeValue, AuthzRequest, Header, HeaderRead, Principal, Source, User};
use model::ids::{DecisionId, Revision, ServiceName, SpiffeId};
use model::snapshot::{AuthorizationPolicy, ClaimMapping, JwtAlgorithm, KeySource, TokenIssuer};
use model::time::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A teller may transfer from the web, within the limit and from their own country; auditors may read.
pub(crate) const PAYMENTS: &str = r#"
@id("transfer-within-limit")
@description("a teller may transfer up to their limit, from their own country")
permit (
    principal == Workload::"spiffe://bank.example/ns/bank/sa/web",
    action == Action::"POST",
    resource
) when {
    context has user && context.user in Role::"teller" &&
    context.request.path == "/transfers" &&
    context.user has limit && context.user has country &&
    context.request has body && context.request.body.amount > 0 &&
    context.request.body.amount <= context.user.limit &&
    context.source has country && context.source.country == context.user.country
};

@id("audit")
permit (principal, action in Action::"read", resource)
when { context has user && context.user in Role::"auditor" };
"#;

/// Payments may post, fraud may read.
pub(crate) const LEDGER: &str = r#"
@id("post")
permit (principal == Workload::"spiffe://bank.example/ns/bank/sa/payments", action == Action::"POST", resource)
when { context.request.path == "/entries" };
@id("read")
permit (principal == Workload::"spiffe://bank.example/ns/bank/sa/fraud", action == Action::"GET", resource);
"#;

pub(crate) fn id(account: &str) -> Principal {
    SpiffeId::parse(&format!("spiffe://bank.example/ns/bank/sa/{account}")).expect("account").into()
}

pub(crate) fn shape(fields: &[(&str, AttributeType)]) -> BTreeMap<String, AttributeType> {
    fields.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

pub(crate) fn resource(name: &str, text: &str, body: &[(&str, AttributeType)]) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: format!("bank/{name}"),
        file: format!("policies/{name}.yaml"),
        line: 10,
        text: text.to_owned(),
        body: shape(body),
    }
}

pub(crate) fn issuer(attributes: &[(&str, AttributeType)]) -> TokenIssuer {
    let mapping = |(name, kind): &(&str, AttributeType)| {
        ((*name).to_owned(), ClaimMapping { claim: model::ClaimPath::parse(name).expect(name), kind: *kind })
    };
    TokenIssuer {
        name: "bank-login".into(),
        issuer: "https://login.bank.example".into(),
        audiences: vec!["bank".into()],
        keys: KeySource::Discovery,
        introspection: None,
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: model::ClaimPath::parse("roles").ok(),
        attributes: attributes.iter().map(mapping).collect(),
        require: Default::default(),
    }
}

pub(crate) fn bank_issuer() -> TokenIssuer {
    use AttributeType::{Boolean, Long, String, StringSet};
    issuer(&[("limit", Long), ("country", String), ("staff", Boolean), ("branches", StringSet)])
}

/// A chief is an auditor and a deputy, and a deputy is a teller.
pub(crate) fn bank_roles() -> Roles {
    let roles: [(&str, &[&str]); 4] =
        [("chief", &["deputy", "auditor"]), ("deputy", &["teller"]), ("auditor", &[]), ("teller", &[])];
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Roles::new(roles.iter().map(|(role, within)| ((*role).to_owned(), set(within))).collect()).expect("roles")
}

pub(crate) fn compiled(resources: &[AuthorizationPolicy]) -> Result<Policies, Vec<PolicyError>> {
    compile(resources, &[bank_issuer()], &bank_roles())
}

/// One resource `bank/p` with the body `{ amount: Long }`.
pub(crate) fn policies(text: &str) -> Policies {
    compiled(&[resource("p", text, &[("amount", AttributeType::Long)])]).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

pub(crate) fn user(roles: &[&str]) -> User {
    User {
        issuer: "bank-login".into(),
        subject: "alice".into(),
        roles: roles.iter().map(|&role| role.to_owned()).collect(),
        scopes: vec!["openid".into()],
        attributes: BTreeMap::from([
            ("limit".to_owned(), AttributeValue::Long(1000)),
            ("country".to_owned(), AttributeValue::String("CH".into())),
        ]),
    }
}

/// What these lines say, each the value of a header.
pub(crate) fn read_of(lines: &[&'static [u8]]) -> HeaderRead<'static> {
    HeaderRead::of(lines.iter().copied())
}

/// The transfer with a header.
pub(crate) fn with_header(name: &'static str, read: HeaderRead<'static>) -> AuthzRequest {
    changed(|request| {
        request.headers.retain(|header| header.name != name);
        request.headers.push(Header { name: name.into(), read });
    })
}

/// Alice, a teller with limit 1000 from Switzerland and of the tenant `acme`, transfers 500 through the web.
pub(crate) fn transfer() -> AuthzRequest {
    AuthzRequest {
        principal: id("web"),
        user: Some(Arc::new(user(&["teller"]))),
        action: "POST".into(),
        resource: ServiceName::parse("bank/payments").expect("name"),
        path: "/transfers".into(),
        host: "payments".into(),
        headers: vec![Header { name: "x-tenant".into(), read: read_of(&[b"acme"]) }],
        body: Some(BTreeMap::from([("amount".to_owned(), AttributeValue::Long(500))])),
        body_note: None,
        source: Source { address: "10.1.2.3".parse().expect("address"), country: model::CountryCode::parse("CH").into() },
        now: Timestamp::from_seconds(1_795_514_400),
    }
}

/// The transfer with changes.
pub(crate) fn changed(change: impl FnOnce(&mut AuthzRequest)) -> AuthzRequest {
    let mut request = transfer();
    change(&mut request);
    request
}

pub(crate) fn amount(request: &mut AuthzRequest, amount: i64) {
    request.body = Some(BTreeMap::from([("amount".to_owned(), AttributeValue::Long(amount))]));
}

pub(crate) fn decided(policies: &Policies, request: &AuthzRequest) -> Result<Permit, Denied> {
    decide(policies, &request.as_question(), DecisionId::from_random([7; 16]), Revision(3))
}

/// The last parts of the determining policies' ids, and the reason, as `allow a b` or `not_permitted`.
pub(crate) fn verdict(policies: &Policies, request: &AuthzRequest) -> String {
    let (word, decision) = match decided(policies, request) {
        Ok(permit) => ("allow", permit.decision().clone()),
        Err(denied) => (denied.decision.reason.map_or("?", |reason| reason.as_str()), denied.decision),
    };
    let ids = decision.determining.iter().map(|id| id.as_str().rsplit('/').next().unwrap_or(""));
    std::iter::once(word).chain(ids).collect::<Vec<_>>().join(" ")
}
