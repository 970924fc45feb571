//! The mesh that the configuration describes, and the plan of one workload's snapshot.

use model::snapshot::{
    AuthorizationPolicy, CountryHeader, Egress, Endpoint, Inbound, Protocol, RevokedSvid, Sensitive, TokenIssuer, TrustBundle,
    Upstream,
};
use model::token::{RevokedTokens, TokenUse};
use model::{Limits, Revision, Roles, ServiceName, Snapshot, SpiffeId, TrustDomain, WorkloadName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A configuration without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// What `MeshConfig` says.
    pub settings: Settings,
    /// In the order of their names.
    pub workloads: Vec<Workload>,
    /// In the order of their names.
    pub issuers: Vec<TokenIssuer>,
    /// In the order of their files.
    pub policies: Vec<SelectedPolicy>,
}

/// What `MeshConfig` says, with the defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's name.
    pub name: String,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Life of an SVID: 10 s to 24 h, 1 h by default.
    pub svid_lifetime: Duration,
    /// Life of the authority: 20 s to 30 years and at least two lives of an SVID, 10 years by default.
    pub authority_lifetime: Duration,
    /// Who signs the authority's certificate.
    pub upstream: UpstreamAuthority,
    /// Whether handshakes without a post-quantum key exchange are refused.
    pub post_quantum_required: bool,
    /// Foreign trust domains whose workloads may call, in the order of their names.
    pub federation: Vec<Federation>,
    /// Where other trust domains fetch the mesh's bundle.
    pub bundle_endpoint: Option<BundleEndpoint>,
    /// Age at which a connection between sidecars ends: 1 s to the life of an SVID, half of that by default.
    pub connection_age_max: Duration,
    /// Who is believed about a call's country.
    pub country: Option<CountryHeader>,
    /// The database that is asked for it otherwise: an absolute path on each sidecar's machine.
    pub country_database: Option<String>,
    /// Which roles of users are within which.
    pub roles: Roles,
    /// Whose `x-forwarded-for` is believed.
    pub forwarders: Vec<SpiffeId>,
    /// What becomes of captured connections that lead to no upstream.
    pub egress: Egress,
    /// Attributes of users whose values are shown nowhere, over all issuers.
    pub sensitive_attributes: BTreeSet<String>,
    /// The bounds in force.
    pub limits: Limits,
    /// What `rondel up` runs outside the mesh.
    pub processes: Vec<Process>,
}

/// Who signs the certificate of the mesh's authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAuthority {
    /// The authority itself: it is a root.
    SelfSigned,
    /// A signing certificate and its key in PEM files that the control plane reads when it needs a new authority.
    Files {
        /// The signing certificate first, up to the root.
        certificate: PathBuf,
        /// PKCS#8.
        key: PathBuf,
    },
    /// A program that is given a certificate request and answers with the chain: Vault, cert-manager or an HSM stand behind it.
    Command(Vec<String>),
}

/// A foreign trust domain and where its bundle is fetched (SPIFFE Federation §5, profile `https_web`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federation {
    /// The foreign trust domain.
    pub trust_domain: TrustDomain,
    /// An `https://` URL.
    pub bundle_endpoint: String,
}

/// Where the control plane serves the mesh's bundle to other trust domains (SPIFFE Federation §5, profile `https_web`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// Its address.
    pub listen: SocketAddr,
    /// PEM: a certificate of the web for the endpoint's name, and what stands above it.
    pub certificate: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
    /// How often others should look again: a minute to 24 h, five minutes by default.
    pub refresh_hint: Duration,
}

/// A command that `rondel up` runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its name in messages and of its log.
    pub name: String,
    /// Program and arguments. Never empty.
    pub command: Vec<String>,
    /// Added to the environment.
    pub environment: BTreeMap<String, String>,
}

