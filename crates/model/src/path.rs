//! One form of a path, so that what is decided is what is forwarded (RFC 3986 §6.2.2).

/// What is wrong with a path, in words that follow `path`.
pub type PathRule = &'static str;

/// The normal form of a path: escapes of unreserved characters decoded, other escapes in upper case, characters that should have
/// been escaped escaped, dot segments removed. Empty segments stay. Normalising twice equals normalising once.
///
/// # Errors
/// - the rule that the path breaks: what two readers of it could take for two different paths.
pub fn normalise(path: &[u8], out: &mut String) -> Result<(), PathRule> {
    out.clear();
    if path.is_empty() {
        out.push('/');
        return Ok(());
    }
    if !path.starts_with(b"/") {
        return Err("does not begin with `/`");
    }
    // Most paths are in their normal form already.
    if let Ok(text) = std::str::from_utf8(path)
        && path.iter().all(|byte| is_path(*byte))
        && !text.contains("/.")
    {
        out.push_str(text);
        return Ok(());
    }
    let decoded = decode(path)?;
    out.push_str(&if decoded.contains("/.") { without_dot_segments(&decoded)? } else { decoded });
    Ok(())
}

fn decode(path: &[u8]) -> Result<String, PathRule> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'%' => {
                let (byte, tail) = escape(rest).ok_or("holds a broken escape")?;
                rest = tail;
                push_escape(&mut out, byte)?;
            }
            b'\\' => return Err("holds a backslash"),
            0..=b' ' | 0x7f => return Err("holds a control character or a space"),
            0x80.. => return Err("holds a character outside ASCII that is not escaped"),
            b'?' | b'#' => return Err("holds a delimiter"),
            byte if is_path(byte) => out.push(char::from(byte)),
            byte => escaped(&mut out, byte),
        }
    }
    Ok(out)
}

/// The byte of an escape whose `%` was read, and what follows it.
fn escape(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.split_at_checked(2)?;
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some((digit(digits.first()?)? << 4 | digit(digits.last()?)?, rest))
}

fn push_escape(out: &mut String, byte: u8) -> Result<(), PathRule> {
    match byte {
        // An application that decodes before it splits would see another path than the one decided on.
        b'/' => Err("holds an escaped `/`"),
        b'\\' => Err("holds an escaped backslash"),
        0 => Err("holds an escaped NUL"),
        1..0x20 | 0x7f => Err("holds an escaped control character"),
        byte if is_unreserved(byte) => {
            out.push(char::from(byte));
            Ok(())
        }
        byte => {
            escaped(out, byte);
            Ok(())
        }
    }
}

fn escaped(out: &mut String, byte: u8) {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase();
    out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
}

/// RFC 3986 §5.2.4. A segment above the root is the root.
fn without_dot_segments(path: &str) -> Result<String, PathRule> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let dots = match segment {
            "." => 1,
            ".." => 2,
            // Some application servers cut `;…` off before they resolve the dots.
            _ if with_parameter(segment) => return Err("holds a dot segment with a parameter"),
            _ => 0,
        };
        if dots == 2 {
            kept.pop();
        }
        if dots == 0 {
            kept.push(segment);
        } else if segments.peek().is_none() {
            kept.push("");
        }
    }
    Ok(kept.iter().fold(String::with_capacity(path.len()), |out, segment| out + "/" + segment))
}

fn with_parameter(segment: &str) -> bool {
    let rest = segment.strip_prefix("..").or_else(|| segment.strip_prefix('.')).unwrap_or(segment);
    rest.len() < segment.len() && (rest.starts_with(';') || rest.starts_with("%3B"))
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §3.3: a character of a path that needs no escape.
const fn is_path(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}
