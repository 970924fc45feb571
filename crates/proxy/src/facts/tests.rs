use super::*;
use http::header::TRANSFER_ENCODING;
use http::{HeaderValue, Request};
use proptest::prelude::*;

/// A head as the HTTP library gives it.
fn head(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().version(version).method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap_or_else(|error| panic!("{target}: {error}")).into_parts().0
}

fn http1(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Facts, FactsRefusal> {
    collect(&head(Version::HTTP_11, method, target, headers))
}

fn path_of(target: &str) -> Result<String, FactsRefusal> {
    http1("GET", target, &[("host", "a")]).map(|facts| facts.path)
}

#[test]
fn a_path_has_one_form() {
    for (target, expected) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/~user/a-b_c.d", "/~user/a-b_c.d"),
        ("/%61%5A%30%2d%2E%5f%7E", "/aZ0-._~"),
        ("/%c3%a4", "/%C3%A4"),
        ("/a%20b", "/a%20b"),
        ("/a%3ab;c=d,e", "/a%3Ab;c=d,e"),
        ("/a:b@c!$&'()*+,;=", "/a:b@c!$&'()*+,;="),
        ("/%25", "/%25"),
        // Decoded once, so the second layer stays escaped.
        ("/%252e%252e/%252F", "/%252e%252e/%252F"),
        ("/%2561", "/%2561"),
        ("/{a}|\"^", "/%7Ba%7D%7C%22%5E"),
        ("//", "//"),
        ("//a//b", "//a//b"),
        ("/.", "/"),
        ("/..", "/"),
        ("/./", "/"),
        ("/../", "/"),
        ("/../../a", "/a"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/../../c", "/c"),
        ("/a/b/..", "/a/"),
        ("/a//../b", "/a/b"),
        ("/a/%2e/b", "/a/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2e./b", "/b"),
        ("/a/...", "/a/..."),
        ("/a/.b/..c/d..", "/a/.b/..c/d.."),
        ("/.hidden;v=1", "/.hidden;v=1"),
        ("/a;v=1/../b", "/b"),
        ("/admin/%2e%2e/%61dmin", "/admin"),
        ("http://a", "/"),
        ("http://a/b/../c", "/c"),
    ] {
        assert_eq!(path_of(target).as_deref(), Ok(expected), "{target}");
    }
}

#[test]
fn a_path_that_others_could_split_differently_is_refused() {
    for (target, rule) in [
        ("/a%2Fb", "escaped `/`"),
        ("/a%2fb", "escaped `/`"),
        ("/a/..%2fb", "escaped `/`"),
        ("/a%5Cb", "escaped backslash"),
        ("/a%5cb", "escaped backslash"),
        ("/a\\b", "a backslash"),
        ("/a\\..\\b", "a backslash"),
        ("/a%00b", "escaped NUL"),
        ("/%01", "escaped control"),
        ("/a%0d%0ab", "escaped control"),
        ("/a%1f", "escaped control"),
        ("/%7f", "escaped control"),
        ("/%", "broken escape"),
        ("/a%", "broken escape"),
        ("/a%2", "broken escape"),
        ("/a%2/b", "broken escape"),
        ("/a%zz", "broken escape"),
        ("/a%+1", "broken escape"),
        ("/%u002f", "broken escape"),
        ("/%%32%66", "broken escape"),
        ("/ä", "outside ASCII"),
        ("/a/..;/b", "dot segment with a parameter"),
        ("/a/..;x=1/b", "dot segment with a parameter"),
        ("/a/.;/b", "dot segment with a parameter"),
        ("/a/%2e%2e;/b", "dot segment with a parameter"),
        ("/a/..%3bx/b", "dot segment with a parameter"),
    ] {
        let refusal = path_of(target).expect_err(target);
        assert_eq!(refusal.reason(), Reason::PathInvalid, "{target}");
        assert!(refusal.to_string().contains(rule), "{target}: {refusal}");
    }
    assert_eq!(path::normalise(""), Ok("/".to_owned()));
    for (text, rule) in
        [("a", "begin"), ("*", "begin"), ("/a b", "space"), ("/a\tb", "control"), ("/a?b", "delimiter"), ("/#", "delimiter")]
    {
        assert!(path::normalise(text).expect_err(text).contains(rule), "{text}");
    }
}

#[test]
fn the_query_is_forwarded_as_it_came() {
    for (target, expected) in
        [("/a?b=c", "/a?b=c"), ("/a/../b?c=/../%2f%61%zz?d", "/b?c=/../%2f%61%zz?d"), ("/%61?", "/a?"), ("http://a?b", "/?b")]
    {
        let facts = http1("GET", target, &[("host", "a")]).expect(target);
        assert_eq!(facts.path_and_query, expected, "{target}");
        assert_eq!(facts.target(Version::HTTP_11).expect(target).to_string(), expected, "{target}");
    }
    let refusal = http1("GET", "/a?ä", &[("host", "a")]).expect_err("query");
    assert_eq!(
        (refusal.reason(), refusal.to_string().as_str()),
        (Reason::PathInvalid, "query holds a character that must be escaped")
    );
}

#[test]
fn an_asterisk_is_for_options_alone_and_an_authority_for_nothing() {
    let facts = http1("OPTIONS", "*", &[("host", "a")]).expect("options");
    assert_eq!((facts.path.as_str(), facts.path_and_query.as_str()), ("*", "*"));
    assert_eq!(facts.target(Version::HTTP_11).expect("target").to_string(), "*");
    assert_eq!(http1("GET", "*", &[("host", "a")]).map_err(|refusal| refusal.reason()), Err(Reason::PathInvalid));
    for target in ["a", "a:80"] {
        let refusal = http1("GET", target, &[("host", target)]).expect_err(target);
        assert_eq!(refusal.reason(), Reason::RequestMalformed, "{target}: {refusal}");
    }
    let refusal = http1("GET", "ftp://a/b", &[("host", "a")]).expect_err("scheme");
    assert_eq!(refusal.reason(), Reason::RequestMalformed);
}

#[test]
fn the_host_has_one_form() {
    for (text, host, authority) in [
        ("bank.example", "bank.example", "bank.example"),
        ("Bank.EXAMPLE:8080", "bank.example", "bank.example:8080"),
        ("bank.example.", "bank.example", "bank.example"),
        ("bank.example.:080", "bank.example", "bank.example:80"),
        (" a\t", "a", "a"),
        ("my_host-1", "my_host-1", "my_host-1"),
        ("127.0.0.1:1", "127.0.0.1", "127.0.0.1:1"),
        ("[::1]", "[::1]", "[::1]"),
        ("[0:0:0:0:0:0:0:1]:65535", "[::1]", "[::1]:65535"),
        ("[2001:DB8::A]", "[2001:db8::a]", "[2001:db8::a]"),
    ] {
        let facts = http1("GET", "/", &[("host", text)]).expect(text);
        assert_eq!((facts.host.as_str(), facts.authority.as_str()), (host, authority), "{text}");
        let again = http1("GET", "/", &[("host", authority)]).expect(text);
        assert_eq!(again, facts, "{text}");
    }
    let long = "a.".repeat(128) + "a";
    for text in [
        "",
        ".",
        "..",
        ".a",
        "a..b",
        "a..",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:b",
        "a:1:2",
        "a, b",
        "a b",
        "u@a",
        "u:p@a",
        "a/b",
        "a?b",
        "a#b",
        "a%61",
        "ä",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]:",
        "[a]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "a\\b",
        "http://a",
        &long,
    ] {
        let refusal = http1("GET", "/", &[("host", text)]).expect_err(text);
        assert_eq!(refusal.reason(), Reason::HostInvalid, "{text}: {refusal}");
    }
}

