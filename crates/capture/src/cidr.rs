//! Address ranges as a user writes them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// `10.0.0.0/8` or `fd00::/8`; an address alone is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// A range was not written as one. Whoever wrote it must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It is no range at all.
    #[error("`{0}` is not an address range such as `10.0.0.0/8` or `fd00::/8`")]
    Malformed(String),
    /// Bits behind the prefix are set, so that it is not clear what was meant.
    #[error("`{0}` has bits set behind its prefix: write `{1}`")]
    HostBits(String, Cidr),
}

impl Cidr {
    /// Whether it is a range of IPv6.
    pub const fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// An address alone where the range is of one, as `nft` lists it.
    pub(crate) fn shortest(&self) -> String {
        let most = if self.is_ipv6() { 128 } else { 32 };
        if self.bits == most { self.address.to_string() } else { self.to_string() }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError::Malformed(text.chars().filter(|c| !c.is_control()).take(64).collect());
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let is_plain = |bits: &&str| bits.bytes().all(|b| b.is_ascii_digit());
        let bits = match bits {
            None => most,
            Some(bits) => {
                Some(bits).filter(is_plain).and_then(|bits| bits.parse().ok()).filter(|bits| *bits <= most).ok_or_else(wrong)?
            }
        };
        let network = match address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)).into()),
        };
        if network != address {
            return Err(CidrError::HostBits(text.to_owned(), Self { address: network, bits }));
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly_and_the_right_form_is_named() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(text.parse::<Cidr>().map(|cidr| cidr.to_string()).as_deref(), Ok(shown));
        }
        for text in ["", "/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "fd00::/129", "a/8", "10.0.0.0/8/8"] {
            assert!(matches!(text.parse::<Cidr>(), Err(CidrError::Malformed(_))), "{text}");
        }
        let error = "10.1.0.0/8".parse::<Cidr>().expect_err("host bits");
        assert!(error.to_string().ends_with("write `10.0.0.0/8`"), "{error}");
        assert!("fd00::1/64".parse::<Cidr>().expect_err("host bits").to_string().ends_with("write `fd00::/64`"));
    }
}
