use super::*;
use crate::Fields;

fn flood(connection: &mut Connection, count: usize, frames: impl Fn(u32) -> Vec<u8>) -> Result<usize, ConnectionError> {
    for turn in 0..count {
        give(connection, &[frames(turn as u32)]).0?;
        connection.sent(usize::MAX);
    }
    Ok(count)
}

fn status(status: u16) -> Head {
    Head { status, ..Head::default() }
}

#[test]
fn floods_end_the_connection() {
    let id = |turn: u32| 2 * turn + 1;
    let reset = |turn| [headers(id(turn), false, POST), number(kind::RST_STREAM, id(turn), 8)].concat();
    assert_eq!(flood(&mut server(), 2000, reset), Err(ConnectionError::TooManyResets));
    let malformed = |turn| headers(id(turn), true, &[(":path", "/")]);
    assert_eq!(flood(&mut server(), 2000, malformed), Err(ConnectionError::TooManyResets));
    // MadeYouReset, CVE-2025-8671: the peer makes us reset.
    let provoked = |turn| [headers(id(turn), false, POST), number(kind::WINDOW_UPDATE, id(turn), 0)].concat();
    assert_eq!(flood(&mut server(), 2000, provoked), Err(ConnectionError::TooManyResets));
    let idle: [(&str, Vec<u8>); 6] = [
        ("PING", frame(kind::PING, 0, 0, &[0; 8])),
        ("SETTINGS", settings(&[])),
        ("PRIORITY", frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 0])),
        ("empty DATA", data(1, false, b"")),
        ("padding alone", frame(kind::DATA, flag::PADDED, 1, &[0])),
        ("unknown", frame(0xcc, 0, 0, &[])),
    ];
    for (name, bytes) in idle {
        let mut connection = server();
        accepted(&mut connection, &[headers(1, false, POST)]);
        assert_eq!(flood(&mut connection, 20_000, |_| bytes.clone()), Err(ConnectionError::TooManyIdleFrames), "{name}");
    }
}

#[test]
fn an_honest_peer_may_ping_for_ever() {
    let mut connection = server();
    for _ in 0..100 {
        flood(&mut connection, 900, |_| frame(kind::PING, 0, 0, &[0; 8])).unwrap();
        connection.second_passed();
    }
}

#[test]
fn requests_that_ran_into_their_deadline_are_no_flood() {
    let mut connection = server();
    for round in 0..50_u32 {
        let ids = || (0..200).map(|turn| 2 * (200 * round + turn) + 1);
        accepted(&mut connection, &ids().map(|id| headers(id, false, POST)).collect::<Vec<_>>());
        connection.second_passed();
        connection.second_passed();
        accepted(&mut connection, &ids().map(|id| number(kind::RST_STREAM, id, 8)).collect::<Vec<_>>());
    }
}

#[test]
fn answered_requests_earn_resets() {
    let mut connection = server();
    for turn in 0..5000_u32 {
        let id = 4 * turn + 1;
        give(&mut connection, &[headers(id, true, GET), headers(id + 2, false, POST), number(kind::RST_STREAM, id + 2, 8)])
            .0
            .unwrap();
        connection.send_head(StreamId(id), &status(200), true).unwrap();
        connection.release(StreamId(id));
        connection.sent(usize::MAX);
    }
    assert_eq!((connection.held_streams(), connection.open_streams()), (0, 0));
}

#[test]
fn answers_that_nobody_reads_stop_the_input() {
    let mut connection = server();
    let pings = frame(kind::PING, 0, 0, &[0; 8]).repeat(9000);
    let small = settled(Role::Server, Settings { output_bytes_max: 1000, ..Settings::default() });
    connection.settings = small.settings;
    let used = connection.receive(&pings).unwrap();
    assert!(used < 2000 && connection.output().len() < 1100 && !connection.takes_input());
    connection.sent(connection.output().len());
    assert!(connection.takes_input());
    assert_ne!(connection.receive(&pings[used..]), Ok(0));
}

