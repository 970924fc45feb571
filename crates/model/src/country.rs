//! The country that a call comes from, and what is known of it.

use crate::authz::HeaderRead;
use std::fmt;

/// A country: ISO 3166-1 alpha-2, two upper-case letters. Whether there is a country of that name is not asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CountryCode([u8; 2]);

impl CountryCode {
    /// Reads two upper-case ASCII letters; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let letters: [u8; 2] = text.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }

    /// The two letters.
    pub const fn as_str(&self) -> &str {
        // Only letters get in.
        match std::str::from_utf8(&self.0) {
            Ok(text) => text,
            Err(_) => "",
        }
    }

    /// The two letters, as bytes.
    pub const fn as_bytes(self) -> [u8; 2] {
        self.0
    }
}

impl fmt::Display for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl serde::Serialize for CountryCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What is known of the country that a call comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Country {
    /// A trusted caller said it, or the database knows it of the address.
    Known(CountryCode),
    /// Nobody trustworthy knows it.
    #[default]
    Unknown,
    /// The database that would know it cannot be read. A call whose policies read the country is denied: to take it for unknown would
    /// silence a `forbid` about a country.
    Unavailable,
    /// A trusted caller says two: one of them may be what its own caller has invented. A call whose policies read the country is denied.
    Contradictory,
}

impl Country {
    /// The country, if it is known.
    pub const fn known(&self) -> Option<&CountryCode> {
        match self {
            Self::Known(code) => Some(code),
            Self::Unknown | Self::Unavailable | Self::Contradictory => None,
        }
    }

    /// What a trusted caller says in the lines of its header; `None` if that is no country. Two lines are a list with a comma
    /// (RFC 9110 §5.3), and a list is more than one country.
    pub fn said<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        match HeaderRead::of(lines) {
            HeaderRead::Twice => Some(Self::Contradictory),
            HeaderRead::Value(text) if text.contains(',') => Some(Self::Contradictory),
            HeaderRead::Value(text) => CountryCode::parse(&text).map(Self::Known),
            _ => None,
        }
    }
}

impl From<Option<CountryCode>> for Country {
    fn from(code: Option<CountryCode>) -> Self {
        code.map_or(Self::Unknown, Self::Known)
    }
}

/// The code, or null.
impl serde::Serialize for Country {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.known().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_country_is_two_upper_case_letters() {
        for text in ["DE", "CH", "ZZ", "AA"] {
            assert_eq!(CountryCode::parse(text).map(|code| code.to_string()).as_deref(), Some(text));
        }
        for text in ["", "D", "de", "De", "DEU", "D1", "T1", " DE", "DE ", "\u{c4}", "D\u{0}", "--"] {
            assert_eq!(CountryCode::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_a_known_country_is_told() {
        for (country, told) in [
            (Country::from(CountryCode::parse("DE")), Some("DE")),
            (Country::Unknown, None),
            (Country::Unavailable, None),
            (Country::Contradictory, None),
            (Country::default(), None),
        ] {
            assert_eq!(country.known().map(CountryCode::as_str), told);
        }
    }

    #[test]
    fn two_countries_contradict_each_other_in_one_line_and_in_two() {
        let code = |code| CountryCode::parse(code).map(Country::Known);
        for (lines, said) in [
            (&[][..], None),
            (&["DE"], code("DE")),
            (&[" DE\t"], code("DE")),
            (&[""], None),
            (&["T1"], None),
            (&["de"], None),
            (&["\u{c4}"], None),
            (&["DE", "KP"], Some(Country::Contradictory)),
            (&["DE", "DE"], Some(Country::Contradictory)),
            (&["DE,KP"], Some(Country::Contradictory)),
            (&["-, KP"], Some(Country::Contradictory)),
        ] {
            assert_eq!(Country::said(lines.iter().map(|line| line.as_bytes())), said, "{lines:?}");
        }
    }
}
