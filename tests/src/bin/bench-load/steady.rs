//! Requests at times that nobody's answers can move.
//!
//! One schedule of random times (a Poisson process of fixed seed) is worked off by as many threads as there are connections:
//! whichever is free takes the next time, waits for it, sends, and counts from that time on. A server that stalls lets due
//! requests pile up, and every one of them tells of it.

use crate::Latencies;
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request that takes longer is an error.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Between the start of the threads and the first due time.
const HEAD_START: Duration = Duration::from_millis(100);
/// Of one line of a head.
const LINE_BYTES_MAX: u64 = 16 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to connect; also the host that is asked for
    address: SocketAddr,
    /// The path
    #[arg(default_value = "/")]
    path: String,
    /// Requests a second, on average
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Connections, one request at a time on each
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Seconds until the last due time
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Requests after which a connection is replaced by a new one; 0 keeps it
    #[arg(long, default_value_t = 0)]
    renew: u32,
    /// A header of every request, `name: value`; may be repeated
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
}

/// The times at which requests are due, from the start of the load.
#[derive(Debug)]
struct Schedule {
    random: u64,
    due: f64,
    rate: f64,
    end: f64,
}

impl Schedule {
    const fn new(rate: f64, end: f64) -> Self {
        Self { random: 0x5DEE_CE66_D1CE_4E5B, due: 0.0, rate, end }
    }

    fn next(&mut self) -> Option<Duration> {
        // SplitMix64 (Steele, Lea and Flood 2014).
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // Above 0, so that the logarithm is finite.
        let share = ((mixed >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        self.due -= share.ln() / self.rate;
        (self.due < self.end).then(|| Duration::from_secs_f64(self.due))
    }
}

/// What one thread saw.
#[derive(Default)]
struct Seen {
    latencies: Latencies,
    /// How much later than due its requests were sent though the connection was free: the load's own fault.
    late: Latencies,
    errors: u64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<serde_json::Value> {
    let headers: String = arguments.headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", arguments.path, arguments.address);
    let mut connections = Vec::new();
    for _ in 0..arguments.connections {
        let mut connection = connect(arguments.address).context("connect")?;
        exchange(&mut connection, request.as_bytes()).context("the first request of a connection")?;
        connections.push(connection);
    }
    let schedule = Mutex::new(Schedule::new(arguments.rate, arguments.seconds));
    let start = Instant::now() + HEAD_START;
    let mut all = Seen::default();
    std::thread::scope(|scope| {
        let (schedule, request) = (&schedule, request.as_bytes());
        let work = |connection| scope.spawn(move || work_off(arguments, schedule, start, request, connection));
        let threads: Vec<_> = connections.into_iter().map(work).collect();
        for thread in threads {
            let seen = thread.join().unwrap_or_else(|_| Seen { errors: 1, ..Seen::default() });
            all.latencies.extend(seen.latencies);
            all.late.extend(seen.late);
            all.errors += seen.errors;
        }
    });
    let over = start.elapsed();
    let mut figures = all.latencies.figures(over, all.errors);
    let late = all.late.figures(over, 0);
    if let Some(fields) = figures.as_object_mut() {
        fields.insert("late_p99".to_owned(), late.get("p99").cloned().unwrap_or_default());
    }
    Ok(figures)
}

fn work_off(
    arguments: &Arguments,
    schedule: &Mutex<Schedule>,
    start: Instant,
    request: &[u8],
    first: BufReader<TcpStream>,
) -> Seen {
    // The kernel may wake a sleeper as much as this later, so that it can wake several at once.
    let _as_it_was = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut seen = Seen::default();
    let (mut open, mut used) = (Some(first), 0);
    loop {
        let next = schedule.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(due) = next.map(|due| start + due) else { return seen };
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            #[expect(clippy::disallowed_methods, reason = "the time itself is the event")]
            std::thread::sleep(early);
            seen.late.add(due.elapsed());
        }
        let connection = open.take().map_or_else(|| connect(arguments.address), Ok);
        let done = connection.map_err(anyhow::Error::from).and_then(|mut connection| {
            let status = exchange(&mut connection, request)?;
            if status != 200 {
                bail!("status {status}");
            }
            Ok(connection)
        });
        match done {
            Ok(connection) => {
                seen.latencies.add(due.elapsed());
                used += 1;
                let is_spent = arguments.renew > 0 && used % arguments.renew == 0;
                open = (!is_spent).then_some(connection);
            }
            Err(_) => seen.errors += 1,
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, ANSWER_DEADLINE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    Ok(BufReader::new(stream))
}

/// Sends one request and takes its whole answer; gives the status.
fn exchange(connection: &mut BufReader<TcpStream>, request: &[u8]) -> anyhow::Result<u16> {
    connection.get_mut().write_all(request)?;
    answer(connection)
}

fn answer(from: &mut impl BufRead) -> anyhow::Result<u16> {
    let mut line = String::new();
    read_line(from, &mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.trim().parse().ok()).context("not an answer of HTTP/1.1")?;
    let (mut length, mut is_chunked) = (None, false);
    loop {
        read_line(from, &mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            is_chunked = true;
        }
    }
    if is_chunked {
        loop {
            read_line(from, &mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).context("a chunk's size")?;
            skip(from, size)?;
            // The chunk's end, or that of the whole.
            read_line(from, &mut line)?;
            if size == 0 {
                return Ok(status);
            }
        }
    }
    skip(from, length.context("an answer without a length")?)?;
    Ok(status)
}

fn read_line(from: &mut impl BufRead, line: &mut String) -> anyhow::Result<()> {
    line.clear();
    from.take(LINE_BYTES_MAX).read_line(line)?;
    if line.ends_with('\n') { Ok(()) } else { bail!("the connection ended within an answer") }
}

fn skip(from: &mut impl BufRead, size: u64) -> anyhow::Result<()> {
    let read = std::io::copy(&mut from.take(size), &mut std::io::sink())?;
    if read == size { Ok(()) } else { bail!("the connection ended within a body") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_keeps_its_rate_is_the_same_each_time_and_ends() {
        let times = || {
            let mut schedule = Schedule::new(1000.0, 20.0);
            std::iter::from_fn(move || schedule.next()).collect::<Vec<_>>()
        };
        let first = times();
        assert!((19_400..20_600).contains(&first.len()), "{} requests in 20 s", first.len());
        assert!(first.is_sorted() && first.last().is_some_and(|last| *last < Duration::from_secs(20)));
        assert_eq!(first, times());
    }

    #[test]
    fn answers_are_read_to_their_end_and_no_further() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Some(200)),
            ("HTTP/1.1 403 \r\ncontent-length: 0\r\n\r\n", Some(403)),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Some(200)),
            ("HTTP/1.1 200 OK\r\n\r\nabc", None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", None),
            ("HTTP/1.1 200 OK\r\ncontent-le", None),
            ("", None),
        ] {
            let rest = if expected.is_some() { "next" } else { "" };
            let mut from = std::io::Cursor::new(format!("{text}{rest}"));
            assert_eq!(answer(&mut from).ok(), expected, "{text:?}");
            if expected.is_some() {
                let mut left = String::new();
                from.read_to_string(&mut left).unwrap();
                assert_eq!(left, "next", "{text:?}");
            }
        }
    }
}