#[test]
fn field_blocks_are_bounded() {
    let mut connection = server();
    let many = [vec![frame(kind::HEADERS, 1, 1, &[])], vec![frame(kind::CONTINUATION, 0, 1, &[]); 100]].concat();
    assert_eq!(give(&mut connection, &many).0, Err(ConnectionError::BlockTooLarge));
    // A name that never ends.
    let mut connection = server();
    let line = [&[0, 0x7f, 0xff, 0xff, 0xff, 0x7f][..], &[b'a'; 16_000]].concat();
    let large = [vec![frame(kind::HEADERS, 1, 1, &line)], vec![frame(kind::CONTINUATION, 0, 1, &[b'a'; 16_384]); 60]].concat();
    assert_eq!(give(&mut connection, &large).0, Err(ConnectionError::BlockTooLarge));
    assert!(connection.line.capacity() < 300_000);
}

#[test]
fn a_head_that_is_too_large_is_told_and_the_next_is_decoded() {
    let long = "v".repeat(200);
    for (settings_of_ours, lines) in [
        (Settings { head_bytes_max: 2000, ..Settings::default() }, vec![("x-long", long.as_str()); 20]),
        (Settings { fields_max: 16, ..Settings::default() }, vec![("x", "y"); 20]),
    ] {
        let mut connection = settled(Role::Server, settings_of_ours);
        let first = headers(1, true, &[GET, &lines].concat());
        // Enters the table behind the bound, and is asked for by the next.
        let entry = [&first[9..], &[0x40, 1, b'k', 1, b'v']].concat();
        let next = frame(kind::HEADERS, 5, 3, &[&block(GET)[..], &[0xbe]].concat());
        let (result, events) = give(&mut connection, &[frame(kind::HEADERS, 5, 1, &entry), next]);
        assert!(result.is_ok());
        assert_eq!(events, [Event::Head(StreamId(1)), Event::Head(StreamId(3))]);
        let mut head = Head::default();
        let arrival = connection.take_head(StreamId(1), &mut head).unwrap();
        assert_eq!((arrival.kind, arrival.end), (ArrivalKind::TooLarge, true));
        assert_eq!(head.path, b"/");
        assert!(head.fields.len() < 16);
        assert_eq!(connection.take_head(StreamId(3), &mut head).unwrap().kind, ArrivalKind::Whole);
        assert_eq!(head.fields.first(b"k"), Some(&b"v"[..]));
    }
}

#[test]
fn crumbs_of_a_cookie_become_one() {
    let mut connection = server();
    accepted(&mut connection, &[headers(1, true, &[GET, &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]].concat())]);
    let mut head = Head::default();
    connection.take_head(StreamId(1), &mut head).unwrap();
    assert_eq!(head.fields.values(b"cookie").collect::<Vec<_>>(), [b"a=1; b=2"]);
    assert_eq!((head.method, head.authority, head.fields.len()), (b"GET".to_vec(), b"a".to_vec(), 2));
}

#[test]
fn streams_beyond_the_limit_are_refused_and_their_data_is_not_an_error() {
    let mut connection = settled(Role::Server, Settings { max_concurrent_streams: 2, ..Settings::default() });
    let requests = [headers(1, false, POST), headers(3, false, POST), headers(5, false, POST), data(5, true, b"a")];
    let (result, events) = give(&mut connection, &requests);
    assert!(result.is_ok());
    assert_eq!(events.len(), 2);
    let sent = written(&mut connection);
    assert_eq!((sent[0].0.kind, sent[0].0.stream, sent[0].1[3]), (kind::RST_STREAM, 5, 7));
}

#[test]
fn windows_are_enforced_and_given_back_by_halves() {
    let ours = Settings { stream_window: 1000, connection_window: 65_535, ..Settings::default() };
    let mut connection = settled(Role::Server, ours.clone());
    accepted(&mut connection, &[headers(1, false, POST), data(1, false, &[7; 900])]);
    assert_eq!(connection.body(StreamId(1)), &[7; 900]);
    connection.consume(StreamId(1), 499);
    assert!(connection.output().is_empty());
    connection.consume(StreamId(1), 1);
    let sent = written(&mut connection);
    assert_eq!(
        (sent.len(), sent[0].0.kind, sent[0].0.stream, &sent[0].1[..]),
        (1, kind::WINDOW_UPDATE, 1, &500_u32.to_be_bytes()[..])
    );
    // 400 unread and 500 given back, so 600 are open.
    accepted(&mut connection, &[data(1, false, &[8; 600])]);
    assert!(connection.output().is_empty());
    accepted(&mut connection, &[data(1, false, &[9; 1])]);
    let sent = written(&mut connection);
    assert_eq!((sent[0].0.kind, sent[0].1[3]), (kind::RST_STREAM, 3));
    assert!(connection.body(StreamId(1)).is_empty());
    // The connection's window.
    let mut connection = settled(Role::Server, Settings { stream_window: 1 << 20, ..ours });
    let flood = [vec![headers(1, false, POST)], vec![data(1, false, &[0; 16_384]); 4]].concat();
    assert_eq!(give(&mut connection, &flood).0, Err(ConnectionError::WindowExceeded));
}

