//! A development issuer: discovery, keys, and tokens for three users who need no password.

use crate::http1::{Answer, Asked, serve};
use http::{Method, StatusCode};
use model::snapshot::JwtAlgorithm;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use testkit::issuer::Issuer;
use testkit::pki;

/// The key id of the bank's issuer.
const KEY_ID: &str = "bank-1";
/// Life of a token, in seconds, where the request does not say.
const TTL_SECONDS: i64 = 600;
/// The longest life, and the longest time since a token ended, in seconds: a day.
const TTL_SECONDS_MAX: i64 = 86_400;

/// Serves `/.well-known/openid-configuration`, `/jwks` and `POST /token`.
pub(crate) async fn run(listen: SocketAddr, url: Option<String>) -> anyhow::Result<()> {
    let issuer = Issuer::generate(JwtAlgorithm::Es256, KEY_ID);
    let base = url.unwrap_or_else(|| format!("http://{listen}"));
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

/// What a client asks for, as JSON or as a form.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    user: String,
    audience: String,
    /// Seconds; negative for a token that has ended.
    ttl: i64,
}

impl Order {
    /// Reads `{"user": "tina"}` or `user=tina`, each with `audience` and `ttl` if wanted; `None` if it is neither.
    ///
    /// The body itself tells the two apart: clients such as curl call everything a form.
    fn parse(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?.trim();
        let fields: BTreeMap<String, String> = if text.starts_with('{') {
            let object: Map<String, Value> = serde_json::from_str(text).ok()?;
            let plain = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            object.into_iter().map(|(name, value)| (name, plain(value))).collect()
        } else {
            let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            text.split('&').map(|field| field.split_once('=').map(pair)).collect::<Option<_>>()?
        };
        let ttl = match fields.get("ttl") {
            Some(seconds) => seconds.parse::<i64>().ok()?.clamp(-TTL_SECONDS_MAX, TTL_SECONDS_MAX),
            None => TTL_SECONDS,
        };
        let audience = fields.get("audience").map_or("bank", String::as_str).to_owned();
        Some(Self { user: fields.get("user")?.clone(), audience, ttl })
    }
}

fn token(issuer: &Issuer, base: &str, asked: &Asked) -> Answer {
    if asked.method != Method::POST {
        return Answer::error(StatusCode::METHOD_NOT_ALLOWED, "POST /token");
    }
    let Some(Order { user, audience, ttl }) = Order::parse(&asked.body) else {
        return Answer::error(
            StatusCode::BAD_REQUEST,
            "user=NAME as a form or as JSON, and if wanted audience=NAME, ttl=SECONDS",
        );
    };
    let (role, limit, country) = match user.as_str() {
        "tina" => ("teller", Some(1000), Some("DE")),
        "frank" => ("teller", Some(10_000), Some("FR")),
        "aura" => ("auditor", None, None),
        _ => return Answer::error(StatusCode::BAD_REQUEST, "user: tina, frank or aura"),
    };
    let now = i64::try_from(pki::now().seconds()).unwrap_or(i64::MAX);
    let mut claims = json!({
        "iss": base, "sub": user, "aud": audience, "iat": now.min(now + ttl), "exp": now + ttl, "roles": [role],
    });
    if let (Some(fields), Some(limit), Some(country)) = (claims.as_object_mut(), limit, country) {
        fields.insert("limit".to_owned(), json!(limit));
        fields.insert("country".to_owned(), json!(country));
    }
    let answer = json!({ "access_token": issuer.mint(&claims), "token_type": "Bearer", "expires_in": ttl });
    Answer::json(StatusCode::OK, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_from_json_and_from_a_form_alike() {
        let order = |user: &str, audience: &str, ttl| Some(Order { user: user.into(), audience: audience.into(), ttl });
        for (body, expected) in [
            (r#"{"user": "tina"}"#, order("tina", "bank", TTL_SECONDS)),
            (r#"{"user": "tina", "audience": "other", "ttl": -3600}"#, order("tina", "other", -3600)),
            ("user=tina", order("tina", "bank", TTL_SECONDS)),
            ("user=aura&audience=other&ttl=-3600", order("aura", "other", -3600)),
            ("user=aura&ttl=999999999", order("aura", "bank", TTL_SECONDS_MAX)),
            ("", None),
            ("tina", None),
            ("audience=bank", None),
            ("user=tina&ttl=soon", None),
            (r#"{"user": "tina""#, None),
        ] {
            assert_eq!(Order::parse(body.as_bytes()), expected, "{body}");
        }
    }
}
