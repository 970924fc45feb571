//! One request of the sidecar's own to an issuer: bounded in time and size, without redirects, to an address that may be called.

use crate::kept::{Broken, KeptConnections, Open, Route};
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use identity::Credentials;
use model::{Limit, Limits};
use std::net::SocketAddr;
use token::introspection::{Ask, IntrospectionError};
use token::{KeySetError, jwks};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// Why an issuer gave nothing that could be used.
#[derive(Debug, thiserror::Error)]
pub enum FetchFailure {
    /// The document is not what it must be.
    #[error("{0}")]
    Document(#[from] KeySetError),
    /// The answer about a token is not what it must be, or the client's credential is not.
    #[error("{0}")]
    Introspection(#[from] IntrospectionError),
    /// Not an address.
    #[error("`{url}` is not an address: {detail}")]
    Address {
        /// As configured or discovered.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The name leads nowhere, or to where the sidecar does not go.
    #[error("`{host}` has no address that may be fetched from")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// No connection, no handshake, or one that broke.
    #[error("{url}: {detail}")]
    Exchange {
        /// What was asked.
        url: String,
        /// What went wrong.
        detail: String,
    },
    /// Another answer than 200.
    #[error("{url}: status {status}, expected 200; redirects are not followed")]
    Status {
        /// What was asked.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Too slow.
    #[error("{url}: no whole answer within limit `{}` ({value} ms)", limit.name())]
    Timeout {
        /// What was asked.
        url: String,
        /// The limit.
        limit: Limit,
        /// Its value.
        value: u64,
    },
    /// A file on this machine.
    #[error("{file}: {detail}")]
    File {
        /// Its path.
        file: String,
        /// Why it cannot be read.
        detail: String,
    },
    /// The sidecar has no SVID to show.
    #[error("no SVID yet to show by mutual TLS")]
    NoIdentity,
}

/// One GET of a document, to an address outside the mesh that may be fetched from.
///
/// # Errors
/// - [`FetchFailure`].
pub async fn get(url: &str, limits: &Limits) -> Result<Bytes, FetchFailure> {
    let uri = parsed(url)?;
    let bytes_max = limits.size(Limit::JwksBytes);
    let request = request(&uri, url)?;
    let fetch = async {
        let mut open = connected(url, None, limits).await?;
        open.ask(request, bytes_max).await.map_err(|broken| told(url, broken))
    };
    within(Limit::JwksFetchMs, url, limits, fetch).await
}

/// One POST of a form, as [`get`], on a kept connection if there is one, which is kept afterwards. Its caller bounds it in time.
///
/// A kept connection may have been closed by the other end in the very moment: the question, which changes nothing, is then asked once
/// more on a new one.
///
/// - `ask`: makes what is sent, anew for each time that it is: an assertion is good once
/// - `credentials`: shown by mutual TLS
///
/// # Errors
/// - [`FetchFailure`].
pub async fn post(
    url: &str,
    ask: impl Fn() -> Result<Ask, IntrospectionError>,
    credentials: Option<&Credentials>,
    kept: &KeptConnections,
    limits: &Limits,
) -> Result<Bytes, FetchFailure> {
    let uri = parsed(url)?;
    let shown = credentials.and_then(|credentials| credentials.svid().chain().first()).map(token::digest_of);
    let route = Route { origin: format!("{}://{}", uri.scheme_str().unwrap_or_default(), authority(&uri)), shown };
    let bytes_max = token::introspection::ANSWER_BYTES_MAX;
    if let Some(mut open) = kept.take(&route) {
        match open.ask(form(&uri, url, &ask()?)?, bytes_max).await {
            Ok(answer) => {
                kept.keep(route, open);
                return Ok(answer);
            }
            Err(Broken::Unanswered(_)) => {}
            Err(broken) => return Err(told(url, broken)),
        }
    }
    let mut open = connected(url, credentials, limits).await?;
    let answer = open.ask(form(&uri, url, &ask()?)?, bytes_max).await.map_err(|broken| told(url, broken))?;
    kept.keep(route, open);
    Ok(answer)
}

fn form(uri: &Uri, url: &str, ask: &Ask) -> Result<Request<Full<Bytes>>, FetchFailure> {
    let mut request = Request::post(path(uri)).header("host", authority(uri)).header("accept", "application/json");
    request = request.header("content-type", "application/x-www-form-urlencoded");
    if let Some(authorization) = &ask.authorization {
        request = request.header("authorization", authorization.as_str());
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(ask.body.as_bytes())));
    request.map_err(|error| broken(url, &error))
}

/// A GET for whoever has a connection already.
///
/// # Errors
/// - [`FetchFailure`].
pub async fn get_over<S>(stream: S, url: &str, limits: &Limits) -> Result<Bytes, FetchFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let uri: Uri = url.parse().map_err(|error| broken(url, &error))?;
    let mut open = Open::over(stream).await.map_err(|error| broken(url, &error))?;
    open.ask(request(&uri, url)?, limits.size(Limit::JwksBytes)).await.map_err(|broken| told(url, broken))
}

/// Bounds a fetch by a limit.
///
/// # Errors
/// - [`FetchFailure::Timeout`] beyond it.
pub async fn within<T>(
    limit: Limit,
    url: &str,
    limits: &Limits,
    fetch: impl Future<Output = Result<T, FetchFailure>>,
) -> Result<T, FetchFailure> {
    match tokio::time::timeout(limits.duration(limit), fetch).await {
        Ok(outcome) => outcome,
        Err(_) => Err(FetchFailure::Timeout { url: url.to_owned(), limit, value: limits.of(limit) }),
    }
}

/// Reads a file of this machine; one byte more than `bytes_max` at most, so that its reader sees that it is too large.
///
/// # Errors
/// - [`FetchFailure::File`].
pub async fn read(file: &str, bytes_max: usize) -> Result<Vec<u8>, FetchFailure> {
    let failed = |error: std::io::Error| FetchFailure::File { file: file.to_owned(), detail: error.to_string() };
    let opened = tokio::fs::File::open(file).await.map_err(failed)?;
    let mut bytes = Vec::new();
    let most = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    opened.take(most).read_to_end(&mut bytes).await.map_err(failed)?;
    Ok(bytes)
}

fn parsed(url: &str) -> Result<Uri, FetchFailure> {
    jwks::fetchable(url)?;
    url.parse().map_err(|_| FetchFailure::Address { url: url.to_owned(), detail: "it does not parse".to_owned() })
}

fn path(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", http::uri::Authority::as_str)
}

fn request(uri: &Uri, url: &str) -> Result<Request<Full<Bytes>>, FetchFailure> {
    let request = Request::get(path(uri)).header("host", authority(uri)).header("accept", "application/json");
    request.body(Full::default()).map_err(|error| broken(url, &error))
}

fn broken(url: &str, error: &dyn std::fmt::Display) -> FetchFailure {
    FetchFailure::Exchange { url: url.to_owned(), detail: error.to_string() }
}

fn told(url: &str, broken: Broken) -> FetchFailure {
    let detail = match broken {
        Broken::Status(status) => return FetchFailure::Status { url: url.to_owned(), status },
        Broken::Unanswered(error) => error.to_string(),
        Broken::Answer(error) => error.to_string(),
    };
    FetchFailure::Exchange { url: url.to_owned(), detail }
}

/// A new connection to where an address leads.
async fn connected(url: &str, credentials: Option<&Credentials>, limits: &Limits) -> Result<Open, FetchFailure> {
    let uri = parsed(url)?;
    let bad_address = |detail: &str| FetchFailure::Address { url: url.to_owned(), detail: detail.to_owned() };
    let host = uri.host().ok_or_else(|| bad_address("it has no host"))?.trim_matches(['[', ']']).to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let found = tokio::net::lookup_host((host.as_str(), port)).await.map_err(|error| broken(url, &error))?;
    let address = found.into_iter().find(|address| may_fetch_from(address, is_tls));
    let address = address.ok_or_else(|| FetchFailure::NoAddress { host: host.clone() })?;
    let stream = TcpStream::connect(address).await.map_err(|error| broken(url, &error))?;
    if !is_tls {
        return Open::over(stream).await.map_err(|error| broken(url, &error));
    }
    let deadline = limits.duration(Limit::ConnectMs);
    let stream = match credentials {
        Some(credentials) => identity::web::connect_as(stream, &host, credentials, deadline).await,
        None => identity::web::connect(stream, &host, deadline).await,
    };
    Open::over(stream.map_err(|error| broken(url, &error))?).await.map_err(|error| broken(url, &error))
}

/// A name may lead anywhere: what it resolves to is held to the same rule as a literal address. Plaintext stays on loopback.
fn may_fetch_from(address: &SocketAddr, is_tls: bool) -> bool {
    let ip = address.ip().to_canonical();
    jwks::fetchable_address(ip) && (is_tls || ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_the_fetch_to_a_metadata_address() {
        for (address, is_tls, expected) in [
            ("127.0.0.1:80", false, true),
            ("[::1]:80", false, true),
            ("10.0.0.1:80", false, false),
            ("10.0.0.1:443", true, true),
            ("169.254.169.254:443", true, false),
            ("[::ffff:169.254.169.254]:443", true, false),
            ("[fe80::1]:443", true, false),
            ("0.0.0.0:443", true, false),
            ("[::]:443", true, false),
            ("224.0.0.1:443", true, false),
        ] {
            assert_eq!(may_fetch_from(&address.parse().expect(address), is_tls), expected, "{address}");
        }
    }
}
