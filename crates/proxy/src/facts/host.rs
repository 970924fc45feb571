//! The host that a request is for (RFC 3986 §3.2.2, RFC 9110 §7.2).

use std::net::Ipv6Addr;

/// LIMIT: bytes of a host name (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;

/// A host and its port, in the one form that is compared and forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// In lower case, without the dot that may end a name; an IPv6 address in brackets, in its shortest form.
    pub(super) name: String,
    /// Absent if it was not said.
    pub(super) port: Option<u16>,
}

impl Host {
    /// Parses `host` or `host:port`. The name is written into `room`, which may have memory of an earlier one.
    ///
    /// # Errors
    /// - what is wrong with it.
    pub(super) fn parse(text: &str, mut room: String) -> Result<Self, &'static str> {
        room.clear();
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or("an address without its closing bracket")?;
                let address: Ipv6Addr = address.parse().map_err(|_| "brackets around what is not an IPv6 address")?;
                let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or("text behind an address")?) };
                // Writing to a String cannot fail.
                let _ok = std::fmt::Write::write_fmt(&mut room, format_args!("[{address}]"));
                (room, port)
            }
            None => {
                let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
                host_name(name, &mut room)?;
                (room, port)
            }
        };
        let port = port.map(port_number).transpose()?;
        Ok(Self { name, port })
    }

    /// Writes `host` or `host:port`.
    pub(super) fn write_authority(&self, out: &mut String) {
        out.clear();
        out.push_str(&self.name);
        if let Some(port) = self.port {
            // Writing to a String cannot fail.
            let _ok = std::fmt::Write::write_fmt(out, format_args!(":{port}"));
        }
    }
}

fn host_name(text: &str, out: &mut String) -> Result<(), &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.len() > NAME_BYTES_MAX {
        return Err("longer than 255 bytes");
    }
    // Also refuses a user before `@`, a list, escapes and white space.
    if name.split('.').any(|label| label.is_empty() || !label.bytes().all(inner)) {
        return Err("not a name or an address");
    }
    out.push_str(name);
    out.make_ascii_lowercase();
    Ok(())
}

fn port_number(text: &str) -> Result<u16, &'static str> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { text.parse().unwrap_or(0) } else { 0 };
    if port == 0 { Err("the port is not 1 to 65535") } else { Ok(port) }
}
