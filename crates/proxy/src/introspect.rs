//! Asks issuers about opaque tokens (RFC 7662): what is asked and what the answer is worth is `token::introspection`'s rule, here are
//! the sockets. One question per token at a time, whoever waits for it; what is good is remembered beside other tokens, what is not apart.
//! Connections are kept for the next question by `kept.rs`.

use crate::clock;
use crate::issuers;
use crate::kept::KeptConnections;
use crate::outside::{self, FetchFailure};
use crate::state::{Active, Shared};
use crate::telemetry::metrics::IssuerLabels;
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::TokenIssuer;
use model::{Limit, Limits, Timestamp};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;
use token::introspection::{CREDENTIAL_BYTES_MAX, Introspected};
use token::jwks::Metadata;
use token::{InactiveTokens, KeySets, Refusal, Rules, VerifiedClaims};
use tokio::sync::watch;

/// The pause after a metadata document could not be had.
const METADATA_PAUSE: Duration = Duration::from_secs(1);

type Outcome = Result<VerifiedClaims, Refusal>;
/// A token's digest, and the generation of the configuration that asks.
type Key = ([u8; 32], u64);

/// The questions under way and what their answers leave behind. Shared between threads.
#[derive(Debug, Default)]
pub struct Introspections {
    under_way: Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
    inactive: InactiveTokens,
    endpoints: tokio::sync::Mutex<HashMap<String, Discovered>>,
    kept: KeptConnections,
}

/// Where an issuer's metadata say that it is asked.
#[derive(Debug)]
struct Discovered {
    issuer: TokenIssuer,
    endpoint: Option<String>,
    found_at: Timestamp,
    tried_at: Timestamp,
}

/// One's part in a question.
enum Joined<'a> {
    /// Nobody asks yet.
    Asker(Turn<'a>),
    /// Somebody does.
    Waiter(watch::Receiver<Option<Outcome>>),
    /// As many are under way as may be.
    Full,
}

/// The right to ask about one token. Whoever goes away with it lets the next one ask.
struct Turn<'a> {
    under_way: &'a Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
    key: Key,
    answer: watch::Sender<Option<Outcome>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

impl Introspections {
    fn join(&self, key: Key, limits: &Limits) -> Joined<'_> {
        let mut under_way = self.under_way.lock();
        let count = under_way.len();
        match under_way.entry(key) {
            Entry::Occupied(asked) => Joined::Waiter(asked.get().clone()),
            Entry::Vacant(_) if count >= limits.size(Limit::IntrospectionsUnderWay) => Joined::Full,
            Entry::Vacant(free) => {
                let (answer, waiter) = watch::channel(None);
                free.insert(waiter);
                Joined::Asker(Turn { under_way: &self.under_way, key, answer })
            }
        }
    }
}

/// The claims of an opaque token, as its issuer says.
///
/// # Errors
/// - [`Refusal::Inactive`] and what is wrong with the claims of an active token.
/// - [`Refusal::IssuerUnavailable`] if the issuer does not answer within limit `introspectionMs`, or not as it should.
pub async fn claims(
    text: &str,
    (issuer, introspection): (&TokenIssuer, &Introspection),
    generation: u64,
    active: &Active,
    shared: &Shared,
    now: Timestamp,
) -> Outcome {
    let limits = &active.snapshot.limits;
    let bytes_max = limits.size(Limit::TokenBytes);
    if text.len() > bytes_max {
        return Err(Refusal::TooLong { bytes: text.len(), limit: bytes_max });
    }
    if let Some(refusal) = shared.introspections.inactive.find(text, generation, now) {
        return Err(refusal);
    }
    let unavailable = || Refusal::IssuerUnavailable { issuer: issuer.name.clone() };
    let key = (token::digest_of(text), generation);
    let asked = async {
        loop {
            match shared.introspections.join(key, limits) {
                Joined::Asker(turn) => {
                    let outcome = asked(text, issuer, introspection, generation, active, shared).await;
                    turn.answer.send_replace(Some(outcome.clone()));
                    return outcome;
                }
                Joined::Waiter(mut answer) => {
                    // Whoever asked may have gone away with its caller: then it is somebody else's turn.
                    if let Ok(outcome) = answer.wait_for(Option::is_some).await.map(|outcome| outcome.clone())
                        && let Some(outcome) = outcome
                    {
                        return outcome;
                    }
                }
                Joined::Full => return Err(unavailable()),
            }
        }
    };
    tokio::time::timeout(limits.duration(Limit::IntrospectionMs) * 2, asked).await.unwrap_or_else(|_| Err(unavailable()))
}

