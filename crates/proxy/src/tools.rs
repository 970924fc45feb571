//! What `rondel-proxy` does besides being the sidecar: capture, and waiting for the sidecar.

use capture::{CaptureError, Rules, State};
use clap::{Parser, Subcommand, ValueEnum};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Tools for the pod of a sidecar.
#[derive(Debug, Parser)]
#[command(name = "rondel-proxy", version)]
pub struct Tools {
    #[command(subcommand)]
    tool: Tool,
}

/// The words that begin a tool's command line.
pub const WORDS: [&str; 2] = ["capture", "wait"];

#[derive(Debug, Subcommand)]
enum Tool {
    /// Lead the TCP connections of this network namespace through its sidecar, by one nftables table
    #[command(subcommand)]
    Capture(Capture),
    /// Wait until the sidecar is ready; exits 0 then, and 1 if it is not in time
    Wait {
        /// The sidecar's admin address
        #[arg(long, env = "RONDEL_ADMIN", default_value = "127.0.0.1:15000")]
        admin: SocketAddr,
        /// How long to wait, in seconds
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
}

#[derive(Debug, Subcommand)]
enum Capture {
    /// Put the rules in force, in place of those that are; connections that are open already are not touched
    Apply {
        #[command(flatten)]
        rules: Rules,
        /// Print the table instead of loading it
        #[arg(long)]
        dry_run: bool,
    },
    /// Take the rules away; no error if there are none
    Remove,
    /// Compare what is in force with the rules: exits 0 if they are in force, else 1
    Check {
        #[command(flatten)]
        rules: Rules,
        /// How to print
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Tools {
    /// Runs the tool. Exit codes: 0 done, 1 not so, 2 a command line that cannot be read.
    pub fn run(self) -> ExitCode {
        if let Tool::Capture(Capture::Apply { rules, .. } | Capture::Check { rules, .. }) = &self.tool
            && let Some(why) = rules.contradiction()
        {
            eprintln!("rondel-proxy: {why}");
            return ExitCode::from(2);
        }
        let outcome = match self.tool {
            Tool::Capture(Capture::Apply { rules, dry_run: true }) => {
                print!("{}", rules.render());
                Ok(true)
            }
            Tool::Capture(Capture::Apply { rules, dry_run: false }) => capture::apply(&rules).map(|()| true),
            Tool::Capture(Capture::Remove) => capture::remove().map(|()| true),
            Tool::Capture(Capture::Check { rules, output }) => check(&rules, output),
            Tool::Wait { admin, timeout } => Ok(wait(admin, Duration::from_secs(timeout))),
        };
        match outcome {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("rondel-proxy: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn check(rules: &Rules, output: Output) -> Result<bool, CaptureError> {
    let state = capture::check(rules)?;
    if output == Output::Json {
        println!("{}", serde_json::json!({ "state": state.as_str() }));
    } else {
        println!(
            "{}",
            match state {
                State::InForce => "the rules are in force",
                State::Absent => "no rules are in force: run `rondel-proxy capture apply`",
                State::OtherRules =>
                    "other rules are in force than were asked about: run `rondel-proxy capture apply` with these options",
                State::Changed => "the rules were changed after they were loaded: run `rondel-proxy capture apply`",
            }
        );
    }
    Ok(state == State::InForce)
}

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// LIMIT: bytes of what the sidecar says that are read.
const ANSWER_BYTES_MAX: u64 = 4096;

#[expect(clippy::disallowed_methods, reason = "a program that runs to its end, not a server")]
fn wait(admin: SocketAddr, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let said = match ready(admin) {
            Ok(text) if text.starts_with("HTTP/1.1 200") => return true,
            Ok(text) => text.split_once("\r\n\r\n").map_or("it is not ready", |(_, body)| body.trim()).to_owned(),
            Err(error) => format!("the sidecar at {admin} does not answer: {error}"),
        };
        if Instant::now() >= deadline {
            eprintln!("rondel-proxy: not ready within {} s: {said}", limit.as_secs());
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn ready(admin: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
