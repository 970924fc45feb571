//! The example bank in pods: its own configuration, unchanged, with clients outside the mesh.

use crate::Shown;
use crate::pods::Pods;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const WEB: &str = "http://10.77.1.1:18101/transfers";
const LOGIN: &str = "http://10.77.1.5:18100/token";
/// Addresses of clients on the bridge, by the country that the bank knows them to be in.
const GERMANY: &str = "10.77.49.1";
const FRANCE: &str = "10.77.33.1";

/// Starts the bank beside nothing else and walks through it.
pub(crate) fn walk() -> Result<Shown, String> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/bank/pods");
    let copy = |folder: &Path| {
        for part in [example.clone(), example.join("policies")] {
            for file in std::fs::read_dir(part)?.flatten().filter(|file| file.path().extension().is_some_and(|end| end == "yaml"))
            {
                std::fs::copy(
                    file.path(),
                    folder.join(format!("{}-{}", folder.read_dir()?.count(), file.file_name().display())),
                )?;
            }
        }
        Ok(())
    };
    let bank = Pods::start_with("bank", copy)?;
    for client in [GERMANY, FRANCE] {
        bank.run("outside", "ip", &["addr", "add", &format!("{client}/32"), "dev", "rondel0"])?;
    }
    let tina = token(&bank, "tina")?;
    let aura = token(&bank, "aura")?;
    // Sidecars that asked for the issuer's keys before it ran ask again after a back-off of seconds.
    let deadline = Instant::now() + Duration::from_secs(15);
    let whole = loop {
        match expect(&bank, GERMANY, Some(&tina), 200, "201 ") {
            Err(error) if error.contains("issuer_unavailable") && Instant::now() < deadline => sleep(Duration::from_millis(200)),
            whole => break whole?,
        }
    };
    for hop in ["sa/payments", "sa/fraud", "sa/ledger"] {
        if !whole.contains(&format!("bank/{hop}")) {
            return Err(format!("the transfer did not pass {hop}: {whole}"));
        }
    }
    expect(&bank, GERMANY, Some(&tina), 5000, "403 not_permitted")?;
    // It claims to be in Germany, as every call here does; that counts for nothing.
    expect(&bank, FRANCE, Some(&tina), 200, "403 not_permitted")?;
    expect(&bank, GERMANY, Some(&aura), 200, "403 not_permitted")?;
    expect(&bank, GERMANY, None, 200, "401 token_missing")?;
    let around =
        bank.run("outside", "curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://10.77.1.3:18103/entries"])?;
    if around != "400" {
        return Err(format!("the ledger answered {around} to plaintext from outside"));
    }
    let keys = bank.access_log("login").lines().filter(|line| line.contains("/jwks") && line.contains("spiffe://bank")).count();
    if keys == 0 {
        return Err("no sidecar fetched the issuer's keys by mutual TLS".to_owned());
    }
    Ok(Shown::Yes(format!(
        "201 through four sidecars, 403 over the limit, from another country and for an auditor, 401 without a token, 400 around \
         the sidecar; the issuer's keys fetched by mutual TLS {keys} times"
    )))
}

fn token(bank: &Pods, user: &str) -> Result<String, String> {
    let mut answer = String::new();
    // The example's issuer starts after its sidecar.
    for _ in 0..100 {
        let order = format!("user={user}");
        answer = bank.run("outside", "curl", &["-sS", "-d", &order, LOGIN])?;
        let json: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        if let Some(token) = json["access_token"].as_str() {
            return Ok(token.to_owned());
        }
        sleep(Duration::from_millis(100));
    }
    Err(format!("the issuer gave no token: {answer}"))
}

/// One transfer of a client; its status and reason, then its body, if they begin as expected.
fn expect(bank: &Pods, client: &str, token: Option<&str>, amount: u32, expected: &str) -> Result<String, String> {
    let body = format!(r#"{{"from":"alice","to":"bob","amount":{amount},"currency":"EUR"}}"#);
    let bearer = token.map(|token| format!("authorization: Bearer {token}")).unwrap_or_default();
    let shape = "\n%{http_code} %header{x-rondel-reason}";
    let mut arguments = vec!["-sS", "--interface", client, "-H", "x-client-country: DE", "-H", "x-forwarded-for: 10.77.49.1"];
    arguments.extend(["-H", "content-type: application/json", "-d", &body, "-w", shape, WEB]);
    if !bearer.is_empty() {
        arguments.extend(["-H", &bearer]);
    }
    let answer = bank.run("outside", "curl", &arguments)?;
    let (text, told) = answer.rsplit_once('\n').unwrap_or_default();
    if told.starts_with(expected) {
        Ok(text.to_owned())
    } else {
        Err(format!("{amount} from {client}: {told}, not {expected}: {text}"))
    }
}
