//! `rondel exec-child`: makes a child die with its parent, then becomes it. Nothing is left behind even if `rondel` is killed.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_gid};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What to become.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Process id of the parent whose death is this process's end; none for a command that ends by itself
    #[arg(long)]
    parent: Option<i32>,
    /// Network namespace to enter first
    #[arg(long)]
    namespace: Option<PathBuf>,
    /// Group to take on
    #[arg(long)]
    gid: Option<u32>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Returns only if the command could not be started.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    if let Err(error) = enter(&arguments) {
        eprintln!("rondel: cannot enter the pod: {error}");
        return ExitCode::FAILURE;
    }
    if arguments.parent.is_some()
        && let Err(error) = set_parent_process_death_signal(Some(Signal::TERM))
    {
        eprintln!("rondel: cannot bind to the parent's life: {error}");
        return ExitCode::FAILURE;
    }
    // The parent may have died before the signal was set.
    if arguments.parent.is_some_and(|parent| getppid() != Pid::from_raw(parent)) {
        return ExitCode::FAILURE;
    }
    let Some((program, rest)) = arguments.command.split_first() else {
        return ExitCode::from(2);
    };
    let error = Command::new(program).args(rest).exec();
    eprintln!("rondel: cannot run `{}`: {error}", program.to_string_lossy());
    ExitCode::from(127)
}

/// Enters the namespace and takes on the group. Before the signal is bound, which a change of group would undo (prctl(2)).
fn enter(arguments: &Arguments) -> std::io::Result<()> {
    if let Some(path) = &arguments.namespace {
        let file = File::open(path)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    if let Some(gid) = arguments.gid {
        let gid = rustix::process::Gid::from_raw(gid);
        // Only this thread is left when the command takes its place.
        set_thread_res_gid(gid, gid, gid)?;
    }
    Ok(())
}
