//! `rondel authz schema`: what policies can speak of, in Cedar's own syntax.

use crate::operator::Where;
use crate::origin::Origin;
use crate::output::Output;
use anyhow::bail;
use model::ServiceName;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Whose schema is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Schema {
    /// The service whose policies are written, `namespace/name`
    #[arg(value_parser = ServiceName::parse)]
    service: ServiceName,
    /// One `AuthorizationPolicy` of it, `namespace/name`; needless where all declare the same body
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Read a directory of YAML instead of asking the control plane
    #[arg(long, value_name = "DIR")]
    offline: Option<PathBuf>,
    #[command(flatten)]
    plane: Where,
}

/// Prints it.
pub(super) async fn run(schema: &Schema, output: Output) -> anyhow::Result<ExitCode> {
    let mut origin = Origin::of(schema.offline.as_deref(), &schema.plane).await?;
    let site = origin.site(&schema.service).await?;
    let mut shapes = BTreeMap::new();
    let all = || site.snapshot.policies.iter().chain(&site.snapshot.shadow);
    // What is only tried must not make the question about what is in force ambiguous.
    let asked: Vec<_> = match &schema.policy {
        None => site.snapshot.policies.iter().collect(),
        Some(name) => all().filter(|policy| policy.name == *name).collect(),
    };
    for policy in asked {
        shapes.entry(policy.body.clone()).or_insert_with(Vec::new).push(policy.name.as_str());
    }
    let names = all().map(|policy| policy.name.as_str());
    if let Some(name) = &schema.policy
        && shapes.is_empty()
    {
        let near = config::suggestion(name, names);
        bail!("no policy `{}` selects `{}`{near}", model::ids::printable(name), schema.service);
    }
    if shapes.len() > 1 {
        let names: Vec<&str> = names.collect();
        bail!("the policies of `{}` declare different bodies: write --policy with one of {}", schema.service, names.join(", "));
    }
    let body = shapes.into_keys().next().unwrap_or_default();
    let text = policy::schema(&site.policies, &site.snapshot.issuers, &body).map_err(anyhow::Error::msg)?;
    match output {
        Output::Json => println!("{}", serde_json::json!({ "service": schema.service, "schema": text })),
        Output::Text => println!("{}", text.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
