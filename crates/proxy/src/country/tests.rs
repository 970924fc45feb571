use super::*;
use message::Version;
use std::fs;
use testkit::countries::{Value, country};

fn networks() -> testkit::countries::Database {
    testkit::countries::Database {
        networks: vec![
            ("192.0.2.0/24", country("DE")),
            ("192.0.2.128/25", country("CH")),
            ("198.51.100.7/32", country("US")),
            (
                "203.0.113.0/24",
                Value::Map(vec![("registered_country", Value::Map(vec![("iso_code", Value::Text("FR".into()))]))]),
            ),
            ("10.0.0.0/8", country("IT")),
            ("127.0.0.0/8", country("IT")),
            ("169.254.0.0/16", country("IT")),
            ("fc00::/7", country("IT")),
            ("fe80::/10", country("IT")),
            ("2001:db8::/32", country("AT")),
            ("2001:db8:0:1::/64", country("JP")),
        ],
        ..Default::default()
    }
}

fn read(bytes: Vec<u8>) -> Result<Database, String> {
    Database::parse(bytes).map_err(|flaw| flaw.to_string())
}

fn known(database: &Database, address: &str) -> Option<String> {
    let country = database.country(address.parse().expect("an address"));
    country.expect("readable").map(|code| code.to_string())
}

#[test]
fn an_address_is_in_the_country_of_its_smallest_network() {
    for record_bits in [24, 28, 32] {
        let database = read(testkit::countries::Database { record_bits, ..networks() }.to_bytes()).expect("a database");
        for (address, country) in [
            ("192.0.2.1", Some("DE")),
            ("192.0.2.127", Some("DE")),
            ("192.0.2.128", Some("CH")),
            ("192.0.2.255", Some("CH")),
            ("192.0.3.0", None),
            ("198.51.100.7", Some("US")),
            ("198.51.100.8", None),
            // As a dual-stack socket writes it.
            ("::ffff:192.0.2.1", Some("DE")),
            ("::ffff:198.51.100.6", None),
            ("2001:db8::1", Some("AT")),
            ("2001:db8:0:1::1", Some("JP")),
            ("2001:db9::", None),
            // Where an owner is registered is not where the address is.
            ("203.0.113.9", None),
            // Private, loopback and link-local addresses are everywhere.
            ("10.1.2.3", None),
            ("127.0.0.1", None),
            ("::ffff:127.0.0.1", None),
            ("169.254.1.1", None),
            ("::1", None),
            ("fd00::1", None),
            ("fe80::1", None),
            ("0.0.0.0", None),
            ("::", None),
        ] {
            assert_eq!(known(&database, address).as_deref(), country, "{address} at {record_bits} bits");
        }
        assert_eq!(database.title(), "GeoLite2-Country of 2026-11-18T11:06:40.000Z");
    }
}

#[test]
fn a_database_of_ipv4_knows_no_address_of_ipv6() {
    let only = vec![("192.0.2.0/24", country("DE"))];
    let database = testkit::countries::Database { ip_version: 4, networks: only, ..Default::default() };
    let database = read(database.to_bytes()).expect("a database");
    assert_eq!(known(&database, "192.0.2.1").as_deref(), Some("DE"));
    assert_eq!(known(&database, "::ffff:192.0.2.1").as_deref(), Some("DE"));
    assert_eq!(known(&database, "2001:db8::1"), None);
}

#[test]
fn what_is_no_database_of_countries_is_told_for_what_it_is() {
    let asn = Value::Map(vec![("autonomous_system_number", Value::Number(64_496))]);
    let of = |kind, value| testkit::countries::Database { kind, networks: vec![("192.0.2.0/24", value)], ..Default::default() };
    let whole = networks().to_bytes();
    let without_end = whole.get(..whole.len() - 40).expect("longer").to_vec();
    let flat = Value::Map(vec![("country", Value::Text("DE".into()))]);
    for (bytes, told) in [
        (Vec::new(), "is not a whole database"),
        (b"a text file\n".to_vec(), "is not a whole database"),
        (b"\x1f\x8b\x08\x00 a packed file".to_vec(), "not packed"),
        (whole.get(..whole.len() / 2).expect("shorter").to_vec(), "fetch it again"),
        (without_end, "fetch it again"),
        (of("GeoLite2-ASN", asn).to_bytes(), "is a `GeoLite2-ASN`, and none of its records has `country.iso_code`"),
        (testkit::countries::Database::default().to_bytes(), "none of its records"),
        (of("generic", flat).to_bytes(), "is not a whole database in MaxMind's format"),
        (of("GeoLite2-Country", country("de")).to_bytes(), "it says `de` where the two letters of a country belong"),
        (of("GeoLite2-Country", country("D\u{0}")).to_bytes(), "is damaged"),
        (of("GeoLite2-Country", country("Germany")).to_bytes(), "it says `Germany`"),
    ] {
        let flaw = read(bytes).expect_err(told);
        assert!(flaw.contains(told), "{flaw}");
    }
}

