//! The four services.

use crate::country::{self, CountryOf};
use crate::http1::{Answer, Asked, call, serve};
use crate::trace::{body, hop, hops, passed_on, success};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries that the ledger keeps; the oldest go first.
const ENTRIES_MAX: usize = 10_000;
/// A transfer above this share of what was seen before is worth a look; the score only says so.
const SCORE_HIGH: i64 = 50;

/// Passes the client's calls to payments, with the country of the client's address and none that the client claims.
pub(crate) async fn web(listen: SocketAddr, payments: SocketAddr, table: Vec<CountryOf>, captured: bool) -> anyhow::Result<()> {
    let table = Arc::new(table);
    serve(listen, move |asked| {
        let table = Arc::clone(&table);
        async move {
            if asked.path != "/transfers" {
                return Answer::error(StatusCode::NOT_FOUND, "there is /transfers");
            }
            let mut headers = passed_on(&asked);
            headers.remove("x-client-country");
            let client = if captured { forwarded_for(&asked) } else { Some(asked.remote.ip()) };
            if let Some(country) = client.and_then(|client| country::find(&table, client))
                && let Ok(value) = HeaderValue::from_str(&country)
            {
                headers.insert(HeaderName::from_static("x-client-country"), value);
            }
            let own = json!({ "service": "web", "client": client });
            let answer = call(payments, asked.method, "/transfers", headers, asked.body).await;
            let status = answer.status;
            match success(answer) {
                Ok(answer) => with_trace(status, answer.clone(), [vec![own], hops(&answer)].concat()),
                Err(refused) => *refused,
            }
        }
    })
    .await
}

/// The one address that the sidecar in front says; a list came from elsewhere.
fn forwarded_for(asked: &Asked) -> Option<IpAddr> {
    asked.headers.get("x-forwarded-for")?.to_str().ok()?.parse().ok()
}

fn with_trace(status: StatusCode, mut answer: Value, trace: Vec<Value>) -> Answer {
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("trace".to_owned(), Value::Array(trace));
    }
    Answer::json(status, &answer)
}

/// Makes transfers and lists them.
pub(crate) async fn payments(listen: SocketAddr, ledger: SocketAddr, fraud: SocketAddr) -> anyhow::Result<()> {
    serve(listen, move |asked| async move {
        match (asked.method.clone(), asked.path.as_str()) {
            (Method::POST, "/transfers") => transfer(&asked, ledger, fraud).await.unwrap_or_else(|refused| *refused),
            (Method::GET, "/transfers") => {
                let answer = call(ledger, Method::GET, "/entries", passed_on(&asked), Bytes::new()).await;
                match success(answer) {
                    Ok(entries) => {
                        with_trace(StatusCode::OK, entries.clone(), [vec![hop("payments", &asked)], hops(&entries)].concat())
                    }
                    Err(refused) => *refused,
                }
            }
            _ => Answer::error(StatusCode::NOT_FOUND, "there is GET and POST /transfers"),
        }
    })
    .await
}

async fn transfer(asked: &Asked, ledger: SocketAddr, fraud: SocketAddr) -> Result<Answer, Box<Answer>> {
    let order: Value = serde_json::from_slice(&asked.body)
        .map_err(|_| Box::new(Answer::error(StatusCode::BAD_REQUEST, "the body is not JSON")))?;
    let field = |name: &str| order.get(name).cloned().unwrap_or(Value::Null);
    let entry = json!({ "from": field("from"), "to": field("to"), "amount": field("amount"), "currency": field("currency") });
    let score = success(call(fraud, Method::POST, "/score", passed_on(asked), body(&entry)).await)?;
    let written = success(call(ledger, Method::POST, "/entries", passed_on(asked), body(&entry)).await)?;
    let trace = [vec![hop("payments", asked)], hops(&score), hops(&written)].concat();
    let answer = json!({ "transfer": written.get("entry"), "score": score.get("score"), "trace": trace });
    Ok(Answer::json(StatusCode::CREATED, &answer))
}

/// Keeps entries in memory.
pub(crate) async fn ledger(listen: SocketAddr) -> anyhow::Result<()> {
    let entries: Arc<Mutex<(u64, VecDeque<Value>)>> = Arc::default();
    serve(listen, move |asked| {
        let entries = Arc::clone(&entries);
        async move {
            if asked.path != "/entries" {
                return Answer::error(StatusCode::NOT_FOUND, "there is GET and POST /entries");
            }
            let mut kept = entries.lock().unwrap_or_else(PoisonError::into_inner);
            let (count, list) = &mut *kept;
            if asked.method == Method::POST {
                let Ok(mut entry) = serde_json::from_slice::<Value>(&asked.body) else {
                    return Answer::error(StatusCode::BAD_REQUEST, "the body is not JSON");
                };
                *count += 1;
                if let Some(fields) = entry.as_object_mut() {
                    fields.insert("id".to_owned(), json!(*count));
                }
                list.push_back(entry.clone());
                if list.len() > ENTRIES_MAX {
                    list.pop_front();
                }
                return Answer::json(StatusCode::CREATED, &json!({ "entry": entry, "trace": [hop("ledger", &asked)] }));
            }
            let newest: Vec<&Value> = list.iter().rev().take(20).collect();
            Answer::json(StatusCode::OK, &json!({ "count": *count, "entries": newest, "trace": [hop("ledger", &asked)] }))
        }
    })
    .await
}

/// Scores by the number of entries that the ledger knows.
pub(crate) async fn fraud(listen: SocketAddr, ledger: SocketAddr) -> anyhow::Result<()> {
    serve(listen, move |asked| async move {
        if asked.path != "/score" {
            return Answer::error(StatusCode::NOT_FOUND, "there is POST /score");
        }
        let known = call(ledger, Method::GET, "/entries", passed_on(&asked), Bytes::new()).await;
        let known = match success(known) {
            Ok(entries) => entries,
            Err(refused) => return *refused,
        };
        let amount =
            serde_json::from_slice::<Value>(&asked.body).ok().and_then(|order| order.get("amount").and_then(Value::as_i64));
        let score = (amount.unwrap_or(0) / 100).clamp(0, 100);
        let trace = [vec![hop("fraud", &asked)], hops(&known)].concat();
        Answer::json(StatusCode::OK, &json!({ "score": score, "high": score >= SCORE_HIGH, "trace": trace }))
    })
    .await
}
