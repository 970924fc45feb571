//! Bundles of other trust domains (SPIFFE Federation §5, profile `https_web`): fetched from their endpoint, refreshed by their own
//! hint, and kept, so that a restart without their endpoint changes nothing.

use crate::ca::{Ca, ChangeFailure};
use crate::clock;
use crate::desired::Board;
use crate::store::{Store, StoredBundle};
use config::Settings;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use identity::bundle_document::{self, BundleDocument};
use model::snapshot::TrustBundle;
use model::{Timestamp, TrustDomain};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// For one fetch, from the name's look-up to the last byte.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);
/// LIMIT: bytes of a bundle document.
const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;
/// Where a bundle gives no hint (SPIFFE Trust Domain and Bundle §4.1.3 recommends five minutes).
const REFRESH_DEFAULT: Duration = Duration::from_secs(300);
/// A hint is held to this range: neither a storm nor a bundle that nobody looks at again.
const REFRESH_MIN: Duration = Duration::from_secs(10);
const REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);
/// After a fetch that failed.
const RETRY: Duration = Duration::from_secs(15);
/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a bundle could not be fetched. What was fetched before stays in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchFailure {
    /// The endpoint cannot be reached, or does not answer as HTTP.
    #[error("{0}")]
    Exchange(String),
    /// It answers something else than a document.
    #[error("it answers with status {0}")]
    Status(StatusCode),
    /// The document is no bundle.
    #[error("{0}")]
    Document(#[from] bundle_document::BundleDocumentError),
    /// It is older than the one in force.
    #[error("its sequence number went back from {before} to {got}")]
    Older {
        /// That of the bundle in force.
        before: u64,
        /// That of the document.
        got: u64,
    },
    /// It took too long.
    #[error("no answer within {} s", FETCH_DEADLINE.as_secs())]
    Slow,
}

/// One foreign trust domain.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    pub(crate) url: String,
    pub(crate) bundle: Option<StoredBundle>,
    pub(crate) next_at: Timestamp,
    pub(crate) failure: Option<String>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Federation {
    store: Arc<Store>,
    ca: Arc<Ca>,
    foreign: Mutex<BTreeMap<TrustDomain, Foreign>>,
}

impl Federation {
    /// Begins with what was fetched before this process started.
    pub(crate) fn open(store: Arc<Store>, ca: Arc<Ca>, settings: &Settings) -> Result<Self, ChangeFailure> {
        let stored = store.federated()?;
        let now = clock::now();
        let foreign = settings.federation.iter().map(|each| {
            let known =
                |stored: &&StoredBundle| stored.trust_domain == each.trust_domain.as_str() && stored.url == each.bundle_endpoint;
            let bundle = stored.iter().find(known).cloned();
            (each.trust_domain.clone(), Foreign { url: each.bundle_endpoint.clone(), bundle, next_at: now, failure: None })
        });
        let federation = Self { foreign: Mutex::new(foreign.collect()), ca, store };
        federation.ca.set_federated(federation.bundles());
        Ok(federation)
    }

    /// What is known of each.
    pub(crate) fn each(&self) -> Vec<(TrustDomain, Foreign)> {
        self.foreign.lock().iter().map(|(domain, foreign)| (domain.clone(), foreign.clone())).collect()
    }

    fn bundles(&self) -> Vec<TrustBundle> {
        let foreign = self.foreign.lock();
        let bundle = |(domain, foreign): (&TrustDomain, &Foreign)| {
            let bundle = foreign.bundle.as_ref().filter(|bundle| !bundle.authorities.is_empty())?;
            Some(TrustBundle {
                jwt_authorities: bundle.jwt_authorities.clone(),
                ..TrustBundle::x509(domain.clone(), bundle.authorities.clone())
            })
        };
        foreign.iter().filter_map(bundle).collect()
    }

    /// Fetches what is due, for as long as the process lives.
    pub(crate) async fn run(self: Arc<Self>, board: Arc<Board>) {
        // What was kept and put in force last. What could not be, on a full disk say, is tried again.
        let mut told = None;
        let mut is_failing = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.follow(&board.current().mesh.settings);
            let now = clock::now();
            let due: Vec<(TrustDomain, Foreign)> =
                self.each().into_iter().filter(|(_, foreign)| foreign.next_at <= now).collect();
            // Side by side, so that one that takes its time holds none of the others up.
            let mut fetches = JoinSet::new();
            for (domain, foreign) in due {
                fetches.spawn(async move {
                    let outcome = fetch(&domain, &foreign).await;
                    (domain, foreign, outcome)
                });
            }
            while let Some(Ok((domain, foreign, outcome))) = fetches.join_next().await {
                self.fetched(&domain, &foreign, outcome);
            }
            let kept: Vec<StoredBundle> = self.each().into_iter().filter_map(|(_, foreign)| foreign.bundle).collect();
            if told.as_ref() == Some(&kept) {
                continue;
            }
            match self.tell(&board, kept.clone()).await {
                Ok(()) => (told, is_failing) = (Some(kept), false),
                Err(failure) if !std::mem::replace(&mut is_failing, true) => {
                    tracing::error!(failure, "foreign bundles could not be put in force; it is tried again");
                }
                Err(_) => {}
            }
        }
    }

    /// Takes over what the configuration says.
    fn follow(&self, settings: &Settings) {
        let mut foreign = self.foreign.lock();
        foreign.retain(|domain, known| {
            settings.federation.iter().any(|each| each.trust_domain == *domain && each.bundle_endpoint == known.url)
        });
        for each in &settings.federation {
            foreign.entry(each.trust_domain.clone()).or_insert_with(|| Foreign {
                url: each.bundle_endpoint.clone(),
                bundle: None,
                next_at: clock::now(),
                failure: None,
            });
        }
    }

    /// Notes what came of a fetch.
    fn fetched(&self, domain: &TrustDomain, asked: &Foreign, outcome: Result<BundleDocument, FetchFailure>) {
        let now = clock::now();
        let mut all = self.foreign.lock();
        // The configuration may have dropped it meanwhile.
        let Some(foreign) = all.get_mut(domain).filter(|foreign| foreign.url == asked.url) else { return };
        match outcome {
            Ok(document) => {
                let hint = document.refresh_hint.unwrap_or(REFRESH_DEFAULT).clamp(REFRESH_MIN, REFRESH_MAX);
                let before = foreign.bundle.as_ref().and_then(|bundle| bundle.sequence);
                let fresh = StoredBundle {
                    trust_domain: domain.to_string(),
                    url: foreign.url.clone(),
                    authorities: document.x509_authorities,
                    jwt_authorities: document.jwt_authorities,
                    // A document that leaves it out must not open the way for every old one.
                    sequence: document.sequence.or(before),
                    refresh_hint: document.refresh_hint.map(|hint| hint.as_secs()),
                    fetched_at: now,
                };
                let same = |known: &StoredBundle| {
                    known.authorities == fresh.authorities && known.jwt_authorities == fresh.jwt_authorities
                };
                let is_new = !foreign.bundle.as_ref().is_some_and(same);
                if is_new {
                    tracing::info!(%domain, authorities = fresh.authorities.len(), "a foreign bundle was fetched");
                }
                (foreign.next_at, foreign.failure, foreign.bundle) = (now.plus(hint), None, Some(fresh));
            }
            Err(failure) => {
                let failure = failure.to_string();
                if foreign.failure.as_ref() != Some(&failure) {
                    tracing::warn!(%domain, url = foreign.url, failure, "a foreign bundle could not be fetched; the last one stays");
                }
                (foreign.next_at, foreign.failure) = (now.plus(RETRY), Some(failure));
            }
        }
    }

    async fn tell(self: &Arc<Self>, board: &Arc<Board>, kept: Vec<StoredBundle>) -> Result<(), String> {
        let (federation, board) = (Arc::clone(self), Arc::clone(board));
        let told = tokio::task::spawn_blocking(move || {
            federation.store.keep_federated(&kept)?;
            federation.ca.federate(federation.bundles(), &board, clock::now())
        });
        told.await.map_err(|error| error.to_string())?.map_err(|failure| failure.to_string())
    }
}