/// A workload with its sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `namespace/name`.
    pub name: WorkloadName,
    /// `namespace/account`.
    pub service: ServiceName,
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Whether its traffic is redirected to its sidecar.
    pub captured: bool,
    /// The admin port of its sidecar.
    pub admin: SocketAddr,
    /// Where peers reach the application.
    pub inbound: Vec<Inbound>,
    /// What the application calls.
    pub upstreams: Vec<Call>,
    /// The names of the issuers whose tokens it accepts; `None`: all of them.
    pub issuers: Option<Vec<String>>,
    /// Where its tokens are taken from and what the application gets.
    pub token: TokenUse,
    /// What `rondel up` runs beside the sidecar.
    pub run: Option<Process>,
}

/// A service that the application of a workload calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The called service.
    pub service: ServiceName,
    /// Where the application calls it; `None` where it calls the endpoints' own addresses, which only capture can see.
    pub listen: Option<SocketAddr>,
    /// The called port; `None` calls every port of the protocol.
    pub port: Option<u16>,
    /// The declared protocol; `None` takes what the called ports declare.
    pub protocol: Option<Protocol>,
}

impl Call {
    /// Whether it reaches this port.
    pub fn reaches(&self, inbound: &Inbound) -> bool {
        self.port.is_none_or(|port| port == inbound.listen.port())
            && self.protocol.is_none_or(|protocol| protocol == inbound.protocol || inbound.protocol == Protocol::Detect)
    }
}

/// An authorization policy and whom it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedPolicy {
    /// The namespace in which it selects.
    pub namespace: String,
    /// The selected account; `None` selects every workload of the namespace.
    pub account: Option<String>,
    /// Whether it is tried only, and never enforced.
    pub is_shadow: bool,
    /// What of the body and of the headers that it reads is shown nowhere.
    pub sensitive: Sensitive,
    /// The policy.
    pub policy: AuthorizationPolicy,
}

impl SelectedPolicy {
    /// Whether it applies to the workloads of a service.
    pub fn selects(&self, service: &ServiceName) -> bool {
        let Some((namespace, account)) = service.as_str().split_once('/') else { return false };
        self.namespace == namespace && self.account.as_deref().is_none_or(|wanted| wanted == account)
    }
}

/// Who is believed at a moment: what the configuration does not say, and every snapshot carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// One bundle per trust domain; the mesh's own is among them.
    pub bundles: Vec<TrustBundle>,
    /// SVIDs that are refused although they have not ended.
    pub revoked: Vec<RevokedSvid>,
    /// Tokens that are refused although they have not expired.
    pub revoked_tokens: Vec<RevokedTokens>,
}

impl Mesh {
    /// The policies that a workload's sidecar enforces.
    pub fn policies_of(&self, workload: &Workload) -> Vec<AuthorizationPolicy> {
        self.selecting(workload, false)
    }

    /// The policies that a workload's sidecar tries beside those, in the order of their names.
    pub fn shadow_of(&self, workload: &Workload) -> Vec<AuthorizationPolicy> {
        sorted(&self.selecting(workload, true), |policy| policy.name.clone())
    }

    /// What is shown in no explanation of a workload's sidecar: what any of its policies or any issuer says is sensitive.
    pub fn sensitive_of(&self, workload: &Workload) -> Sensitive {
        let mut sensitive = Sensitive { user: self.settings.sensitive_attributes.clone(), ..Sensitive::default() };
        for policy in self.policies.iter().filter(|policy| policy.selects(&workload.service)) {
            sensitive.body.extend(policy.sensitive.body.iter().cloned());
            sensitive.headers.extend(policy.sensitive.headers.iter().cloned());
        }
        sensitive
    }

    fn selecting(&self, workload: &Workload, is_shadow: bool) -> Vec<AuthorizationPolicy> {
        let selected = self.policies.iter().filter(|policy| policy.is_shadow == is_shadow && policy.selects(&workload.service));
        selected.map(|policy| policy.policy.clone()).collect()
    }

