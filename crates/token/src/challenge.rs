//! What a caller is told of the tokens that are wanted: challenges (RFC 6750 §3, RFC 9449 §7.1, RFC 9470 §3) and the metadata of the
//! protected resource (RFC 9728).

use crate::refusal::Refusal;
use model::Reason;
use model::snapshot::{JwtAlgorithm, Snapshot, TokenIssuer};
use model::token::SenderConstraint;
use serde_json::{Map, Value, json};

/// Where metadata is found, before the path of the resource (RFC 9728 §3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The metadata of a workload's resource, made once per configuration.
#[derive(Debug)]
pub struct Resource {
    /// Where it is served: with the path of the resource, and without.
    paths: [String; 2],
    /// The document.
    document: String,
    /// Its address, which challenges name.
    address: String,
}

impl Resource {
    /// That of a configuration; `None` if it names no resource.
    pub fn of(snapshot: &Snapshot) -> Option<Self> {
        let resource = snapshot.token.resource.as_ref()?;
        let host_at = resource.find("://")? + "://".len();
        let path_at = resource.get(host_at..)?.find('/').map_or(resource.len(), |at| host_at + at);
        let (origin, path) = resource.split_at(path_at);
        // RFC 9728 §3.1: a slash that ends the host is not part of a path.
        let path = if path == "/" { "" } else { path };
        let own = format!("{WELL_KNOWN}{path}");
        Some(Self {
            address: format!("{origin}{own}"),
            paths: [own, WELL_KNOWN.to_owned()],
            document: Value::Object(document(resource, snapshot)).to_string(),
        })
    }

    /// The document, if it is found at this path.
    pub fn document_at(&self, path: &str) -> Option<&str> {
        self.paths.iter().any(|own| own == path).then_some(self.document.as_str())
    }
}

/// RFC 9728 §2.
fn document(resource: &str, snapshot: &Snapshot) -> Map<String, Value> {
    let issuers = &snapshot.issuers;
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
    put("resource", resource.into());
    let servers: Vec<&str> = issuers.iter().map(|issuer| issuer.issuer.as_str()).filter(|url| url.starts_with("http")).collect();
    put("authorization_servers", json!(servers));
    let mut scopes: Vec<&str> = issuers.iter().flat_map(|issuer| &issuer.require.scopes).map(String::as_str).collect();
    scopes.sort_unstable();
    scopes.dedup();
    if !scopes.is_empty() {
        put("scopes_supported", json!(scopes));
    }
    let query = snapshot.token.query.as_ref().map(|_| "query");
    put("bearer_methods_supported", json!(["header"].into_iter().chain(query).collect::<Vec<_>>()));
    if issuers.iter().any(|issuer| takes(issuer, SenderConstraint::Certificate)) {
        put("tls_client_certificate_bound_access_tokens", true.into());
    }
    put("dpop_signing_alg_values_supported", json!(JwtAlgorithm::ALL.map(JwtAlgorithm::as_str)));
    if !issuers.is_empty() && issuers.iter().all(|issuer| issuer.require.sender == SenderConstraint::Dpop) {
        put("dpop_bound_access_tokens_required", true.into());
    }
    members
}

fn takes(issuer: &TokenIssuer, constraint: SenderConstraint) -> bool {
    issuer.require.sender == constraint || issuer.require.sender == SenderConstraint::Any
}

/// One challenge, parameter by parameter.
struct Challenge(String);

impl Challenge {
    fn begin(scheme: &str, realm: &str) -> Self {
        Self(format!("{scheme} realm=\"{realm}\""))
    }

    /// `value`: our own words, or what the configuration was refused for unless it can stand in quotes.
    fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push_str(&format!(", {name}=\"{value}\""));
        self
    }

    fn with_error(self, error: &str, reason: Reason) -> Self {
        self.with("error", error).with("error_description", reason.public_text())
    }
}

/// The values of `WWW-Authenticate` for a refusal; none where another token would change nothing.
///
/// - `refusal`: `None` where no token came, and one could help
pub fn challenges(refusal: Option<&Refusal>, snapshot: Option<&Snapshot>, resource: Option<&Resource>) -> Vec<String> {
    let realm = snapshot.map_or_else(String::new, |snapshot| snapshot.identity.trust_domain().to_string());
    let issuers = snapshot.map_or(&[][..], |snapshot| &snapshot.issuers);
    let reason = refusal.map_or(Reason::TokenMissing, Refusal::reason);
    let bearer = || Challenge::begin("Bearer", &realm);
    let dpop = || Challenge::begin("DPoP", &realm);
    let is_bearer_taken = issuers.is_empty() || issuers.iter().any(|issuer| issuer.require.sender != SenderConstraint::Dpop);
    let is_dpop_taken = issuers.iter().any(|issuer| takes(issuer, SenderConstraint::Dpop));
    // RFC 9449 §7.1: which algorithms, wherever the scheme is offered.
    let algorithms = JwtAlgorithm::ALL.map(JwtAlgorithm::as_str).join(" ");
    let both = |error: Option<&str>| {
        let told = |challenge: Challenge| match error {
            Some(error) => challenge.with_error(error, reason),
            None => challenge,
        };
        let bearer = is_bearer_taken.then(|| told(bearer()));
        let dpop = is_dpop_taken.then(|| told(dpop()).with("algs", &algorithms));
        bearer.into_iter().chain(dpop).collect::<Vec<_>>()
    };
    let challenges = match refusal {
        // RFC 6750 §3.1: without an error where no token came.
        None => both(None),
        Some(Refusal::Twice { .. }) => vec![bearer().with_error("invalid_request", reason)],
        Some(Refusal::Scope { required, .. }) => {
            vec![bearer().with_error("insufficient_scope", reason).with("scope", required)]
        }
        Some(Refusal::StepUp { acr_values, max_age, .. }) => {
            let mut told = bearer().with_error("insufficient_user_authentication", reason);
            if !acr_values.is_empty() {
                told = told.with("acr_values", acr_values);
            }
            vec![max_age.iter().fold(told, |told, age| told.with("max_age", &age.to_string()))]
        }
        Some(Refusal::Proof { .. }) => {
            vec![dpop().with_error("invalid_dpop_proof", reason).with("algs", &algorithms)]
        }
        Some(Refusal::ProofNonce { .. }) => {
            vec![dpop().with_error("use_dpop_nonce", reason).with("algs", &algorithms)]
        }
        Some(Refusal::NotHolder { by_proof: true, .. }) => {
            vec![dpop().with_error("invalid_token", reason).with("algs", &algorithms)]
        }
        Some(_) if reason.status() == 401 => both(Some("invalid_token")),
        Some(_) => Vec::new(),
    };
    let address = resource.map(|resource| resource.address.as_str());
    let told = |challenge: Challenge| address.into_iter().fold(challenge, |told, at| told.with("resource_metadata", at)).0;
    challenges.into_iter().map(told).collect()
}