#[test]
fn exactly_one_host_is_named_and_every_place_that_names_it_agrees() {
    const H2: Version = Version::HTTP_2;
    const H10: Version = Version::HTTP_10;
    const H11: Version = Version::HTTP_11;
    for (version, target, hosts, expected) in [
        (H11, "/", &["a"][..], Ok("a")),
        (H11, "http://a/", &["a"], Ok("a")),
        (H11, "http://A:80/", &["a:80"], Ok("a:80")),
        (H11, "http://a./", &["A"], Ok("a")),
        (H11, "http://a/", &["b"], Err("the request target")),
        (H11, "http://a/", &["a:80"], Err("the request target")),
        (H11, "http://a:81/", &["a:80"], Err("the request target")),
        (H11, "http://u@a/", &["a"], Err("not a name")),
        (H11, "http://a/", &[""], Err("not a name")),
        (H11, "/", &["a", "b"], Err("more than one")),
        (H11, "/", &["a", "a"], Err("more than one")),
        (H11, "/", &[], Err("no host")),
        (H10, "/", &[], Err("no host")),
        (H2, "https://a/", &[], Ok("a")),
        (H2, "https://a/", &["a"], Ok("a")),
        (H2, "/", &["a"], Ok("a")),
        (H2, "https://a/", &["b"], Err("the request target")),
        (H2, "https://a/", &["a", "a"], Err("more than one")),
        (H2, "https://u@a/", &[], Err("not a name")),
        (H2, "/", &[], Err("no host")),
    ] {
        let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        match (collect(&head(version, "GET", target, &headers)), expected) {
            (Ok(facts), Ok(authority)) => assert_eq!(facts.authority, authority, "{target} {hosts:?}"),
            (Err(refusal), Err(text)) => {
                assert_eq!(refusal.reason(), Reason::HostInvalid, "{target} {hosts:?}");
                assert!(refusal.to_string().contains(text), "{target} {hosts:?}: {refusal}");
            }
            (outcome, _) => panic!("{target} {hosts:?}: {outcome:?}"),
        }
    }
    let mut parts = head(H11, "GET", "/", &[]);
    parts.headers.insert(HOST, HeaderValue::from_bytes(b"a\xff").expect("value"));
    assert_eq!(collect(&parts).map_err(|refusal| refusal.reason()), Err(Reason::HostInvalid));
}