#[test]
fn a_damaged_database_never_panics_and_says_two_letters_or_nothing() {
    let whole = networks().to_bytes();
    let ask = |bytes: Vec<u8>| {
        let Ok(database) = Database::parse(bytes) else { return false };
        for address in ["192.0.2.1", "198.51.100.7", "2001:db8::1", "0.0.0.1", "255.255.255.255", "ffff::"] {
            // Whatever it says, it has the form of a country: the type sees to it.
            let _said = database.country(address.parse().expect("an address"));
        }
        true
    };
    assert!(ask(whole.clone()));
    for length in 0..whole.len() {
        ask(whole.get(..length).expect("shorter").to_vec());
    }
    let mut refused = 0;
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            *damaged.get_mut(at).expect("a byte") ^= flip;
            refused += u32::from(!ask(damaged));
        }
    }
    assert!(refused > 100, "some damage is noticed: {refused}");
}

#[test]
fn a_tree_that_leads_into_itself_is_refused_in_time() {
    let mut bytes = networks().to_bytes();
    // The first node of 28 bits twice: both ways lead back to it.
    bytes.get_mut(..7).expect("a node").fill(0);
    let flaw = read(bytes).expect_err("a cycle");
    assert!(flaw.contains("fetch it again"), "{flaw}");
}

#[test]
fn a_file_is_read_when_it_changes_and_a_bad_one_leaves_the_one_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("country.mmdb");
    let (path, limits) = (path.to_str().expect("text"), Limits::default());
    let address = "192.0.2.1".parse().expect("an address");
    let code = |code| Country::from(CountryCode::parse(code));
    let located = Located::default();

    let file = CountryFile::open(path, &limits, None);
    assert_eq!(file.country_of(address, Some(&located)), Country::Unavailable);
    let told = file.failure().expect("told").text;
    assert!(told.contains(path) && told.contains("cannot be read") && told.contains("are denied"), "{told}");

    let put = |bytes: &[u8]| {
        let fresh = dir.path().join("fresh");
        fs::write(&fresh, bytes).expect("written");
        fs::rename(fresh, path).expect("moved");
        file.look(&limits);
    };
    put(&networks().to_bytes());
    assert_eq!(file.failure(), None);
    assert!(file.built_at().is_some());
    for _ in 0..2 {
        assert_eq!(file.country_of(address, Some(&located)), code("DE"));
    }
    assert_eq!(file.country_of("192.0.3.1".parse().expect("an address"), None), Country::Unknown);

    put(b"half of it");
    let told = file.failure().expect("told").text;
    assert!(told.contains("is not a whole database") && told.contains("stays in use"), "{told}");
    assert_eq!(file.country_of(address, Some(&located)), code("DE"));

    let moved = vec![("192.0.2.0/24", country("SE"))];
    put(&testkit::countries::Database { networks: moved, ..Default::default() }.to_bytes());
    assert_eq!(file.failure(), None);
    assert_eq!(file.country_of(address, Some(&located)), code("SE"), "what was kept of the connection is of the file before");

    fs::remove_file(path).expect("removed");
    file.look(&limits);
    assert!(file.failure().is_some());
    assert_eq!(file.country_of(address, None), code("SE"));

    // The same file of the next configuration is not read again, another one is.
    assert!(Arc::ptr_eq(&CountryFile::open(path, &limits, Some(&file)), &file));
    let other = CountryFile::open("/nowhere", &limits, Some(&file));
    assert_eq!(other.country_of(address, None), Country::Unavailable);
}

