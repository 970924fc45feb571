//! `rondel join-token`: a single-use token and the trust bundle, in an owner-only directory.

use crate::operator::{DEADLINE, Where};
use crate::output::Output;
use anyhow::Context;
use model::WorkloadName;
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use wire::operator::OperatorClient;

/// The file of the token within the directory.
pub(crate) const TOKEN_FILE: &str = "join-token";
/// The file of the trust bundle within the directory.
pub(crate) const BUNDLE_FILE: &str = "bundle.pem";

pub(crate) async fn run(workload: &WorkloadName, out: &Path, at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let mut client = at.connect().await?;
    write(&mut client, workload, out).await?;
    match output {
        Output::Text => println!("{}: single use, for {workload}, valid for minutes", out.join(TOKEN_FILE).display()),
        Output::Json => println!(
            "{}",
            serde_json::json!({ "workload": workload, "token_file": out.join(TOKEN_FILE), "bundle_file": out.join(BUNDLE_FILE) })
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for a token and writes it, mode 0600, beside the bundle, in a directory of mode 0700.
pub(crate) async fn write(client: &mut OperatorClient, workload: &WorkloadName, out: &Path) -> anyhow::Result<()> {
    let made = client.create_join_token(workload, DEADLINE).await.context("make a join token")?;
    let failed = || format!("write into `{}`", out.display());
    DirBuilder::new().recursive(true).mode(0o700).create(out).with_context(failed)?;
    std::fs::set_permissions(out, Permissions::from_mode(0o700)).with_context(failed)?;
    owner_only(&out.join(BUNDLE_FILE), &made.bundle_pem).with_context(failed)?;
    owner_only(&out.join(TOKEN_FILE), &made.token).with_context(failed)
}

/// Writes a file that only its owner reads, whole or not at all.
fn owner_only(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let _absent = std::fs::remove_file(&fresh);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(fresh, path)
}
