//! What a decision costs, compiled beside Cedar's own evaluator, with 1, 5, 100 and 1000 policies on one workload.
//!
//! `cargo run --release -p policy --example decisions`. The call is a teller's transfer with a body, which the first policy permits. The
//! others ask for another path, a pattern of it, a role, a header or an address: the index leads the call around them. In the last column
//! they are such that it cannot, and all have to be looked at.

#![expect(clippy::expect_used, reason = "a measurement, of policies that are known to be sound")]

use model::authz::{AttributeType, AttributeValue, Header, HeaderRead, Principal, Question, User};
use model::ids::{DecisionId, Revision, ServiceName, SpiffeId};
use model::snapshot::{AuthorizationPolicy, TokenIssuer};
use model::time::Timestamp;
use policy::{Denied, Permit, Policies};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const COUNTS: [usize; 4] = [1, 5, 100, 1000];
const ROUNDS: u32 = 300;

/// The one that allows the call.
const TRANSFER: &str = r#"@id("transfer") permit (principal == Workload::"spiffe://bank.example/ns/bank/sa/web", action == Action::"POST", resource)
when {
    context has user && context.user in Role::"teller" && context.request.path == "/transfers" &&
    context.request has body && context.request.body.amount > 0 && context.request.body.amount <= 1000
};"#;

/// Policies of five kinds, as a service of that size would have them; `unindexed`: such that every call must look at them.
fn policies(count: usize, unindexed: bool) -> Policies {
    let mut text = String::from(TRANSFER);
    for at in 1..count {
        let condition = match (unindexed, at % 5) {
            (true, 0) => format!("context.request.path like \"*/{at}\""),
            (true, 1) => format!("context.request.host != \"payments.bank\" && context.request.path like \"/{at}*\""),
            (true, _) => format!("context has user && context.user.scopes.contains(\"scope-{at}\")"),
            (false, 0) => format!("context.request.path == \"/things/{at}\""),
            (false, 1) => format!("context.request.path like \"/reports/{at}/*\""),
            (false, 2) => format!("context has user && context.user in Role::\"role-{at}\""),
            (false, 3) => {
                format!("context.request.headers has \"x-tenant\" && context.request.headers[\"x-tenant\"] == \"tenant-{at}\"")
            }
            (false, _) => format!("context.source.address.isInRange(ip(\"10.{}.{}.0/24\"))", at / 256, at % 256),
        };
        let effect = if at % 7 == 0 { "forbid" } else { "permit" };
        let _written = writeln!(text, "{effect} (principal, action, resource) when {{ {condition} }};");
    }
    let body = BTreeMap::from([("amount".to_owned(), AttributeType::Long)]);
    let resource = AuthorizationPolicy { name: "bank/payments".into(), file: "cost".into(), line: 1, text, body };
    let issuers: [TokenIssuer; 0] = [];
    policy::compile(&[resource], &issuers, &model::Roles::default()).expect("sound")
}

/// Nanoseconds of one decision: the least of many short rounds, most of which other work on the machine leaves alone.
fn measure(decide: impl Fn() -> Result<Permit, Denied>) -> f64 {
    let round = |decisions: u32| {
        let started = Instant::now();
        for _ in 0..decisions {
            assert!(black_box(decide()).is_ok(), "the teller may");
        }
        started.elapsed().as_secs_f64() / f64::from(decisions)
    };
    let once = (0..5).map(|_| round(1)).fold(f64::INFINITY, f64::min);
    // About a tenth of a millisecond.
    let decisions = if once > 1e-4 { 1 } else { (1..1000).find(|count| f64::from(*count) * once > 1e-4).unwrap_or(1000) };
    (0..ROUNDS).map(|_| round(decisions)).fold(once, f64::min) * 1e9
}

fn main() {
    let principal: Principal = SpiffeId::parse("spiffe://bank.example/ns/bank/sa/web").expect("an id").into();
    let resource = ServiceName::parse("bank/payments").expect("a name");
    let (roles, scopes) = (vec!["teller".to_owned()], Vec::new());
    let user = User { issuer: "bank-login".into(), subject: "alice".into(), roles, scopes, attributes: BTreeMap::new() };
    let user = Arc::new(user);
    let headers = [Header { name: "x-tenant".into(), read: HeaderRead::Value("acme".into()) }];
    let body = BTreeMap::from([("amount".to_owned(), AttributeValue::Long(500))]);
    let question = Question {
        principal: &principal,
        user: Some(&user),
        action: "POST",
        resource: &resource,
        path: "/transfers",
        host: "payments.bank",
        headers: &headers,
        body: Some(&body),
        body_note: None,
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        country: model::Country::Unknown,
        now: Timestamp::from_seconds(1_795_514_400),
    };
    let id = DecisionId::from_random([7; 16]);
    println!("{:>8}  {:>12}  {:>12}  {:>8}  {:>18}", "policies", "compiled", "reference", "times", "all looked at");
    for count in COUNTS {
        let mixed = policies(count, false);
        let compiled = measure(|| policy::decide(&mixed, black_box(&question), id, Revision(1)));
        let reference = measure(|| policy::decide_by_reference(&mixed, black_box(&question), id, Revision(1)));
        let unindexed = policies(count, true);
        let all = measure(|| policy::decide(&unindexed, black_box(&question), id, Revision(1)));
        let times = reference / compiled;
        println!("{count:>8}  {compiled:>9.0} ns  {:>9.1} us  {times:>7.0}x  {all:>15.0} ns", reference / 1000.0);
    }
}