#[test]
fn what_is_kept_of_a_connection_is_of_one_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = Limits::default();
    let open = |name: &str, code: &str, before: Option<&Arc<CountryFile>>| {
        let path = dir.path().join(name);
        let networks = vec![("192.0.2.0/24", country(code))];
        fs::write(&path, testkit::countries::Database { networks, ..Default::default() }.to_bytes()).expect("written");
        CountryFile::open(path.to_str().expect("text"), &limits, before)
    };
    let (address, located) = ("192.0.2.1".parse().expect("an address"), Located::default());
    let code = |code| Country::from(CountryCode::parse(code));
    let one = open("one.mmdb", "DE", None);
    assert_eq!(one.country_of(address, Some(&located)), code("DE"));
    // The next configuration names another file, a later one the first again, which has changed meanwhile.
    let two = open("two.mmdb", "KP", Some(&one));
    assert_eq!(two.country_of(address, Some(&located)), code("KP"), "what was kept of the connection is of another file");
    let again = open("one.mmdb", "SE", Some(&two));
    assert_eq!(again.country_of(address, Some(&located)), code("SE"));
}

#[test]
fn a_pipe_that_takes_the_place_of_the_file_holds_nothing_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("country.mmdb");
    fs::write(&path, networks().to_bytes()).expect("written");
    let found = fs::metadata(&path).expect("a file");
    fs::remove_file(&path).expect("removed");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("a pipe");
    let (told, heard) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || told.send(Database::load(path.to_str().expect("text"), &found, 1 << 20).map(drop)));
    let loaded = heard.recv_timeout(Duration::from_secs(20)).expect("nobody writes into the pipe, and nobody waits for it");
    assert!(matches!(loaded, Err(DatabaseFlaw::NotAFile)), "{loaded:?}");
}

/// A tree of 2^17 networks, all of which lead to one record with as many fields as the reader bears, the country last.
fn sluggish() -> Vec<u8> {
    const NODES: u32 = (1 << 17) - 1;
    let mut file = Vec::new();
    for node in 0..NODES {
        for child in [2 * node + 1, 2 * node + 2] {
            let record = if child < NODES { child } else { NODES + 16 };
            file.extend(&record.to_be_bytes()[1..]);
        }
    }
    file.extend([0; 16]);
    // A map whose number of fields follows in two bytes; each field is an empty name and an empty text.
    let fields: u16 = 30_000;
    file.extend([0b111_11110].into_iter().chain((fields - 285).to_be_bytes()));
    file.extend([0b010_00000; 2].repeat(usize::from(fields) - 1));
    file.extend(b"\x47country\xe1\x48iso_code\x42DE");
    let one = vec![("192.0.2.0/24", country("DE"))];
    let small = testkit::countries::Database { ip_version: 4, record_bits: 24, networks: one, ..Default::default() };
    let small = small.to_bytes();
    let marker = b"\xab\xcd\xefMaxMind.com";
    let at = small.windows(marker.len()).position(|bytes| bytes == marker).expect("metadata");
    let mut metadata = small[at..].to_vec();
    let name = b"node_count";
    let behind = metadata.windows(name.len()).position(|bytes| bytes == name).expect("it") + name.len();
    // Four bytes whatever the number.
    let long = usize::from(metadata[behind] & 31);
    metadata.splice(behind..=behind + long, [0b110_00100].into_iter().chain(NODES.to_be_bytes()));
    file.extend(metadata);
    file
}

#[test]
fn a_database_whose_records_take_too_long_is_given_up() {
    // Read to its end, this file of a megabyte would take minutes.
    let begun = std::time::Instant::now();
    let flaw = Database::parse_until(sluggish(), begun + Duration::from_millis(100)).map(drop).expect_err("slow");
    assert!(matches!(flaw, DatabaseFlaw::Slow), "{flaw:?}");
    assert!(Database::parse_until(networks().to_bytes(), begun + Duration::from_secs(600)).is_ok());
    assert!(flaw.to_string().contains("takes more than 60 s"), "{flaw}");
}

#[test]
fn a_file_that_is_too_large_or_none_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("country.mmdb");
    fs::write(&path, vec![0; 2000]).expect("written");
    let mut limits = Limits::default();
    limits.set(Limit::CountryDatabaseBytes, 1999).expect("within the range");
    let told = |path: &std::path::Path, limits: &Limits| {
        let file = CountryFile::open(path.to_str().expect("text"), limits, None);
        file.failure().expect("told").text
    };
    let large = told(&path, &limits);
    assert!(large.contains("has 2000 bytes, more than limit `countryDatabaseBytes` (1999)"), "{large}");
    assert!(told(dir.path(), &limits).contains("is no file"));
    assert!(told(std::path::Path::new("/dev/zero"), &limits).contains("is no file"));

    // A limit that was raised is reason enough to look again.
    fs::write(&path, networks().to_bytes()).expect("written");
    let mut low = Limits::default();
    low.set(Limit::CountryDatabaseBytes, 1024).expect("within the range");
    let file = CountryFile::open(path.to_str().expect("text"), &low, None);
    assert!(file.failure().expect("told").text.contains("more than limit"));
    file.look(&Limits::default());
    assert_eq!(file.failure(), None);
}

