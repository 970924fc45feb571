//! Bad tokens, each another one, at a steady rate over mutual TLS connections of their own: what an attacker in the mesh can send.
//!
//! Of ten tokens seven are a good one with an invented signature, which costs the check of it; one has another payload, one names a
//! key that nobody has, and one is no token at all. Every answer must be a refusal.

use crate::identity::presenting;
use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use testkit::pki::LawlessClient;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to connect; also the host that is asked for
    address: SocketAddr,
    /// PEM file of the client's certificate chain, leaf first
    #[arg(long)]
    certificate: PathBuf,
    /// PEM file of its key, PKCS #8
    #[arg(long)]
    key: PathBuf,
    /// A good token, which the bad ones are made from
    #[arg(long)]
    token: String,
    /// Requests a second
    #[arg(long, default_value_t = 10_000.0)]
    rate: f64,
    /// Connections, one request at a time on each
    #[arg(long, default_value_t = 32)]
    connections: u32,
    /// How long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// Makes tokens of which no two are alike.
struct Tokens {
    header: serde_json::Map<String, serde_json::Value>,
    head: String,
    payload: String,
    signature: usize,
    random: u64,
    made: u64,
}

impl Tokens {
    fn from(good: &str, seed: u64) -> anyhow::Result<Self> {
        let mut parts = good.split('.');
        let mut part = || parts.next().context("the token is no JWT");
        let (head, payload, signature) = (part()?.to_owned(), part()?.to_owned(), part()?);
        let header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&head)?)?;
        let signature = URL_SAFE_NO_PAD.decode(signature)?.len();
        Ok(Self { header, head, payload, signature, random: seed, made: 0 })
    }

    fn random(&mut self, bytes: usize) -> Vec<u8> {
        let mut made = Vec::with_capacity(bytes + 8);
        while made.len() < bytes {
            // SplitMix64 (Steele, Lea and Flood 2014).
            self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = self.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            made.extend((mixed ^ (mixed >> 31)).to_le_bytes());
        }
        made.truncate(bytes);
        made
    }

    fn next(&mut self) -> String {
        self.made += 1;
        let signature = self.random(self.signature);
        let signature = URL_SAFE_NO_PAD.encode(signature);
        match self.made % 10 {
            7 => {
                let payload = self.random(self.payload.len() * 3 / 4);
                format!("{}.{}.{signature}", self.head, URL_SAFE_NO_PAD.encode(payload))
            }
            8 => {
                let mut header = self.header.clone();
                header.insert("kid".to_owned(), URL_SAFE_NO_PAD.encode(self.random(12)).into());
                let header = serde_json::Value::Object(header).to_string();
                format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), self.payload)
            }
            9 => signature,
            _ => format!("{}.{}.{signature}", self.head, self.payload),
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<serde_json::Value> {
    let client = Rc::new(presenting(LawlessClient::new(), &arguments.certificate, &arguments.key)?);
    let arguments = Rc::new(arguments);
    let start = Instant::now() + Duration::from_millis(200);
    let local = tokio::task::LocalSet::new();
    let floods: Vec<_> = (0..arguments.connections)
        .map(|number| local.spawn_local(flood(Rc::clone(&arguments), Rc::clone(&client), number, start)))
        .collect();
    let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
    local
        .run_until(async {
            for flood in floods {
                for (status, count) in flood.await?? {
                    *statuses.entry(status).or_default() += count;
                }
            }
            anyhow::Ok(())
        })
        .await?;
    let sent: u64 = statuses.values().sum();
    if let Some(count) = statuses.get(&200) {
        bail!("{count} of {sent} bad tokens were accepted");
    }
    let statuses: BTreeMap<String, u64> = statuses.iter().map(|(status, count)| (status.to_string(), *count)).collect();
    Ok(serde_json::json!({ "sent": sent, "rps": sent as f64 / start.elapsed().as_secs_f64(), "statuses": statuses }))
}

/// What one connection sends: a request whenever the next is due, at once where it fell behind.
async fn flood(
    arguments: Rc<Arguments>,
    client: Rc<LawlessClient>,
    number: u32,
    start: Instant,
) -> anyhow::Result<BTreeMap<u16, u64>> {
    let mut tokens = Tokens::from(&arguments.token, u64::from(number) << 32)?;
    let stream = TcpStream::connect(arguments.address).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(client.connect(stream).await?);
    let every = Duration::from_secs_f64(f64::from(arguments.connections) / arguments.rate);
    let (mut due, end) = (
        start + every.mul_f64(f64::from(number) / f64::from(arguments.connections)),
        start + Duration::from_secs_f64(arguments.seconds),
    );
    let mut statuses = BTreeMap::new();
    while due < end && Instant::now() < end {
        sleep_until(due).await;
        due += every;
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\r\n", arguments.address, tokens.next());
        stream.get_mut().write_all(request.as_bytes()).await?;
        stream.get_mut().flush().await?;
        let status = timeout(ANSWER_DEADLINE, answer(&mut stream)).await.context("no answer")??;
        *statuses.entry(status).or_default() += 1;
    }
    Ok(statuses)
}

/// Reads one answer to its end; its status.
async fn answer(from: &mut (impl AsyncBufReadExt + Unpin)) -> anyhow::Result<u16> {
    let (mut line, mut status, mut length) = (String::new(), None, 0);
    loop {
        line.clear();
        if from.read_line(&mut line).await? == 0 {
            bail!("the connection ended within an answer");
        }
        if status.is_none() {
            status = line.split(' ').nth(1).and_then(|word| word.trim().parse().ok());
            status.context("not an answer of HTTP/1.1")?;
        } else if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
        } else {
            break;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    status.context("no status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_alike_and_none_is_the_good_one() {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let good = format!("{}.{}.{}", part(r#"{"alg":"ES256","kid":"a"}"#), part(r#"{"sub":"tina"}"#), part(&"s".repeat(64)));
        let mut tokens = Tokens::from(&good, 1).unwrap();
        let made: std::collections::BTreeSet<String> = (0..1000).map(|_| tokens.next()).collect();
        assert_eq!(made.len(), 1000);
        assert!(!made.contains(&good));
        let as_signed = format!("{}.{}.", part(r#"{"alg":"ES256","kid":"a"}"#), part(r#"{"sub":"tina"}"#));
        assert_eq!(made.iter().filter(|token| token.starts_with(&as_signed)).count(), 700);
    }
}
