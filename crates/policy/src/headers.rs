//! Request headers: which of them policies may read, and what is wrong with one that came.

use crate::facts::CONNECT;
use crate::reads::Reads;
use model::HeaderRead;
use model::authz::{Question, is_spelt};
use model::ids::printable;
use model::snapshot::TokenIssuer;
use model::token::TokenUse;
use std::collections::BTreeSet;

/// The path of the headers in a policy.
pub(crate) const HEADERS: [&str; 3] = ["context", "request", "headers"];

/// LIMIT: header names of the policies of one workload. Each is looked for in every request.
pub(crate) const NAMES_MAX: usize = 32;

/// LIMIT: bytes of a header's name.
const NAME_BYTES_MAX: usize = 128;

/// Header names, in lower case.
pub(crate) type HeaderNames = BTreeSet<String>;

/// Whether something that reads `reads` can tell one value of the header from another.
pub(crate) fn are_read(reads: &Reads, name: &str) -> bool {
    let [context, request, headers] = HEADERS;
    reads.see(&[context, request, headers, name])
}

/// Whether policies may read the header of this name.
///
/// # Errors
/// - a text that says why not, and what to write instead.
pub(crate) fn check(name: &str) -> Result<(), String> {
    let shown = printable(name);
    let lower = name.to_ascii_lowercase();
    if lower != name {
        return Err(format!("header names are in lower case: write `{}` for `{shown}`", printable(&lower)));
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_token) {
        let rule = format!("write 1 to {NAME_BYTES_MAX} letters, digits and signs as in `x-tenant`, without a colon");
        return Err(format!("`{shown}` is not a header name: {rule}"));
    }
    match unreadable(&name.replace('_', "-")) {
        Some(instead) => Err(format!("policies cannot read the header `{shown}`: {instead}")),
        None => Ok(()),
    }
}

/// Why policies never see a header: it is a secret, is ours, is used up on this hop, or says what is known better.
fn unreadable(name: &str) -> Option<&'static str> {
    const HOP: &str = "it is for one hop only and does not reach the application";
    Some(match name {
        "authorization" => "it is a secret; write conditions on `context.user`, which the verified token gives",
        "cookie" => "it is a secret; write conditions on `context.user`",
        "proxy-authorization" => "it is a secret, and is meant for another hop",
        "host" => "write `context.request.host`",
        "x-forwarded-for" | "forwarded" | "x-real-ip" => {
            "anybody can claim it; write `context.source.address` or `context.source.country`"
        }
        "x-forwarded-client-cert" => "only sidecars set it; write conditions on `principal`",
        name if name.starts_with("x-rondel-") => "only sidecars set it; write conditions on `principal` and `context.user`",
        "connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "keep-alive" | "http2-settings" | "proxy" => HOP,
        "proxy-status" => return None,
        name if name.starts_with("proxy-") => HOP,
        _ => return None,
    })
}

/// Why policies cannot read a header of a workload that uses tokens so, with what to write instead: it is the token, or the sidecar sets
/// it for the application, and a policy would see what the caller wrote under that name.
pub(crate) fn of_token(name: &str, token: &TokenUse, issuers: &[TokenIssuer]) -> Option<String> {
    let shown = printable(name);
    if is_spelt(name.as_bytes(), &token.header) {
        return Some(format!("the header `{shown}` carries the token, which is a secret: write conditions on `context.user`"));
    }
    let (header, claim) = token.claims.iter().find(|(header, _)| is_spelt(name.as_bytes(), header))?;
    let instead = match claim.to_string().as_str() {
        "sub" => "`context.user.subject`".to_owned(),
        "iss" => "`context.user.issuer`, the `TokenIssuer`'s name".to_owned(),
        "scope" | "scp" => "`context.user.scopes`".to_owned(),
        _ if issuers.iter().any(|issuer| issuer.roles_claim.as_ref() == Some(claim)) => {
            "`context.user in Role::\"…\"`".to_owned()
        }
        _ => {
            let mut mapped = issuers.iter().flat_map(|issuer| &issuer.attributes);
            let known = mapped.find(|(_, mapping)| mapping.claim == *claim);
            known.map_or_else(
                || "`context.user`, in an attribute to which the `TokenIssuer` maps it (`claims.attributes`)".to_owned(),
                |(attribute, _)| format!("`context.user.{attribute}`"),
            )
        }
    };
    Some(format!(
        "a policy that reads the header `{shown}` would see what the caller writes: `{header}` tells the application of the claim \
         `{claim}` when the policies have decided; read {instead}"
    ))
}

/// Which of the headers that policies read cannot be decided by, with the reason in words.
///
/// One that nobody looked for is among them: its absence is not known. An opaque connection has no headers, and so none that is wrong.
pub(crate) fn flaws<'a>(question: &Question<'_>, names: &'a [String]) -> Vec<(&'a str, String)> {
    if question.action == CONNECT {
        return Vec::new();
    }
    let flaw = |name: &'a String| {
        let flaw = match question.header(name) {
            Some(read) => read.flaw()?,
            None => "was not read when the call came",
        };
        Some((name.as_str(), format!("header `{name}` {flaw}")))
    };
    names.iter().filter_map(flaw).collect()
}

/// The names and values of the headers that are there.
pub(crate) fn values<'a>(question: &'a Question<'_>, names: &'a [String]) -> impl Iterator<Item = (&'a String, &'a str)> {
    names.iter().filter_map(|name| Some((name, question.header(name).and_then(HeaderRead::value)?)))
}
