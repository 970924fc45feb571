//! `rondel-proxy`: the sidecar of a Rondel mesh.

use clap::Parser;
use proxy::settings::Settings;
use proxy::tools::{self, Tools};
use std::process::ExitCode;
use tokio::runtime::Builder;

/// LIMIT: threads for work that would hold others up; more of it waits.
const LONG_WORK_THREADS_MAX: usize = 4;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| tools::WORDS.contains(&word.as_str())) {
        return Tools::parse().run();
    }
    let settings = Settings::parse_from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log);
    let Ok(filter) = filter else {
        eprintln!("rondel-proxy: `{}` is not a log filter; try `info` or `proxy=debug`", settings.log);
        return ExitCode::from(2);
    };
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Its threads for long work compile policies, write files and look names up.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(LONG_WORK_THREADS_MAX).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rondel-proxy: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(proxy::start::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rondel-proxy: {}", model::told(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
