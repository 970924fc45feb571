//! In which country an address is: the little table of a development mesh.

use std::net::{IpAddr, Ipv4Addr};

/// A network of a country: `127.0.49.0/24=DE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CountryOf {
    network: u32,
    mask: u32,
    country: [u8; 2],
}

impl CountryOf {
    /// Parses `A.B.C.D/LENGTH=CC`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form `127.0.49.0/24=DE`");
        let (network, country) = text.split_once('=').ok_or_else(wrong)?;
        let (address, length) = network.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let length: u32 = length.parse().map_err(|_| wrong())?;
        let mask = match length {
            0 => 0,
            1..=32 => u32::MAX << (32 - length),
            _ => return Err(wrong()),
        };
        let country = <[u8; 2]>::try_from(country.as_bytes()).map_err(|_| wrong())?;
        if !country.iter().all(u8::is_ascii_uppercase) {
            return Err(wrong());
        }
        Ok(Self { network: u32::from(address) & mask, mask, country })
    }
}

/// The country of an address by the first network that holds it.
pub(crate) fn find(table: &[CountryOf], address: IpAddr) -> Option<String> {
    let IpAddr::V4(address) = address else { return None };
    let found = table.iter().find(|row| u32::from(address) & row.mask == row.network)?;
    Some(found.country.iter().map(|byte| char::from(*byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_country_of_its_network_or_none() {
        let table = [CountryOf::parse("127.0.49.0/24=DE").expect("row"), CountryOf::parse("127.0.33.0/24=FR").expect("row")];
        let of = |text: &str| find(&table, text.parse().expect("address"));
        assert_eq!(of("127.0.49.7").as_deref(), Some("DE"));
        assert_eq!(of("127.0.33.255").as_deref(), Some("FR"));
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("::1"), None);
    }

    #[test]
    fn rows_that_say_something_else_are_refused() {
        for text in ["", "127.0.49.0/24", "127.0.49.0=DE", "127.0.49.0/33=DE", "127.0.49.0/24=de", "127.0.49.0/24=DEU", "x/24=DE"]
        {
            assert!(CountryOf::parse(text).is_err(), "{text}");
        }
    }
}
