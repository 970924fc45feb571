//! Addresses on loopback for programs that a test starts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel hands out by itself (32768 and up on Linux), which anybody could take between our look and
/// the program's start, and above those of the bank's demo.
const FIRST: u16 = 28_000;
const COUNT: u16 = 4_700;

static TAKEN: AtomicU16 = AtomicU16::new(0);

/// An address that is free now and that no other call of this process gets. Processes begin at different places.
///
/// Panics if every port of the range is in use.
#[expect(clippy::panic, reason = "a test without a port cannot go on")]
pub fn free() -> SocketAddr {
    let begin = u16::try_from(u32::from(COUNT).min(std::process::id().wrapping_mul(131) % u32::from(COUNT))).unwrap_or(0);
    for _ in 0..COUNT {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(step) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT)
}
