//! A development issuer: discovery, keys, and tokens for three users who need no password.

use crate::http1::{Answer, Asked, serve};
use http::StatusCode;
use model::snapshot::JwtAlgorithm;
use serde_json::{Value, json};
use std::net::SocketAddr;
use testkit::issuer::Issuer;
use testkit::pki;

/// The key id of the bank's issuer.
const KEY_ID: &str = "bank-1";
/// Life of a token, in seconds, where the request does not say.
const TOKEN_SECONDS: i64 = 600;

/// Serves `/.well-known/openid-configuration`, `/jwks` and `POST /token`.
pub(crate) async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, KEY_ID);
    let base = format!("http://{listen}");
    serve(listen, move |asked| {
        let (issuer, base) = (issuer.clone(), base.clone());
        async move {
            match asked.path.as_str() {
                "/.well-known/openid-configuration" => Answer::json(StatusCode::OK, &issuer.discovery(&base)),
                "/jwks" => Answer::json(StatusCode::OK, &issuer.jwks()),
                "/token" => token(&issuer, &base, &asked),
                _ => Answer::error(StatusCode::NOT_FOUND, "there is /token, /jwks and /.well-known/openid-configuration"),
            }
        }
    })
    .await
}

/// `{"user": "tina"}` and optionally `audience` and `expires_in` (seconds, negative for a token that has ended).
fn token(issuer: &Issuer, base: &str, asked: &Asked) -> Answer {
    let order: Value = serde_json::from_slice(&asked.body).unwrap_or(Value::Null);
    let user = order.get("user").and_then(Value::as_str).unwrap_or_default();
    let (role, limit, country) = match user {
        "tina" => ("teller", Some(1000), Some("DE")),
        "frank" => ("teller", Some(10_000), Some("FR")),
        "aura" => ("auditor", None, None),
        _ => return Answer::error(StatusCode::BAD_REQUEST, "user: tina, frank or aura"),
    };
    let now = i64::try_from(pki::now().seconds()).unwrap_or(i64::MAX);
    let life = order.get("expires_in").and_then(Value::as_i64).unwrap_or(TOKEN_SECONDS).clamp(-86_400, 86_400);
    let mut claims = json!({
        "iss": base, "sub": user, "aud": order.get("audience").and_then(Value::as_str).unwrap_or("bank"),
        "iat": now.min(now + life), "exp": now + life, "roles": [role],
    });
    if let (Some(fields), Some(limit), Some(country)) = (claims.as_object_mut(), limit, country) {
        fields.insert("limit".to_owned(), json!(limit));
        fields.insert("country".to_owned(), json!(country));
    }
    let answer = json!({ "access_token": issuer.mint(&claims), "token_type": "Bearer", "expires_in": life });
    Answer::json(StatusCode::OK, &answer)
}
