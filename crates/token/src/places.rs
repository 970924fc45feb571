//! The token in a request: found in the header, the cookie or the query that is configured (RFC 6750 §2), and taken out again.

use crate::refusal::Refusal;
use model::token::TokenUse;
use std::borrow::Cow;

/// A token as it was sent. Nothing of it is verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Its text.
    pub text: Cow<'a, str>,
    /// How it was sent.
    pub scheme: Scheme,
}

/// How a token was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Whoever has it may use it (RFC 6750).
    Bearer,
    /// With a proof of the key that it is bound to (RFC 9449 §7.1).
    Dpop,
}

/// Where a request may carry a token, as it came.
#[derive(Debug)]
pub struct Request<H, C, Q> {
    /// The values of the header that [`TokenUse::header`] names, in order.
    pub header: H,
    /// The values of the `Cookie` lines.
    pub cookies: C,
    /// The query, without its `?`.
    pub query: Q,
}

/// Finds the token in the places that are configured. `None` if none of them holds one.
///
/// # Errors
/// - [`Refusal::Twice`] if there is more than one, whether or not they are the same.
/// - [`Refusal::Malformed`] if a place holds something else than exactly one token.
pub fn presented<'a>(
    places: &TokenUse,
    request: Request<impl Iterator<Item = &'a [u8]>, impl Iterator<Item = &'a [u8]>, Option<&'a str>>,
) -> Result<Option<Presented<'a>>, Refusal> {
    let mut found = header(places, request.header)?;
    if let Some(name) = &places.cookie {
        let cookie =
            only(request.cookies.flat_map(pairs).filter(|(known, _)| *known == name.as_bytes()), "cookie holds a token twice")?;
        add(&mut found, cookie.map(|(_, value)| Cow::Borrowed(unquoted(value))))?;
    }
    if let (Some(name), Some(query)) = (&places.query, request.query) {
        let parameter = only(query.split('&').filter(|each| is_parameter(each, name)), "the query holds a token twice")?;
        let value = parameter.map(|each| each.split_once('=').map_or("", |(_, value)| value));
        add(&mut found, value.map(|value| percent_decoded(value.as_bytes())))?;
    }
    Ok(found)
}

/// The token of the header.
fn header<'a>(places: &TokenUse, mut values: impl Iterator<Item = &'a [u8]>) -> Result<Option<Presented<'a>>, Refusal> {
    let Some(value) = values.next() else {
        return Ok(None);
    };
    // Two readers could take two different ones.
    if values.next().is_some() {
        return Err(Refusal::Twice { rule: "the header that carries the token comes more than once" });
    }
    let not_a_token = Refusal::Malformed { rule: "the header that carries it is not `Bearer` or `DPoP` and one token" };
    let schemes = [(&b"bearer"[..], Scheme::Bearer), (b"dpop", Scheme::Dpop)];
    let scheme = schemes.into_iter().find_map(|(word, scheme)| {
        let (first, rest) = value.split_at_checked(word.len())?;
        // RFC 9110 §11.1: the scheme's case does not matter.
        (first.eq_ignore_ascii_case(word) && rest.first() == Some(&b' ')).then_some((scheme, rest))
    });
    let (scheme, rest) = match scheme {
        Some(scheme) => scheme,
        None if places.header == "authorization" => return Err(not_a_token),
        None => (Scheme::Bearer, value),
    };
    let text = std::str::from_utf8(rest).unwrap_or_default().trim_start_matches(' ');
    if !is_token68(text) {
        return Err(not_a_token);
    }
    Ok(Some(Presented { text: Cow::Borrowed(text), scheme }))
}

/// The one of them, if there is one.
fn only<T>(mut found: impl Iterator<Item = T>, rule: &'static str) -> Result<Option<T>, Refusal> {
    let first = found.next();
    if found.next().is_some() { Err(Refusal::Twice { rule }) } else { Ok(first) }
}

