//! Asks issuers about opaque tokens (RFC 7662): what is asked and what the answer is worth is `token::introspection`'s rule, here are
//! the sockets. One question per token at a time, whoever waits for it; what is good is remembered beside other tokens, what is not apart.
//! Connections are kept for the next question by `kept.rs`.

use crate::clock;
use crate::connection::Connection;
use crate::issuers;
use crate::kept::KeptConnections;
use crate::outside::{self, FetchFailure};
use crate::state::{Active, Shared};
use crate::telemetry::metrics::IssuerLabels;
use identity::handshake::VerifiedPeer;
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::TokenIssuer;
use model::{Limit, Limits, Timestamp};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use token::introspection::{CREDENTIAL_BYTES_MAX, Introspected};
use token::jwks::Metadata;
use token::{InactiveTokens, KeySets, Refusal, Rules, VerifiedClaims};
use tokio::sync::watch;

/// LIMIT: the part of the questions under way at an issuer that one caller's tokens may be: so that the tokens it invents keep nobody else's out.
const SHARE_OF_ONE_CALLER: usize = 2;
/// The pause after a metadata document could not be had.
const METADATA_PAUSE: Duration = Duration::from_secs(1);

type Outcome = Result<VerifiedClaims, Refusal>;
/// A token's digest, and the generation of the configuration that asks.
type Key = ([u8; 32], u64);
/// An issuer's name, and who sent a token: the SPIFFE ID, or the address of one that has none.
type Sender = (String, String);
/// Where an issuer is asked. Locked while it is looked up: those who wait find what the first one found.
type Endpoint = Arc<tokio::sync::Mutex<Option<Discovered>>>;

/// The questions under way and what their answers leave behind. Shared between threads.
#[derive(Debug, Default)]
pub struct Introspections {
    under_way: Mutex<UnderWay>,
    inactive: InactiveTokens,
    /// By the issuer's name.
    endpoints: Mutex<HashMap<String, Endpoint>>,
    kept: KeptConnections,
}

/// The questions under way. No issuer takes the room of another, and no caller that of all others.
#[derive(Debug, Default)]
struct UnderWay {
    questions: HashMap<Key, watch::Receiver<Option<Outcome>>>,
    by_issuer: HashMap<String, usize>,
    by_sender: HashMap<Sender, usize>,
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
    under_way: &'a Mutex<UnderWay>,
    key: Key,
    sender: Sender,
    answer: watch::Sender<Option<Outcome>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut under_way = self.under_way.lock();
        under_way.questions.remove(&self.key);
        one_less(&mut under_way.by_issuer, &self.sender.0);
        one_less(&mut under_way.by_sender, &self.sender);
    }
}

fn one_less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Introspections {
    fn join(&self, key: Key, sender: &Sender, limits: &Limits) -> Joined<'_> {
        let mut under_way = self.under_way.lock();
        if let Some(asked) = under_way.questions.get(&key) {
            return Joined::Waiter(asked.clone());
        }
        let limit = limits.size(Limit::IntrospectionsUnderWay);
        let count = |count: Option<&usize>| count.copied().unwrap_or(0);
        let is_full = count(under_way.by_issuer.get(&sender.0)) >= limit;
        if is_full || count(under_way.by_sender.get(sender)) >= (limit / SHARE_OF_ONE_CALLER).max(1) {
            return Joined::Full;
        }
        let (answer, waiter) = watch::channel(None);
        under_way.questions.insert(key, waiter);
        *under_way.by_issuer.entry(sender.0.clone()).or_default() += 1;
        *under_way.by_sender.entry(sender.clone()).or_default() += 1;
        Joined::Asker(Turn { under_way: &self.under_way, key, sender: sender.clone(), answer })
    }

    /// Where an issuer is asked; what is known of those that are not configured any more is forgotten.
    fn endpoint(&self, issuer: &str, active: &Active) -> Endpoint {
        let mut endpoints = self.endpoints.lock();
        if let Some(known) = endpoints.get(issuer) {
            return Arc::clone(known);
        }
        endpoints.retain(|name, _| active.snapshot.issuers.iter().any(|issuer| issuer.name == *name));
        Arc::clone(endpoints.entry(issuer.to_owned()).or_default())
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
    connection: &Connection,
    now: Timestamp,
) -> Outcome {
    let shared = connection.shared.as_ref();
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
    let caller = connection.peer().map_or_else(|| connection.remote.ip().to_string(), |peer| VerifiedPeer::id(peer).to_string());
    let sender = (issuer.name.clone(), caller);
    let asked = async {
        loop {
            match shared.introspections.join(key, &sender, limits) {
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
        None => discovered(issuer, is_mutual_tls, active, shared).await?,
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
async fn discovered(issuer: &TokenIssuer, is_mutual_tls: bool, active: &Active, shared: &Shared) -> Result<String, FetchFailure> {
    let limits = &active.snapshot.limits;
    let endpoint = shared.introspections.endpoint(&issuer.name, active);
    let mut discovered = endpoint.lock().await;
    let now = clock::now();
    let known = discovered.as_ref().filter(|known| known.issuer == *issuer && known.tried_at <= now);
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
        *discovered = Some(Discovered { issuer: issuer.clone(), endpoint, found_at, tried_at: now });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_counted_by_issuer_and_caller_and_leave_nothing_behind() {
        let introspections = Introspections::default();
        let mut limits = Limits::default();
        limits.set(Limit::IntrospectionsUnderWay, 4).expect("limit");
        let join = |number: u8, issuer: &str, caller: &str| {
            introspections.join(([number; 32], 1), &(issuer.to_owned(), caller.to_owned()), &limits)
        };
        let asker = |joined| match joined {
            Joined::Asker(turn) => turn,
            Joined::Waiter(_) | Joined::Full => panic!("nobody asks that yet"),
        };
        let first = asker(join(1, "login", "thief"));
        let mut turns = vec![asker(join(2, "login", "thief"))];
        assert!(matches!(join(3, "login", "thief"), Joined::Full), "half of the limit");
        assert!(matches!(join(1, "login", "thief"), Joined::Waiter(_)), "whoever waits takes no room");
        turns.push(asker(join(4, "login", "till")));
        turns.push(asker(join(5, "login", "gateway")));
        assert!(matches!(join(6, "login", "web"), Joined::Full), "all of the limit");
        turns.push(asker(join(6, "partner", "thief")));
        drop(first);
        turns.push(asker(join(3, "login", "thief")));
        drop(turns);
        let under_way = introspections.under_way.lock();
        assert!(under_way.questions.is_empty() && under_way.by_issuer.is_empty() && under_way.by_sender.is_empty());
    }
}
