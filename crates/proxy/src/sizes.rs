//! What a connection and a request hold in memory while they wait: sizes that only an explicit change here may raise. A variable
//! that lives across one more `await`, or a future that is moved into an `async` block, shows as hundreds of bytes for each
//! connection, idle ones too.

use crate::http1::Server;
use crate::{accept, connection, http2, mux, request};

/// The least of what a future may grow by unnoticed, in parts of a hundred: compilers lay them out a little differently.
const ROOM: usize = 5;

fn of1<A, F>(_: fn(A) -> F) -> usize {
    size_of::<F>()
}

fn of2<A, B, F>(_: fn(A, B) -> F) -> usize {
    size_of::<F>()
}

fn of3<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

fn of4<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn what_waits_is_small() {
    let sizes = [
        // As long as a connection is open.
        ("a connection from a peer", of1(accept::inbound as fn(_) -> _), 1264),
        ("a connection from the application", of1(accept::outbound as fn(_) -> _), 952),
        ("HTTP/1 on it", of4(connection::serve_http1 as fn(_, _, _, _) -> _), 336),
        ("what is read and written of HTTP/1", size_of::<Server>(), 384),
        ("HTTP/2 on it", of4(connection::serve_http2 as fn(_, _, _, _) -> _), 528),
        ("the mux on it", of3(connection::serve_mux as fn(_, _, _) -> _), 440),
        ("its common facts", size_of::<connection::Connection>(), 304),
        ("a stream of the mux", size_of::<mux::Stream>(), 16),
        ("a stream of HTTP/2", size_of::<http2::Served>(), 144),
        // As long as a request is under way; with the facts that it is decided by once more when the policies change.
        ("a turn of HTTP/1", of2(connection::take_turn as fn(_, _) -> _), 2256),
        ("a turn of HTTP/2", of2(connection::serve_stream as fn(_, _) -> _), 2432),
        ("a request", of3(request::answer as fn(_, _, _) -> _), 2096),
    ];
    let grown: Vec<_> = sizes.iter().filter(|(_, bytes, known)| *bytes > known + known * ROOM / 100).collect();
    assert!(grown.is_empty(), "larger than it was (bytes now, bytes known): {grown:?}; mend it, or raise it here and say why");
}
