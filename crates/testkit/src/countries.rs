//! Databases in MaxMind's format (<https://maxmind.github.io/MaxMind-DB/>), as small as a test wants them.

#![expect(clippy::expect_used, reason = "a test whose database cannot be made ends")]

use std::net::{IpAddr, Ipv6Addr};

/// A value of a record or of the metadata.
#[derive(Clone, Debug)]
pub enum Value {
    /// Fields by their names.
    Map(Vec<(&'static str, Value)>),
    /// A list.
    List(Vec<Value>),
    /// A text of at most 284 bytes.
    Text(String),
    /// A number; types 6 (32 bits) and 9 (64 bits) of the format hold it, whichever is asked for.
    Number(u64),
}

/// The record of a country, as GeoLite2-Country has it.
pub fn country(code: &str) -> Value {
    let named = |code: &str| Value::Map(vec![("iso_code", Value::Text(code.to_owned())), ("geoname_id", Value::Number(1))]);
    // Where the owner of the network is registered is another question.
    Value::Map(vec![("country", named(code)), ("registered_country", named("ZZ"))])
}

/// A database of networks, which are written down as `192.0.2.0/24`; a later one may lie within an earlier one.
#[derive(Clone, Debug)]
pub struct Database {
    /// `GeoLite2-Country`, say.
    pub kind: &'static str,
    /// 4 or 6.
    pub ip_version: u8,
    /// 24, 28 or 32.
    pub record_bits: u32,
    /// The networks with their records.
    pub networks: Vec<(&'static str, Value)>,
}

impl Default for Database {
    fn default() -> Self {
        Self { kind: "GeoLite2-Country", ip_version: 6, record_bits: 28, networks: Vec::new() }
    }
}

#[derive(Clone, Copy)]
enum Record {
    Nothing,
    Node(usize),
    Data(usize),
}

impl Database {
    /// The file. Panics on a network that is none.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut nodes = vec![[Record::Nothing; 2]];
        let mut data = Vec::new();
        for (network, value) in &self.networks {
            let at = data.len();
            encode(&mut data, value, false);
            insert(&mut nodes, &bits(network, self.ip_version), Record::Data(at));
        }
        let mut file = Vec::new();
        let number = |record: Record| match record {
            Record::Nothing => nodes.len(),
            Record::Node(node) => node,
            Record::Data(at) => nodes.len() + 16 + at,
        };
        for [left, right] in &nodes {
            let two = [*left, *right].map(|record| u32::try_from(number(record)).expect("a small database"));
            file.extend(packed(two, self.record_bits));
        }
        file.extend([0; 16]);
        file.extend(data);
        file.extend(b"\xab\xcd\xefMaxMind.com");
        encode(&mut file, &self.metadata(nodes.len()), true);
        file
    }

    fn metadata(&self, nodes: usize) -> Value {
        let number = |value: u32| Value::Number(value.into());
        Value::Map(vec![
            ("node_count", number(u32::try_from(nodes).expect("a small database"))),
            ("record_size", number(self.record_bits)),
            ("ip_version", number(self.ip_version.into())),
            ("database_type", Value::Text(self.kind.to_owned())),
            ("languages", Value::List(vec![Value::Text("en".to_owned())])),
            ("binary_format_major_version", number(2)),
            ("binary_format_minor_version", number(0)),
            ("build_epoch", Value::Number(1_795_000_000)),
            ("description", Value::Map(vec![("en", Value::Text("of a test".to_owned()))])),
        ])
    }
}

/// The bits of a network's prefix. In a tree of IPv6, IPv4 lies at `::/96`.
fn bits(network: &str, ip_version: u8) -> Vec<u8> {
    let (address, length) = network.split_once('/').expect("a network");
    let (address, length): (IpAddr, usize) = (address.parse().expect("an address"), length.parse().expect("a length"));
    let (octets, length) = match (address, ip_version) {
        (IpAddr::V4(ip), 4) => (ip.octets().to_vec(), length),
        (IpAddr::V4(ip), _) => (Ipv6Addr::from(u128::from(u32::from(ip))).octets().to_vec(), length + 96),
        (IpAddr::V6(ip), _) => (ip.octets().to_vec(), length),
    };
    octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1)).take(length).collect()
}

fn insert(nodes: &mut Vec<[Record; 2]>, bits: &[u8], record: Record) {
    let (last, way) = bits.split_last().expect("a prefix of one bit or more");
    let mut at = 0;
    for bit in way {
        let fresh = nodes.len();
        let place = nodes.get_mut(at).and_then(|node| node.get_mut(usize::from(*bit))).expect("a node");
        at = match *place {
            Record::Node(next) => next,
            // What was said of the whole is said of both halves.
            whole => {
                *place = Record::Node(fresh);
                nodes.push([whole; 2]);
                fresh
            }
        };
    }
    *nodes.get_mut(at).and_then(|node| node.get_mut(usize::from(*last))).expect("a node") = record;
}

fn packed([left, right]: [u32; 2], bits: u32) -> Vec<u8> {
    let ([a, b, c, d], [e, f, g, h]) = (left.to_be_bytes(), right.to_be_bytes());
    match bits {
        24 => vec![b, c, d, f, g, h],
        28 => vec![b, c, d, a << 4 | e, f, g, h],
        _ => vec![a, b, c, d, e, f, g, h],
    }
}

fn encode(out: &mut Vec<u8>, value: &Value, is_metadata: bool) {
    match value {
        Value::Map(fields) => {
            head(out, 7, fields.len());
            for (name, value) in fields {
                encode(out, &Value::Text((*name).to_owned()), is_metadata);
                // The one number of the metadata that has 64 bits, and those that have 16.
                match (is_metadata, *name, value) {
                    (true, "build_epoch", Value::Number(number)) => numbered(out, 9, &number.to_be_bytes()),
                    (true, "node_count", _) | (false, ..) => encode(out, value, is_metadata),
                    (true, _, Value::Number(number)) => {
                        numbered(out, 5, &u16::try_from(*number).expect("16 bits").to_be_bytes());
                    }
                    (true, ..) => encode(out, value, is_metadata),
                }
            }
        }
        Value::List(values) => {
            head(out, 11, values.len());
            values.iter().for_each(|value| encode(out, value, is_metadata));
        }
        Value::Text(text) => {
            head(out, 2, text.len());
            out.extend(text.as_bytes());
        }
        Value::Number(number) => numbered(out, 6, &u32::try_from(*number).expect("32 bits").to_be_bytes()),
    }
}

fn numbered(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    head(out, kind, bytes.len());
    out.extend(bytes);
}

/// The type and the size of what follows: types above 7 stand in a byte of their own.
fn head(out: &mut Vec<u8>, kind: u8, size: usize) {
    let (short, more) = match u8::try_from(size) {
        Ok(small @ 0..=28) => (small, None),
        _ => (29, Some(u8::try_from(size - 29).expect("at most 284"))),
    };
    if kind > 7 {
        out.extend([short, kind - 7]);
    } else {
        out.push(kind << 5 | short);
    }
    out.extend(more);
}