/// Adds what another place holds.
fn add<'a>(found: &mut Option<Presented<'a>>, more: Option<Cow<'a, [u8]>>) -> Result<(), Refusal> {
    let Some(bytes) = more else { return Ok(()) };
    if found.is_some() {
        return Err(Refusal::Twice { rule: "two places hold a token" });
    }
    let text = match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    };
    let text = text.filter(|text| is_token68(text));
    let text = text.ok_or(Refusal::Malformed { rule: "the cookie or query that carries it does not hold one token" })?;
    *found = Some(Presented { text, scheme: Scheme::Bearer });
    Ok(())
}

/// The pairs of a `Cookie` line (RFC 6265 §4.2.1).
fn pairs(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|byte| *byte == b';').map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (pair.get(..at).unwrap_or_default().trim_ascii(), pair.get(at + 1..).unwrap_or_default().trim_ascii())
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// Whether a part of a query is this parameter, however its name is encoded: the application decodes it.
fn is_parameter(part: &str, name: &str) -> bool {
    let written = part.split_once('=').map_or(part, |(name, _)| name);
    percent_decoded(written.as_bytes()) == name.as_bytes()
}

/// `%41` to `A` and `+` to a space (WHATWG URL §5.1). What is no encoding stands for itself.
fn percent_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..2).and_then(|two| std::str::from_utf8(two).ok()).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        match (first, digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
                continue;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(*other),
        }
        rest = after;
    }
    Cow::Owned(out)
}

/// A `Cookie` line without this cookie; `None` if nothing is left of it.
pub fn without_cookie(line: &[u8], name: &str) -> Option<Vec<u8>> {
    let is_kept = |pair: &&[u8]| pairs(pair).next().is_none_or(|(known, _)| known != name.as_bytes());
    let kept: Vec<&[u8]> = line.split(|byte| *byte == b';').filter(is_kept).map(<[u8]>::trim_ascii).collect();
    let kept = kept.join(&b"; "[..]);
    (!kept.is_empty()).then_some(kept)
}

