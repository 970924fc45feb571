//! `rondel-control`: the control plane of a Rondel mesh.

mod admin;
mod api;
mod authorities;
mod bundle_endpoint;
mod ca;
mod clock;
mod desired;
mod federation;
mod keys;
mod records;
mod rehearsal;
mod rollout;
mod rotation;
mod serve;
mod settings;
mod shadows;
mod start;
mod store;
mod token_revocations;
mod troubles;
mod upstream;
mod watch;

use clap::Parser;
use settings::Settings;
use std::process::ExitCode;

fn main() -> ExitCode {
    let settings = Settings::parse();
    let Ok(filter) = tracing_subscriber::EnvFilter::try_new(&settings.log) else {
        eprintln!("rondel-control: `{}` is not a log filter; try `info` or `control=debug`", settings.log);
        return ExitCode::from(2);
    };
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rondel-control: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(start::run(settings));
    // Streams that are still open must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rondel-control: {}", model::told(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
