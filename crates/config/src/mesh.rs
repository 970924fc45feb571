//! The mesh that the configuration describes, and the plan of one workload's snapshot.

use model::snapshot::{AuthorizationPolicy, CountryHeader, Endpoint, Inbound, Protocol, TokenIssuer, TrustBundle, Upstream};
use model::{Limits, Revision, ServiceName, Snapshot, SpiffeId, TrustDomain, WorkloadName};
use std::collections::BTreeMap;
use std::net::SocketAddr;
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
    /// Life of the authority: 1 h to 30 years, 10 years by default.
    pub authority_lifetime: Duration,
    /// Age at which a connection between sidecars ends: 1 s to the life of an SVID, half of that by default.
    pub connection_age_max: Duration,
    /// Where a call's country is read from.
    pub country: Option<CountryHeader>,
    /// The bounds in force.
    pub limits: Limits,
    /// What `rondel up` runs outside the mesh.
    pub processes: Vec<Process>,
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
    /// The admin port of its sidecar.
    pub admin: SocketAddr,
    /// Where peers reach the application.
    pub inbound: Vec<Inbound>,
    /// What the application calls; the endpoints are filled in by [`Mesh::snapshot`].
    pub upstreams: Vec<Upstream>,
    /// What `rondel up` runs beside the sidecar.
    pub run: Option<Process>,
}

/// An authorization policy and whom it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedPolicy {
    /// The namespace in which it selects.
    pub namespace: String,
    /// The selected account; `None` selects every workload of the namespace.
    pub account: Option<String>,
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

impl Mesh {
    /// The policies that a workload's sidecar enforces.
    pub fn policies_of(&self, workload: &Workload) -> Vec<AuthorizationPolicy> {
        let selected = self.policies.iter().filter(|policy| policy.selects(&workload.service));
        selected.map(|policy| policy.policy.clone()).collect()
    }

    /// Plans what one workload's sidecar works from: only what it needs. `None` if there is no such workload.
    pub fn snapshot(&self, workload: &WorkloadName, revision: Revision, bundles: &[TrustBundle]) -> Option<Snapshot> {
        let workload = self.workloads.iter().find(|each| each.name == *workload)?;
        let upstream = |upstream: &Upstream| Upstream {
            endpoints: self.endpoints(&upstream.service, upstream.protocol),
            ..upstream.clone()
        };
        Some(Snapshot {
            revision,
            workload: workload.name.clone(),
            identity: workload.identity.clone(),
            service: workload.service.clone(),
            bundles: sorted(bundles, |bundle| bundle.trust_domain.to_string()),
            inbound: workload.inbound.clone(),
            upstreams: sorted(&workload.upstreams.iter().map(upstream).collect::<Vec<_>>(), |up| {
                format!("{}@{}", up.service, up.listen)
            }),
            issuers: self.issuers.clone(),
            policies: self.policies_of(workload),
            country: self.settings.country.clone(),
            connection_age_max: self.settings.connection_age_max,
            limits: self.settings.limits.clone(),
        })
    }

    /// Every inbound listener of this protocol of every workload of the service.
    fn endpoints(&self, service: &ServiceName, protocol: Protocol) -> Vec<Endpoint> {
        let instances = self.workloads.iter().filter(|workload| workload.service == *service);
        let mut endpoints: Vec<Endpoint> = instances
            .flat_map(|workload| {
                let carried = workload.inbound.iter().filter(move |inbound| inbound.protocol == protocol);
                carried.map(|inbound| Endpoint { address: inbound.listen, identity: workload.identity.clone() })
            })
            .collect();
        endpoints.sort();
        endpoints
    }
}

/// The same order in which the parts travel, so that equal snapshots are equal values.
fn sorted<T: Clone>(list: &[T], key: impl Fn(&T) -> String) -> Vec<T> {
    let mut list = list.to_vec();
    list.sort_by_key(key);
    list
}
