//! `rondel token revoke` and `revoked`: tokens that are refused although they have not expired.

use crate::identity::{InForce, in_force};
use crate::operator::{self, DEADLINE, Where};
use crate::output::{Output, bold, short, table};
use model::Timestamp;
use model::token::RevokedTokens;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;
use wire::operator::TokenRevocation;

/// What to revoke.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    which: Which,
    /// Only tokens of this `TokenIssuer`
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// How long to remember it, `90m`, `12h` or `7d`, or until when, as RFC 3339: at least as long as the tokens would live
    #[arg(long, default_value = "24h", value_parser = until)]
    until: End,
    /// Why, for whoever reads it later
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    at: Where,
}

/// By what tokens are meant; where several are given, all must be true.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Which {
    /// The token's `jti`
    #[arg(long)]
    jti: Option<String>,
    /// The token's `sub`
    #[arg(long)]
    subject: Option<String>,
    /// The token's `client_id`, or `azp`
    #[arg(long)]
    client: Option<String>,
    /// Tokens issued before this: `now`, seconds since 1970, or RFC 3339 in UTC. One that does not say when counts as before
    #[arg(long, value_name = "TIME", value_parser = moment)]
    issued_before: Option<Timestamp>,
}

/// When a revocation ends.
#[derive(Clone, Copy, Debug)]
enum End {
    After(Duration),
    At(Timestamp),
}

/// 0 once every connected sidecar refuses them, else 1.
pub(super) async fn revoke(arguments: &Revoke, output: Output) -> anyhow::Result<ExitCode> {
    let Which { jti, subject, client: client_id, issued_before } = arguments.which.clone();
    let until = match arguments.until {
        End::After(duration) => operator::now().plus(duration),
        End::At(at) => at,
    };
    let what = RevokedTokens { issuer: arguments.issuer.clone(), jti, subject, client: client_id, issued_before, until };
    let begun = Instant::now();
    let mut client = arguments.at.connect().await?;
    let revoked = client.revoke_tokens(&what, &arguments.reason, DEADLINE).await?;
    let InForce { behind, away, took } = in_force(&mut client, revoked.revision, begun).await?;
    match output {
        Output::Json => println!(
            "{:#}",
            serde_json::json!({
                "revoked": json(&revoked.revoked), "revision": revoked.revision,
                "in_force_after_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "behind": behind, "away": away,
            })
        ),
        Output::Text => {
            print_table(std::slice::from_ref(&revoked.revoked));
            if behind.is_empty() {
                println!("refused by every connected sidecar after {} ms (revision {})", took.as_millis(), revoked.revision);
            } else {
                println!("not in force yet at {} after {} s: `rondel status`", behind.join(", "), took.as_secs());
            }
            if !away.is_empty() {
                println!("away, and told when it comes back: {}", away.join(", "));
            }
        }
    }
    Ok(if behind.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// 0 always.
pub(super) async fn revoked(at: &Where, output: Output) -> anyhow::Result<ExitCode> {
    let revoked = at.connect().await?.token_revocations(DEADLINE).await?;
    match output {
        Output::Json => println!("{:#}", serde_json::Value::Array(revoked.iter().map(json).collect())),
        Output::Text if revoked.is_empty() => println!("no tokens are revoked"),
        Output::Text => print_table(&revoked),
    }
    Ok(ExitCode::SUCCESS)
}

fn json(revoked: &TokenRevocation) -> serde_json::Value {
    let what = &revoked.what;
    serde_json::json!({
        "issuer": what.issuer, "jti": what.jti, "subject": what.subject, "client": what.client,
        "issued_before": what.issued_before.map(Timestamp::seconds), "until": what.until.seconds(),
        "revoked_at": revoked.at.seconds(), "reason": revoked.reason,
    })
}

fn print_table(revoked: &[TokenRevocation]) {
    let now = operator::now();
    let mut rows = vec![["TOKENS", "ISSUER", "REVOKED", "ENDS IN", "REASON"].map(str::to_owned).to_vec()];
    for each in revoked {
        let what = &each.what;
        // What is said of tokens comes from outside: it must not move the cursor.
        let part = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {}", printable(value)));
        let before = what.issued_before.map(|at| format!("issued before {at}"));
        let parts = [part("jti", &what.jti), part("subject", &what.subject), part("client", &what.client), before];
        rows.push(vec![
            parts.into_iter().flatten().collect::<Vec<_>>().join(", "),
            what.issuer.clone().unwrap_or_else(|| "every".to_owned()),
            format!("{} ago", short(now.since(each.at))),
            short(what.until.since(now)),
            printable(&each.reason),
        ]);
    }
    let out = table(&rows);
    match out.split_once('\n') {
        Some((head, rest)) => print!("{}\n{rest}", bold(head)),
        None => print!("{out}"),
    }
}

fn printable(text: &str) -> String {
    model::ids::printable(text)
}

/// A duration, or a moment.
fn until(text: &str) -> Result<End, String> {
    let seconds = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let parsed = text.char_indices().last().and_then(|(at, unit)| {
        let number: u64 = text.get(..at)?.parse().ok()?;
        number.checked_mul(seconds(unit)?).map(Duration::from_secs)
    });
    match parsed {
        Some(duration) => Ok(End::After(duration)),
        None => moment(text)
            .map(End::At)
            .map_err(|_| format!("`{text}` is neither `90m`, `12h`, `7d` nor a moment such as `2027-01-31T12:00:00Z`")),
    }
}

/// `now`, seconds since 1970, or RFC 3339 §5.6 in UTC.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    if text == "now" {
        return Ok(operator::now());
    }
    if let Ok(seconds) = text.parse() {
        return Ok(Timestamp::from_seconds(seconds));
    }
    Timestamp::parse(text).map_err(|_| {
        let text = printable(text);
        format!("`{text}` is neither `now`, seconds since 1970, nor a moment such as `2027-01-31T12:00:00Z`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_printed() {
        for seconds in [0, 951_782_400, 951_868_799, 1_709_164_800, 1_800_000_000, 4_102_444_799] {
            let at = Timestamp::from_seconds(seconds);
            assert_eq!(moment(&at.to_string()), Ok(at));
        }
        assert_eq!(moment("2027-01-15T08:00:00Z"), Ok(Timestamp::from_seconds(1_800_000_000)));
        assert_eq!(moment("1800000000"), Ok(Timestamp::from_seconds(1_800_000_000)));
        for bad in [
            "",
            "tomorrow",
            "2027-02-29T00:00:00Z",
            "2027-13-01T00:00:00Z",
            "2027-01-01",
            "2027-01-01T00:00:00",
            "2027-01-01T24:00:00Z",
        ] {
            assert!(moment(bad).is_err(), "{bad}");
        }
        assert!(matches!(until("90m"), Ok(End::After(duration)) if duration.as_secs() == 5400));
        assert!(matches!(until("7d"), Ok(End::After(duration)) if duration.as_secs() == 604_800));
        assert!(matches!(until("2027-01-15T08:00:00Z"), Ok(End::At(_))) && until("7 days").is_err());
    }
}
