use std::fs;
use std::path::Path;

use super::*;

/// Byte streams of real peers and of ours (`tests/seeds`, names begin with the role that reads them), and what they say.
fn seeds() -> Vec<(Role, String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds");
    let mut seeds = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let role = if name.starts_with("server") { Role::Server } else { Role::Client };
        seeds.push((role, name, fs::read(&path).unwrap()));
    }
    seeds.sort_by(|one, other| one.1.cmp(&other.1));
    assert!(seeds.len() >= 6);
    seeds
}

fn connection(role: Role) -> Connection {
    let mut connection = Connection::new(role, Settings { output_bytes_max: 10_000, ..Settings::default() });
    if role == Role::Client {
        let mut head = Head { method: b"GET".to_vec(), scheme: b"http".to_vec(), path: b"/".to_vec(), ..Head::default() };
        head.fields.push(b"x", b"y");
        for _ in 0..20 {
            connection.open(&head, false).unwrap();
        }
    }
    connection
}

/// Gives bytes in chunks to a connection whose application answers, reads, resets and lets go at random. Nothing panics, and memory
/// stays in its bounds.
fn feed(role: Role, bytes: &[u8], random: &mut Random) -> Result<(), ConnectionError> {
    let mut connection = connection(role);
    let (mut head, mut kept) = (Head::default(), Vec::new());
    head.status = 200;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(1 + random.below(rest.len().min(5000)));
        rest = later;
        kept.extend_from_slice(now);
        let used = connection.receive(&kept)?;
        kept.drain(..used);
        while let Some(event) = connection.next_event() {
            match event {
                Event::Head(stream) => {
                    connection.take_head(stream, &mut head);
                    head.status = 200;
                    let _ = connection.send_head(stream, &head, random.below(2) == 0);
                }
                Event::Readable(stream) | Event::Writable(stream) => {
                    connection.consume(stream, random.below(10_000));
                    let _ = connection.send_data(stream, &[0; 3000], random.below(3) == 0);
                }
                Event::Reset(stream, _) => connection.release(stream),
                Event::Goaway { .. } | Event::SettingsChanged => {}
            }
            if let Event::Head(stream) | Event::Readable(stream) = event
                && random.below(5) == 0
            {
                connection.release(stream);
            }
        }
        assert!(kept.len() <= 16_384 + 9 || !connection.takes_input());
        assert!(connection.output().len() < 200_000, "{}", connection.output().len());
        assert!(connection.held_streams() <= 2 * 256);
        if random.below(2) == 0 {
            connection.sent(random.below(connection.output().len() + 1));
        } else {
            connection.sent(usize::MAX);
        }
    }
    Ok(())
}

#[test]
fn seeds_are_taken_without_an_error() {
    for (role, name, bytes) in seeds() {
        for seed in 0..20 {
            assert_eq!(feed(role, &bytes, &mut Random(seed)), Ok(()), "{name}");
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    for (role, name, bytes) in seeds() {
        let mut failures = 0;
        for seed in 0..300 {
            let mut random = Random(seed);
            let mut bytes = bytes.clone();
            for _ in 0..1 + random.below(6) {
                let place = random.below(bytes.len());
                match random.below(4) {
                    0 => drop(bytes.drain(place..(place + random.below(30)).min(bytes.len()))),
                    1 => bytes.insert(place, random.next() as u8),
                    2 => bytes[place] = random.next() as u8,
                    _ => bytes[place] ^= 1 << random.below(8),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            failures += usize::from(feed(role, &bytes, &mut random).is_err());
        }
        assert!(failures > 0, "{name}");
    }
}

#[test]
fn random_frames_never_panic() {
    let mut ended = 0;
    for seed in 0..3000 {
        let mut random = Random(seed);
        let role = if random.below(2) == 0 { Role::Server } else { Role::Client };
        let mut bytes = if role == Role::Server { PREFACE.to_vec() } else { Vec::new() };
        bytes.extend(settings(&[(4, random.below(100_000) as u32)]));
        for _ in 0..random.below(60) {
            let kind = random.below(11) as u8;
            let stream = random.below(14) as u32;
            let payload: Vec<u8> = match kind {
                kind::HEADERS | kind::CONTINUATION if role == Role::Client => block(&[(":status", "200"), ("x", "y")]),
                kind::HEADERS | kind::CONTINUATION => block(if random.below(9) == 0 { &POST[1..] } else { POST }),
                kind::SETTINGS => vec![0; 6],
                _ => (0..[0, 4, 5, 8, random.below(100)][random.below(5)]).map(|_| random.next() as u8).collect(),
            };
            let flags = [0, 1, 4, 5, random.next() as u8][random.below(5)];
            bytes.extend(frame(kind, flags, if matches!(kind, 4 | 6 | 7) { 0 } else { stream }, &payload));
        }
        ended += usize::from(feed(role, &bytes, &mut random).is_err());
        let garbage: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
        let _ = feed(Role::Client, &garbage, &mut random);
    }
    assert!((300..3000).contains(&ended), "{ended}");
}
