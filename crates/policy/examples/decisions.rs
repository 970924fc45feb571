//! What a decision costs whose facts were met before: 20 policies, of which one reads a header and one the user's roles.
//!
//! `cargo run --release -p policy --example decisions [DECISIONS]`. That nothing is allocated shows under valgrind: its count of allocations
//! differs between any two numbers of decisions no more than between two runs.

#![expect(clippy::expect_used, reason = "a measurement, of policies that are known to be sound")]

use model::authz::{Header, HeaderRead, Principal, Question, User};
use model::ids::{DecisionId, Revision, ServiceName, SpiffeId};
use model::snapshot::{AuthorizationPolicy, TokenIssuer};
use model::time::Timestamp;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const POLICIES: usize = 20;

fn policies() -> policy::Policies {
    let mut text = String::from(
        r#"permit (principal, action, resource) when { context has user && context.user in Role::"teller" };
           forbid (principal, action, resource) when { context.request.headers has "x-tenant" && context.request.headers["x-tenant"] != "acme" };"#,
    );
    for at in 2..POLICIES {
        let _written =
            writeln!(text, "permit (principal, action, resource) when {{ context.request.path == \"/things/{at}\" }};");
    }
    let resource =
        AuthorizationPolicy { name: "bank/payments".into(), file: "cost".into(), line: 1, text, body: BTreeMap::new() };
    let issuers: [TokenIssuer; 0] = [];
    policy::compile(&[resource], &issuers, &model::Roles::default()).expect("sound")
}

fn main() {
    let decisions: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(5_000_000);
    let policies = policies();
    let principal: Principal = SpiffeId::parse("spiffe://bank.example/ns/bank/sa/web").expect("an id").into();
    let resource = ServiceName::parse("bank/payments").expect("a name");
    let (roles, scopes) = (vec!["teller".to_owned()], Vec::new());
    let user = User { issuer: "bank-login".into(), subject: "alice".into(), roles, scopes, attributes: BTreeMap::new() };
    let user = Arc::new(user);
    let headers = [Header { name: "x-tenant".into(), read: HeaderRead::Value("acme".into()) }];
    let paths: Vec<String> = (0..100).map(|at| format!("/accounts/{at}/transfers")).collect();
    let asked = Question {
        principal: &principal,
        user: Some(&user),
        action: "POST",
        resource: &resource,
        path: "",
        host: "payments.bank",
        headers: &headers,
        body: None,
        body_note: None,
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        country: None,
        now: Timestamp::from_seconds(1_795_514_400),
    };
    let mut memory = policy::Memory::default();
    let mut decide = |path: &str| {
        let id = DecisionId::from_random([7; 16]);
        let question = Question { path, ..asked };
        policy::decide_remembering(&policies, &mut memory, black_box(&question), id, Revision(1)).is_ok()
    };
    let started = Instant::now();
    assert!(paths.iter().all(|path| decide(path)), "the teller may");
    let cold = started.elapsed() / u32::try_from(paths.len()).unwrap_or(1);
    let started = Instant::now();
    let allowed = (0..decisions).zip(paths.iter().cycle()).filter(|(_, path)| decide(path)).count();
    let warm = started.elapsed();
    let each = warm.as_secs_f64() * 1e9 / f64::from(decisions.max(1));
    println!("{POLICIES} policies: {cold:?} for new facts, {each:.1} ns for known ones ({allowed} decisions)");
}
