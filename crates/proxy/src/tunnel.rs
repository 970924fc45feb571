//! Opaque TCP: decided once as a connection, decided again when the policies change, copied in between.

use crate::connection::Connection;
use crate::reply::Refusal;
use crate::state::Active;
use crate::telemetry::access_log::{Direction, Entry};
use crate::upstream::{self, Failed, Failure};
use identity::handshake::Alpn;
use model::{AuthzRequest, Limit, Reason, Source};
use policy::Permit;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

/// Bytes that one direction of a tunnel holds.
const COPY_BYTES: usize = 16 * 1024;

/// A connection from a peer to the application.
pub async fn inbound<S>(stream: S, connection: &Connection, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(listener) = active.inbound_at(connection.local) else { return };
    let mut entry = begin(connection, active, Direction::Inbound);
    entry.upstream = Some(listener.application.to_string());
    let Some(permit) = decide(connection, active, &mut entry) else { return };
    // The permit is spent on this one connection.
    drop(permit);
    match upstream::connect_tcp(listener.application, &active.snapshot.limits).await {
        Ok(application) => carry(stream, application, connection, active, entry).await,
        Err(failure) => fail(entry, Failed { application: true, failure }),
    }
}

/// A connection from the application to an upstream.
pub async fn outbound<S>(stream: S, connection: &Connection, active: &Arc<Active>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(upstream) = active.upstream_at(connection.local) else { return };
    let mut entry = begin(connection, active, Direction::Outbound);
    entry.upstream = Some(upstream.service.to_string());
    let mut last = Failure::NoEndpoint;
    for endpoint in &upstream.endpoints {
        match upstream::connect_peer(endpoint, Alpn::Tcp, active, &connection.shared).await {
            Ok(peer) => return carry(stream, peer, connection, active, entry).await,
            Err(failure) => last = failure,
        }
    }
    fail(entry, Failed { application: false, failure: last });
}

fn begin(connection: &Connection, active: &Active, direction: Direction) -> Entry {
    let mut entry = Entry::begin(&connection.shared, "tunnel", direction, connection.remote);
    let own = || active.snapshot.identity.clone();
    entry.principal = Some(connection.peer.as_ref().map_or_else(own, |peer| peer.id().clone()));
    entry.revision = active.snapshot.revision;
    "connect".clone_into(&mut entry.method);
    "/".clone_into(&mut entry.path);
    entry
}

fn fail(mut entry: Entry, failed: Failed) {
    entry.reason = Some(failed.reason());
    entry.detail = Some(failed.to_string());
}

/// Asks the policies for the action `connect`; a denial is noted in the entry and told to the operator's records.
fn decide(connection: &Connection, active: &Arc<Active>, entry: &mut Entry) -> Option<Permit> {
    let question = AuthzRequest {
        principal: connection.peer.as_ref()?.id().clone(),
        user: None,
        action: "connect".to_owned(),
        resource: active.snapshot.service.clone(),
        path: "/".to_owned(),
        host: String::new(),
        body: None,
        body_note: None,
        source: Source { address: connection.remote.ip(), country: None },
        now: crate::clock::now(),
    };
    match policy::decide(&active.policies, &question, entry.decision, active.snapshot.revision) {
        Ok(permit) => {
            connection.shared.tell_decision(permit.decision(), question, active, None);
            Some(permit)
        }
        Err(mut denied) => {
            // A connection cannot carry a token, so that no denial of it is answered with a challenge.
            denied.user_could_be_allowed = false;
            entry.reason = denied.decision.reason;
            let decision = denied.decision.clone();
            connection.shared.tell_decision(&decision, question, active, Some(&Refusal::Denied(Box::new(denied))));
            None
        }
    }
}

/// Copies both ways until both sides have ended, or something asks for the end.
async fn carry<A, B>(near: A, far: B, connection: &Connection, active: &Arc<Active>, mut entry: Entry)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let moved_ms = AtomicU64::new(0);
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let both = async {
        tokio::try_join!(copy(near_read, far_write, started, &moved_ms), copy(far_read, near_write, started, &moved_ms)).map(drop)
    };
    tokio::select! {
        ended = both => match ended {
            Ok(()) => entry.ended(),
            Err(error) => {
                entry.reason = Some(if connection.peer.is_some() { Reason::ApplicationReset } else { Reason::UpstreamReset });
                entry.detail = Some(error.to_string());
            }
        },
        reason = ending(connection, active, started, &moved_ms) => entry.reason = Some(reason),
    }
}

/// Copies one direction; the end of the source is passed on as the end of the sink, so that half-closed works.
async fn copy<R, W>(mut source: ReadHalf<R>, mut sink: WriteHalf<W>, started: Instant, moved_ms: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = source.read(&mut buffer).await?;
        if count == 0 {
            return sink.shutdown().await;
        }
        sink.write_all(buffer.get(..count).unwrap_or_default()).await?;
        sink.flush().await?;
        moved_ms.store(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Waits for what ends a tunnel from our side: drain, age, idleness, or policies that no longer permit it.
async fn ending(connection: &Connection, active: &Arc<Active>, started: Instant, moved_ms: &AtomicU64) -> Reason {
    let limits = &active.snapshot.limits;
    let idle_max = limits.duration(Limit::IdleMs);
    let age_max = connection.age_max(active).unwrap_or(active.snapshot.connection_age_max);
    let drained = async {
        connection.shared.drained().await;
        tokio::time::sleep(limits.duration(Limit::DrainMs)).await;
    };
    let idled = async {
        loop {
            let moved = Duration::from_millis(moved_ms.load(Ordering::Relaxed));
            let idle = started.elapsed().saturating_sub(moved);
            if idle >= idle_max {
                return;
            }
            tokio::time::sleep((idle_max - idle).max(Duration::from_millis(100))).await;
        }
    };
    tokio::select! {
        () = drained => Reason::Draining,
        () = tokio::time::sleep(age_max) => Reason::ConnectionAge,
        () = idled => Reason::IdleTimeout,
        reason = denied_by_change(connection) => reason,
    }
}

/// Waits until a changed configuration no longer permits this inbound connection (design §9.9).
async fn denied_by_change(connection: &Connection) -> Reason {
    let mut configs = connection.shared.config.subscribe();
    loop {
        if connection.peer.is_none() || configs.changed().await.is_err() {
            return std::future::pending().await;
        }
        let Some(active) = configs.borrow_and_update().clone() else { continue };
        let mut entry = begin(connection, &active, Direction::Inbound);
        let permitted = decide(connection, &active, &mut entry).is_some();
        entry.ended();
        if !permitted {
            return entry.reason.unwrap_or(Reason::NotPermitted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_one_direction_leaves_the_other_open() {
        let (mut client, near) = tokio::io::duplex(64);
        let (mut server, far) = tokio::io::duplex(64);
        let moved = AtomicU64::new(0);
        let started = Instant::now();
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let copies = async {
            tokio::try_join!(copy(near_read, far_write, started, &moved), copy(far_read, near_write, started, &moved)).map(drop)
        };
        let talk = async {
            client.write_all(b"ask").await.expect("ask");
            client.shutdown().await.expect("half-close");
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.expect("read to the end");
            assert_eq!(asked, b"ask");
            server.write_all(b"answer").await.expect("answer after the half-close");
            server.shutdown().await.expect("close");
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await.expect("read the answer");
            assert_eq!(answered, b"answer");
        };
        let (copied, ()) = tokio::join!(copies, talk);
        copied.expect("both directions end cleanly");
    }
}