#[test]
fn tunnels_and_echoes_are_refused_and_one_upgrade_is_carried() {
    for (method, target) in [("CONNECT", "a:1"), ("TRACE", "/"), ("CONNECT", "/")] {
        let refusal = http1(method, target, &[("host", "a:1")]).expect_err(method);
        assert_eq!(refusal.reason(), Reason::MethodNotSupported);
        assert_eq!(refusal.to_string(), format!("method `{method}` is not carried"));
    }
    for (lines, wanted) in [
        (&[("Upgrade", "websocket"), ("connection", "keep-alive, Upgrade")][..], Ok(Some("websocket"))),
        (&[("Upgrade", "h2c"), ("connection", "upgrade, HTTP2-Settings")], Ok(None)),
        (&[("Upgrade", "h2c, websocket"), ("connection", "upgrade")], Ok(Some("websocket"))),
        (&[("Upgrade", "websocket")], Ok(None)),
        (&[("Upgrade", "websocket, foo/1"), ("connection", "upgrade")], Err(FactsRefusal::Upgrade)),
    ] {
        let mut all = vec![("host", "a")];
        all.extend(lines);
        let wanted = wanted.map(|line| line.map(|line| Upgrade::Line(HeaderValue::from_static(line))));
        assert_eq!(http1("GET", "/", &all).map(|facts| facts.upgrade), wanted, "{lines:?}");
    }
    assert_eq!(FactsRefusal::Upgrade.reason(), Reason::MethodNotSupported);
    for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
        assert_eq!(http1(method, "/", &[("host", "a")]).expect(method).method.as_str(), method);
    }
}

#[test]
fn a_header_that_decides_cannot_be_made_to_vanish_on_the_way() {
    for (connection, header) in [
        ("Authorization", "authorization"),
        ("close, HOST", "host"),
        ("x,\tcontent-type ,y", "content-type"),
        (",,content-length", "content-length"),
        ("content-encoding", "content-encoding"),
        ("cookie", "cookie"),
    ] {
        let refusal = http1("GET", "/", &[("host", "a"), ("connection", "x"), ("connection", connection)]).expect_err(connection);
        assert_eq!(refusal, FactsRefusal::Nominated { header: HeaderName::from_static(header) });
        assert_eq!(refusal.reason(), Reason::RequestMalformed);
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_str(connection).expect("value"));
        headers.insert(header, HeaderValue::from_static("kept"));
        forward_headers(&mut headers, Hop::Response);
        assert!(headers.contains_key(header), "{header}");
    }
}

