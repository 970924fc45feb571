//! A sidecar on a machine whose clock is wrong, by the library `libfaketime`.

use super::Loopback;
use super::workload::{self, Serving};
use crate::Shown;
use std::path::Path;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Five minutes before and five after: it gets its SVID, peers believe it and it believes them.
pub(crate) fn five_minutes(loopback: &mut Loopback) -> Result<Shown, String> {
    if !Path::new(LIBRARY).exists() {
        return Ok(Shown::Skipped("the library `libfaketime` is not installed".into()));
    }
    let mut told = Vec::new();
    for shift in ["+5m", "-5m"] {
        let environment = [("LD_PRELOAD", LIBRARY), ("FAKETIME", shift), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let Serving { _sidecar, admin, dir, .. } = workload::serving(loopback, &format!("skew{shift}"), &environment)?;
        let deadline = std::time::Instant::now() + super::DEADLINE;
        let answered = loop {
            let answered = loopback.runtime.block_on(crate::http::get(loopback.to_peer, "/"));
            match answered {
                Ok((200, _)) => break Ok(()),
                other if std::time::Instant::now() > deadline => break Err(format!("{other:?}")),
                _ => std::thread::sleep(std::time::Duration::from_millis(100)),
            }
        };
        let log = || std::fs::read_to_string(dir.join("proxy.log")).unwrap_or_default();
        answered.map_err(|other| format!("{shift}: {other}\n{}", log()))?;
        let (_, metrics) = loopback.runtime.block_on(crate::http::get(admin, "/metrics"))?;
        let ahead = metrics.lines().find_map(|line| line.strip_prefix("rondel_clock_ahead_ms "));
        let ahead: i64 = ahead.and_then(|ahead| ahead.trim().parse().ok()).ok_or("no `rondel_clock_ahead_ms`")?;
        let wanted = if shift.starts_with('+') { 300_000 } else { -300_000 };
        if (ahead - wanted).abs() > 10_000 {
            return Err(format!("{shift}: it measures {ahead} ms"));
        }
        told.push(format!("{shift}: {ahead} ms measured"));
    }
    Ok(Shown::Yes(format!("believed and believing; {}", told.join(", "))))
}
