//! What is known of each issuer at this sidecar: its keys, how old they are, what went wrong last. For people, not for decisions.

use crate::clock;
use crate::outside::FetchFailure;
use crate::state::Shared;
use model::Timestamp;
use model::issuers::{IntrospectionReport, IssuerReport, KeyReport, Trouble};
use model::snapshot::{KeySource, TokenIssuer};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::client::Answers;

/// LIMIT: bytes of a failure's text.
const FAILURE_BYTES_MAX: usize = 512;

/// What the tasks that fetch and ask have noted, by the issuer's name.
#[derive(Debug, Default)]
pub struct Issuers(Mutex<BTreeMap<String, Noted>>);

#[derive(Clone, Debug, Default)]
struct Noted {
    next_at: Option<Timestamp>,
    failure: Option<Trouble>,
    introspection: IntrospectionReport,
}

impl Issuers {
    fn note<T>(&self, name: &str, change: impl FnOnce(&mut Noted) -> T) -> T {
        change(self.0.lock().entry(name.to_owned()).or_default())
    }

    /// Forgets those that are not configured any more.
    pub fn retain(&self, issuers: &[TokenIssuer]) {
        self.0.lock().retain(|name, _| issuers.iter().any(|issuer| issuer.name == *name));
    }
}

/// Notes the end of a fetch of keys.
pub fn fetched(shared: &Shared, name: &str, failure: Option<String>, next_at: Option<Timestamp>) {
    let trouble = failure.map(trouble);
    shared.issuers.note(name, |noted| {
        noted.failure = trouble;
        noted.next_at = next_at;
    });
}

/// Notes that an issuer is asked about a token.
pub fn asked(shared: &Shared, name: &str, endpoint: &str) {
    shared.issuers.note(name, |noted| {
        if noted.introspection.endpoint != endpoint {
            endpoint.clone_into(&mut noted.introspection.endpoint);
        }
    });
}

/// Notes that it answered; true if it had not before.
pub fn answered(shared: &Shared, name: &str) -> bool {
    shared.issuers.note(name, |noted| {
        noted.introspection.asked += 1;
        noted.introspection.answered_at = Some(clock::now());
        noted.introspection.failure.take().is_some()
    })
}

/// Notes that it did not answer; true if it had before.
pub fn unanswered(shared: &Shared, name: &str, failure: &FetchFailure) -> bool {
    let trouble = trouble(failure.to_string());
    shared.issuers.note(name, |noted| {
        noted.introspection.asked += 1;
        noted.introspection.failed += 1;
        noted.introspection.failure.replace(trouble).is_none()
    })
}

fn trouble(text: String) -> Trouble {
    let fits = |(at, letter): &(usize, char)| at + letter.len_utf8() <= FAILURE_BYTES_MAX;
    Trouble { at: clock::now(), text: text.char_indices().take_while(fits).map(|(_, letter)| letter).collect() }
}

/// What is known of every issuer of the configuration in force, in its order.
pub fn report(shared: &Shared) -> Vec<IssuerReport> {
    let Some(active) = shared.active() else { return Vec::new() };
    let keys = shared.keys.borrow().clone();
    let noted = shared.issuers.0.lock();
    let of = |issuer: &TokenIssuer| {
        let noted = noted.get(&issuer.name).cloned().unwrap_or_default();
        let set = keys.get(&issuer.name);
        let key = |(id, algorithm): (Option<&str>, model::snapshot::JwtAlgorithm)| KeyReport {
            id: id.map(model::ids::printable),
            algorithm: algorithm.as_str().to_owned(),
        };
        IssuerReport {
            name: issuer.name.clone(),
            issuer: issuer.issuer.clone(),
            source: source(issuer),
            keys: set.map(|set| set.keys().take(IssuerReport::KEYS_MAX).map(key).collect()).unwrap_or_default(),
            ignored: set.map_or(0, |set| u32::try_from(set.ignored()).unwrap_or(u32::MAX)),
            fetched_at: set.map(|set| set.fetched_at()),
            next_at: noted.next_at,
            believed_until: set
                .map(|set| set.believed_until(&active.snapshot.limits))
                .filter(|until| *until < Timestamp::from_millis(u64::MAX)),
            failure: noted.failure,
            introspection: issuer.introspection.as_ref().map(|asked| IntrospectionReport {
                endpoint: asked.endpoint.clone().unwrap_or(noted.introspection.endpoint),
                authentication: asked.authentication.as_str().to_owned(),
                prefix: asked.prefix.clone(),
                ..noted.introspection
            }),
        }
    };
    active.snapshot.issuers.iter().map(of).collect()
}

/// Where the keys come from, in the words of the configuration.
fn source(issuer: &TokenIssuer) -> String {
    match &issuer.keys {
        KeySource::Discovery => "discovery".to_owned(),
        KeySource::JwksUri(uri) => uri.clone(),
        KeySource::Workload { uri, endpoint } => format!("{uri} ({})", endpoint.identity),
        KeySource::Inline(_) => "configuration".to_owned(),
        KeySource::File(file) => file.clone(),
        KeySource::JwtSvid(domain) => format!("trust bundle of {domain}"),
    }
}

/// How often it is looked whether there is something to tell the control plane.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often that is told which only grows: ages and counts.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Tells the control plane of the issuers for as long as one stream lives: at once what changes, now and then what only grows.
pub async fn tell(shared: &Shared, answers: Answers) {
    let mut told: Vec<IssuerReport> = Vec::new();
    let mut told_at = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let report = report(shared);
        let is_due = told_at.elapsed() >= TELL_EVERY && report != told;
        if is_due || !report.iter().map(essence).eq(told.iter().map(essence)) {
            if answers.issuers(&report).await.is_err() {
                // The stream is gone; who serves it knows.
                return std::future::pending().await;
            }
            (told, told_at) = (report, Instant::now());
        }
    }
}

/// What an operator must hear of at once.
fn essence(report: &IssuerReport) -> (&str, &[KeyReport], bool, bool) {
    let is_silent = report.introspection.as_ref().is_some_and(|asked| asked.failure.is_some());
    (&report.name, &report.keys, report.failure.is_some(), is_silent)
}

/// A report as the admin port tells it; moments in milliseconds since the epoch.
pub fn to_json(report: &IssuerReport) -> serde_json::Value {
    let keys = report.keys.iter().map(|key| serde_json::json!({ "id": key.id, "algorithm": key.algorithm }));
    let trouble = |failure: &Option<Trouble>| {
        failure.as_ref().map(|failure| serde_json::json!({ "at_ms": failure.at.millis(), "text": failure.text }))
    };
    let millis = |at: Option<Timestamp>| at.map(Timestamp::millis);
    serde_json::json!({
        "name": report.name, "issuer": report.issuer, "source": report.source,
        "keys": keys.collect::<Vec<_>>(), "ignored": report.ignored,
        "fetched_at_ms": millis(report.fetched_at), "next_at_ms": millis(report.next_at),
        "believed_until_ms": millis(report.believed_until), "failure": trouble(&report.failure),
        "introspection": report.introspection.as_ref().map(|asked| serde_json::json!({
            "endpoint": asked.endpoint, "authentication": asked.authentication, "prefix": asked.prefix,
            "answered_at_ms": millis(asked.answered_at), "asked": asked.asked, "failed": asked.failed,
            "failure": trouble(&asked.failure),
        })),
    })
}
