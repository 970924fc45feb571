//! What one proxy works from: the immutable, versioned configuration of one workload.

use crate::authz::AttributeType;
use crate::ids::{Revision, ServiceName, SpiffeId, TrustDomain, WorkloadName};
use crate::introspection::Introspection;
use crate::limits::Limits;
use crate::roles::Roles;
use crate::time::Timestamp;
use crate::token::{ClaimPath, Requirements, RevokedTokens, TokenUse};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Everything that the control plane tells one proxy. Applied whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The mesh's revision that this snapshot belongs to.
    pub revision: Revision,
    /// Whose snapshot it is.
    pub workload: WorkloadName,
    /// The identity of that workload.
    pub identity: SpiffeId,
    /// The service that it is an instance of.
    pub service: ServiceName,
    /// One bundle per trust domain; its own is among them.
    pub bundles: Vec<TrustBundle>,
    /// Where peers reach the application.
    pub inbound: Vec<Inbound>,
    /// What the application calls.
    pub upstreams: Vec<Upstream>,
    /// Whose tokens are accepted.
    pub issuers: Vec<TokenIssuer>,
    /// Where tokens are taken from and what the application gets.
    pub token: TokenUse,
    /// The policies that select this workload, in the order of their source. Empty denies everything.
    pub policies: Vec<AuthorizationPolicy>,
    /// Which roles of users are within which.
    pub roles: Roles,
    /// The policies that select this workload in shadow mode, in the order of their names: tried beside the others, never enforced.
    pub shadow: Vec<AuthorizationPolicy>,
    /// What is shown in no explanation, record or log.
    pub sensitive: Sensitive,
    /// Who is believed about a call's country.
    pub country: Option<CountryHeader>,
    /// The file, an absolute path on the sidecar's machine, that is asked for the country where nobody who is believed says it: a
    /// database in MaxMind's format.
    pub country_database: Option<String>,
    /// The workloads whose `x-forwarded-for` and `x-forwarded-proto` are believed. From others they are replaced.
    pub forwarders: Vec<SpiffeId>,
    /// Whether the sidecar stands in the workload's own network namespace and its traffic is redirected to it: then nothing
    /// listens at `inbound` and `upstreams`, and the original destination is looked up in them.
    pub captured: bool,
    /// What becomes of captured outbound connections that lead to no upstream.
    pub egress: Egress,
    /// The age at which a connection between sidecars is ended gracefully.
    pub connection_age_max: Duration,
    /// The bounds in force.
    pub limits: Limits,
    /// SVIDs that are refused, in the order of their serials.
    pub revoked: Vec<RevokedSvid>,
    /// Tokens that are refused, in their order.
    pub revoked_tokens: Vec<RevokedTokens>,
    /// Whether handshakes without a post-quantum key exchange are refused.
    pub post_quantum_required: bool,
}

/// The authorities of one trust domain (SPIFFE Trust Domain and Bundle §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose authorities they are.
    pub trust_domain: TrustDomain,
    /// X.509 authority certificates, DER. Never empty.
    pub authorities: Vec<Vec<u8>>,
    /// Public keys of JWT-SVIDs, each a JSON Web Key with a `kid`.
    pub jwt_authorities: Vec<Vec<u8>>,
    /// Subject key ids (lower-case hexadecimal) of authorities that are about to be retired: an SVID of one is renewed at once.
    pub tainted: Vec<String>,
}

impl TrustBundle {
    /// A bundle of X.509 authorities only, none of them tainted.
    pub const fn x509(trust_domain: TrustDomain, authorities: Vec<Vec<u8>>) -> Self {
        Self { trust_domain, authorities, jwt_authorities: Vec::new(), tainted: Vec::new() }
    }
}

/// An SVID that is refused although it has not ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevokedSvid {
    /// Its serial number, lower-case hexadecimal.
    pub serial: String,
    /// Its end; it need not be remembered longer.
    pub until: Timestamp,
}

/// What a port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2 (so gRPC too); the caller's version is kept from end to end.
    Http,
    /// Opaque TCP: decided once, as a connection with the action `connect`.
    Tcp,
    /// Not declared. Who speaks first decides: what begins as a request of HTTP is HTTP, everything else is opaque TCP.
    Detect,
}

/// What becomes of captured connections of the application that lead to no upstream of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Egress {
    /// They go on to where they were going, as they are, and are logged.
    #[default]
    Allow,
    /// They are refused.
    Refuse,
}