#[test]
fn a_forwarder_says_last_whom_it_calls_for() {
    let remote: IpAddr = "10.0.0.9".parse().expect("an address");
    for (lines, expected) in [
        (vec![], Some("10.0.0.9")),
        (vec!["192.0.2.1"], Some("192.0.2.1")),
        (vec!["198.51.100.1, 192.0.2.1"], Some("192.0.2.1")),
        (vec!["198.51.100.1", "203.0.113.1,192.0.2.1"], Some("192.0.2.1")),
        (vec![" 192.0.2.1:4711 "], Some("192.0.2.1")),
        (vec!["2001:db8::1"], Some("2001:db8::1")),
        (vec!["[2001:db8::1]"], Some("2001:db8::1")),
        (vec!["[2001:db8::1]:443"], Some("2001:db8::1")),
        // A proxy beside the forwarder adds what it sees.
        (vec!["192.0.2.1, 127.0.0.1"], Some("192.0.2.1")),
        (vec!["192.0.2.1, ::1, ::ffff:127.0.0.1,"], Some("192.0.2.1")),
        // Whom the caller of the forwarder invents stands before.
        (vec!["192.0.2.1, 10.1.1.1"], Some("10.1.1.1")),
        (vec!["192.0.2.1, unknown"], None),
        (vec!["192.0.2.1, _hidden, 127.0.0.1"], None),
        (vec!["127.0.0.1"], None),
        (vec!["192.0.2.1;"], None),
        (vec!["[192.0.2.1]"], None),
        (vec!["\u{e4}"], None),
        (vec![" , "], Some("10.0.0.9")),
    ] {
        let mut head = Head { version: Version::Http11, ..Head::default() };
        lines.iter().for_each(|line| head.fields.push(b"x-forwarded-for", line.as_bytes()));
        let expected = expected.map(|text| text.parse().expect("an address"));
        assert_eq!(called_for(&head, remote, false), expected, "{lines:?}");
        // And when we have said who called us.
        facts::forwarded_for(&mut head.fields, remote, true);
        assert_eq!(called_for(&head, remote, true), expected, "{lines:?}");
        facts::forwarded_for(&mut head.fields, remote, false);
        assert_eq!(called_for(&head, remote, true), Some(remote), "{lines:?}: it was no forwarder then");
    }
}

#[test]
fn a_hop_that_is_no_text_does_not_hide_the_one_behind_it() {
    let remote: IpAddr = "10.0.0.9".parse().expect("an address");
    for (lines, expected) in [
        // A forwarder adds to the line that its caller invented.
        (&[&b"\xff, 192.0.2.1"[..]][..], Some("192.0.2.1")),
        (&[b"\xff", b"192.0.2.1"], Some("192.0.2.1")),
        (&[b"192.0.2.1, \xff"], None),
        (&[b"192.0.2.1", b"\xff"], None),
    ] {
        let mut head = Head { version: Version::Http11, ..Head::default() };
        lines.iter().for_each(|line| head.fields.push(b"x-forwarded-for", line));
        let expected = expected.map(|text| text.parse().expect("an address"));
        assert_eq!(called_for(&head, remote, false), expected, "{lines:?}");
        facts::forwarded_for(&mut head.fields, remote, true);
        assert_eq!(called_for(&head, remote, true), expected, "{lines:?}, made ready for the application");
    }
}

#[test]
fn what_is_kept_of_a_connection_is_of_one_reading() {
    let located = Located::default();
    assert_eq!(located.known(0), None, "nothing was asked");
    assert_eq!(located.known(1), None);
    let germany = CountryCode::parse("DE");
    located.note(1, germany);
    assert_eq!((located.known(1), located.known(2), located.known(0)), (Some(germany), None, None));
    located.note(2, None);
    assert_eq!((located.known(2), located.known(1)), (Some(None), None));
}
