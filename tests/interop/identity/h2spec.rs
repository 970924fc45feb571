//! The conformance suite of HTTP/2 against the inbound listener as peers meet it: over mutual TLS, where nothing but HTTP/2 is spoken.

use super::{Beside, Loopback};
use crate::Shown;
use crate::pods::apps;
use crate::protocols::{compared, conformance, h2spec_program, need};
use std::process::Command;

pub(crate) fn over_mutual_tls(loopback: &mut Loopback) -> Result<Shown, String> {
    let paths = need!("nghttpd", "python3");
    let Some(program) = h2spec_program() else {
        return Ok(Shown::Skipped("`h2spec` is not there: run tests/interop/prepare.sh".into()));
    };
    let dir = loopback.mesh.dir.path();
    let (relay, nghttpd, inbound) = (testkit::ports::free(), testkit::ports::free(), loopback.inbound());
    let mut command = Command::new(&paths[1]);
    command.arg(apps().join("mutual_tls.py")).arg(relay.port().to_string());
    command.arg(inbound.ip().to_string()).arg(inbound.port().to_string());
    command.args([&loopback.files.svid, &loopback.files.key, &loopback.files.bundle]);
    let _relay = Beside::start(&mut command, &dir.join("mutual_tls.log"), relay)?;
    std::fs::write(dir.join("page"), "hello\n").map_err(|error| error.to_string())?;
    let mut command = Command::new(&paths[0]);
    command.args(["--no-tls", "-a", "127.0.0.1", "-d"]).arg(dir).arg(nghttpd.port().to_string());
    let _nghttpd = Beside::start(&mut command, &dir.join("nghttpd.log"), nghttpd)?;
    let cases = |name: &str, port| conformance(Command::new(&program), &dir.join(name), "127.0.0.1", port);
    compared(&cases("ours.xml", relay.port())?, &cases("theirs.xml", nghttpd.port())?, |_| false)
}
