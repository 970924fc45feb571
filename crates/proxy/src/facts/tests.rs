use super::*;
use message::Fields;
use proptest::prelude::*;

/// A head as the framing writes it down.
fn head(version: Version, method: &str, target: &str, lines: &[(&str, &str)]) -> Head {
    let mut head = Head { version, method: method.into(), ..Head::default() };
    if target.starts_with('/') || target == "*" {
        head.path = target.into();
    } else {
        let uri = http::Uri::try_from(target).unwrap_or_else(|error| panic!("{target}: {error}"));
        head.scheme = uri.scheme_str().unwrap_or_default().into();
        head.authority = uri.authority().map_or("", http::uri::Authority::as_str).into();
        head.path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str).into();
    }
    for (name, value) in lines {
        head.fields.push(name.as_bytes(), value.as_bytes());
    }
    head
}

/// The facts of a request. They do not depend on what was read before.
fn collect(head: &Head) -> Result<Facts, FactsRefusal> {
    let mut facts = Facts::default();
    let outcome = facts.collect(head);
    let mut before = Head { version: Version::Http2, method: b"OPTIONS".to_vec(), ..Head::default() };
    (before.scheme, before.authority, before.path) = (b"https".to_vec(), b"before:1".to_vec(), b"/before?x=y".to_vec());
    let mut used = Facts::default();
    used.collect(&before).expect("sound");
    assert_eq!(used.collect(head), outcome);
    outcome.map(|()| {
        assert_eq!(used, facts, "something of the request before is left");
        facts
    })
}

fn http1(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Facts, FactsRefusal> {
    collect(&head(Version::Http11, method, target, headers))
}

fn normalise(path: &str) -> Result<String, path::PathRule> {
    let mut out = "before".to_owned();
    path::normalise(path.as_bytes(), &mut out).map(|()| out)
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
    assert_eq!(normalise(""), Ok("/".to_owned()));
    for (text, rule) in
        [("a", "begin"), ("*", "begin"), ("/a b", "space"), ("/a\tb", "control"), ("/a?b", "delimiter"), ("/#", "delimiter")]
    {
        assert!(normalise(text).expect_err(text).contains(rule), "{text}");
    }
}

#[test]
fn the_query_is_forwarded_as_it_came() {
    for (target, expected) in
        [("/a?b=c", "/a?b=c"), ("/a/../b?c=/../%2f%61%zz?d", "/b?c=/../%2f%61%zz?d"), ("/%61?", "/a?"), ("http://a?b", "/?b")]
    {
        let facts = http1("GET", target, &[("host", "a")]).expect(target);
        assert_eq!(facts.path_and_query, expected, "{target}");
    }
    for (target, version) in [("/a?ä", Version::Http11), ("/a?b#c", Version::Http2)] {
        let mut head = head(version, "GET", "/", &[("host", "a")]);
        Head::set(&mut head.path, target.as_bytes());
        let refusal = Facts::default().collect(&head).expect_err("query");
        assert_eq!(
            (refusal.reason(), refusal.to_string().as_str()),
            (Reason::PathInvalid, "query holds a character that must be escaped")
        );
    }
}

#[test]
fn an_asterisk_is_for_options_alone_and_an_authority_for_nothing() {
    let facts = http1("OPTIONS", "*", &[("host", "a")]).expect("options");
    assert_eq!((facts.path.as_str(), facts.path_and_query.as_str()), ("*", "*"));
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
    const H2: Version = Version::Http2;
    const H10: Version = Version::Http10;
    const H11: Version = Version::Http11;
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
    parts.fields.push(b"host", b"a\xff");
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
        let wanted = wanted.map(|line| line.map(|line| Upgrade::Line(line.into())));
        assert_eq!(http1("GET", "/", &all).map(|facts| facts.upgrade), wanted, "{lines:?}");
    }
    assert_eq!(FactsRefusal::Upgrade.reason(), Reason::MethodNotSupported);
    let mut extended = head(Version::Http2, "CONNECT", "https://a/chat", &[]);
    extended.protocol = b"websocket".to_vec();
    let facts = collect(&extended).expect("an extended CONNECT");
    assert_eq!((facts.method, facts.upgrade, facts.path.as_str()), (Method::GET, Some(Upgrade::ExtendedConnect), "/chat"));
    extended.version = Version::Http11;
    assert_eq!(collect(&extended), Err(FactsRefusal::Method { method: "CONNECT" }), "there is none in HTTP/1");
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
        assert_eq!(refusal, FactsRefusal::Nominated { header });
        assert_eq!(refusal.reason(), Reason::RequestMalformed);
        let mut headers = Fields::default();
        headers.push(b"connection", connection.as_bytes());
        headers.push(header.as_bytes(), b"kept");
        forward_headers(&mut headers, Hop::Response);
        assert_eq!(headers.first(header.as_bytes()), Some(b"kept".as_slice()), "{header}");
    }
}

