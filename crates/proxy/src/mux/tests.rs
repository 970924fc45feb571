//! Two ends that talk over a pipe, and one end against frames written by hand.

use super::*;
use std::future::poll_fn;
use std::task::Waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Nothing here takes so long; a test that would hang says so.
const DEADLINE: Duration = Duration::from_secs(60);
const WINDOW_SIZE: usize = 256 * 1024;
const TAKER: Side = Side::Taker { streams_max: 100 };

/// Deterministic: a failing test fails again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).expect("31 bits") % bound.max(1)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("length").to_be_bytes();
    [&length[1..], &[kind], &stream.to_be_bytes(), payload].concat()
}

/// The frames in these bytes.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((&[a, b, c, kind, d, e, f, g], rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let (payload, rest) = rest.split_at(number(&[a, b, c]).try_into().expect("length"));
        all.push((kind, number(&[d, e, f, g]), payload.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame");
    all
}

/// Lets everything that can go on go on.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// What waits at this end for whoever reads a stream.
fn waiting(mux: &Mux, id: u32) -> usize {
    mux.0.lock().streams.get(&id).map_or(0, |slot| slot.inbox.len())
}

/// Two ends, both moving. What arrives is served by `serve`.
fn pair<F>(wire_bytes: usize, serve: impl Fn(Stream) -> F + Send + 'static) -> (Mux, Mux, JoinSet<Ended>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (near, far) = duplex(wire_bytes);
    let (opener, driver) = over(near, Side::Opener);
    let (taker, mut other) = over(far, TAKER);
    let mut drivers = JoinSet::new();
    drivers.spawn(driver.run());
    drivers.spawn(async move {
        loop {
            match other.next().await {
                Ok(stream) => drop(tokio::spawn(serve(stream))),
                Err(ended) => return ended,
            }
        }
    });
    (opener, taker, drivers)
}

/// Sends back what comes, in pieces of random sizes, to its end.
async fn echo(mut stream: Stream) {
    let (mut random, mut buf) = (Random(u64::from(stream.id)), vec![0; 50_000]);
    loop {
        let size = 1 + random.below(buf.len());
        match stream.read(&mut buf[..size]).await.expect("reads") {
            0 => break,
            count => stream.write_all(&buf[..count]).await.expect("writes"),
        }
    }
    stream.shutdown().await.expect("ends");
}

#[tokio::test]
async fn bytes_of_many_streams_arrive_in_their_order_both_ways_at_once() {
    for wire_bytes in [61, 4096, 1 << 20] {
        let (opener, taker, mut drivers) = pair(wire_bytes, echo);
        let mut calls = JoinSet::new();
        for seed in 0..20 {
            let mut random = Random(seed);
            let stream = opener.open().expect("room");
            let most = if wire_bytes < 100 { 20_000 } else { WINDOW_SIZE + 100_000 };
            let size = [0, 1, most, random.below(most)][random.below(4)];
            let sent = random.bytes(size);
            calls.spawn(async move {
                let (mut reads, mut writes) = tokio::io::split(stream);
                let write = async {
                    let mut rest = sent.as_slice();
                    while !rest.is_empty() {
                        let (now, later) = rest.split_at((1 + random.below(100_000)).min(rest.len()));
                        writes.write_all(now).await.expect("writes");
                        rest = later;
                    }
                    writes.shutdown().await.expect("ends");
                };
                let mut came = Vec::new();
                let (read, ()) = tokio::join!(reads.read_to_end(&mut came), write);
                read.expect("reads");
                assert!(came == sent, "{} bytes of {}", came.len(), sent.len());
                sent.len()
            });
        }
        let calls = timeout(DEADLINE, calls.join_all()).await.expect("an end");
        assert!(calls.into_iter().sum::<usize>() > 20_000);
        settle().await;
        assert_eq!((opener.streams(), taker.streams()), (0, 0), "a stream that ended is held");
        opener.leave();
        for _ in 0..2 {
            let ended = timeout(DEADLINE, drivers.join_next()).await.expect("an end").expect("two").expect("no panic");
            assert!(matches!(ended, Ended::Closed), "{ended}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_one_window_and_stops_no_other() {
    let (near, far) = duplex(4096);
    let (opener, driver) = over(near, Side::Opener);
    let (taker, mut other) = over(far, TAKER);
    let _moves = tokio::spawn(driver.run());
    let mut unread = opener.open().expect("room");
    let mut written = 0;
    let stuffed = async {
        loop {
            written += unread.write(&[7; 10_000]).await.expect("writes");
        }
    };
    let arrived = async {
        let stream = other.next().await.expect("a stream");
        // As often as there is something to move, and far more.
        let moved = timeout(Duration::from_millis(300), other.next()).await;
        assert!(moved.is_err(), "{moved:?}");
        stream
    };
    let mut held = tokio::select! { stream = arrived => stream, () = stuffed => panic!("endless") };
    assert_eq!((written, waiting(&taker, 1)), (WINDOW_SIZE, WINDOW_SIZE));

    // Another is served meanwhile.
    let _serves = tokio::spawn(async move {
        while let Ok(stream) = other.next().await {
            tokio::spawn(echo(stream));
        }
    });
    let (mut reads, mut writes) = tokio::io::split(opener.open().expect("room"));
    let sent = Random(1).bytes(2 * WINDOW_SIZE);
    let mut came = Vec::new();
    let talk = async {
        let write = async {
            writes.write_all(&sent).await.expect("writes");
            writes.shutdown().await.expect("ends");
        };
        let (read, ()) = tokio::join!(reads.read_to_end(&mut came), write);
        read.expect("reads");
    };
    timeout(DEADLINE, talk).await.expect("an end");
    assert!(came == sent);
    assert_eq!(waiting(&taker, 1), WINDOW_SIZE);

    // And it goes on when somebody reads.
    let (write, read) = (unread.write_all(&[8; WINDOW_SIZE]), async {
        let mut all = vec![0; 2 * WINDOW_SIZE];
        held.read_exact(&mut all).await.expect("reads");
        all
    });
    let (wrote, all) = timeout(DEADLINE, async { tokio::join!(write, read) }).await.expect("an end");
    wrote.expect("writes");
    assert!(all[..WINDOW_SIZE].iter().all(|byte| *byte == 7) && all[WINDOW_SIZE..].iter().all(|byte| *byte == 8));
}

#[tokio::test]
async fn a_wire_that_takes_nothing_bounds_what_waits_to_be_written() {
    let (near, _far) = duplex(1);
    let (opener, driver) = over(near, Side::Opener);
    let _moves = tokio::spawn(driver.run());
    let mut streams: Vec<_> = (0..20).map(|_| opener.open().expect("room")).collect();
    let mut written = 0;
    for stream in &mut streams {
        while let Ok(count) = timeout(Duration::from_millis(1), stream.write(&[7; 100_000])).await {
            written += count.expect("writes");
        }
    }
    // What waits to be written, what the driver took of it to write, and one frame over.
    assert!(written <= 2 * OUTPUT_BYTES_MAX + 2 * FRAME_BYTES_MAX, "{written}");
    assert!(opener.0.lock().output.len() <= OUTPUT_BYTES_MAX + FRAME_BYTES_MAX + 1000);
}

#[tokio::test]
async fn either_side_can_end_its_half_and_go_on_reading() {
    let (opener, taker, _drivers) = pair(4096, async |mut stream: Stream| {
        let mut came = Vec::new();
        stream.read_to_end(&mut came).await.expect("reads");
        assert_eq!(came, b"ping");
        assert!(!stream.is_spent() || stream.read(&mut [0; 1]).await.expect("an end stays one") == 0);
        stream.write_all(b"pong").await.expect("the other half is open");
        stream.shutdown().await.expect("ends");
        stream.shutdown().await.expect("ends once");
        assert!(stream.write(b"more").await.is_err(), "written behind the end");
    });
    let mut stream = opener.open().expect("room");
    assert!(!stream.is_spent());
    stream.write_all(b"ping").await.expect("writes");
    stream.shutdown().await.expect("ends");
    assert_eq!(stream.write(b"x").await.expect_err("ended").kind(), io::ErrorKind::BrokenPipe);
    let mut came = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut came)).await.expect("an end").expect("reads");
    assert_eq!(came, b"pong");
    assert!(stream.is_spent());
    drop(stream);
    settle().await;
    assert_eq!((opener.streams(), taker.streams()), (0, 0));
}

#[tokio::test]
async fn a_stream_that_is_let_go_is_reset_for_the_other_end_behind_what_was_sent() {
    let (told, mut hears) = tokio::sync::mpsc::channel(8);
    let (opener, _taker, _drivers) = pair(4096, move |mut stream: Stream| {
        let told = told.clone();
        async move {
            let mut came = Vec::new();
            let mut first = [0; 4];
            stream.read_exact(&mut first).await.expect("what was sent");
            let read = stream.read_to_end(&mut came).await.expect_err("no end").kind();
            let write = stream.write(b"x").await.expect_err("nobody reads").kind();
            told.send((first, came, read, write, stream.is_spent())).await.expect("told");
        }
    });
    let mut stream = opener.open().expect("room");
    stream.write_all(b"ping").await.expect("writes");
    drop(stream);
    let told = timeout(DEADLINE, hears.recv()).await.expect("in time").expect("told");
    assert_eq!(told, (*b"ping", vec![], io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, true));
    assert_eq!(opener.streams(), 0);

    // From the other side: whoever waits is woken.
    let (opener, _taker, _drivers) = pair(4096, async |stream: Stream| drop(stream));
    let mut stream = opener.open().expect("room");
    let read = timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("woken");
    assert_eq!(read.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    let mut stream = opener.open().expect("room");
    let write = timeout(DEADLINE, stream.write_all(&[0; 2 * WINDOW_SIZE])).await.expect("woken");
    assert_eq!(write.expect_err("reset").kind(), io::ErrorKind::BrokenPipe);
}

/// One end, and a peer that writes what it likes.
fn against(side: Side) -> (DuplexStream, Mux, Driver<DuplexStream>) {
    let (far, near) = duplex(1 << 20);
    let (mux, driver) = over(near, side);
    (far, mux, driver)
}

/// Why the connection ended, with the streams that came held until then.
async fn ended(driver: &mut Driver<DuplexStream>) -> Ended {
    let mut held = Vec::new();
    let run = async {
        loop {
            match driver.next().await {
                Ok(stream) => held.push(stream),
                Err(ended) => return ended,
            }
        }
    };
    timeout(DEADLINE, run).await.expect("an end")
}

/// What this end has written so far.
async fn written(far: &mut DuplexStream, driver: &mut Driver<DuplexStream>) -> Vec<(u8, u32, Vec<u8>)> {
    let (mut bytes, mut buf) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        assert!(moved(driver).await.is_none(), "a stream or an end that was not expected");
        let read = poll_fn(|cx| {
            let mut read = ReadBuf::new(&mut buf);
            Poll::Ready(Pin::new(&mut *far).poll_read(cx, &mut read).is_ready().then(|| read.filled().len()))
        });
        match read.await {
            Some(count) => bytes.extend_from_slice(&buf[..count]),
            None => return frames(&bytes),
        }
    }
}

/// Moves what can be moved now.
async fn moved(driver: &mut Driver<DuplexStream>) -> Option<Result<Stream, Ended>> {
    poll_fn(|cx| match driver.poll_next(cx) {
        Poll::Ready(next) => Poll::Ready(Some(next)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_ends_the_connection() {
    let window = [frame(OPEN, 1, b""), frame(DATA, 1, &[0; 32_768]).repeat(8)].concat();
    let cases: [(&str, Side, Vec<u8>, &str); 34] = [
        ("a request of HTTP/1", TAKER, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), "32768"),
        ("a preface of HTTP/2", TAKER, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "32768"),
        ("an unknown kind", TAKER, frame(9, 0, b""), "not known"),
        ("an unknown kind with a payload", TAKER, frame(255, 1, b"abc"), "not known"),
        ("data that is too long", TAKER, [frame(OPEN, 1, b""), frame(DATA, 1, &[0; 32_769])].concat(), "32768"),
        ("a frame that is far too long", TAKER, b"\xff\xff\xff\x01\0\0\0\x01".to_vec(), "32768"),
        ("a frame without data that is too long", TAKER, b"\0\x80\x01\x07\0\0\0\0".to_vec(), "32768"),
        ("an opening with a payload", TAKER, frame(OPEN, 1, b"x"), "not known"),
        ("an end with a payload", TAKER, [frame(OPEN, 1, b""), frame(END, 1, b"x")].concat(), "not known"),
        ("a reset with a payload", TAKER, [frame(OPEN, 1, b""), frame(RESET, 1, b"x")].concat(), "not known"),
        ("a window of three bytes", TAKER, [frame(OPEN, 1, b""), frame(WINDOW, 1, b"abc")].concat(), "not known"),
        ("a window of five bytes", TAKER, [frame(OPEN, 1, b""), frame(WINDOW, 1, b"abcde")].concat(), "not known"),
        ("leaving with a payload", TAKER, frame(LEAVING, 0, b"x"), "not known"),
        ("a ping with a payload", TAKER, frame(PING, 0, b"x"), "not known"),
        ("a pong with a payload", TAKER, frame(PONG, 0, b"x"), "not known"),
        ("a bound told to the one that tells it", TAKER, frame(STREAMS, 0, &[0; 4]), "not known"),
        ("a bound of three bytes", Side::Opener, frame(STREAMS, 0, &[0; 3]), "not known"),
        ("the second stream first", TAKER, frame(OPEN, 2, b""), "next one"),
        ("stream 0", TAKER, frame(OPEN, 0, b""), "next one"),
        ("the same stream twice", TAKER, frame(OPEN, 1, b"").repeat(2), "next one"),
        ("a stream left out", TAKER, [frame(OPEN, 1, b""), frame(OPEN, 3, b"")].concat(), "next one"),
        ("a stream opened by the one that takes them", Side::Opener, frame(OPEN, 1, b""), "next one"),
        ("one byte more than the window", TAKER, [window.clone(), frame(DATA, 1, b"x")].concat(), "more bytes than the window"),
        ("data of a stream that nobody opened", TAKER, frame(DATA, 1, b"x"), "never opened"),
        ("data of no stream", TAKER, [frame(OPEN, 1, b""), frame(DATA, 0, b"x")].concat(), "never opened"),
        ("a window of a stream that nobody opened", Side::Opener, frame(WINDOW, 1, &[0; 4]), "never opened"),
        (
            "bytes behind the end",
            TAKER,
            [frame(OPEN, 1, b""), frame(END, 1, b""), frame(DATA, 1, b"x")].concat(),
            "behind the end",
        ),
        ("two ends", TAKER, [frame(OPEN, 1, b""), frame(END, 1, b"").repeat(2)].concat(), "ends twice"),
        ("a window that overflows", TAKER, [frame(OPEN, 1, b""), frame(WINDOW, 1, &[0xff; 4])].concat(), "2^32"),
        (
            "two windows that overflow",
            TAKER,
            [
                frame(OPEN, 1, b""),
                frame(WINDOW, 1, &[0x7f, 0xff, 0xff, 0xff]).repeat(2),
                frame(WINDOW, 1, &[0, 0xff, 0xff, 0xff]),
            ]
            .concat(),
            "2^32",
        ),
        ("more asked than read", TAKER, frame(PING, 0, b"").repeat(OUTPUT_BYTES_CUT_OFF / 8 + 200_000), "does not read"),
        (
            "more opened than read",
            Side::Taker { streams_max: 0 },
            (1..400_000).flat_map(|id| frame(OPEN, id, b"")).collect(),
            "does not read",
        ),
        ("soundness, then garbage", TAKER, [frame(OPEN, 1, b""), frame(DATA, 1, b"abc"), b"garbage!".to_vec()].concat(), "32768"),
        ("a window, then its last byte and garbage", TAKER, [window, frame(99, 1, b"")].concat(), "not known"),
    ];
    for (name, side, bytes, text) in cases {
        let (mut far, mux, mut driver) = against(side);
        let write = async {
            // The other side may have ended already.
            let _sent = far.write_all(&bytes).await;
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! { ended = ended(&mut driver) => ended, () = write => panic!("{name}: taken") };
        assert!(matches!(&ended, Ended::Protocol(said) if said.contains(text)), "{name}: {ended}");
        assert!(mux.is_over(), "{name}");
        let again = driver.next().await.expect_err(name);
        assert_eq!(again.to_string(), ended.to_string(), "{name}: an ended connection goes on");
    }
}

#[tokio::test]
async fn a_whole_window_is_no_fault_and_frames_may_be_cut_anywhere() {
    let bytes = [
        frame(OPEN, 1, b""),
        frame(DATA, 1, b""),
        frame(DATA, 1, b"abc"),
        frame(PING, 0, b""),
        frame(DATA, 1, &[7; 32_768]),
        frame(LEAVING, 0, b""),
        frame(DATA, 1, b"def"),
        frame(END, 1, b""),
    ]
    .concat();
    let mut expected = b"abc".to_vec();
    expected.extend([7; 32_768]);
    expected.extend(b"def");
    for size in [1, 3, 4096, bytes.len()] {
        let (mut far, _mux, mut driver) = against(TAKER);
        let mut stream = None;
        for piece in bytes.chunks(size) {
            far.write_all(piece).await.expect("writes");
            if let Some(arrived) = moved(&mut driver).await {
                stream = Some(arrived.expect("sound"));
            }
        }
        let told = written(&mut far, &mut driver).await;
        assert_eq!(told, [(STREAMS, 0, vec![0, 0, 0, 100]), (PONG, 0, vec![])], "by {size}");
        let mut came = Vec::new();
        stream.expect("a stream").read_to_end(&mut came).await.expect("reads");
        assert!(came == expected, "by {size}");
    }
    let (mut far, mux, mut driver) = against(TAKER);
    far.write_all(&[frame(OPEN, 1, b""), frame(DATA, 1, &[0; 32_768]).repeat(8)].concat()).await.expect("writes");
    let _held = driver.next().await.expect("a stream");
    let _told = written(&mut far, &mut driver).await;
    assert_eq!(waiting(&mux, 1), WINDOW_SIZE);
    drop(far);
    assert!(matches!(ended(&mut driver).await, Ended::Closed));
}

#[tokio::test]
async fn the_stream_over_the_bound_is_refused_and_counted_until_its_server_lets_go() {
    let (mut far, taker, mut driver) = against(Side::Taker { streams_max: 2 });
    far.write_all(&(1..=3).flat_map(|id| frame(OPEN, id, b"")).collect::<Vec<_>>()).await.expect("writes");
    let (first, second) = (driver.next().await.expect("one"), driver.next().await.expect("two"));
    assert_eq!((first.id, second.id, taker.streams()), (1, 2, 2));
    let told = written(&mut far, &mut driver).await;
    assert_eq!(told, [(STREAMS, 0, vec![0, 0, 0, 2]), (RESET, 3, vec![])]);
    // To open and reset in turn gains nothing while somebody still serves what was reset.
    far.write_all(&[frame(RESET, 1, b""), frame(OPEN, 4, b"")].concat()).await.expect("writes");
    assert_eq!(written(&mut far, &mut driver).await, [(RESET, 4, vec![])]);
    drop(first);
    far.write_all(&frame(OPEN, 5, b"")).await.expect("writes");
    assert_eq!(driver.next().await.expect("room again").id, 5);
    drop(second);
    assert_eq!(written(&mut far, &mut driver).await, [(RESET, 5, vec![]), (RESET, 2, vec![])]);
}

#[tokio::test]
async fn no_more_streams_are_opened_than_the_peer_has_told() {
    let (mut far, opener, mut driver) = against(Side::Opener);
    let mut held: Vec<_> = std::iter::from_fn(|| opener.open()).collect();
    assert_eq!(held.len(), 32, "before the peer has told");
    far.write_all(&frame(STREAMS, 0, &40_u32.to_be_bytes())).await.expect("writes");
    assert_eq!(written(&mut far, &mut driver).await, (1..=32).map(|id| (OPEN, id, vec![])).collect::<Vec<_>>());
    held.extend(std::iter::from_fn(|| opener.open()));
    assert_eq!(held.len(), 40);
    held.truncate(39);
    assert_eq!(opener.open().expect("the place of one that was let go").id, 41);
    far.write_all(&frame(STREAMS, 0, &[0; 4])).await.expect("writes");
    written(&mut far, &mut driver).await;
    assert!(opener.open().is_none() && !opener.is_over());
    let (_far, taker, _driver) = against(TAKER);
    assert!(taker.open().is_none(), "the one that takes them opens none");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_asked_for_a_sign_of_life_and_given_up() {
    // One that answers, however late within its time.
    let (mut far, opener, mut driver) = against(Side::Opener);
    let stream = opener.open().expect("room");
    let begun = tokio::time::Instant::now();
    let answers = async {
        let mut pings = 0;
        while begun.elapsed() < Duration::from_secs(60) {
            let mut header = [0; HEADER_BYTES];
            far.read_exact(&mut header).await.expect("reads");
            if header[3] == PING {
                pings += 1;
                tokio::time::sleep(Duration::from_secs(2)).await;
                far.write_all(&frame(PONG, 0, b"")).await.expect("writes");
            }
        }
        pings
    };
    let pings = tokio::select! { next = driver.next() => panic!("{next:?}"), pings = answers => pings };
    assert!((9..=20).contains(&pings), "{pings} questions in a minute");
    // And then says no more.
    let silent = tokio::time::Instant::now();
    let ended_by = ended(&mut driver).await;
    assert!(matches!(ended_by, Ended::Silent), "{ended_by}");
    assert!((6..=9).contains(&silent.elapsed().as_secs()), "{:?}", silent.elapsed());
    let mut stream = stream;
    let error = stream.read(&mut [0; 1]).await.expect_err("ended");
    assert!(matches!(Ended::found_in(&error), Some(Ended::Silent)), "{error}");

    // Nobody is asked while nothing is under way.
    let (mut far, _opener, mut driver) = against(Side::Opener);
    let idle = timeout(Duration::from_secs(3600), driver.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    assert_eq!(written(&mut far, &mut driver).await, []);
}

#[tokio::test]
async fn every_ping_is_answered() {
    for side in [Side::Opener, TAKER] {
        let (mut far, _mux, mut driver) = against(side);
        written(&mut far, &mut driver).await;
        far.write_all(&frame(PING, 0, b"").repeat(3)).await.expect("writes");
        assert_eq!(written(&mut far, &mut driver).await, vec![(PONG, 0, vec![]); 3]);
    }
}

#[tokio::test]
async fn a_connection_that_is_left_ends_with_its_last_stream() {
    let (opener, taker, mut drivers) = pair(4096, echo);
    let (mut first, second) = (opener.open().expect("room"), opener.open().expect("room"));
    opener.leave();
    opener.leave();
    assert!(opener.open().is_none() && opener.is_over());
    settle().await;
    assert!(taker.is_over(), "the peer was not told");
    drop(second);
    settle().await;
    assert!(drivers.try_join_next().is_none(), "a stream was still under way");
    first.write_all(b"still").await.expect("writes");
    first.shutdown().await.expect("ends");
    let mut came = Vec::new();
    first.read_to_end(&mut came).await.expect("reads");
    assert_eq!(came, b"still");
    drop(first);
    for _ in 0..2 {
        let ended = timeout(DEADLINE, drivers.join_next()).await.expect("an end").expect("two").expect("no panic");
        assert!(matches!(ended, Ended::Closed), "{ended}");
    }

    // The one that takes streams asks for it: none is opened any more, and one on its way is refused.
    let (mut far, taker, mut driver) = against(TAKER);
    written(&mut far, &mut driver).await;
    taker.leave();
    far.write_all(&frame(OPEN, 1, b"")).await.expect("writes");
    assert_eq!(written(&mut far, &mut driver).await, [(LEAVING, 0, vec![]), (RESET, 1, vec![])]);
    let (mut far, opener, mut driver) = against(Side::Opener);
    let stream = opener.open().expect("room");
    far.write_all(&frame(LEAVING, 0, b"")).await.expect("writes");
    written(&mut far, &mut driver).await;
    assert!(opener.open().is_none() && opener.is_over());
    drop(stream);
    assert!(matches!(ended(&mut driver).await, Ended::Closed));
}

#[tokio::test]
async fn whoever_waits_on_a_stream_hears_why_the_connection_ended_behind_what_came() {
    let (mut far, opener, mut driver) = against(Side::Opener);
    let (mut whole, mut cut) = (opener.open().expect("room"), opener.open().expect("room"));
    far.write_all(&[frame(DATA, 1, b"all"), frame(END, 1, b""), frame(DATA, 2, b"some")].concat()).await.expect("writes");
    drop(far);
    assert!(matches!(ended(&mut driver).await, Ended::Closed));
    let mut came = Vec::new();
    whole.read_to_end(&mut came).await.expect("it had ended before");
    let error = cut.read_to_end(&mut came).await.expect_err("cut off");
    assert_eq!(came, b"allsome");
    assert!(matches!(Ended::found_in(&error), Some(Ended::Closed)), "{error}");
    let error = cut.write(b"x").await.expect_err("over");
    assert!(matches!(Ended::found_in(&error), Some(Ended::Closed)), "{error}");
    assert!(cut.is_spent() && opener.open().is_none());

    // One that nobody moves any more is over too.
    let (_far, opener, driver) = against(Side::Opener);
    let mut stream = opener.open().expect("room");
    let (read, ()) = tokio::join!(async { stream.read(&mut [0; 1]).await }, async { drop(driver) });
    assert!(Ended::found_in(&read.expect_err("over")).is_some());
}

#[tokio::test]
async fn random_frames_never_panic_and_hold_no_more_than_their_bounds() {
    let mut endings = [0; 2];
    for seed in 0..3000 {
        let mut random = Random(seed);
        let side = if random.below(3) == 0 { Side::Opener } else { Side::Taker { streams_max: 8 } };
        let (mut far, mux, mut driver) = against(side);
        let mut held: Vec<Stream> = Vec::new();
        let mut opened = 0;
        let mut over = None;
        for _ in 0..random.below(120) {
            if side == Side::Opener && random.below(4) == 0 {
                held.extend(mux.open());
            }
            let kind = [OPEN, DATA, DATA, END, RESET, WINDOW, LEAVING, STREAMS, PING, PONG][random.below(10)];
            let known = mux.0.lock().last;
            let id = 1 + u32::try_from(random.below(12)).expect("small") % known.max(1);
            let bytes = match kind {
                // Mostly sound, so that what follows is looked at.
                _ if random.below(150) == 0 => random.bytes(20),
                OPEN if side != Side::Opener => {
                    opened += 1;
                    frame(OPEN, opened, b"")
                }
                OPEN => frame(PING, 0, b""),
                DATA | END | RESET | WINDOW if known == 0 => frame(PING, 0, b""),
                END if random.below(8) > 0 => frame(PING, 0, b""),
                DATA => {
                    let size = random.below(40_000);
                    frame(DATA, id, &vec![1; size.min(32_768)])
                }
                STREAMS if side == Side::Opener => frame(STREAMS, 0, &[0, 0, 0, 8]),
                STREAMS if known == 0 => frame(PONG, 0, b""),
                STREAMS | WINDOW => frame(WINDOW, id, &[0, 0, random.bytes(1)[0], 0]),
                LEAVING if random.below(20) > 0 => frame(PING, 0, b""),
                kind => frame(kind, id, b""),
            };
            far.write_all(&bytes).await.expect("writes");
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(next) = driver.poll_next(&mut cx) {
                match next {
                    Ok(stream) => held.push(stream),
                    Err(ended) => {
                        over = Some(ended);
                        break;
                    }
                }
            }
            for _ in 0..random.below(4) {
                let Some(last) = held.len().checked_sub(1) else { break };
                let stream = &mut held[random.below(last + 1)];
                let size = random.below(50_000);
                match random.below(5) {
                    0 | 1 => drop(Pin::new(stream).poll_write(&mut cx, &vec![2; size])),
                    2 => {
                        let mut buf = vec![0; size];
                        drop(Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut buf)));
                    }
                    3 => drop(Pin::new(stream).poll_shutdown(&mut cx)),
                    _ => drop(held.swap_remove(random.below(last + 1))),
                }
            }
            let state = mux.0.lock();
            assert!(state.streams.values().all(|slot| slot.inbox.len() <= WINDOW_SIZE), "seed {seed}");
            assert!(state.streams.len() <= 32 && state.arrived.len() <= 8, "seed {seed}");
            assert!(state.output.len() <= OUTPUT_BYTES_CUT_OFF + FRAME_BYTES_MAX + HEADER_BYTES, "seed {seed}");
            drop(state);
            let mut buf = vec![0; random.below(100_000)];
            drop(Pin::new(&mut far).poll_read(&mut cx, &mut ReadBuf::new(&mut buf)));
            if over.is_some() {
                break;
            }
        }
        endings[usize::from(over.is_some())] += 1;
    }
    assert!(endings.iter().all(|count| *count > 300), "{endings:?}");
}

#[tokio::test]
async fn streams_travel_over_a_real_connection_too() {
    let (near, far) = crate::http1::tests::loopback(Some(4096)).await;
    let (opener, driver) = over(near, Side::Opener);
    let (_taker, mut other) = over(far, TAKER);
    let _moves = tokio::spawn(driver.run());
    let _serves = tokio::spawn(async move {
        while let Ok(stream) = other.next().await {
            tokio::spawn(echo(stream));
        }
    });
    let mut calls = JoinSet::new();
    for seed in 0..8 {
        let (mut reads, mut writes) = tokio::io::split(opener.open().expect("room"));
        calls.spawn(async move {
            let sent = Random(seed).bytes(500_000);
            let mut came = Vec::new();
            let write = async {
                writes.write_all(&sent).await.expect("writes");
                writes.shutdown().await.expect("ends");
            };
            let (read, ()) = tokio::join!(reads.read_to_end(&mut came), write);
            read.expect("reads");
            assert!(came == sent);
        });
    }
    timeout(DEADLINE, calls.join_all()).await.expect("an end");
}
