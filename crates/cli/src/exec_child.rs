//! `rondel exec-child`: makes a child die with its parent, then becomes it. Nothing is left behind even if `rondel` is killed.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// What to become.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Process id of the parent whose death is this process's end
    #[arg(long)]
    parent: i32,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Returns only if the command could not be started.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        eprintln!("rondel: cannot bind to the parent's life: {error}");
        return ExitCode::FAILURE;
    }
    // The parent may have died before the signal was set.
    if getppid() != Pid::from_raw(arguments.parent) {
        return ExitCode::FAILURE;
    }
    let Some((program, rest)) = arguments.command.split_first() else {
        return ExitCode::from(2);
    };
    let error = Command::new(program).args(rest).exec();
    eprintln!("rondel: cannot run `{}`: {error}", program.to_string_lossy());
    ExitCode::from(127)
}
