//! `rondel check DIR`: what the control plane would say.

use crate::output::Output;
use std::path::Path;
use std::process::ExitCode;

/// Prints every error, or a summary; exit code 1 if anything is wrong.
pub(crate) fn run(dir: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let read = config::read(dir).map_err(|error| vec![error]);
    let errors = match read.and_then(|sources| config::parse(&sources)) {
        Ok(mesh) => {
            let counted = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
            match output {
                Output::Text => println!(
                    "{}: good: trust domain {}, {}, {}, {}",
                    dir.display(),
                    mesh.settings.trust_domain,
                    counted(mesh.workloads.len(), "workload", "workloads"),
                    counted(mesh.issuers.len(), "token issuer", "token issuers"),
                    counted(mesh.policies.len(), "authorization policy", "authorization policies"),
                ),
                Output::Json => println!("{}", serde_json::json!({ "ok": true, "errors": [] })),
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(errors) => errors,
    };
    match output {
        Output::Text => {
            for error in &errors {
                println!("{error}");
            }
            println!("{} error{}", errors.len(), if errors.len() == 1 { "" } else { "s" });
        }
        Output::Json => {
            let list: Vec<_> = errors
                .iter()
                .map(|error| {
                    serde_json::json!({ "file": error.file, "line": error.line, "column": error.column, "message": error.message })
                })
                .collect();
            println!("{}", serde_json::json!({ "ok": false, "errors": list }));
        }
    }
    Ok(ExitCode::FAILURE)
}