/// One question, from the client's credential to what the answer is worth.
async fn asked(
    text: &str,
    issuer: &TokenIssuer,
    introspection: &Introspection,
    generation: u64,
    active: &Active,
    shared: &Shared,
) -> Outcome {
    let limits = &active.snapshot.limits;
    let labels = IssuerLabels { issuer: issuer.name.clone() };
    shared.metrics.introspections.get_or_create(&labels).inc();
    let url = introspection.endpoint.as_deref().unwrap_or(&issuer.issuer);
    let exchanged = exchanged(text, issuer, introspection, active, shared);
    match outside::within(Limit::IntrospectionMs, url, limits, exchanged).await {
        Ok(answer) => {
            if issuers::answered(shared, &issuer.name) {
                tracing::info!(issuer = issuer.name, "the issuer answers about opaque tokens again");
            }
            match answer {
                Introspected::Active(claims) => Ok(claims),
                Introspected::Refused(refusal) => {
                    let until = clock::now().plus(limits.duration(Limit::IntrospectionInactiveMs));
                    shared.introspections.inactive.remember(text, generation, &refusal, until);
                    Err(refusal)
                }
            }
        }
        Err(failure) => {
            shared.metrics.introspection_failures.get_or_create(&labels).inc();
            if issuers::unanswered(shared, &issuer.name, &failure) {
                tracing::warn!(issuer = issuer.name, %failure, "the issuer could not be asked about an opaque token");
            }
            Err(Refusal::IssuerUnavailable { issuer: issuer.name.clone() })
        }
    }
}

async fn exchanged(
    text: &str,
    issuer: &TokenIssuer,
    introspection: &Introspection,
    active: &Active,
    shared: &Shared,
) -> Result<Introspected, FetchFailure> {
    let limits = &active.snapshot.limits;
    let is_mutual_tls = introspection.authentication == ClientAuthentication::Svid;
    let (credential, credentials) = match &introspection.authentication {
        ClientAuthentication::SecretBasic { secret_file: file }
        | ClientAuthentication::SecretPost { secret_file: file }
        | ClientAuthentication::PrivateKeyJwt { key_file: file, .. } => {
            (zeroize::Zeroizing::new(outside::read(file, CREDENTIAL_BYTES_MAX).await?), None)
        }
        ClientAuthentication::Svid => {
            (zeroize::Zeroizing::default(), Some(shared.credentials().ok_or(FetchFailure::NoIdentity)?))
        }
    };
    let url = match &introspection.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => discovered(issuer, is_mutual_tls, limits, shared).await?,
    };
    issuers::asked(shared, &issuer.name, &url);
    let ask = || token::introspection::ask(text, issuer, introspection, &credential, clock::now());
    let answer = outside::post(&url, ask, credentials.as_deref(), &shared.introspections.kept, limits).await?;
    let (told, keys) = (&active.snapshot.token.claims, KeySets::default());
    let rules = Rules { issuers: &active.snapshot.issuers, keys: &keys, limits, told };
    Ok(token::introspection::introspected(&answer, text, issuer, &rules, clock::now())?)
}

/// Where the issuer's metadata say that it is asked: looked up once, again after limit `jwksRefreshMs`, and in use until `jwksMaxAgeMs`
/// if it cannot be.
async fn discovered(issuer: &TokenIssuer, is_mutual_tls: bool, limits: &Limits, shared: &Shared) -> Result<String, FetchFailure> {
    // Held while it is looked up: those who wait find what the first one found.
    let mut endpoints = shared.introspections.endpoints.lock().await;
    let now = clock::now();
    let known = endpoints.get(&issuer.name).filter(|known| known.issuer == *issuer && known.tried_at <= now);
    if let Some(known) = known {
        let is_fresh = known.endpoint.is_some() && now < known.found_at.plus(limits.duration(Limit::JwksRefreshMs));
        let is_tried = now < known.tried_at.plus(METADATA_PAUSE);
        let is_believed = now < known.found_at.plus(limits.duration(Limit::JwksMaxAgeMs));
        if let Some(endpoint) = known.endpoint.as_ref().filter(|_| is_fresh || is_tried && is_believed) {
            return Ok(endpoint.clone());
        }
        if is_tried {
            let url = issuer.issuer.clone();
            return Err(FetchFailure::Exchange { url, detail: "its metadata could not be had a moment ago".to_owned() });
        }
    }
    let (old, found_at) = known.map_or((None, now), |known| (known.endpoint.clone(), known.found_at));
    let mut note = |endpoint: Option<String>, found_at: Timestamp| {
        endpoints.insert(issuer.name.clone(), Discovered { issuer: issuer.clone(), endpoint, found_at, tried_at: now });
    };
    // Noted first: a caller that goes away meanwhile leaves no crowd behind.
    note(old.clone(), found_at);
    match metadata(issuer, limits).await.and_then(|found| Ok(found.introspection_endpoint(is_mutual_tls)?.to_owned())) {
        Ok(endpoint) => {
            note(Some(endpoint.clone()), now);
            Ok(endpoint)
        }
        Err(_) if old.is_some() && now < found_at.plus(limits.duration(Limit::JwksMaxAgeMs)) => Ok(old.unwrap_or_default()),
        Err(failure) => Err(failure),
    }
}

/// The issuer's metadata, from the first of the places that has a document.
///
/// # Errors
/// - [`FetchFailure`] of the first place, unless another has the document.
pub async fn metadata(issuer: &TokenIssuer, limits: &Limits) -> Result<Metadata, FetchFailure> {
    let [below, between] = token::jwks::metadata_urls(issuer);
    let document = match outside::get(&below, limits).await {
        // Only where there is none is another place looked at: a document that is wrong is an answer.
        Err(missing @ FetchFailure::Status { .. }) => outside::get(&between, limits).await.map_err(|_| missing)?,
        document => document?,
    };
    Ok(Metadata::parse(&document, issuer, limits)?)
}