#[test]
fn what_is_forwarded_is_what_was_decided() {
    let facts = http1("GET", "/a/%2e%2e/%62?c", &[("host", "BANK.example.:80")]).expect("facts");
    assert_eq!(facts.target(Version::HTTP_11).expect("target").to_string(), "/b?c");
    let sent = head(Version::HTTP_2, "GET", "https://BANK.example:80/a/%2e%2e/%62?c", &[]);
    let facts = collect(&sent).expect("facts");
    assert_eq!(facts.target(Version::HTTP_2).expect("target").to_string(), "https://bank.example:80/b?c");
    let without_authority = collect(&head(Version::HTTP_2, "GET", "/x", &[("host", "a")])).expect("facts");
    assert_eq!(without_authority.target(Version::HTTP_2).expect("target").to_string(), "http://a/x");
    let odd = collect(&head(Version::HTTP_11, "GET", "//b.example/c", &[("host", "a")])).expect("facts");
    assert_eq!(odd.target(Version::HTTP_11).expect("target").path(), "//b.example/c");
    assert_eq!(odd.target(Version::HTTP_2).expect("target").authority().map(http::uri::Authority::as_str), Some("a"));

    let long = format!("/{}", "{".repeat(30_000));
    let facts = http1("GET", &long, &[("host", "a")]).expect("facts");
    assert_eq!(facts.target(Version::HTTP_11).map_err(|refusal| refusal.reason()), Err(Reason::PathInvalid));
}

/// What is left of `headers` after one hop, one `name: value` each, sorted.
fn forwarded(hop: Hop, headers: &[(&str, &str)]) -> Vec<String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("name");
        map.append(name, HeaderValue::from_str(value).expect("value"));
    }
    forward_headers(&mut map, hop);
    let mut left: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
    left.sort();
    left
}