#[test]
fn what_nobody_reads_is_given_back_to_the_connection() {
    let mut connection = server();
    let before = connection.receive_window;
    for turn in 0..400_u32 {
        let id = 2 * turn + 1;
        accepted(&mut connection, &[headers(id, false, POST), data(id, false, &[1; 10_000])]);
        connection.release(StreamId(id));
        accepted(&mut connection, &[data(id, true, &[1; 10_000])]);
        connection.sent(usize::MAX);
    }
    assert_eq!(connection.receive_window + i64::from(connection.due), before);
    assert!(connection.spare_inboxes.bytes() <= 256 * 1024);
}

#[test]
fn data_is_sent_as_windows_and_output_allow() {
    let mut connection = settled(Role::Server, Settings { output_bytes_max: 30_000, ..Settings::default() });
    accepted(&mut connection, &[settings(&[(4, 100)]), headers(1, true, GET), headers(3, true, GET)]);
    for id in [1, 3] {
        connection.send_head(StreamId(id), &status(200), false).unwrap();
    }
    connection.sent(usize::MAX);
    let body = [5; 40_000];
    assert_eq!(connection.send_data(StreamId(1), &body, true), Ok(100), "the stream's window");
    assert_eq!(connection.send_data(StreamId(1), &body, true), Ok(0));
    let (_, events) = give(&mut connection, &[number(kind::WINDOW_UPDATE, 1, 50_000), number(kind::WINDOW_UPDATE, 3, 60_000)]);
    assert_eq!(events, [Event::Writable(StreamId(1))]);
    connection.sent(usize::MAX);
    assert_eq!(connection.send_data(StreamId(1), &body, true), Ok(30_000), "room in the output");
    assert_eq!(connection.send_data(StreamId(3), &body, true), Ok(0));
    assert_eq!(connection.next_event(), None);
    connection.sent(20_000);
    assert_eq!(connection.next_event(), Some(Event::Writable(StreamId(1))));
    assert_eq!(connection.next_event(), Some(Event::Writable(StreamId(3))));
    connection.sent(usize::MAX);
    assert_eq!(connection.send_data(StreamId(3), &[6; 30_000], true), Ok(30_000));
    let sizes: Vec<_> = written(&mut connection).iter().map(|(frame, _)| (frame.length, frame.flags)).collect();
    assert_eq!(sizes, [(16_384, 0), (13_616, 1)]);
    assert_eq!(connection.send_data(StreamId(3), b"a", true), Err(CannotSend::OutOfOrder));
    // 65,535 - 100 - 60,000 are left of the connection's window.
    assert_eq!(connection.send_data(StreamId(1), &body, true), Ok(5435), "the connection's window");
    let (_, events) = give(&mut connection, &[number(kind::WINDOW_UPDATE, 0, 10)]);
    assert_eq!(events, [Event::Writable(StreamId(1))]);
    // Smaller windows of the peer take what it gave before: 50,000 + 100 - 35,535 are less than 100 - 0.
    accepted(&mut connection, &[settings(&[(4, 0)]), number(kind::WINDOW_UPDATE, 0, 100_000)]);
    assert_eq!(connection.send_data(StreamId(1), &body, true), Ok(14_465));
    assert_eq!(connection.send_data(StreamId(1), b"", true), Ok(0), "an end needs no room");
    assert_eq!(connection.send_data(StreamId(1), b"", true), Err(CannotSend::OutOfOrder));
}

#[test]
fn a_window_may_become_negative() {
    let mut connection = settled(Role::Server, Settings::default());
    accepted(&mut connection, &[settings(&[(4, 100)]), headers(1, true, GET)]);
    connection.send_head(StreamId(1), &status(200), false).unwrap();
    assert_eq!(connection.send_data(StreamId(1), &[0; 150], false), Ok(100));
    connection.sent(usize::MAX);
    accepted(&mut connection, &[settings(&[(4, 40)]), number(kind::WINDOW_UPDATE, 1, 60)]);
    assert_eq!(connection.send_data(StreamId(1), &[0; 50], false), Ok(0));
    let (_, events) = give(&mut connection, &[number(kind::WINDOW_UPDATE, 1, 7)]);
    assert_eq!(events, [Event::Writable(StreamId(1))]);
    assert_eq!(connection.send_data(StreamId(1), &[0; 50], false), Ok(7));
}