impl Protocol {
    /// The word that a user writes: `http` or `tcp`; `detect` where nothing is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Detect => "detect",
        }
    }
}

/// A listener for peers that fronts one port of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where the sidecar listens for mutual TLS.
    pub listen: SocketAddr,
    /// Where the application listens in plaintext.
    pub application: SocketAddr,
    /// What the port carries.
    pub protocol: Protocol,
    /// Whether plaintext callers get in too, as the unauthenticated principal.
    pub permissive: bool,
}

/// A service that the application calls, through a local port of the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The called service.
    pub service: ServiceName,
    /// Where the application calls it: on loopback a port of the sidecar, captured any address that means the service. `None`
    /// where the application calls the endpoints' own addresses.
    pub listen: Option<SocketAddr>,
    /// What the port carries.
    pub protocol: Protocol,
    /// Where the service's workloads are. May be empty: then calls get `upstream_no_endpoint`.
    pub endpoints: Vec<Endpoint>,
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The inbound listener of the workload's sidecar.
    pub address: SocketAddr,
    /// Who must answer there: the whole SPIFFE ID is compared.
    pub identity: SpiffeId,
}

/// A signature algorithm of JWTs (RFC 7518 §3.1, RFC 8037 §3.1). Symmetric ones do not exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JwtAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// ECDSA with P-384 and SHA-384.
    Es384,
    /// ECDSA with P-521 and SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

impl JwtAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The `alg` header's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Where an issuer's keys are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The issuer's metadata say the key set's address (OpenID Connect Discovery §4, RFC 8414 §3).
    Discovery,
    /// The key set's own address.
    JwksUri(String),
    /// The key set's own address, at a workload of the mesh: fetched by mutual TLS, from this endpoint alone.
    Workload {
        /// The address as configured.
        uri: String,
        /// Whom it leads to.
        endpoint: Endpoint,
    },
    /// The key set itself, as configured (RFC 7517 §5). Never out of date.
    Inline(String),
    /// A file on the sidecar's machine that holds the key set, an absolute path; read again when it changes.
    File(String),
    /// The JWT authorities in the bundle of a trust domain: the tokens are JWT-SVIDs, told by their `sub`.
    JwtSvid(TrustDomain),
}

/// An OAuth2 issuer whose access tokens are accepted: JWTs, and opaque ones where it may be asked about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIssuer {
    /// The resource's name.
    pub name: String,
    /// The exact `iss` (RFC 7519 §4.1.1); also the base of discovery.
    pub issuer: String,
    /// A token must be for at least one of these (RFC 7519 §4.1.3). Never empty.
    pub audiences: Vec<String>,
    /// Where the keys are found.
    pub keys: KeySource,
    /// How it is asked about opaque tokens; `None`: never.
    pub introspection: Option<Introspection>,
    /// The algorithms that the issuer may use. Never empty.
    pub algorithms: Vec<JwtAlgorithm>,
    /// The claim that lists role names (an array of strings or a space-separated text).
    pub roles_claim: Option<ClaimPath>,
    /// Attribute name to claim and type. All are optional in a token; one of the wrong type refuses the token.
    pub attributes: BTreeMap<String, ClaimMapping>,
    /// What else its tokens must fulfil.
    pub require: Requirements,
}

/// How a claim becomes an attribute of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimMapping {
    /// Where the claim stands.
    pub claim: ClaimPath,
    /// The type that it must have.
    pub kind: AttributeType,
}

/// One `AuthorizationPolicy` resource that selects this workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `namespace/name` of the resource.
    pub name: String,
    /// The file that holds it, relative to the configuration's directory.
    pub file: String,
    /// The line of the file on which `text` begins, from 1.
    pub line: u32,
    /// Cedar policies.
    pub text: String,
    /// The JSON body fields that the policies read, with their types. Empty: the body is not read.
    pub body: BTreeMap<String, AttributeType>,
}

/// Attributes whose values are shown in no explanation, record or log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sensitive {
    /// Fields of request bodies, by name.
    pub body: BTreeSet<String>,
    /// Attributes of users, by name.
    pub user: BTreeSet<String>,
    /// Request headers, by name in lower case.
    pub headers: BTreeSet<String>,
}

impl Sensitive {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty() && self.user.is_empty() && self.headers.is_empty()
    }
}

/// Where a call's country is read from: a header, believed only from these callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountryHeader {
    /// The header's name, lower case.
    pub header: String,
    /// The workloads whose word is taken. From others the header is removed.
    pub trusted: Vec<SpiffeId>,
}