#[test]
fn what_is_forwarded_is_what_was_decided() {
    let forwarded = |version, target, lines: &[(&str, &str)]| {
        let facts = collect(&head(version, "GET", target, lines)).expect("facts");
        assert!(facts.path_and_query.starts_with(&facts.path) && facts.authority.starts_with(&facts.host));
        [facts.scheme, &facts.authority, &facts.path_and_query].map(str::to_owned)
    };
    let sent = forwarded(Version::Http11, "/a/%2e%2e/%62?c", &[("host", "BANK.example.:80")]);
    assert_eq!(sent, ["http", "bank.example:80", "/b?c"]);
    let sent = forwarded(Version::Http2, "https://BANK.example:80/a/%2e%2e/%62?c", &[]);
    assert_eq!(sent, ["https", "bank.example:80", "/b?c"]);
    assert_eq!(forwarded(Version::Http2, "/x", &[("host", "a")]), ["http", "a", "/x"]);
    for version in [Version::Http11, Version::Http2] {
        assert_eq!(forwarded(version, "//b.example/c", &[("host", "a")]), ["http", "a", "//b.example/c"]);
    }
    for (count, refused) in [(21_844, None), (21_845, Some(Reason::PathInvalid)), (30_000, Some(Reason::PathInvalid))] {
        let long = format!("/{}", "{".repeat(count));
        assert_eq!(http1("GET", &long, &[("host", "a")]).err().map(|refusal| refusal.reason()), refused, "{count}");
    }
}

/// What is left of `headers` after one hop, one `name: value` each, sorted.
fn forwarded(hop: Hop, headers: &[(&str, &str)]) -> Vec<String> {
    let mut fields = Fields::default();
    for (name, value) in headers {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    forward_headers(&mut fields, hop);
    let text = |bytes| std::str::from_utf8(bytes).expect("text");
    let mut left: Vec<_> = fields.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect();
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

    let mut trailers = Fields::default();
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
        trailers.push(name.as_bytes(), b"v");
    }
    trailers.push(b"transfer-encoding", b"chunked");
    forward_trailers(&mut trailers);
    let left: Vec<_> = trailers.iter().collect();
    assert_eq!(left, [(&b"x-sum"[..], &b"v"[..]), (b"grpc-status", b"v")]);
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
    let name = "x-client-country";
    let mut headers = Fields::default();
    assert_eq!(only_value(&headers, name), None);
    headers.push(name.as_bytes(), b" SE\t");
    assert_eq!(only_value(&headers, name), Some("SE"));
    headers.push(name.as_bytes(), b"SE");
    assert_eq!(only_value(&headers, name), None);
    headers.clear();
    headers.push(name.as_bytes(), b"\xff");
    assert_eq!(only_value(&headers, name), None);
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
        if let Ok(normal) = normalise(&path) {
            prop_assert_eq!(normalise(&normal), Ok(normal.clone()));
            prop_assert_eq!(as_an_application_reads(&normal), as_an_application_reads(&path));
            prop_assert!(normal.starts_with('/') && normal.is_ascii());
            prop_assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{}", normal);
            let uri: http::Uri = normal.parse().expect("a normal path is a request target");
            prop_assert_eq!(uri.path(), normal);
        }
    }

    #[test]
    fn a_host_is_read_the_same_from_its_own_form(text in "[a-zA-Z0-9._-]{1,12}(:[0-9]{1,5})?|\\[[0-9a-fA-F:]{2,12}\\](:[0-9]{1,5})?") {
        if let Ok(host) = Host::parse(&text, String::new()) {
            let mut authority = "before".to_owned();
            host.write_authority(&mut authority);
            prop_assert_eq!(Host::parse(&authority, String::new()), Ok(host));
        }
    }
}
