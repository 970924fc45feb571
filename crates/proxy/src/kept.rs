//! Connections to issuers that are kept for the next question, so that not each of them costs a handshake.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// LIMIT: idle connections to one endpoint.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// LIMIT: how long one of them may be idle. Most servers keep theirs for longer.
const IDLE: Duration = Duration::from_secs(15);
/// LIMIT: how old one may be and still be kept: what its address and certificates were found to be is looked up again then.
const AGE_MAX: Duration = Duration::from_secs(300);

/// What a connection is good for: all that it was derived from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Scheme, host and port.
    pub origin: String,
    /// The SHA-256 of the certificate that was shown on it.
    pub shown: Option<[u8; 32]>,
}

/// A connection for one exchange after another.
pub struct Open {
    sender: SendRequest<Full<Bytes>>,
    opened_at: Instant,
    /// When its driver ends it.
    until: watch::Sender<Instant>,
    _driver: AbortOnDrop,
}

/// Why an exchange came to nothing.
#[derive(Debug)]
pub enum Broken {
    /// The connection ended before an answer began: the question may be asked again.
    Unanswered(hyper::Error),
    /// Another answer than 200.
    Status(StatusCode),
    /// The answer ended early, or is too long.
    Answer(Box<dyn std::error::Error + Send + Sync>),
}

impl Open {
    /// Begins HTTP/1.1 on a stream.
    ///
    /// # Errors
    /// - [`hyper::Error`] if the stream is broken.
    pub async fn over<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let opened_at = Instant::now();
        let (until, mut ends) = watch::channel(opened_at + AGE_MAX * 2);
        let driver = async move {
            let mut connection = std::pin::pin!(connection);
            loop {
                let end = *ends.borrow_and_update();
                tokio::select! {
                    _ended = &mut connection => return,
                    changed = ends.changed() => if changed.is_err() { return },
                    () = sleep_until(end) => return,
                }
            }
        };
        Ok(Self { sender, opened_at, until, _driver: AbortOnDrop(tokio::spawn(driver)) })
    }

    /// One request and its whole answer, of at most `bytes_max`. Its caller bounds it in time.
    ///
    /// # Errors
    /// - [`Broken`]; nothing more can be asked on this connection then.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>, bytes_max: usize) -> Result<Bytes, Broken> {
        self.sender.ready().await.map_err(Broken::Unanswered)?;
        let response = self.sender.send_request(request).await.map_err(Broken::Unanswered)?;
        if response.status() != StatusCode::OK {
            return Err(Broken::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        Ok(body.map_err(Broken::Answer)?.to_bytes())
    }
}

/// The idle connections of a sidecar. Shared between threads.
#[derive(Default)]
pub struct KeptConnections(Mutex<HashMap<Route, Vec<Open>>>);

impl KeptConnections {
    /// The one that was used last, if there is one that is still open as far as is known.
    pub fn take(&self, route: &Route) -> Option<Open> {
        let mut kept = self.0.lock();
        let idle = kept.get_mut(route)?;
        let found = std::iter::from_fn(|| idle.pop()).find(|open| !open.sender.is_closed());
        if let Some(open) = &found {
            open.until.send_replace(Instant::now() + AGE_MAX * 2);
        }
        found
    }

    /// Keeps a connection on which an answer came whole, unless there are enough or it is old.
    pub fn keep(&self, route: Route, open: Open) {
        if open.opened_at.elapsed() > AGE_MAX {
            return;
        }
        open.until.send_replace(Instant::now() + IDLE);
        let mut kept = self.0.lock();
        // What ended while nobody looked.
        kept.retain(|_, idle| {
            idle.retain(|open| !open.sender.is_closed());
            !idle.is_empty()
        });
        let idle = kept.entry(route).or_default();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(open);
        }
    }
}

impl fmt::Debug for KeptConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptConnections").field("endpoints", &self.0.lock().len()).finish()
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("opened_at", &self.opened_at).finish_non_exhaustive()
    }
}

/// A task that ends with whoever started it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn route(shown: u8) -> Route {
        Route { origin: "https://login.example".to_owned(), shown: Some([shown; 32]) }
    }

    /// Answers each question with `yes`, for ever.
    async fn serve(mut stream: DuplexStream) {
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes").await.is_err() {
                return;
            }
        }
    }

    async fn open() -> (Open, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = duplex(4096);
        (Open::over(ours).await.expect("a stream"), tokio::spawn(serve(theirs)))
    }

    async fn asked(open: &mut Open) {
        let answer = open.ask(Request::new(Full::default()), 16).await.expect("an answer");
        assert_eq!(answer.as_ref(), b"yes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_for_whom_it_was_made_and_ends_when_nobody_asks() {
        let kept = KeptConnections::default();
        let (mut first, serving) = open().await;
        asked(&mut first).await;
        kept.keep(route(1), first);
        assert!(kept.take(&route(2)).is_none(), "another certificate was shown");
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        let mut again = kept.take(&route(1)).expect("kept");
        assert!(kept.take(&route(1)).is_none(), "it is one");
        asked(&mut again).await;
        // In use for longer than it could be idle.
        tokio::time::sleep(IDLE * 2).await;
        asked(&mut again).await;
        kept.keep(route(1), again);
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert!(kept.take(&route(1)).is_none(), "idle for too long");
        serving.await.expect("the other end was told");
    }

    #[tokio::test]
    async fn what_a_server_sends_behind_its_answer_is_no_answer_to_the_next_question() {
        let smuggled: [&[&[u8]]; 3] = [
            &[b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyesHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnow"],
            &[b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnow"],
            &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnow"],
        ];
        for parts in smuggled {
            let (ours, mut theirs) = duplex(4096);
            tokio::spawn(async move {
                let mut bytes = [0; 1024];
                let _asked = theirs.read(&mut bytes).await;
                for part in parts {
                    let _told = theirs.write_all(part).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let _asked = theirs.read(&mut bytes).await;
            });
            let mut open = Open::over(ours).await.expect("a stream");
            asked(&mut open).await;
            if parts.len() > 1 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let second = open.ask(Request::new(Full::default()), 16).await;
            assert!(matches!(second, Err(Broken::Unanswered(_))), "{second:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_kept_and_none_that_is_old() {
        let kept = KeptConnections::default();
        for _ in 0..IDLE_CONNECTIONS_MAX + 3 {
            let (mut each, _) = open().await;
            asked(&mut each).await;
            kept.keep(route(1), each);
        }
        let found = std::iter::from_fn(|| kept.take(&route(1))).collect::<Vec<_>>();
        assert_eq!(found.len(), IDLE_CONNECTIONS_MAX);
        drop(found);
        let (mut old, _) = open().await;
        asked(&mut old).await;
        tokio::time::sleep(AGE_MAX + Duration::from_secs(1)).await;
        asked(&mut old).await;
        kept.keep(route(1), old);
        assert!(kept.take(&route(1)).is_none(), "old");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_the_other_end_closed_is_not_taken_and_not_counted() {
        let kept = KeptConnections::default();
        for _ in 0..IDLE_CONNECTIONS_MAX {
            let (mut each, serving) = open().await;
            asked(&mut each).await;
            kept.keep(route(1), each);
            serving.abort();
            let _ended = serving.await;
        }
        tokio::task::yield_now().await;
        let (mut good, _) = open().await;
        asked(&mut good).await;
        kept.keep(route(1), good);
        assert!(kept.take(&route(1)).is_some() && kept.take(&route(1)).is_none());
    }
}