    /// Plans what one workload's sidecar works from: only what it needs. `None` if there is no such workload.
    pub fn snapshot(&self, workload: &WorkloadName, revision: Revision, trust: &Trust) -> Option<Snapshot> {
        let workload = self.workloads.iter().find(|each| each.name == *workload)?;
        Some(Snapshot {
            revision,
            workload: workload.name.clone(),
            identity: workload.identity.clone(),
            service: workload.service.clone(),
            bundles: sorted(&trust.bundles, |bundle| bundle.trust_domain.to_string()),
            inbound: workload.inbound.clone(),
            upstreams: self.upstreams(workload),
            issuers: self.issuers_of(workload),
            token: workload.token.clone(),
            policies: self.policies_of(workload),
            roles: self.settings.roles.clone(),
            shadow: self.shadow_of(workload),
            sensitive: self.sensitive_of(workload),
            country: self.settings.country.clone(),
            country_database: self.settings.country_database.clone(),
            forwarders: self.settings.forwarders.clone(),
            captured: workload.captured,
            egress: self.settings.egress,
            connection_age_max: self.settings.connection_age_max,
            limits: self.settings.limits.clone(),
            revoked: sorted(&trust.revoked, |svid| svid.serial.clone()),
            revoked_tokens: {
                let mut tokens = trust.revoked_tokens.clone();
                tokens.sort();
                tokens
            },
            post_quantum_required: self.settings.post_quantum_required,
        })
    }

    /// Whose tokens a workload accepts, in the order of their names.
    pub fn issuers_of(&self, workload: &Workload) -> Vec<TokenIssuer> {
        let is_chosen = |issuer: &&TokenIssuer| workload.issuers.as_ref().is_none_or(|names| names.contains(&issuer.name));
        self.issuers.iter().filter(is_chosen).cloned().collect()
    }

    /// What a workload's calls lead to, in the order in which they travel.
    fn upstreams(&self, workload: &Workload) -> Vec<Upstream> {
        let mut upstreams: Vec<Upstream> = workload.upstreams.iter().flat_map(|call| self.reached(call)).collect();
        upstreams.sort_by_key(|up| match up.listen {
            Some(listen) => format!("{}@{listen}", up.service),
            None => format!("{}@{}", up.service, up.protocol.as_str()),
        });
        // Two calls without an address of their own may reach the same ports.
        let mut merged: Vec<Upstream> = Vec::with_capacity(upstreams.len());
        for upstream in upstreams {
            match merged.last_mut() {
                Some(last)
                    if last.listen.is_none() && (&last.service, last.protocol) == (&upstream.service, upstream.protocol) =>
                {
                    last.endpoints.extend(upstream.endpoints);
                    last.endpoints.sort();
                    last.endpoints.dedup();
                }
                Some(_) | None => merged.push(upstream),
            }
        }
        merged
    }

    /// One upstream per protocol of the reached ports; exactly one where the application calls an address of its own.
    fn reached(&self, call: &Call) -> Vec<Upstream> {
        let upstream = |protocol: Protocol, endpoints: Vec<Endpoint>| Upstream {
            service: call.service.clone(),
            listen: call.listen,
            protocol,
            endpoints,
        };
        let instances = self.workloads.iter().filter(|workload| workload.service == call.service);
        let mut endpoints: BTreeMap<&str, (Protocol, Vec<Endpoint>)> = BTreeMap::new();
        for instance in instances {
            for inbound in instance.inbound.iter().filter(|inbound| call.reaches(inbound)) {
                let protocol = call.protocol.unwrap_or(inbound.protocol);
                let endpoint = Endpoint { address: inbound.listen, identity: instance.identity.clone() };
                endpoints.entry(protocol.as_str()).or_insert((protocol, Vec::new())).1.push(endpoint);
            }
        }
        if endpoints.is_empty() {
            return vec![upstream(call.protocol.unwrap_or(Protocol::Detect), Vec::new())];
        }
        let sorted = |(protocol, mut endpoints): (Protocol, Vec<Endpoint>)| {
            endpoints.sort();
            upstream(protocol, endpoints)
        };
        endpoints.into_values().map(sorted).collect()
    }
}

/// The same order in which the parts travel, so that equal snapshots are equal values.
fn sorted<T: Clone>(list: &[T], key: impl Fn(&T) -> String) -> Vec<T> {
    let mut list = list.to_vec();
    list.sort_by_key(key);
    list
}