/// That a document is not older than the bundle in force.
fn later(foreign: &Foreign, document: BundleDocument) -> Result<BundleDocument, FetchFailure> {
    let before = foreign.bundle.as_ref().and_then(|bundle| bundle.sequence);
    match (before, document.sequence) {
        // Whoever replays an old document could bring a retired authority back.
        (Some(before), Some(got)) if got < before => Err(FetchFailure::Older { before, got }),
        _ => Ok(document),
    }
}

async fn fetch(domain: &TrustDomain, foreign: &Foreign) -> Result<BundleDocument, FetchFailure> {
    let body = match tokio::time::timeout(FETCH_DEADLINE, get(&foreign.url)).await {
        Ok(body) => body?,
        Err(_) => return Err(FetchFailure::Slow),
    };
    later(foreign, bundle_document::parse(&body, domain)?)
}

/// One GET by TLS, without redirects, to an address that may be fetched from.
async fn get(url: &str) -> Result<Bytes, FetchFailure> {
    let failed = |error: &dyn std::fmt::Display| FetchFailure::Exchange(error.to_string());
    let uri: Uri = url.parse().map_err(|error| failed(&error))?;
    let host = uri.host().ok_or_else(|| failed(&"the address has no host"))?.trim_matches(['[', ']']).to_owned();
    let found = tokio::net::lookup_host((host.as_str(), uri.port_u16().unwrap_or(443))).await.map_err(|error| failed(&error))?;
    let may = |address: &SocketAddr| config::fetchable_address(address.ip());
    let address =
        found.into_iter().find(may).ok_or_else(|| failed(&format!("`{host}` has no address that may be fetched from")))?;
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let stream = identity::web::connect(stream, &host, FETCH_DEADLINE).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // Ends with `sender`, at the latest when this function is dropped at its deadline.
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    let request = Request::get(path).header("host", authority).header("accept", "application/json").body(Empty::new());
    let response = sender.send_request(request.map_err(|error| failed(&error))?).await.map_err(|error| failed(&error))?;
    if response.status() != StatusCode::OK {
        return Err(FetchFailure::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| failed(&error))?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::pki::TestAuthority;

    /// A mesh that federates with `partner.example`, of which nothing was fetched yet.
    fn federation() -> (tempfile::TempDir, Arc<Federation>, Arc<Board>, TrustDomain) {
        federation_with("{ trustDomain: partner.example, bundleEndpoint: \"https://127.0.0.1:1/\" }")
    }

    fn federation_with(foreign: &str) -> (tempfile::TempDir, Arc<Federation>, Arc<Board>, TrustDomain) {
        let dir = tempfile::tempdir().expect("directory");
        let text = format!(
            "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{ name: a }}\nspec:\n  trustDomain: a.example\n  \
             federation: [ {foreign} ]\n"
        );
        let sources = vec![config::Source { file: "a.yaml".into(), text }];
        let settings = config::parse(&sources).expect("mesh").settings;
        let store = Arc::new(Store::open(&dir.path().join("control.redb")).expect("store"));
        let ca = Arc::new(Ca::open(Arc::clone(&store), dir.path(), &settings, clock::now()).expect("authority"));
        let federation = Arc::new(Federation::open(Arc::clone(&store), Arc::clone(&ca), &settings).expect("federation"));
        let begun = crate::desired::Begun::read(&store, Ok(sources)).expect("begun");
        let board = Arc::new(Board::begin(store, begun, ca.trust(clock::now())).expect("board"));
        (dir, federation, board, TrustDomain::parse("partner.example").expect("domain"))
    }

    fn document(authority: &TestAuthority, sequence: Option<u64>) -> BundleDocument {
        BundleDocument { x509_authorities: vec![authority.certificate_der().to_vec()], sequence, ..BundleDocument::default() }
    }

    #[test]
    fn a_document_without_a_sequence_number_does_not_open_the_way_for_an_old_one() {
        let (_dir, federation, _board, domain) = federation();
        let partner = TestAuthority::new("partner.example");
        for (sequence, is_taken) in [(Some(7), true), (None, true), (Some(6), false), (Some(7), true), (Some(8), true)] {
            let (_, known) = federation.each().remove(0);
            let outcome = later(&known, document(&partner, sequence));
            assert_eq!(outcome.is_ok(), is_taken, "{sequence:?}");
            federation.fetched(&domain, &known, outcome);
        }
    }

    #[tokio::test]
    async fn a_foreign_bundle_that_could_not_be_put_in_force_is_put_there_later() {
        let (_dir, federation, board, domain) = federation();
        let partner = TestAuthority::new("partner.example");
        let (_, known) = federation.each().remove(0);
        // Fetched while the disk was full, say; it does not change any more.
        federation.fetched(&domain, &known, Ok(document(&partner, Some(7))));
        let mut desired = board.subscribe();
        let told = desired.wait_for(|desired| desired.trust.bundles.contains(&partner.bundle()));
        tokio::select! {
            () = Arc::clone(&federation).run(Arc::clone(&board)) => {}
            told = tokio::time::timeout(Duration::from_secs(10), told) => {
                told.expect("in time").expect("told");
            }
        }
        assert_eq!(federation.store.federated().expect("read").len(), 1);
    }

    #[tokio::test]
    async fn an_endpoint_that_takes_its_time_holds_no_other_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let at = silent.local_addr().expect("bound");
        let (_dir, federation, board, _) = federation_with(&format!(
            "{{ trustDomain: a.other, bundleEndpoint: \"https://{at}/\" }}, \
             {{ trustDomain: b.other, bundleEndpoint: \"https://127.0.0.1:1/\" }}"
        ));
        let answered = async {
            while federation.each().iter().all(|(_, foreign)| foreign.failure.is_none()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = Arc::clone(&federation).run(board) => {}
            answered = tokio::time::timeout(FETCH_DEADLINE / 2, answered) => answered.expect("the second is not waited for by the first"),
        }
        assert!(federation.each().iter().any(|(domain, foreign)| domain.as_str() == "b.other" && foreign.failure.is_some()));
    }
}
