//! What a service really received: who called it, for whom, and which decision let the call in.

use crate::http1::{Answer, Asked};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::{Value, json};

/// Headers that a service passes on when it calls another for the same client.
const PASSED_ON: [&str; 3] = ["authorization", "x-client-country", "x-request-id"];
/// Headers of a refusal that a service passes back.
const PASSED_BACK: [&str; 4] = ["x-rondel-reason", "x-rondel-decision", "www-authenticate", "content-type"];

/// One hop, from the headers that the sidecar set.
pub(crate) fn hop(service: &str, asked: &Asked) -> Value {
    let header = |name: &str| asked.headers.get(name).and_then(|value| value.to_str().ok());
    let identity = header("x-forwarded-client-cert").and_then(|xfcc| xfcc.split(';').find_map(|part| part.strip_prefix("By=")));
    json!({
        "service": service,
        "identity": identity,
        "caller": header("x-rondel-principal"),
        "user": header("x-rondel-user"),
        "decision": header("x-rondel-decision"),
    })
}

/// The headers for a further call.
pub(crate) fn passed_on(asked: &Asked) -> HeaderMap {
    let mut headers = copied(&asked.headers, &PASSED_ON);
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers
}

fn copied(from: &HeaderMap, names: &[&'static str]) -> HeaderMap {
    let found = names.iter().filter_map(|name| from.get(*name).map(|value| (HeaderName::from_static(name), value.clone())));
    found.collect()
}

/// An upstream's refusal, passed back as it is.
fn passed_back(answer: Answer) -> Answer {
    Answer { status: answer.status, headers: copied(&answer.headers, &PASSED_BACK), body: answer.body }
}

/// The JSON of a successful answer, or the answer to pass back.
pub(crate) fn success(answer: Answer) -> Result<Value, Box<Answer>> {
    if !answer.status.is_success() {
        return Err(Box::new(passed_back(answer)));
    }
    serde_json::from_slice(&answer.body)
        .map_err(|_| Box::new(Answer::error(StatusCode::BAD_GATEWAY, "the upstream's answer is not JSON")))
}

/// The hops of an answer.
pub(crate) fn hops(answer: &Value) -> Vec<Value> {
    answer.get("trace").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// JSON as a request's body.
pub(crate) fn body(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_hop_tells_what_the_sidecar_set() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-client-cert", HeaderValue::from_static("By=spiffe://b/me;Hash=ab;URI=spiffe://b/you"));
        headers.insert("x-rondel-principal", HeaderValue::from_static("spiffe://b/you"));
        let remote = ([127, 0, 0, 1], 1).into();
        let asked = Asked { method: http::Method::GET, path: "/".into(), headers, body: Bytes::new(), remote };
        let hop = hop("ledger", &asked);
        assert_eq!((hop["identity"].as_str(), hop["caller"].as_str()), (Some("spiffe://b/me"), Some("spiffe://b/you")));
        assert!(hop["user"].is_null());
    }
    #[test]
    fn a_refusal_is_passed_back_with_its_challenge_and_decision_and_nothing_else() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-rondel-decision", "d-1"),
            ("x-rondel-reason", "token_missing"),
            ("www-authenticate", "Bearer realm=\"b\""),
            ("content-type", "application/problem+json"),
            ("x-rondel-principal", "spiffe://b/me"),
            ("set-cookie", "a=b"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let refused = success(Answer { status: StatusCode::UNAUTHORIZED, headers, body: Bytes::from_static(b"{}") });
        let refused = refused.expect_err("not a success");
        assert_eq!((refused.status, &refused.body[..]), (StatusCode::UNAUTHORIZED, &b"{}"[..]));
        let mut names: Vec<&str> = refused.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "www-authenticate", "x-rondel-decision", "x-rondel-reason"]);
    }

    #[test]
    fn a_call_goes_on_with_the_clients_token_and_country_and_no_claim_of_identity() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-client-country", "x-request-id", "x-rondel-principal", "x-rondel-user", "cookie"] {
            headers.insert(name, HeaderValue::from_static("v"));
        }
        let remote = ([127, 0, 0, 1], 1).into();
        let headers = passed_on(&Asked { method: http::Method::GET, path: "/".into(), headers, body: Bytes::new(), remote });
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "x-client-country", "x-request-id"]);
    }

    #[test]
    fn the_hops_of_an_answer_keep_their_order() {
        let answer = json!({ "trace": [{ "service": "fraud" }, { "service": "ledger" }] });
        let names: Vec<Value> = hops(&answer).into_iter().map(|hop| hop["service"].clone()).collect();
        assert_eq!(names, ["fraud", "ledger"]);
        assert!(hops(&json!({ "trace": "no list" })).is_empty());
    }
}
