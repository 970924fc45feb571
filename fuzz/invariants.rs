//! What must hold for any bytes. The fuzz targets and the ordinary tests of the seeds call the same functions; a failed
//! assertion is the finding.

use http::Request;
use proxy::detect::{Guess, detect as guess};
use proxy::facts;
use proxy::framing::{Rules, guard};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

const RULES: Rules = Rules { head_bytes_max: 4096, headers_max: 32, head_deadline: Duration::from_secs(3600) };

/// The framing guard lets through the same bytes however they arrive, only bytes that arrived, and nothing that it would not let
/// through again.
pub(crate) fn framing(input: &[u8]) {
    let whole = passed(input, usize::MAX);
    assert!(input.starts_with(&whole), "it made bytes up");
    for step in [1, 7] {
        assert_eq!(passed(input, step), whole, "by {step}");
    }
    assert_eq!(passed(&whole, usize::MAX), whole, "what was sound is not sound");
}

/// More bytes never turn a clear answer into another.
pub(crate) fn detect(input: &[u8]) {
    let last = guess(input);
    for end in 0..input.len() {
        let before = guess(input.get(..end).unwrap_or_default());
        assert!(before == Guess::Unclear || before == last, "{before:?} after {end} bytes, then {last:?}");
    }
}

/// A request target and host that are accepted are forwarded in a form that is accepted as the same.
pub(crate) fn target(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (path, host) = text.split_once('\n').unwrap_or((&text, "a"));
    let Ok(request) = Request::get(path).header("host", host).body(()) else { return };
    let (mut head, ()) = request.into_parts();
    let Ok(first) = facts::collect(&head) else { return };
    assert!(first.path.starts_with('/'), "{:?}", first.path);
    assert!(!first.path.split('/').any(|segment| segment == "." || segment == ".."), "{:?}", first.path);
    head.uri = first.target(head.version).expect("what was collected can be forwarded");
    head.headers.insert("host", first.authority.parse().expect("an authority"));
    let again = facts::collect(&head).expect("what is forwarded is accepted");
    assert_eq!((again.path, again.path_and_query, again.host), (first.path, first.path_and_query, first.host));
}

fn passed(input: &[u8], step: usize) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let (mut io, _refused) = guard(Steps { bytes: input, step }, RULES);
    let mut all = Vec::new();
    // A refused body is an error after what was let through.
    let _refused = runtime.block_on(io.read_to_end(&mut all));
    all
}

/// Gives at most so many bytes a read, then ends.
struct Steps<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Steps<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.bytes.len().min(self.step).min(buf.remaining());
        let (now, rest) = self.bytes.split_at(count);
        buf.put_slice(now);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}