#[test]
fn a_request_that_is_reset_before_it_was_looked_at_is_not_heard_of() {
    let mut connection = server();
    let (_, events) = give(&mut connection, &[headers(1, false, POST), data(1, false, b"a"), number(kind::RST_STREAM, 1, 8)]);
    assert_eq!((events.len(), connection.held_streams(), connection.heads.len()), (0, 0, 0));
    accepted(&mut connection, &[headers(3, false, POST)]);
    connection.take_head(StreamId(3), &mut Head::default()).unwrap();
    let (_, events) = give(&mut connection, &[data(3, false, b"a"), number(kind::RST_STREAM, 3, 8)]);
    assert_eq!(events, [Event::Reset(StreamId(3), ErrorCode::CANCEL)]);
    assert_eq!(connection.body_state(StreamId(3)), BodyState::Reset(ErrorCode::CANCEL));
    assert_eq!(connection.send_head(StreamId(3), &status(200), true), Err(CannotSend::Reset(ErrorCode::CANCEL)));
    connection.release(StreamId(3));
    assert_eq!(connection.send_head(StreamId(3), &status(200), true), Err(CannotSend::Gone));
}

#[test]
fn an_answer_in_full_stays_though_the_rest_of_the_request_is_not_wanted() {
    let mut connection = client();
    let answer = [headers(3, false, &[(":status", "413")]), data(3, true, b"no"), number(kind::RST_STREAM, 3, 0)];
    let (_, events) = give(&mut connection, &answer);
    assert_eq!(events, [Event::Head(StreamId(3)), Event::Readable(StreamId(3)), Event::Writable(StreamId(3))]);
    assert_eq!((connection.body(StreamId(3)), connection.body_state(StreamId(3))), (&b"no"[..], BodyState::Ended));
    assert_eq!(connection.send_data(StreamId(3), b"more", true), Err(CannotSend::Reset(ErrorCode::NO_ERROR)));
    connection.release(StreamId(3));
    assert!(connection.output().is_empty());
}

#[test]
fn informational_heads_are_bounded() {
    let mut connection = client();
    let (result, _) = give(&mut connection, &vec![headers(1, false, &[(":status", "103")]); 50]);
    assert!(result.is_ok() && connection.heads.len() < 10);
    assert_eq!(connection.body_state(StreamId(1)), BodyState::Reset(ErrorCode::ENHANCE_YOUR_CALM));
}

#[test]
fn a_server_ends_gracefully_in_two_steps() {
    let mut connection = server();
    accepted(&mut connection, &[headers(1, false, POST)]);
    connection.shutdown();
    connection.shutdown();
    let sent = written(&mut connection);
    assert_eq!((sent.len(), &sent[0].1[..4]), (2, &[0x7f, 0xff, 0xff, 0xff][..]));
    // One that was on its way is still served.
    let (_, events) = give(&mut connection, &[headers(3, true, GET), frame(kind::PING, flag::ACK, 0, &sent[1].1)]);
    assert_eq!(events.len(), 1);
    assert_eq!(written(&mut connection)[0].1[..4], [0, 0, 0, 3]);
    let (result, events) = give(&mut connection, &[headers(5, false, POST), data(5, true, b"a")]);
    assert!(result.is_ok() && events.is_empty() && !connection.is_ended());
    connection.release(StreamId(1));
    connection.release(StreamId(3));
    written(&mut connection);
    assert!(connection.is_ended());
}

#[test]
fn goaway_refuses_what_was_not_looked_at() {
    let mut connection = client();
    let (_, events) = give(&mut connection, &[frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])]);
    let refused = ErrorCode::REFUSED_STREAM;
    assert_eq!(events, [Event::Goaway { last: 1, code: ErrorCode::NO_ERROR }, Event::Reset(StreamId(3), refused)]);
    assert_eq!(connection.open(&Head::default(), true), Err(CannotOpen::GoingAway));
    connection.release(StreamId(3));
    let (result, _) = give(&mut connection, &[headers(1, true, &[(":status", "200")])]);
    assert!(result.is_ok());
    connection.release(StreamId(1));
    assert!(connection.is_ended());
}