/// A path and query without this parameter of the query.
pub fn without_parameter(path_and_query: &str, name: &str) -> String {
    let Some((path, query)) = path_and_query.split_once('?') else { return path_and_query.to_owned() };
    let kept: Vec<&str> = query.split('&').filter(|part| !is_parameter(part, name)).collect();
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presented").field("scheme", &self.scheme).finish_non_exhaustive()
    }
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

    fn everywhere() -> TokenUse {
        TokenUse { cookie: Some("session".into()), query: Some("access_token".into()), ..TokenUse::default() }
    }

    fn found(
        places: &TokenUse,
        header: &[&[u8]],
        cookies: &[&[u8]],
        query: Option<&str>,
    ) -> Result<Option<(Scheme, String)>, Refusal> {
        let request = Request { header: header.iter().copied(), cookies: cookies.iter().copied(), query };
        Ok(presented(places, request)?.map(|presented| (presented.scheme, presented.text.into_owned())))
    }

    #[test]
    fn rfc6750_2_1_exactly_one_token_is_found_in_the_header() {
        for (value, scheme, expected) in [
            ("Bearer a.b.c", Scheme::Bearer, "a.b.c"),
            ("bearer a.b-_c", Scheme::Bearer, "a.b-_c"),
            ("BEARER  x", Scheme::Bearer, "x"),
            ("Bearer abc==", Scheme::Bearer, "abc=="),
            ("DPoP a.b.c", Scheme::Dpop, "a.b.c"),
            ("dpop a", Scheme::Dpop, "a"),
        ] {
            let got = found(&TokenUse::default(), &[value.as_bytes()], &[], None);
            assert_eq!(got, Ok(Some((scheme, expected.to_owned()))), "{value}");
        }
        assert_eq!(found(&TokenUse::default(), &[], &[b"session=a"], Some("access_token=a")), Ok(None), "not configured");
        let own = TokenUse { header: "x-token".into(), ..TokenUse::default() };
        for value in ["a.b.c", "Bearer a.b.c"] {
            assert_eq!(found(&own, &[value.as_bytes()], &[], None), Ok(Some((Scheme::Bearer, "a.b.c".into()))), "{value}");
        }
    }

    #[test]
    fn rfc6750_2_anything_else_in_the_header_is_refused_rather_than_taken_for_no_token() {
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
            "DPoP",
            "DPoPa",
            "Digest a.b.c",
            "a.b.c",
            " Bearer a.b.c",
        ] {
            let refusal = found(&TokenUse::default(), &[value.as_bytes()], &[], None).expect_err(value);
            assert!(matches!(refusal, Refusal::Malformed { .. }), "{value}: {refusal}");
        }
        assert!(found(&TokenUse::default(), &[b"Bearer \xff\xfe"], &[], None).is_err(), "not UTF-8");
    }

    #[test]
    fn rfc6750_2_2_and_2_3_cookie_and_query_are_read_as_the_application_reads_them() {
        let token = Ok(Some((Scheme::Bearer, "a.b=".to_owned())));
        for cookie in ["session=a.b=", "x=1; session=a.b=", "session=\"a.b=\"; y", " session = a.b= ;"] {
            assert_eq!(found(&everywhere(), &[], &[cookie.as_bytes()], None), token, "{cookie}");
        }
        for query in ["access_token=a.b=", "x=1&access_token=a%2eb%3D", "access%5Ftoken=a.b=", "%61ccess_token=a.b="] {
            assert_eq!(found(&everywhere(), &[], &[], Some(query)), token, "{query}");
        }
        for (cookies, query) in [
            (&[][..], Some("access_token=")),
            (&[], Some("access_token")),
            (&[], Some("access_token=a+b")),
            (&[], Some("access_token=%ff")),
            (&[&b"session="[..]], None),
            (&[b"session"], None),
            (&[b"session=a b"], None),
        ] {
            let refusal = found(&everywhere(), &[], cookies, query).expect_err("refused");
            assert!(matches!(refusal, Refusal::Malformed { .. }), "{query:?}: {refusal}");
        }
        assert_eq!(found(&everywhere(), &[], &[b"Session=a; sessions=b"], Some("token=c&a=access_token")), Ok(None));
    }

    #[test]
    fn rfc6750_2_two_tokens_are_refused_even_if_they_are_the_same() {
        let (bearer, cookie, query) = (&b"Bearer a"[..], &b"session=a"[..], Some("access_token=a"));
        for (header, cookies, query) in [
            (&[bearer, bearer][..], &[][..], None),
            (&[bearer], &[cookie], None),
            (&[bearer], &[], query),
            (&[], &[cookie], query),
            (&[], &[cookie, cookie], None),
            (&[], &[b"session=a; session=b"], None),
            (&[], &[], Some("access_token=a&access_token=a")),
            (&[], &[], Some("access_token=a&access%5ftoken=b")),
        ] {
            let refusal = found(&everywhere(), header, cookies, query).expect_err("refused");
            assert!(matches!(refusal, Refusal::Twice { .. }), "{refusal}");
        }
    }

    #[test]
    fn what_is_taken_out_leaves_everything_else_as_it_was() {
        for (line, left) in [
            ("session=a", None),
            ("session=a;", None),
            ("x=1; session=a; y=2", Some("x=1; y=2")),
            (" x=1;session=a", Some("x=1")),
            ("x=session=a", Some("x=session=a")),
        ] {
            assert_eq!(without_cookie(line.as_bytes(), "session").as_deref(), left.map(str::as_bytes), "{line}");
        }
        for (given, left) in [
            ("/a", "/a"),
            ("/a?", "/a?"),
            ("/a?access_token=x", "/a"),
            ("/a?b=1&access_token=x&c=%20", "/a?b=1&c=%20"),
            ("/a?b&access%5Ftoken=x&&c", "/a?b&&c"),
            ("/access_token=1?access_tokens=2", "/access_token=1?access_tokens=2"),
        ] {
            assert_eq!(without_parameter(given, "access_token"), left, "{given}");
        }
    }
}
