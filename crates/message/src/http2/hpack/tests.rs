use super::statics::STATIC_TABLE;
use super::*;

#[derive(Default)]
struct Collected(Vec<(String, String, Class, bool)>);

impl Lines for Collected {
    fn line(&mut self, name: &[u8], value: &[u8], class: Class, sound: bool) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.0.push((text(name), text(value), class, sound));
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Broken> {
    let mut lines = Collected::default();
    decoder.begin();
    let used = decoder.decode(block, &mut lines)?;
    if used < block.len() {
        return Err(Broken);
    }
    Ok(lines.0.into_iter().map(|(name, value, _, _)| (name, value)).collect())
}

#[test]
fn rfc7541_appendix_c() {
    let mut decoder = Decoder::new();
    let (mut lines, mut table) = (Vec::new(), Vec::new());
    let mut blocks = 0;
    let pair = |text: &str| text.split_once('\t').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    for row in include_str!("../../../tests/hpack/rfc7541_c.txt").lines().filter(|row| !row.starts_with('#')) {
        let (word, rest) = row.split_once(' ').unwrap();
        match word {
            "series" => {
                let size = rest.split_once(' ').unwrap().1;
                decoder = Decoder::new();
                decoder.settings_acknowledged(size.parse().unwrap());
                let mut update = Vec::new();
                // The examples with a small table begin with it, without an update.
                if size == "256" {
                    update = bytes("3fe101");
                }
                assert_eq!(decode(&mut decoder, &update), Ok(vec![]));
            }
            "block" => {
                lines = decode(&mut decoder, &bytes(rest)).unwrap();
                lines.reverse();
                table = (0..)
                    .map_while(|age| decoder.table().by_age(age))
                    .map(|entry| (entry.name.to_vec(), entry.value.to_vec()))
                    .collect::<Vec<_>>();
                table.reverse();
                blocks += 1;
            }
            "line" => assert_eq!(lines.pop(), Some(pair(rest))),
            "entry" => {
                let (name, value) = pair(rest);
                assert_eq!(table.pop(), Some((name.into_bytes(), value.into_bytes())));
            }
            "size" => {
                assert_eq!((lines.len(), table.len()), (0, 0));
                assert_eq!(decoder.table().size().to_string(), rest);
                table = Vec::new();
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(blocks, 16);
}

#[test]
fn broken_blocks_are_refused() {
    for (name, hex) in [
        ("index 0", "80"),
        ("index behind the tables", "be"),
        ("name behind the tables", "7f0001 61".trim()),
        ("a number that does not end", "ffffffffffff01"),
        ("a table larger than announced", "3fe21f"),
        ("a table size behind a line", "8220"),
        ("huffman with a zero as padding", "0081188161"),
    ] {
        let hex = hex.replace(' ', "");
        assert_eq!(decode(&mut Decoder::new(), &bytes(&hex)), Err(Broken), "{name}");
    }
}

#[test]
fn a_smaller_table_must_be_told_at_the_start() {
    let mut decoder = Decoder::new();
    decoder.settings_acknowledged(100);
    assert_eq!(decode(&mut decoder, &bytes("82")), Err(Broken));
    let mut decoder = Decoder::new();
    decoder.settings_acknowledged(100);
    assert!(decode(&mut decoder, &bytes("2082")).is_ok());
    assert_eq!(decode(&mut decoder, &bytes("3f4582")), Ok(vec![(":method".into(), "GET".into())]));
    assert_eq!(decode(&mut decoder, &bytes("3f4682")), Err(Broken), "101");
}

#[test]
fn a_block_may_come_byte_by_byte() {
    let block = bytes(
        "828684418cf1e3c2e5f23a6ba0ab90f4ff40 0a637573746f6d2d6b65790d637573746f6d2d686561646572".replace(' ', "").as_str(),
    );
    let whole = decode(&mut Decoder::new(), &block).unwrap();
    let (mut decoder, mut lines, mut tail) = (Decoder::new(), Collected::default(), Vec::new());
    for byte in &block {
        tail.push(*byte);
        let used = decoder.decode(&tail, &mut lines).unwrap();
        tail.drain(..used);
    }
    assert!(tail.is_empty());
    assert_eq!(lines.0.into_iter().map(|(name, value, _, _)| (name, value)).collect::<Vec<_>>(), whole);
}

#[test]
fn names_and_values_are_judged_once() {
    for (name, value, class, sound) in [
        ("x-a", "b c\td", Class::Plain, true),
        ("X-a", "b", Class::Malformed, true),
        ("", "b", Class::Malformed, true),
        ("a b", "b", Class::Malformed, true),
        (":unknown", "b", Class::Malformed, true),
        ("connection", "close", Class::Forbidden, true),
        ("x", " b", Class::Plain, false),
        ("x", "b\t", Class::Plain, false),
        ("x", "a\rb", Class::Plain, false),
        ("x", "a\nb", Class::Plain, false),
        ("x", "a\0b", Class::Plain, false),
        ("x", "a\x7fb", Class::Plain, false),
        ("x", "", Class::Plain, true),
    ] {
        let mut block = vec![0x40, name.len() as u8];
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
        // The second time from the table.
        block.push(0xbe);
        let mut lines = Collected::default();
        Decoder::new().decode(&block, &mut lines).unwrap();
        let expected = (name.to_owned(), value.to_owned(), class, sound);
        assert_eq!(lines.0, [expected.clone(), expected], "{name}: {value:?}");
    }
}

#[test]
fn the_static_table_knows_its_own_names() {
    for (place, (name, _, class)) in STATIC_TABLE.iter().enumerate() {
        assert_eq!(Class::of(name), *class, "{place}");
        if !name.starts_with(b":") {
            let first = statics::static_name(name);
            assert_eq!(STATIC_TABLE[usize::from(first) - 1].0, *name);
            assert!(usize::from(first) <= place + 1);
        }
    }
}

/// Blocks of an encoder, as a decoder reads them, through changes of the table and lines that come again or do not.
#[test]
fn what_the_encoder_writes_the_decoder_reads() {
    let (mut encoder, mut decoder) = (Encoder::new(true), Decoder::new());
    let mut random = crate::http2::tests::Random(1);
    for step in 0..20_000_u32 {
        let mut block = Vec::new();
        if random.below(300) == 0 {
            for _ in 0..random.below(3) {
                encoder.set_limit(random.below(6000) as u32);
            }
        }
        encoder.begin(&mut block, if random.below(2) == 0 { Section::Head } else { Section::Trailers });
        let mut expected = Vec::new();
        for _ in 0..random.below(20) {
            let name = format!("x-{}", random.below(30));
            let value = match random.below(4) {
                0 => step.to_string(),
                1 => "v".repeat(random.below(2000)),
                _ => "v".repeat(random.below(30)),
            };
            encoder.field(&mut block, name.as_bytes(), value.as_bytes());
            expected.push((name, value));
        }
        assert_eq!(decode(&mut decoder, &block), Ok(expected));
    }
}

#[test]
fn a_line_that_comes_again_is_one_byte() {
    let mut encoder = Encoder::new(true);
    let mut lengths = Vec::new();
    for _ in 0..4 {
        let mut block = Vec::new();
        encoder.begin(&mut block, Section::Head);
        encoder.field(&mut block, b"authorization", b"Bearer of a long token");
        lengths.push(block.len());
    }
    assert_eq!(lengths[2..], [1, 1]);
}

#[test]
fn secrets_stay_out_of_the_table_where_the_settings_say_so() {
    let mut encoder = Encoder::new(false);
    for name in [&b"authorization"[..], b"cookie", b"set-cookie", b"proxy-authorization"] {
        for _ in 0..4 {
            let mut block = Vec::new();
            encoder.begin(&mut block, Section::Head);
            encoder.field(&mut block, name, b"Bearer");
            // Never indexed, by anybody: RFC 7541 §6.2.3.
            assert_eq!(block[0] & 0xf0, 0x10);
        }
    }
}
