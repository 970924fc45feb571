//! The token in a request's head (RFC 6750 §2.1). The other two ways of that RFC, form body and query, are not offered.

use crate::refusal::Refusal;

/// Finds the bearer token.
///
/// - `authorization_values`: the value of every `Authorization` header, in order
///
/// `None` if there is no such header. The text returned is not verified in any way.
///
/// # Errors
/// - [`Refusal::Malformed`] if there are two headers, the scheme is not `Bearer`, or what follows is not exactly one token.
pub fn bearer<'a>(mut authorization_values: impl Iterator<Item = &'a [u8]>) -> Result<Option<&'a str>, Refusal> {
    let Some(value) = authorization_values.next() else {
        return Ok(None);
    };
    // Two readers could take two different ones.
    if authorization_values.next().is_some() {
        return Err(Refusal::Malformed { rule: "there is more than one Authorization header" });
    }
    let no_bearer = Refusal::Malformed { rule: "the Authorization header is not `Bearer` and one token" };
    let Some((scheme, rest)) = value.split_at_checked(6) else {
        return Err(no_bearer);
    };
    // RFC 9110 §11.1: the scheme's case does not matter.
    if !scheme.eq_ignore_ascii_case(b"bearer") || rest.first() != Some(&b' ') {
        return Err(no_bearer);
    }
    let token = std::str::from_utf8(rest).unwrap_or_default().trim_start_matches(' ');
    if !is_token68(token) {
        return Err(no_bearer);
    }
    Ok(Some(token))
}

/// RFC 9110 §11.2 `token68`: also what RFC 6750 §2.1 allows.
fn is_token68(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    // Looked up rather than compared, and all of it rather than up to the first that is not: a token is long.
    let strange = body.bytes().fold(0, |strange, byte| strange | STRANGE.get(usize::from(byte)).copied().unwrap_or(1));
    !body.is_empty() && strange == 0
}

/// 1 for each byte that is none of `token68`.
#[expect(clippy::indexing_slicing, reason = "done by the compiler, which sees the bounds")]
const STRANGE: [u8; 256] = {
    let mut table = [1; 256];
    let allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/";
    let mut at = 0;
    while at < allowed.len() {
        table[allowed[at] as usize] = 0;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_bearer_token_is_found() {
        let good: [(&str, &str); 4] =
            [("Bearer a.b.c", "a.b.c"), ("bearer a.b-_c", "a.b-_c"), ("BEARER  x", "x"), ("Bearer abc==", "abc==")];
        for (value, expected) in good {
            assert_eq!(bearer([value.as_bytes()].into_iter()), Ok(Some(expected)), "{value}");
        }
        assert_eq!(bearer(std::iter::empty()), Ok(None));
    }

    #[test]
    fn anything_else_is_refused_rather_than_taken_for_no_token() {
        for value in [
            "",
            " ",
            "Bearer",
            "Bearer ",
            "Bearer  ",
            "Bearer\ta.b.c",
            "Bearera.b.c",
            "Bearer a b",
            "Bearer a.b.c ",
            "Bearer a, Bearer b",
            "Bearer a,b",
            "Bearer =",
            "Bearer a=b",
            "Bearer \"a\"",
            "Bearer ä",
            "Basic dXNlcjpwYXNz",
            "DPoP a.b.c",
            "Digest a.b.c",
            "a.b.c",
            " Bearer a.b.c",
        ] {
            let refusal = bearer([value.as_bytes()].into_iter()).expect_err(value);
            assert!(matches!(refusal, Refusal::Malformed { .. }), "{value}: {refusal}");
        }
        assert!(bearer([b"Bearer \xff\xfe".as_slice()].into_iter()).is_err(), "not UTF-8");
        assert!(bearer([b"Bearer a".as_slice(), b"Bearer a".as_slice()].into_iter()).is_err(), "two headers");
    }
}
