//! openssl with an SVID of the mesh.

use super::{Files, Loopback, SERVER_ID};
use crate::Shown;
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs openssl to its end; everything it said.
fn openssl(arguments: &[&str], input: &str) -> Result<(bool, String), String> {
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

fn holds(what: &str, text: &str, wanted: &[&str]) -> Result<(), String> {
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
    let [svid, key, bundle] = paths(&loopback.files);
    for purpose in ["sslserver", "sslclient"] {
        let verify = ["verify", "-purpose", purpose, "-x509_strict", "-CAfile", &bundle, "-untrusted", &svid, &svid];
        let (is_valid, said) = openssl(&verify, "")?;
        if !is_valid {
            return Err(format!("openssl verify for {purpose}: {said}"));
        }
    }
    let address = loopback.inbound().to_string();
    let common = ["s_client", "-connect", &address, "-cert", &svid, "-key", &key, "-CAfile", &bundle];
    let more = ["-verify_return_error", "-alpn", "http/1.1", "-ign_eof"];
    let request = "GET /who HTTP/1.1\r\nhost: server.shop\r\nconnection: close\r\n\r\n";
    let (_, said) = openssl(&[&common[..], &more].concat(), request)?;
    let wanted = ["Verify return code: 0 (ok)", "TLSv1.3", "ALPN protocol: http/1.1", "HTTP/1.1 200", super::PEER_ID];
    holds("s_client", &said, &wanted)?;
    let begin = said.find("-----BEGIN CERTIFICATE").ok_or("no certificate of the server")?;
    let (_, text) = openssl(&["x509", "-noout", "-text"], &said[begin..])?;
    let profile = ["Subject Alternative Name: critical", SERVER_ID, "Key Usage: critical", "Digital Signature", "CA:FALSE"];
    holds("the server's certificate", &text, &profile)?;
    holds("the server's certificate", &text, &["TLS Web Server Authentication", "TLS Web Client Authentication"])?;
    let old = [&common[..], &["-tls1_2"]].concat();
    if openssl(&old, request)?.1.contains("HTTP/1.1 200") {
        return Err("TLS 1.2 was served".into());
    }
    let key_line = |line: &&str| line.contains("Temp Key") || line.contains("TLS1.3 group");
    let group = said.lines().find(key_line).unwrap_or_default();
    Ok(Shown::Yes(format!("verify -x509_strict for both purposes; s_client: TLS 1.3, {}; TLS 1.2 refused", group.trim())))
}
