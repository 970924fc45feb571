//! Step 2: what must not happen, and the operator's explanation of each.

use crate::client::{self, Answer, FRANCE, GERMANY, NOWHERE};
use crate::mesh::Bank;
use crate::report::{Report, quote, say};
use anyhow::{Context, bail};
use http::Method;
use model::SpiffeId;
use model::snapshot::JwtAlgorithm;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::issuer::Issuer;
use testkit::pki::{LawlessClient, TestAuthority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// For a record to reach the control plane.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);
const STEP: &str = "denials";

/// What is expected of one refused call.
struct Denial {
    promise: &'static str,
    does: &'static str,
    status: u16,
    reason: &'static str,
    /// What the explanation must say.
    explained: &'static str,
}

/// Walks through the denials.
pub(crate) async fn walk(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    report.step(2, "What must not happen");
    by_policy(bank, report).await?;
    by_token(bank, report).await?;
    by_identity(bank, report).await?;
    by_a_policy_that_is_tried(bank, report).await
}

/// A policy in shadow mode denies nobody, and says whom it would.
async fn by_a_policy_that_is_tried(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    say("\n   tina sends 600 from DE, which a policy in shadow mode would forbid");
    let tina = client::token(bank.issuer(), &json!({ "user": "tina" })).await?;
    let body = json!({ "from": "alice", "to": "bob", "amount": 600, "currency": "EUR" });
    let answer = client::call(GERMANY, bank.web(), Method::POST, "/transfers", Some(&tina), &body).await?;
    let deadline = Instant::now() + RECORD_DEADLINE;
    let (text, id) = loop {
        let (_, text) = bank.rondel(&["authz", "shadow", "--workload", "bank/payments"]).await?;
        let id = text.lines().find_map(|line| line.trim().strip_prefix("rondel authz explain "));
        if let Some(id) = id.filter(|_| text.contains("would_deny ")) {
            break (text.clone(), id.to_owned());
        }
        if Instant::now() > deadline {
            break (text, String::new());
        }
        sleep(Duration::from_millis(50)).await;
    };
    quote(7, &text);
    let why = if id.is_empty() { String::new() } else { explain(bank, &id).await? };
    let is_told = why.contains("would be denied by bank/payments-next/second-pair-of-eyes") && why.contains("600 > 500");
    let is_kept = answer.status == 201 && is_told && why.contains("(redacted)") && !why.contains("bob");
    report.promise(STEP, "a policy in shadow mode", &format!("{}, and would be denied: {id}", answer.status), is_kept);
    quote(7, &why);
    Ok(())
}

async fn by_policy(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    let tina = client::token(bank.issuer(), &json!({ "user": "tina" })).await?;
    let aura = client::token(bank.issuer(), &json!({ "user": "aura" })).await?;
    let transfer = |amount: i64| json!({ "from": "alice", "to": "bob", "amount": amount, "currency": "EUR" });

    let denial = Denial {
        promise: "over the limit",
        does: "tina (limit 1000, DE) sends 5000 from DE",
        status: 403,
        reason: "not_permitted",
        explained: "5000 <= 1000",
    };
    let answer = client::call(GERMANY, bank.web(), Method::POST, "/transfers", Some(&tina), &transfer(5000)).await?;
    check(bank, report, &denial, &answer).await?;

    let denial = Denial {
        promise: "wrong country",
        does: "tina (DE) sends 200 from FR",
        status: 403,
        reason: "not_permitted",
        explained: "context.source.country",
    };
    let answer = client::call(FRANCE, bank.web(), Method::POST, "/transfers", Some(&tina), &transfer(200)).await?;
    check(bank, report, &denial, &answer).await?;

    let denial = Denial {
        promise: "auditor writing",
        does: "aura (auditor) sends 1",
        status: 403,
        reason: "not_permitted",
        explained: "teller",
    };
    let answer = client::call(GERMANY, bank.web(), Method::POST, "/transfers", Some(&aura), &transfer(1)).await?;
    check(bank, report, &denial, &answer).await
}

async fn by_token(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    let transfer = json!({ "from": "alice", "to": "bob", "amount": 200, "currency": "EUR" });
    let denial = Denial {
        promise: "no token",
        does: "nobody in particular sends 200",
        status: 401,
        reason: "token_missing",
        explained: "user",
    };
    let answer = client::call(GERMANY, bank.web(), Method::POST, "/transfers", None, &transfer).await?;
    let challenge = answer.header("www-authenticate").to_owned();
    check(bank, report, &denial, &answer).await?;
    report.promise(
        STEP,
        "401 carries a challenge",
        &format!("WWW-Authenticate: {challenge}"),
        challenge.starts_with("Bearer realm="),
    );

    let expired = client::token(bank.issuer(), &json!({ "user": "tina", "ttl": -3600 })).await?;
    let other = client::token(bank.issuer(), &json!({ "user": "tina", "audience": "another-bank" })).await?;
    let forged = forged(bank).await?;
    for (promise, does, token, reason) in [
        ("expired token", "tina's token ended an hour ago", &expired, "token_expired"),
        ("forged token", "the claims and key id of a good token, signed by another key", &forged, "token_signature"),
        ("token of another audience", "tina's token for `another-bank`", &other, "token_audience"),
    ] {
        let answer = client::call(GERMANY, bank.web(), Method::POST, "/transfers", Some(token), &transfer).await?;
        check(bank, report, &Denial { promise, does, status: 401, reason, explained: reason }, &answer).await?;
    }
    Ok(())
}

/// A token as the issuer would mint it for tina, by a key of our own under the issuer's key id.
async fn forged(bank: &Bank) -> anyhow::Result<String> {
    let keys = client::call(NOWHERE, bank.issuer(), Method::GET, "/jwks", None, &Value::Null).await?.json();
    let key_id = keys["keys"][0]["kid"].as_str().context("the issuer publishes a key id")?;
    let now = testkit::pki::now().seconds();
    let claims = json!({
        "iss": format!("http://{}", bank.issuer()), "sub": "tina", "aud": "bank", "iat": now, "exp": now + 600,
        "roles": ["teller"], "limit": 1_000_000, "country": "DE",
    });
    Ok(Issuer::generate(JwtAlgorithm::Es256, key_id).mint(&claims))
}

async fn by_identity(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    let tina = client::token(bank.issuer(), &json!({ "user": "tina" })).await?;
    let entry = json!({ "from": "alice", "to": "mallory", "amount": 999, "currency": "EUR" });
    let denial = Denial {
        promise: "fraud writing into the ledger",
        does: "from inside fraud, with tina's good token: POST /entries through its sidecar",
        status: 403,
        reason: "not_permitted",
        explained: "sa/payments",
    };
    let answer = client::call(NOWHERE, bank.fraud_to_ledger(), Method::POST, "/entries", Some(&tina), &entry).await?;
    check(bank, report, &denial, &answer).await?;

    let denial = Denial {
        promise: "plaintext at an inbound port",
        does: "a client speaks HTTP to the sidecar of payments",
        status: 400,
        reason: "plaintext_refused",
        explained: "plaintext_refused",
    };
    let answer = client::call(NOWHERE, bank.payments_inbound(), Method::GET, "/transfers", None, &Value::Null).await?;
    check(bank, report, &denial, &answer).await?;
    foreign_authority(bank, report).await
}

/// A certificate with web's own SPIFFE ID, by an authority that merely has the same name.
async fn foreign_authority(bank: &Bank, report: &mut Report) -> anyhow::Result<()> {
    let id = SpiffeId::parse("spiffe://bank.example/ns/bank/sa/web")?;
    say("");
    quote(3, &format!("a client presents a certificate for {id} by an authority of its own"));
    let presented = TestAuthority::new("bank.example").good(&id);
    let client = LawlessClient::new().presenting(&presented.chain, &presented.key).alpn(&["http/1.1"]);
    let mut received = Vec::new();
    let attempt = async {
        let mut stream = client.connect(TcpStream::connect(bank.payments_inbound()).await?).await?;
        stream.write_all(b"GET /transfers HTTP/1.1\r\nhost: payments\r\n\r\n").await?;
        stream.read_to_end(&mut received).await
    };
    let outcome = timeout(Duration::from_secs(10), attempt).await.context("the sidecar neither answers nor closes")?;
    let told = outcome.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
    let decision = newest(bank, "peer_untrusted").await?;
    let text = explain(bank, &decision).await?;
    let is_kept = received.is_empty() && text.contains("peer_untrusted");
    report.promise(STEP, "certificate of a foreign CA", &format!("no byte of an answer ({told}), decision {decision}"), is_kept);
    quote(7, &text);
    Ok(())
}

/// The id of the newest denial with this reason; the caller of a refused handshake is not told one.
async fn newest(bank: &Bank, reason: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + RECORD_DEADLINE;
    loop {
        let (status, text) = bank.rondel(&["authz", "decisions", "--denied", "--limit", "20", "--output", "json"]).await?;
        let records: Value = if status.success() { serde_json::from_str(&text)? } else { Value::Null };
        let found = records.as_array().and_then(|list| list.iter().find(|record| record["reason"] == reason));
        if let Some(id) = found.and_then(|record| record["id"].as_str()) {
            return Ok(id.to_owned());
        }
        if Instant::now() > deadline {
            bail!("no decision with the reason `{reason}` was recorded");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Prints what was done, what came back and why; notes whether it is as promised.
async fn check(bank: &Bank, report: &mut Report, denial: &Denial, answer: &Answer) -> anyhow::Result<()> {
    say(&format!("\n   {}", denial.does));
    let decision = answer.header("x-rondel-decision").to_owned();
    let text = if decision.is_empty() { "no decision id came back".to_owned() } else { explain(bank, &decision).await? };
    let is_status = answer.status == denial.status && answer.header("x-rondel-reason") == denial.reason;
    let is_kept = is_status && text.contains(denial.explained);
    report.promise(STEP, denial.promise, &format!("{} {decision}", answer.short()), is_kept);
    quote(7, &text);
    Ok(())
}

/// `rondel authz explain ID`, once the record has arrived.
async fn explain(bank: &Bank, decision: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + RECORD_DEADLINE;
    loop {
        let (status, text) = bank.rondel(&["authz", "explain", decision]).await?;
        if status.success() || Instant::now() > deadline {
            return Ok(text);
        }
        sleep(Duration::from_millis(50)).await;
    }
}