#[test]
fn rfc9110_7_6_1_headers_of_one_hop_end_with_it() {
    for hop in [Hop::Inbound, Hop::Outbound, Hop::Response] {
        let left = forwarded(
            hop,
            &[
                ("Connection", "close, X-One ,\tx-two"),
                ("connection", "X-THREE,,\"x-four\", not a name"),
                ("x-one", "1"),
                ("X-Two", "2"),
                ("x-two", "2"),
                ("x-three", "3"),
                ("x-four", "4"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Connection", "keep-alive"),
                ("Proxy-Authenticate", "Basic"),
                ("Proxy-Authorization", "Basic x"),
                ("proxy-authentication-info", "x"),
                ("Proxy-Status", "a"),
                ("Transfer-Encoding", "chunked"),
                ("HTTP2-Settings", "x"),
                ("Upgrade", "h2c"),
                ("te", "gzip;q=0.5"),
                ("close", "x"),
                ("content-length", "5"),
                ("host", "a"),
                ("authorization", "Bearer x"),
                ("set-cookie", "a"),
                ("set-cookie", "b"),
            ],
        );
        let expected = [
            "authorization: Bearer x",
            "content-length: 5",
            "host: a",
            "proxy-status: a",
            "set-cookie: a",
            "set-cookie: b",
            "x-four: 4",
        ];
        assert_eq!(left, expected, "{hop:?}");
    }
    assert_eq!(forwarded(Hop::Inbound, &[("Proxy", "http://evil")]), [""; 0]);
}

#[test]
fn te_goes_on_as_trailers_or_not_at_all() {
    for (values, expected) in [
        (&["trailers"][..], &["te: trailers"][..]),
        (&["Trailers"], &["te: trailers"]),
        (&["gzip, trailers;q=0.5", "deflate, TRAILERS"], &["te: trailers"]),
        (&["gzip"], &[]),
        (&["x-trailers"], &[]),
        (&[""], &[]),
    ] {
        let mut headers: Vec<_> = values.iter().map(|value| ("TE", *value)).collect();
        headers.push(("Connection", "TE"));
        assert_eq!(forwarded(Hop::Inbound, &headers), expected, "{values:?}");
        assert_eq!(forwarded(Hop::Response, &headers), [""; 0], "{values:?}");
    }
}

#[test]
fn a_trailer_is_announced_only_if_it_may_trail() {
    let announced = [("Trailer", "X-Sum, Content-Length"), ("trailer", "grpc-status,x-rondel-user,Host,,te")];
    assert_eq!(forwarded(Hop::Inbound, &announced), ["trailer: x-sum, grpc-status"]);
    assert_eq!(forwarded(Hop::Response, &[("Trailer", "Transfer-Encoding")]), [""; 0]);

    let mut trailers = HeaderMap::new();
    for name in [
        "x-sum",
        "grpc-status",
        "x-rondel-principal",
        "x_rondel_user",
        "x-forwarded-client-cert",
        "host",
        "authorization",
        "x-forwarded-for",
        "x_real_ip",
        "forwarded",
    ] {
        trailers.append(HeaderName::from_static(name), HeaderValue::from_static("v"));
    }
    trailers.append(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    forward_trailers(&mut trailers);
    let left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    assert_eq!(left, ["x-sum", "grpc-status"]);
}

#[test]
fn an_identity_that_a_caller_claims_is_removed_in_every_spelling() {
    let claims = [
        ("x-rondel-principal", "spiffe://bank.example/ns/bank/sa/web"),
        ("X-RONDEL-User", "u"),
        ("x-Rondel-Decision", "d"),
        ("x-rondel-reason", "r"),
        ("x-rondel-anything-else", "x"),
        ("x-rondel-", "x"),
        ("x_rondel_principal", "p"),
        ("X-Rondel_Principal", "p"),
        ("X-Forwarded-Client-Cert", "By=x"),
        ("x_forwarded_client_cert", "By=x"),
        ("X-Forwarded-Client_Cert", "By=x"),
        ("x-rondel-principal", "again"),
    ];
    let near =
        [("x-rondel", "kept"), ("x-rondelx-user", "kept"), ("x-forwarded-client-cert-chain", "kept"), ("rondel-user", "kept")];
    let kept = ["rondel-user: kept", "x-forwarded-client-cert-chain: kept", "x-rondel: kept", "x-rondelx-user: kept"];
    for connection in ["close", "x-rondel-principal", "X-Forwarded-Client-Cert, x-rondel-user", "x-other"] {
        let headers = [&claims[..], &near, &[("Connection", connection)]].concat();
        for hop in [Hop::Inbound, Hop::Outbound] {
            assert_eq!(forwarded(hop, &headers), kept, "{hop:?} {connection}");
        }
    }
    // A sidecar further on may say which decision it made; the rest is not believed from there either.
    let left = forwarded(Hop::Response, &claims);
    assert_eq!(left, ["x-rondel-decision: d", "x-rondel-reason: r"]);
}

#[test]
fn only_one_value_is_a_value() {
    let name = HeaderName::from_static("x-client-country");
    let mut headers = HeaderMap::new();
    assert_eq!(only_value(&headers, &name), None);
    headers.append(&name, HeaderValue::from_static(" SE\t"));
    assert_eq!(only_value(&headers, &name).as_deref(), Some("SE"));
    headers.append(&name, HeaderValue::from_static("SE"));
    assert_eq!(only_value(&headers, &name), None);
    headers.insert(&name, HeaderValue::from_bytes(b"\xff").expect("value"));
    assert_eq!(only_value(&headers, &name), None);
}

/// What a naive application makes of a path: it decodes everything, then resolves the dots.
fn as_an_application_reads(path: &str) -> Vec<u8> {
    let (mut decoded, mut rest) = (Vec::new(), path.as_bytes());
    while let Some((byte, tail)) = rest.split_first() {
        let escape = (*byte == b'%').then(|| tail.get(..2)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = &tail[2..];
            }
            None => {
                decoded.push(*byte);
                rest = tail;
            }
        }
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = decoded.split(|byte| *byte == b'/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            b"." => {}
            b".." => drop(kept.pop()),
            other => kept.push(other),
        }
        if matches!(*segment, b"." | b"..") && index + 1 == segments.len() {
            kept.push(b"");
        }
    }
    kept.iter().flat_map(|segment| [b"/", *segment].concat()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn normalising_twice_equals_once_and_changes_nothing_that_an_application_sees(
        path in "/((%(2[eEfF5cd]|[0-9a-fA-F]{2}|[46][1-9a-f])|\\.|\\.\\.|/|;|[a-z:@!{}|\"%\\\\]){0,6}/?){0,4}",
    ) {
        if let Ok(normal) = path::normalise(&path) {
            prop_assert_eq!(path::normalise(&normal), Ok(normal.clone()));
            prop_assert_eq!(as_an_application_reads(&normal), as_an_application_reads(&path));
            prop_assert!(normal.starts_with('/') && normal.is_ascii());
            prop_assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{}", normal);
            let uri: Uri = normal.parse().expect("a normal path is a request target");
            prop_assert_eq!(uri.path(), normal);
        }
    }

    #[test]
    fn a_host_is_read_the_same_from_its_own_form(text in "[a-zA-Z0-9._-]{1,12}(:[0-9]{1,5})?|\\[[0-9a-fA-F:]{2,12}\\](:[0-9]{1,5})?") {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(&host.authority()), Ok(host));
        }
    }
}
