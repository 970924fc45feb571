//! openssl with an SVID of the mesh.

use super::{Beside, CLIENT_ID, Files, Loopback, SERVER_ID};
use crate::Shown;
use crate::http::call;
use http::{Request, Version};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// Runs openssl to its end; everything it said.
pub(crate) fn openssl(arguments: &[&str], input: &str) -> Result<(bool, String), String> {
    let mut command = Command::new("timeout");
    command.args(["10", "openssl"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        let _closed_early = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

/// Everything that s_client says of a request to a sidecar by whoever holds these files.
pub(crate) fn called(address: SocketAddr, files: &Files, more: &[&str]) -> Result<String, String> {
    let ([svid, key, bundle], address) = (paths(files), address.to_string());
    let common = ["s_client", "-connect", &address, "-cert", &svid, "-key", &key, "-CAfile", &bundle];
    let request = "GET /who HTTP/1.1\r\nhost: server.shop\r\nconnection: close\r\n\r\n";
    Ok(openssl(&[&common[..], more].concat(), request)?.1)
}

pub(crate) fn holds(what: &str, text: &str, wanted: &[&str]) -> Result<(), String> {
    match wanted.iter().find(|wanted| !text.contains(*wanted)) {
        Some(missing) => Err(format!("{what}: `{missing}` is not in\n{text}")),
        None => Ok(()),
    }
}

fn paths(files: &Files) -> [String; 3] {
    [&files.svid, &files.key, &files.bundle].map(|path| path.display().to_string())
}

/// `openssl verify` of the leaf for both purposes, strictly; then a request to a sidecar as a client.
pub(crate) fn client(loopback: &mut Loopback) -> Result<Shown, String> {
    if crate::pods::which("openssl").is_none() {
        return Ok(Shown::Skipped("`openssl` is not installed".into()));
    }
    let [svid, _, bundle] = paths(&loopback.files);
    for purpose in ["sslserver", "sslclient"] {
        let verify = ["verify", "-purpose", purpose, "-x509_strict", "-CAfile", &bundle, "-untrusted", &svid, &svid];
        let (is_valid, said) = openssl(&verify, "")?;
        if !is_valid {
            return Err(format!("openssl verify for {purpose}: {said}"));
        }
    }
    let (address, files) = (loopback.inbound(), &loopback.files);
    let said = called(address, files, &["-verify_return_error", "-alpn", "http/1.1", "-ign_eof"])?;
    let wanted = ["Verify return code: 0 (ok)", "TLSv1.3", "ALPN protocol: http/1.1", "HTTP/1.1 200", super::PEER_ID];
    holds("s_client", &said, &wanted)?;
    let begin = said.find("-----BEGIN CERTIFICATE").ok_or("no certificate of the server")?;
    let (_, text) = openssl(&["x509", "-noout", "-text"], &said[begin..])?;
    let profile = ["Subject Alternative Name: critical", SERVER_ID, "Key Usage: critical", "Digital Signature", "CA:FALSE"];
    holds("the server's certificate", &text, &profile)?;
    holds("the server's certificate", &text, &["TLS Web Server Authentication", "TLS Web Client Authentication"])?;
    if called(address, files, &["-tls1_2"])?.contains("HTTP/1.1 200") {
        return Err("TLS 1.2 was served".into());
    }
    let key_line = |line: &&str| line.contains("Temp Key") || line.contains("TLS1.3 group");
    let group = said.lines().find(key_line).unwrap_or_default();
    Ok(Shown::Yes(format!("verify -x509_strict for both purposes; s_client: TLS 1.3, {}; TLS 1.2 refused", group.trim())))
}

/// s_server in the place of `peer`: the client's certificate demanded, the server's SPIFFE ID looked at.
pub(crate) fn server(loopback: &mut Loopback) -> Result<Shown, String> {
    if crate::pods::which("openssl").is_none() {
        return Ok(Shown::Skipped("`openssl` is not installed".into()));
    }
    let serve = |name: &str, files: &Files, more: &[&str]| {
        let [svid, key, bundle] = paths(files);
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", &loopback.peer.to_string(), "-cert", &svid, "-key", &key, "-CAfile", &bundle]);
        command.args(["-Verify", "3", "-verify_return_error", "-alpn", "http/1.1", "-www"]).args(more);
        Beside::start(&mut command, &loopback.mesh.dir.path().join(format!("{name}.log")), loopback.peer)
    };
    let get = || loopback.runtime.block_on(call(loopback.to_peer, Version::HTTP_11, Request::get("/"), ""));
    let shown = serve("s_server", &loopback.files, &[])?;
    let answer = get()?;
    if answer.status != 200 {
        return Err(format!("through the sidecar: {answer:?}"));
    }
    holds("s_server", &answer.body, &["TLSv1.3", CLIENT_ID, "Verify return code: 0 (ok)"])?;
    drop(shown);
    for (name, files, more, reason) in [
        ("s_server-impostor", &loopback.other, &[][..], "peer_unexpected"),
        ("s_server-old", &loopback.files, &["-tls1_2"][..], "upstream_handshake"),
    ] {
        let _shown = serve(name, files, more)?;
        let answer = get()?;
        if answer.status != 502 || answer.header("x-rondel-reason") != reason {
            return Err(format!("{name}: {answer:?}"));
        }
    }
    Ok(Shown::Yes("the client's certificate demanded and verified; another SPIFFE ID: peer_unexpected; TLS 1.2: refused".into()))
}