#[test]
fn a_client_keeps_to_the_peers_limit() {
    let mut connection = settled(Role::Client, Settings::default());
    accepted(&mut connection, &[settings(&[(3, 1)])]);
    let stream = connection.open(&Head::default(), true).unwrap();
    assert_eq!(connection.open(&Head::default(), true), Err(CannotOpen::TooMany));
    accepted(&mut connection, &[headers(stream.number(), true, &[(":status", "200")])]);
    assert!(connection.can_open().is_ok());
    connection.next = 0x8000_0001;
    assert_eq!(connection.open(&Head::default(), true), Err(CannotOpen::Exhausted));
    assert_eq!(server().open(&Head::default(), true), Err(CannotOpen::Server));
}

#[test]
fn ping_waits_for_its_own_answer() {
    let mut connection = server();
    assert!(connection.ping() && !connection.ping() && !connection.ping_answered());
    let sent = written(&mut connection);
    accepted(&mut connection, &[frame(kind::PING, flag::ACK, 0, &[9; 8])]);
    assert!(!connection.ping_answered());
    accepted(&mut connection, &[frame(kind::PING, flag::ACK, 0, &sent[0].1)]);
    assert!(connection.ping_answered() && connection.ping());
}

#[test]
fn a_long_head_is_split_and_comes_back_whole() {
    let (mut client, mut server) = (settled(Role::Client, Settings::default()), server());
    let mut head = Head { method: b"GET".to_vec(), scheme: b"http".to_vec(), path: b"/".to_vec(), ..Head::default() };
    head.version = crate::Version::Http2;
    head.fields.push(b"x-long", &[b'v'; 30_000]);
    client.open(&head, true).unwrap();
    assert_eq!(give(&mut server, &[client.output().to_vec()]).1.len(), 1);
    let mut came = Head::default();
    assert_eq!(server.take_head(StreamId(1), &mut came).unwrap().kind, ArrivalKind::Whole);
    assert_eq!(came, head);
    let kinds: Vec<u8> = written(&mut client).iter().map(|(frame, _)| frame.kind).collect();
    assert_eq!(kinds, [kind::HEADERS, kind::CONTINUATION]);
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    let mut connection = server();
    for turn in 0..100 {
        let id = 2 * turn + 1;
        give(&mut connection, &[headers(id, false, POST), data(id, false, &[0; 5000]), headers(id, true, &[("x", "y")])])
            .0
            .unwrap();
        connection.take_head(StreamId(id), &mut Head::default());
        connection.consume(StreamId(id), 5000);
        assert!(connection.take_trailers(StreamId(id), &mut Fields::default()));
        connection.release(StreamId(id));
        connection.sent(usize::MAX);
    }
    connection.second_passed();
    connection.second_passed();
    assert_eq!(connection.spare_inboxes.bytes() + connection.spare_heads.bytes() + connection.spare_trailers.bytes(), 0);
}

#[test]
fn debug_shows_no_value() {
    let mut connection = server();
    accepted(&mut connection, &[headers(1, true, &[GET, &[("authorization", "hunter2")]].concat())]);
    let mut head = Head::default();
    connection.take_head(StreamId(1), &mut head).unwrap();
    assert!(!format!("{head:?}").contains("hunter2"));
}

#[test]
fn late_frames_of_many_cancelled_streams_are_no_error() {
    let mut connection = settled(Role::Client, Settings::default());
    accepted(&mut connection, &[settings(&[])]);
    for _ in 0..3000 {
        let stream = connection.open(&Head::default(), true).unwrap();
        connection.release(stream);
        connection.sent(usize::MAX);
    }
    for turn in 0..3000 {
        accepted(&mut connection, &[headers(2 * turn + 1, false, &[(":status", "200")]), data(2 * turn + 1, true, b"late")]);
    }
}

#[test]
fn one_that_waits_for_room_and_is_let_go_leaves_nothing() {
    let mut connection = settled(Role::Server, Settings { output_bytes_max: 3000, ..Settings::default() });
    for turn in 0..50 {
        let id = StreamId(2 * turn + 1);
        accepted(&mut connection, &[headers(id.number(), true, GET)]);
        connection.send_head(id, &status(200), false).unwrap();
        assert!(connection.send_data(id, &[0; 5000], true).unwrap() < 5000);
        connection.release(id);
    }
    assert!(connection.waiting.is_empty());
}
