//! The resources as they are written, and the strict reading of one document.

use crate::error::{ConfigError, RESOURCE, suggestion};
use crate::source::Document;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Location, Options, Spanned};
use std::collections::BTreeMap;
use std::fmt;

/// The one version of the resources.
const API_VERSION: &str = "rondel.dev/v1alpha1";
/// The kinds that this version enforces.
const KINDS: [&str; 5] = ["MeshConfig", "Workload", "PeerAuthentication", "TokenIssuer", "AuthorizationPolicy"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Head {
    api_version: Spanned<String>,
    pub(crate) kind: Spanned<String>,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(rename = "spec")]
    _spec: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Whole<S> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    metadata: Metadata,
    spec: S,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    pub(crate) name: Spanned<String>,
    pub(crate) namespace: Option<Spanned<String>>,
}

/// One resource and where it was written.
#[derive(Debug)]
pub(crate) struct Written<'a, S> {
    pub(crate) document: Document<'a>,
    pub(crate) metadata: Metadata,
    pub(crate) spec: S,
}

#[derive(Debug)]
pub(crate) enum Resource<'a> {
    Mesh(Box<Written<'a, MeshSpec>>),
    Workload(Box<Written<'a, WorkloadSpec>>),
    Issuer(Box<Written<'a, IssuerSpec>>),
    Policy(Box<Written<'a, PolicySpec>>),
    Authentication(Box<Written<'a, AuthenticationSpec>>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MeshSpec {
    pub(crate) trust_domain: Spanned<String>,
    #[serde(default)]
    pub(crate) certificates: Certificates,
    #[serde(default)]
    pub(crate) federation: Vec<FederationSpec>,
    pub(crate) bundle_endpoint: Option<BundleEndpointSpec>,
    pub(crate) country: Option<Spanned<Country>>,
    #[serde(default)]
    pub(crate) roles: BTreeMap<String, Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    pub(crate) forwarders: Vec<Spanned<String>>,
    pub(crate) egress: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) limits: BTreeMap<String, Spanned<u64>>,
    #[serde(default)]
    pub(crate) processes: Vec<ProcessSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Certificates {
    pub(crate) lifetime: Option<Spanned<String>>,
    pub(crate) authority_lifetime: Option<Spanned<String>>,
    pub(crate) connection_age: Option<Spanned<String>>,
    pub(crate) post_quantum: Option<Spanned<String>>,
    pub(crate) upstream: Option<Spanned<UpstreamAuthoritySpec>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamAuthoritySpec {
    pub(crate) files: Option<AuthorityFilesSpec>,
    pub(crate) command: Option<Spanned<Vec<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthorityFilesSpec {
    pub(crate) certificate: Spanned<String>,
    pub(crate) key: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FederationSpec {
    pub(crate) trust_domain: Spanned<String>,
    pub(crate) bundle_endpoint: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct BundleEndpointSpec {
    pub(crate) listen: Spanned<String>,
    pub(crate) certificate: Spanned<String>,
    pub(crate) key: Spanned<String>,
    pub(crate) refresh_hint: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Country {
    pub(crate) header: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) trusted: Vec<Spanned<String>>,
    pub(crate) database: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessSpec {
    pub(crate) name: Spanned<String>,
    pub(crate) command: Spanned<Vec<String>>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkloadSpec {
    pub(crate) account: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) captured: bool,
    pub(crate) admin: Spanned<String>,
    #[serde(default)]
    pub(crate) inbound: Vec<InboundSpec>,
    #[serde(default)]
    pub(crate) upstreams: Vec<UpstreamSpec>,
    pub(crate) issuers: Option<Vec<Spanned<String>>>,
    pub(crate) token: Option<Spanned<TokenSpec>>,
    pub(crate) resource: Option<Spanned<String>>,
    pub(crate) run: Option<RunSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenSpec {
    pub(crate) header: Option<Spanned<String>>,
    pub(crate) cookie: Option<Spanned<String>>,
    pub(crate) query: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) strip: bool,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct InboundSpec {
    pub(crate) listen: Spanned<String>,
    pub(crate) application: Option<Spanned<String>>,
    pub(crate) protocol: Option<Spanned<String>>,
    pub(crate) app_protocol: Option<String>,
    pub(crate) name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamSpec {
    pub(crate) service: Spanned<String>,
    pub(crate) listen: Option<Spanned<String>>,
    pub(crate) port: Option<Spanned<u16>>,
    pub(crate) protocol: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthenticationSpec {
    pub(crate) selector: Option<Selector>,
    pub(crate) mode: Spanned<String>,
    pub(crate) ports: Option<Spanned<Vec<Spanned<u16>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunSpec {
    pub(crate) command: Spanned<Vec<String>>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct IssuerSpec {
    pub(crate) issuer: Option<Spanned<String>>,
    pub(crate) audiences: Spanned<Vec<String>>,
    pub(crate) algorithms: Option<Spanned<Vec<Spanned<String>>>>,
    pub(crate) jwks_uri: Option<Spanned<String>>,
    pub(crate) jwks: Option<Spanned<serde_json::Value>>,
    pub(crate) jwks_file: Option<Spanned<String>>,
    pub(crate) jwt_svid: Option<JwtSvidSpec>,
    pub(crate) introspection: Option<Spanned<IntrospectionSpec>>,
    #[serde(default)]
    pub(crate) claims: Claims,
    pub(crate) require: Option<Spanned<RequireSpec>>,
    pub(crate) clock_skew: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RequireSpec {
    pub(crate) profile: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) scopes: Vec<Spanned<String>>,
    #[serde(default)]
    pub(crate) claims: BTreeMap<String, Values>,
    #[serde(default)]
    pub(crate) acr: Vec<Spanned<String>>,
    pub(crate) max_age: Option<Spanned<String>>,
    pub(crate) sender: Option<Spanned<String>>,
    pub(crate) dpop_nonce: Option<Spanned<bool>>,
}

/// The accepted values of a claim: one, or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Values {
    One(Scalar),
    Many(Vec<Scalar>),
}

/// A value as it is compared with a claim's.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Boolean(bool),
    Number(i64),
    Text(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Boolean(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct JwtSvidSpec {
    pub(crate) trust_domain: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct IntrospectionSpec {
    pub(crate) endpoint: Option<Spanned<String>>,
    pub(crate) prefix: Option<Spanned<String>>,
    pub(crate) client_id: Spanned<String>,
    pub(crate) authentication: Spanned<String>,
    pub(crate) secret_file: Option<Spanned<String>>,
    pub(crate) key_file: Option<Spanned<String>>,
    pub(crate) key_id: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    pub(crate) roles: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) attributes: BTreeMap<String, Claim>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    pub(crate) claim: Spanned<String>,
    #[serde(rename = "type")]
    pub(crate) kind: Spanned<String>,
    #[serde(default)]
    pub(crate) sensitive: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicySpec {
    pub(crate) selector: Option<Selector>,
    pub(crate) mode: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) body: BTreeMap<String, Spanned<FieldSpec>>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Spanned<HeaderSpec>>,
    pub(crate) policies: Spanned<String>,
}

/// A field of the body: its type alone, or `{ type: …, sensitive: … }`.
#[derive(Debug)]
pub(crate) struct FieldSpec {
    pub(crate) kind: String,
    pub(crate) sensitive: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderSpec {
    #[serde(default)]
    pub(crate) sensitive: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeField {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    sensitive: bool,
}

impl<'de> Deserialize<'de> for FieldSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = FieldSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a type, or `{ type: …, sensitive: … }`")
    }

    fn visit_str<E>(self, kind: &str) -> Result<FieldSpec, E> {
        Ok(FieldSpec { kind: kind.to_owned(), sensitive: false })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FieldSpec, A::Error> {
        let WholeField { kind, sensitive } = WholeField::deserialize(MapAccessDeserializer::new(map))?;
        Ok(FieldSpec { kind, sensitive })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Selector {
    pub(crate) account: Spanned<String>,
}

/// Reads the kind of a document, and nothing else of it.
pub(crate) fn head(document: Document<'_>) -> Result<Head, ConfigError> {
    let head: Head = from_yaml(document)?;
    if head.api_version.value != API_VERSION {
        let message =
            format!("`apiVersion: {}` is not known; write `{API_VERSION}`", model::ids::printable(&head.api_version.value));
        return Err(at(document, head.api_version.defined, message));
    }
    Ok(head)
}

/// Reads one document: its kind first, then all of it as that kind says, unknown fields being errors.
pub(crate) fn resource(document: Document<'_>) -> Result<Resource<'_>, ConfigError> {
    let head = head(document)?;
    match head.kind.value.as_str() {
        "MeshConfig" => whole(document).map(Box::new).map(Resource::Mesh),
        "Workload" => whole(document).map(Box::new).map(Resource::Workload),
        "PeerAuthentication" => whole(document).map(Box::new).map(Resource::Authentication),
        "TokenIssuer" => whole(document).map(Box::new).map(Resource::Issuer),
        "AuthorizationPolicy" => whole(document).map(Box::new).map(Resource::Policy),
        crate::cases::KIND => {
            let message =
                "tests of policies are no part of the mesh: keep them in a directory of their own, for `rondel authz test`";
            Err(at(document, head.kind.defined, message.to_owned()))
        }
        other => {
            let near = suggestion(other, KINDS);
            let message = format!("`kind: {}` is not one of {}{near}", model::ids::printable(other), KINDS.join(", "));
            Err(at(document, head.kind.defined, message))
        }
    }
}

pub(crate) fn whole<S: DeserializeOwned>(document: Document<'_>) -> Result<Written<'_, S>, ConfigError> {
    let whole: Whole<S> = from_yaml(document)?;
    Ok(Written { document, metadata: whole.metadata, spec: whole.spec })
}

fn from_yaml<T: DeserializeOwned>(document: Document<'_>) -> Result<T, ConfigError> {
    // The default options bound depth, aliases and size, and refuse keys that stand twice.
    serde_saphyr::from_str_with_options(document.text, Options::default()).map_err(|error| {
        let location = error.location().unwrap_or(Location::UNKNOWN);
        at(document, location, plain(&error))
    })
}

/// An error at a place of a document.
pub(crate) fn at(document: Document<'_>, location: Location, message: String) -> ConfigError {
    let line = u32::try_from(location.line()).unwrap_or(u32::MAX).max(1).saturating_add(document.lines_before);
    let column = u32::try_from(location.column()).unwrap_or(u32::MAX).max(1);
    ConfigError { file: document.file.to_owned(), line, column, message, code: RESOURCE }
}

/// The parser's message in one line, without its own place, with the nearest known word where a field is unknown.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.rsplit_once(" at line ").map_or(first, |(message, _)| message);
    let first = first.trim_start_matches("error: ").trim_end_matches([':', ' ']);
    // What the parser says in its own words.
    let told = [
        ("expected sequence start", "a list is expected here: `[ … ]`, or lines that begin with `- `"),
        ("expected mapping start", "a mapping is expected here: `{ name: value }`, or lines of `name: value`"),
        ("expected string scalar", "a text is expected here"),
    ];
    if let Some((_, ours)) = told.iter().find(|(theirs, _)| first.contains(theirs)) {
        return (*ours).to_owned();
    }
    if let Some((what, _)) = first.split_once(", set DuplicateKeyPolicy") {
        return what.to_owned();
    }
    if !first.contains("unknown field") {
        return first.to_owned();
    }
    let wrong = first.split('`').nth(1).unwrap_or_default();
    let known = first.split_once("expected ").map_or("", |(_, known)| known).trim_start_matches("one of ");
    let words = known.split(", ").map(|word| word.trim_matches(['`', ' ']));
    format!("{first}{}", suggestion(wrong, words))
}
