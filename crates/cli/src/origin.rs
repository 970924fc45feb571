//! Where a mesh is read: a directory, or the control plane in which it is in force.

use crate::operator::{DEADLINE, Where};
use anyhow::{Context, bail};
use model::snapshot::Protocol;
use model::{Principal, Revision, ServiceName, Snapshot, SpiffeId, WorkloadName};
use policy::Policies;
use std::collections::BTreeMap;
use std::path::Path;
use wire::operator::OperatorClient;

/// The mesh that is asked about.
pub(crate) enum Origin {
    /// A directory of YAML, as the control plane would read it.
    Directory(Box<config::Mesh>),
    /// What the control plane has in force.
    ControlPlane(Box<OperatorClient>, Vec<(WorkloadName, SpiffeId)>),
}

/// One workload with its policies, as its sidecar has them.
pub(crate) struct Site {
    pub(crate) snapshot: Snapshot,
    pub(crate) policies: Policies,
}

/// Reads a directory; every error is in the text.
pub(crate) fn mesh(dir: &Path) -> anyhow::Result<config::Mesh> {
    let read = config::read(dir).map_err(|error| vec![error]);
    read.and_then(|sources| config::parse(&sources)).map_err(|errors| {
        let told: Vec<String> = errors.iter().map(|error| format!("\n  {error}")).collect();
        anyhow::anyhow!("`{}` is not a sound configuration:{}", dir.display(), told.concat())
    })
}

impl Origin {
    /// The directory if there is one, else the control plane.
    pub(crate) async fn of(dir: Option<&Path>, at: &Where) -> anyhow::Result<Self> {
        if let Some(dir) = dir {
            return Ok(Self::Directory(Box::new(mesh(dir)?)));
        }
        let mut client = at.connect().await.context("without --offline the control plane is asked")?;
        let status = client.status(DEADLINE).await?;
        let workloads = status.workloads.into_iter().map(|workload| (workload.name, workload.identity)).collect();
        Ok(Self::ControlPlane(Box::new(client), workloads))
    }

    /// Every workload and its identity.
    pub(crate) fn workloads(&self) -> BTreeMap<WorkloadName, SpiffeId> {
        match self {
            Self::Directory(mesh) => mesh.workloads.iter().map(|each| (each.name.clone(), each.identity.clone())).collect(),
            Self::ControlPlane(_, workloads) => workloads.iter().cloned().collect(),
        }
    }

    /// The snapshot of a workload.
    pub(crate) async fn snapshot(&mut self, name: &WorkloadName) -> anyhow::Result<Snapshot> {
        match self {
            Self::Directory(mesh) => {
                mesh.snapshot(name, Revision(0), &config::Trust::default()).with_context(|| format!("no workload `{name}`"))
            }
            Self::ControlPlane(client, _) => Ok(client.snapshot(name, DEADLINE).await?),
        }
    }

    /// Who calls: a workload's name, a whole SPIFFE ID, or `unauthenticated`.
    pub(crate) fn caller(&self, text: &str) -> anyhow::Result<Principal> {
        if text == Principal::Unauthenticated.as_str() {
            return Ok(Principal::Unauthenticated);
        }
        if text.contains("://") {
            return Ok(SpiffeId::parse(text)?.into());
        }
        let workloads = self.workloads();
        let found = WorkloadName::parse(text).ok().and_then(|name| workloads.get(&name).cloned());
        found.map(Principal::from).with_context(|| {
            let near = config::suggestion(text, workloads.keys().map(WorkloadName::as_str));
            format!(
                "no workload `{}`{near}; write `namespace/name`, a whole SPIFFE ID, or `unauthenticated`",
                model::ids::printable(text)
            )
        })
    }

    /// The called service: as it is named, or the only one that the caller calls.
    pub(crate) async fn called(&mut self, on: Option<&str>, caller: &Principal) -> anyhow::Result<ServiceName> {
        if let Some(name) = on {
            return Ok(ServiceName::parse(name)?);
        }
        let workloads = self.workloads();
        let own = workloads.iter().find(|(_, id)| Some(*id) == caller.workload()).map(|(name, _)| name.clone());
        let Some(own) = own else {
            bail!("it is not said which service is called (`on`): the caller is no workload of the mesh")
        };
        let mut called: Vec<ServiceName> = self.snapshot(&own).await?.upstreams.into_iter().map(|each| each.service).collect();
        called.sort();
        called.dedup();
        match called.as_slice() {
            [one] => Ok(one.clone()),
            [] => bail!("it is not said which service is called (`on`): `{own}` calls none"),
            several => {
                let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                bail!("it is not said which service is called (`on`): `{own}` calls {}", names.join(", "))
            }
        }
    }

    /// A workload of a service, with its policies.
    pub(crate) async fn site(&mut self, service: &ServiceName) -> anyhow::Result<Site> {
        let workloads = self.workloads();
        let found = workloads.iter().find(|(_, id)| id.service().as_ref() == Some(service)).map(|(name, _)| name.clone());
        let name = found.with_context(|| {
            let services: Vec<ServiceName> = workloads.values().filter_map(SpiffeId::service).collect();
            let near = config::suggestion(service.as_str(), services.iter().map(ServiceName::as_str));
            format!("no workload of service `{service}`{near}")
        })?;
        let snapshot = self.snapshot(&name).await?;
        let policies = policy::compile(&snapshot.policies, &snapshot.issuers, &snapshot.roles).map_err(|errors| {
            let told: Vec<String> = errors.iter().map(|error| format!("\n  {error}")).collect();
            anyhow::anyhow!("the policies of `{name}` cannot be compiled:{}", told.concat())
        })?;
        Ok(Site { snapshot, policies })
    }
}

impl Site {
    /// Whether a port of the workload may carry this.
    pub(crate) fn carries(&self, opaque: bool) -> bool {
        let carries = |protocol: Protocol| match protocol {
            Protocol::Http => !opaque,
            Protocol::Tcp => opaque,
            Protocol::Detect => true,
        };
        self.snapshot.inbound.iter().any(|inbound| carries(inbound.protocol))
    }
}
