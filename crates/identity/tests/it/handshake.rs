use identity::handshake::{self, Alpn, HandshakeRefusal, Serves, VerifiedPeer};
use identity::{Credentials, PeerRefusal};
use model::{Reason, SpiffeId};
use std::future::Future;
use std::io;
use std::time::Duration;
use testkit::pki::{self, Flaw, LawlessClient, LawlessServer, Leaf, Presented, TestAuthority};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const DEADLINE: Duration = Duration::from_secs(5);
const WIRE_BYTES: usize = 64 * 1024;

/// Both ends of one connection at once.
async fn both<A, B>(server: impl AsyncFnOnce(DuplexStream) -> A, client: impl AsyncFnOnce(DuplexStream) -> B) -> (A, B) {
    let (left, right) = duplex(WIRE_BYTES);
    tokio::join!(server(left), client(right))
}

/// What `accept` says to a client, and what the client is told by its first read at the latest.
async fn attack(
    server: &Credentials,
    serves: Serves,
    client: &LawlessClient,
) -> (Result<VerifiedPeer, HandshakeRefusal>, String) {
    both(
        async |stream| handshake::accept(stream, server, serves, DEADLINE).await.map(|(_, peer, _)| peer),
        async |stream| told(client.connect(stream).await).await,
    )
    .await
}

/// The refusal that a client hears, or `nothing`.
async fn told(connected: io::Result<identity::ClientStream<DuplexStream>>) -> String {
    let error = match connected {
        Err(error) => Some(error),
        Ok(mut stream) => stream.read(&mut [0; 1]).await.err(),
    };
    let refusal = error.and_then(|error| handshake::refused_by_peer(&error));
    refusal.map_or_else(|| "nothing".to_owned(), |refusal| refusal.to_string())
}

fn reason<T>(result: &Result<T, HandshakeRefusal>) -> Option<Reason> {
    result.as_ref().err().map(HandshakeRefusal::reason)
}

#[tokio::test]
async fn two_sidecars_meet_and_each_knows_the_other() {
    let authority = TestAuthority::new("bank.example");
    let (web, ledger) = (authority.id("web"), authority.id("ledger"));
    let (client, server) = (authority.credentials(&web), authority.credentials(&ledger));
    for (serves, alpn) in [
        (Serves::Http, Alpn::Http2),
        (Serves::Http, Alpn::Mux),
        (Serves::Http, Alpn::Http1),
        (Serves::Tcp, Alpn::Tcp),
        (Serves::Any, Alpn::Mux),
    ] {
        let (accepted, connected) = both(
            async |stream| handshake::accept(stream, &server, serves, DEADLINE).await,
            async |stream| handshake::connect(stream, &client, std::slice::from_ref(&ledger), &[alpn], DEADLINE).await,
        )
        .await;
        let ((mut inner, caller, selected), (mut outer, callee, got)) =
            (accepted.expect("accepts"), connected.expect("connects"));
        assert_eq!((caller.id(), callee.id(), selected, got), (&web, &ledger, Some(alpn), alpn));
        assert_eq!(caller.serial(), client.svid().serial());
        assert_eq!(caller.not_after(), client.svid().not_after());
        assert_eq!(caller.fingerprint_sha256().len(), 64);
        assert_ne!(caller.fingerprint_sha256(), callee.fingerprint_sha256());
        for group in [caller.key_exchange_group(), callee.key_exchange_group()] {
            assert_eq!(group, "X25519MLKEM768");
        }
        let connection = inner.get_ref().1;
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
        outer.write_all(b"ping").await.expect("writes");
        outer.flush().await.expect("flushes");
        let mut bytes = [0; 4];
        inner.read_exact(&mut bytes).await.expect("reads");
        assert_eq!(&bytes, b"ping");
    }
}

#[tokio::test]
async fn every_flaw_of_a_client_is_refused_with_its_own_reason() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    for flaw in Flaw::ALL {
        let Presented { chain, key } = authority.flawed(flaw, &authority.id("web"));
        let client = LawlessClient::new().presenting(&chain, &key).alpn(&["h2"]);
        let (refused, told) = attack(&server, Serves::Http, &client).await;
        assert_eq!(reason(&refused), Some(flaw.reason()), "{flaw:?}: {refused:?}");
        assert!(matches!(refused, Err(HandshakeRefusal::Peer(_))), "{flaw:?}: {refused:?}");
        let alert = match flaw.reason() {
            Reason::PeerUntrusted => "unknown_ca",
            Reason::PeerExpired | Reason::PeerNotYetValid => "certificate_expired",
            _ => "certificate_unknown",
        };
        assert_eq!(told, format!("the peer refused with the alert `{alert}`"), "{flaw:?}");
    }
}

#[tokio::test]
async fn every_flaw_of_a_server_is_refused_with_its_own_reason() {
    let authority = TestAuthority::new("bank.example");
    let client = authority.credentials(&authority.id("web"));
    let expected = [authority.id("ledger"), SpiffeId::parse("spiffe://elsewhere.example/ns/bank/sa/ledger").expect("id")];
    for flaw in Flaw::ALL {
        let Presented { chain, key } = authority.flawed(flaw, &authority.id("ledger"));
        let server = LawlessServer::presenting(&chain, &key, &["h2"]);
        let (seen, refused) = both(
            async |stream| server.accept(stream).await.map(|stream| stream.get_ref().1.peer_certificates().is_some()),
            async |stream| handshake::connect(stream, &client, &expected, &[Alpn::Http2], DEADLINE).await,
        )
        .await;
        assert_eq!(reason(&refused), Some(flaw.reason()), "{flaw:?}: {:?}", refused.err());
        assert!(seen.is_err(), "{flaw:?}: a server that is refused must not see our certificate");
    }
}

#[tokio::test]
async fn the_refusal_keeps_its_facts_through_the_tls_library() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let leaf = Leaf { not_after: pki::now().minus(Duration::from_secs(77)), ..Leaf::good(&authority.id("web")) };
    let Presented { chain, key } = authority.mint(&leaf);
    let (refused, _) = attack(&server, Serves::Http, &LawlessClient::new().presenting(&chain, &key)).await;
    let Err(HandshakeRefusal::Peer(PeerRefusal::Expired { not_after, now })) = refused else { panic!("{refused:?}") };
    assert_eq!(not_after, leaf.not_after);
    assert!(now >= pki::now().minus(Duration::from_secs(5)) && now <= pki::now());
    let Presented { chain, key } = authority.flawed(Flaw::TwoUriSans, &authority.id("web"));
    let (refused, _) = attack(&server, Serves::Http, &LawlessClient::new().presenting(&chain, &key)).await;
    assert_eq!(refused.err(), Some(HandshakeRefusal::Peer(PeerRefusal::Profile { rule: "it has more than one URI SAN" })));
}

#[tokio::test]
async fn a_trusted_authority_cannot_vouch_for_another_trust_domain() {
    let (bank, partner) = (TestAuthority::new("bank.example"), TestAuthority::new("partner.example"));
    let all = pki::bundles(&[&bank, &partner]);
    let (web, ledger) = (bank.id("web"), bank.id("ledger"));
    let server = bank.credentials_trusting(&ledger, all.clone());
    // Each for its own: fine.
    for (authority, account) in [(&bank, "web"), (&partner, "clearing")] {
        let Presented { chain, key } = authority.good(&authority.id(account));
        let (accepted, _) = attack(&server, Serves::Http, &LawlessClient::new().presenting(&chain, &key)).await;
        assert_eq!(accepted.expect(account).id(), &authority.id(account));
    }
    // The partner's authority signs `spiffe://bank.example/…`: no.
    let Presented { chain, key } = partner.good(&web);
    let (refused, _) = attack(&server, Serves::Http, &LawlessClient::new().presenting(&chain, &key)).await;
    assert_eq!(refused.err(), Some(PeerRefusal::Untrusted.into()));
    let Presented { chain, key } = partner.good(&ledger);
    let impostor = LawlessServer::presenting(&chain, &key, &["h2"]);
    let client = bank.credentials_trusting(&web, all);
    let (_, refused) = both(
        async |stream| impostor.accept(stream).await.map(drop),
        async |stream| handshake::connect(stream, &client, &[ledger], &[Alpn::Http2], DEADLINE).await.map(|(_, peer, _)| peer),
    )
    .await;
    assert_eq!(refused.err(), Some(PeerRefusal::Untrusted.into()));
}

#[tokio::test]
async fn a_genuine_workload_at_the_wrong_address_is_unexpected_and_never_sees_our_certificate() {
    let authority = TestAuthority::new("bank.example");
    let client = authority.credentials(&authority.id("web"));
    let ledger = authority.id("ledger");
    let near = ["ledger2", "ledge", "payments"].map(|account| authority.id(account));
    let deeper = SpiffeId::parse(&format!("{ledger}/x")).expect("id");
    for got in near.iter().chain([&deeper]) {
        let server = authority.credentials(got);
        let (accepted, refused) = both(
            async |stream| handshake::accept(stream, &server, Serves::Http, DEADLINE).await.map(|(_, peer, _)| peer),
            async |stream| {
                let expected = [ledger.clone(), authority.id("archive")];
                handshake::connect(stream, &client, &expected, &[Alpn::Http2], DEADLINE).await.map(|(_, peer, _)| peer)
            },
        )
        .await;
        let expected = vec![ledger.clone(), authority.id("archive")];
        assert_eq!(refused.err(), Some(HandshakeRefusal::Unexpected { expected, got: got.clone() }));
        assert_eq!(reason(&accepted), Some(Reason::HandshakeFailed));
        assert_eq!(
            accepted.err().map(|refusal| refusal.to_string()).as_deref(),
            Some("the peer refused with the alert `certificate_unknown`")
        );
    }
}

#[tokio::test]
async fn whoever_calls_is_known_by_the_own_certificate_and_by_nothing_else() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    for account in ["web", "ledger", "somebody"] {
        let leaf = Leaf { dns: vec!["web.bank.example".to_owned(), "*".to_owned()], ..Leaf::good(&authority.id(account)) };
        let Presented { chain, key } = authority.mint(&leaf);
        let (accepted, _) = attack(&server, Serves::Http, &LawlessClient::new().presenting(&chain, &key)).await;
        assert_eq!(accepted.expect("a DNS SAN beside is allowed").id(), &authority.id(account));
    }
}

#[tokio::test]
async fn nobody_is_expected_where_the_list_is_empty() {
    let authority = TestAuthority::new("bank.example");
    let (client, server) = (authority.credentials(&authority.id("web")), authority.credentials(&authority.id("ledger")));
    let (_, refused) = both(
        async |stream| handshake::accept(stream, &server, Serves::Http, DEADLINE).await.map(drop),
        async |stream| handshake::connect(stream, &client, &[], &[Alpn::Http2], DEADLINE).await.map(drop),
    )
    .await;
    assert_eq!(reason(&refused), Some(Reason::PeerUnexpected));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let (refused, told) = attack(&server, Serves::Http, &LawlessClient::new().alpn(&["h2"])).await;
    assert_eq!(refused.err(), Some(HandshakeRefusal::CertificateMissing));
    assert_eq!(told, "the peer refused with the alert `certificate_required`");
}

#[tokio::test]
async fn someone_elses_certificate_without_its_key_is_refused_on_both_sides() {
    let authority = TestAuthority::new("bank.example");
    let ledger = authority.id("ledger");
    let server = authority.credentials(&ledger);
    let (stolen, own) = (authority.good(&authority.id("web")), authority.good(&authority.id("thief")));
    let (refused, _) = attack(&server, Serves::Http, &LawlessClient::new().presenting(&stolen.chain, &own.key)).await;
    assert_eq!(reason(&refused), Some(Reason::HandshakeFailed));

    let impostor = LawlessServer::presenting(server.svid().chain(), &own.key, &["h2"]);
    let client = authority.credentials(&authority.id("web"));
    let (_, refused) = both(
        async |stream| impostor.accept(stream).await.map(drop),
        async |stream| handshake::connect(stream, &client, &[ledger], &[Alpn::Http2], DEADLINE).await.map(drop),
    )
    .await;
    assert_eq!(reason(&refused), Some(Reason::HandshakeFailed));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let Presented { chain, key } = authority.good(&authority.id("web"));
    for client in [LawlessClient::tls12().presenting(&chain, &key).alpn(&["h2"]), LawlessClient::tls12()] {
        let (refused, told) = attack(&server, Serves::Http, &client).await;
        assert_eq!(reason(&refused), Some(Reason::HandshakeFailed));
        assert_eq!(told, "the peer refused with the alert `protocol_version`");
    }
    let (refused, _) = both(
        async |stream| handshake::accept_optional(stream, &server, DEADLINE).await.map(drop),
        async |stream| told(LawlessClient::tls12().connect(stream).await).await,
    )
    .await;
    assert_eq!(reason(&refused), Some(Reason::HandshakeFailed));
}

#[tokio::test]
async fn a_peer_without_the_hybrid_group_falls_back_to_x25519() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let Presented { chain, key } = authority.good(&authority.id("web"));
    let (accepted, _) = attack(&server, Serves::Http, &LawlessClient::classical().presenting(&chain, &key)).await;
    assert_eq!(accepted.expect("accepted").key_exchange_group(), "X25519");
}

/// Writes bytes to a server, and gives the server's answer to them.
async fn raw(server: &Credentials, bytes: &[u8]) -> Result<(), HandshakeRefusal> {
    let (refused, ()) = both(
        async |stream| handshake::accept(stream, server, Serves::Http, DEADLINE).await.map(drop),
        async |mut stream: DuplexStream| {
            stream.write_all(bytes).await.expect("writes");
            stream.shutdown().await.expect("shuts down");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.expect("reads");
        },
    )
    .await;
    refused
}

#[tokio::test]
async fn plaintext_is_told_from_broken_tls() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let plaintext: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nhost: ledger\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        &[0xff; 100],
    ];
    for bytes in plaintext {
        assert_eq!(raw(&server, bytes).await, Err(HandshakeRefusal::Plaintext), "{bytes:?}");
    }
    // A handshake record that is no ClientHello, a cut one, an alert, and nothing at all.
    let broken: [&[u8]; 4] = [b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", b"\x16\x03\x01\x02", b"\x15\x03\x03\x00\x02\x02\x28", b""];
    for bytes in broken {
        assert_eq!(reason(&raw(&server, bytes).await), Some(Reason::HandshakeFailed), "{bytes:?}");
    }
}

#[tokio::test]
async fn what_breaks_off_after_the_hello_is_not_called_plaintext() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let (mut hello, mut wire) = duplex(WIRE_BYTES);
    let client = LawlessClient::new();
    let mut bytes = vec![0; WIRE_BYTES];
    let count = tokio::select! {
        count = wire.read(&mut bytes) => count.expect("reads the hello"),
        connected = client.connect(&mut hello) => panic!("{connected:?}"),
    };
    for rest in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x17\x03\x03\x00\x10 no such record ", b""] {
        let refused = raw(&server, &[&bytes[..count], rest].concat()).await;
        assert_eq!(reason(&refused), Some(Reason::HandshakeFailed), "{rest:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_server_that_speaks_plaintext_is_told_as_such() {
    let authority = TestAuthority::new("bank.example");
    let client = authority.credentials(&authority.id("web"));
    let (_, refused) = both(
        async |mut stream: DuplexStream| {
            stream.read_exact(&mut [0; 5]).await.expect("reads the beginning of the hello");
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("answers");
            stream
        },
        async |stream| handshake::connect(stream, &client, &[authority.id("ledger")], &[Alpn::Http2], DEADLINE).await.map(drop),
    )
    .await;
    assert_eq!(refused, Err(HandshakeRefusal::Plaintext));
}

#[tokio::test(start_paused = true)]
async fn a_slow_handshake_ends_at_its_deadline_wherever_it_stalls() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let client = authority.credentials(&authority.id("web"));
    let deadline = Duration::from_millis(5000);
    let timed = async |handshake: &mut (dyn Future<Output = Result<(), HandshakeRefusal>> + Unpin)| {
        let began = tokio::time::Instant::now();
        assert_eq!(handshake.await, Err(HandshakeRefusal::Timeout { deadline }));
        assert_eq!(began.elapsed(), deadline);
    };
    // Nothing is sent.
    let (near, _far) = duplex(WIRE_BYTES);
    let accepting = async { handshake::accept(near, &server, Serves::Http, deadline).await.map(drop) };
    timed(&mut Box::pin(accepting)).await;
    // A byte a second.
    let (near, mut far) = duplex(WIRE_BYTES);
    let dripping = async move {
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if far.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    };
    let accepting = async {
        tokio::select! {
            accepted = handshake::accept(near, &server, Serves::Http, deadline) => accepted.map(drop),
            () = dripping => Ok(()),
        }
    };
    timed(&mut Box::pin(accepting)).await;
    // The client says hello and then falls silent: one deadline for both halves.
    let (near, far) = duplex(WIRE_BYTES);
    let (mut hello, mut server_side) = duplex(WIRE_BYTES);
    let silent = tokio::spawn(async move {
        let mut bytes = vec![0; 16 * 1024];
        let count = server_side.read(&mut bytes).await.expect("reads the hello");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut far = far;
        far.write_all(&bytes[..count]).await.expect("forwards it");
        std::future::pending::<()>().await;
    });
    let began = tokio::time::Instant::now();
    let lawless = LawlessClient::new();
    tokio::select! {
        accepted = handshake::accept(near, &server, Serves::Http, deadline) => {
            assert_eq!(accepted.map(drop), Err(HandshakeRefusal::Timeout { deadline }));
        }
        connected = lawless.connect(&mut hello) => panic!("{connected:?}"),
    }
    assert_eq!(began.elapsed(), deadline);
    silent.abort();
    // A server that accepts and says nothing.
    let (near, _far) = duplex(WIRE_BYTES);
    let expected = [authority.id("ledger")];
    let connecting = async { handshake::connect(near, &client, &expected, &[Alpn::Http2], deadline).await.map(drop) };
    timed(&mut Box::pin(connecting)).await;
}

#[tokio::test]
async fn a_listener_selects_only_what_it_carries() {
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let Presented { chain, key } = authority.good(&authority.id("web"));
    let table: [(Serves, &[&str], _); 15] = [
        (Serves::Http, &["h2"], Ok(Some(Alpn::Http2))),
        (Serves::Http, &["http/1.1"], Ok(Some(Alpn::Http1))),
        (Serves::Http, &["http/1.1", "h2"], Ok(Some(Alpn::Http2))),
        (Serves::Http, &["spdy/3", "http/1.1"], Ok(Some(Alpn::Http1))),
        (Serves::Http, &["rondel-mux"], Ok(Some(Alpn::Mux))),
        (Serves::Http, &["rondel-mux", "http/1.1"], Ok(Some(Alpn::Mux))),
        (Serves::Http, &["http/1.1", "rondel-mux"], Ok(Some(Alpn::Mux))),
        (Serves::Http, &["http/1.1", "rondel-mux", "h2"], Ok(Some(Alpn::Http2))),
        (Serves::Any, &["rondel-mux", "http/1.1"], Ok(Some(Alpn::Mux))),
        (Serves::Http, &[], Ok(None)),
        (Serves::Tcp, &["rondel-tcp"], Ok(Some(Alpn::Tcp))),
        (Serves::Http, &["rondel-tcp"], Err("no_application_protocol")),
        (Serves::Http, &["spdy/3"], Err("no_application_protocol")),
        (Serves::Tcp, &["h2", "http/1.1"], Err("no_application_protocol")),
        (Serves::Tcp, &["rondel-mux"], Err("no_application_protocol")),
    ];
    for (serves, offered, expected) in table {
        let client = LawlessClient::new().presenting(&chain, &key).alpn(offered);
        let (accepted, told) = both(
            async |stream| handshake::accept(stream, &server, serves, DEADLINE).await.map(|(_, _, alpn)| alpn),
            async |stream| told(client.connect(stream).await).await,
        )
        .await;
        match expected {
            Ok(alpn) => assert_eq!(accepted, Ok(alpn), "{offered:?}"),
            Err(alert) => {
                assert_eq!(reason(&accepted), Some(Reason::HandshakeFailed), "{offered:?}");
                assert_eq!(told, format!("the peer refused with the alert `{alert}`"));
            }
        }
    }
}

#[tokio::test]
async fn many_streams_are_offered_first_and_a_server_that_knows_none_gets_one_connection_each() {
    let authority = TestAuthority::new("bank.example");
    let (web, ledger) = (authority.id("web"), authority.id("ledger"));
    let (client, server) = (authority.credentials(&web), authority.credentials(&ledger));
    let offered = [Alpn::Mux, Alpn::Http1];
    let (accepted, connected) = both(
        async |stream| handshake::accept(stream, &server, Serves::Http, DEADLINE).await.map(|(_, _, alpn)| alpn),
        async |stream| {
            let connected = handshake::connect(stream, &client, std::slice::from_ref(&ledger), &offered, DEADLINE).await;
            connected.map(|(_, _, alpn)| alpn)
        },
    )
    .await;
    assert_eq!((accepted, connected), (Ok(Some(Alpn::Mux)), Ok(Alpn::Mux)));

    let Presented { chain, key } = authority.good(&ledger);
    // What is selected counts, wherever the client would have liked it.
    for (served, expected) in [
        (&["http/1.1"][..], Ok(Alpn::Http1)),
        (&["http/1.1", "rondel-mux"], Ok(Alpn::Http1)),
        (&["rondel-tcp", "rondel-mux"], Ok(Alpn::Mux)),
        (&["h2"], Err(Reason::HandshakeFailed)),
        (&[], Err(Reason::HandshakeFailed)),
    ] {
        let older = LawlessServer::presenting(&chain, &key, served);
        let (_, connected) = both(
            async |stream| older.accept(stream).await.map(drop),
            async |stream| {
                let connected = handshake::connect(stream, &client, std::slice::from_ref(&ledger), &offered, DEADLINE).await;
                connected.map(|(_, _, alpn)| alpn).map_err(|refusal| refusal.reason())
            },
        )
        .await;
        assert_eq!(connected, expected, "{served:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_select_our_protocol_is_refused() {
    let authority = TestAuthority::new("bank.example");
    let client = authority.credentials(&authority.id("web"));
    let ledger = authority.id("ledger");
    let Presented { chain, key } = authority.good(&ledger);
    for (served, wanted) in [(&[][..], Alpn::Http2), (&["http/1.1"][..], Alpn::Http2), (&["h2"][..], Alpn::Tcp)] {
        let server = LawlessServer::presenting(&chain, &key, served);
        let (_, refused) = both(
            async |stream| server.accept(stream).await.map(drop),
            async |stream| {
                handshake::connect(stream, &client, std::slice::from_ref(&ledger), &[wanted], DEADLINE).await.map(drop)
            },
        )
        .await;
        assert_eq!(reason(&refused), Some(Reason::HandshakeFailed), "{served:?}");
    }
}

#[tokio::test]
async fn a_second_connection_never_resumes_the_first() {
    let authority = TestAuthority::new("bank.example");
    let (web, ledger) = (authority.id("web"), authority.id("ledger"));
    let full = Some(rustls::HandshakeKind::Full);
    // Our server, and a client that would gladly resume.
    let server = authority.credentials(&ledger);
    let Presented { chain, key } = authority.good(&web);
    let eager = LawlessClient::new().presenting(&chain, &key);
    for _ in 0..3 {
        let (kind, tickets) = both(
            async |stream| {
                let (mut stream, _, _) = handshake::accept(stream, &server, Serves::Http, DEADLINE).await.expect("accepts");
                stream.write_all(b"!").await.expect("writes");
                stream.shutdown().await.expect("shuts down");
                stream.get_ref().1.handshake_kind()
            },
            async |stream| {
                let mut stream = eager.connect(stream).await.expect("connects");
                stream.read_exact(&mut [0; 1]).await.expect("reads");
                assert_eq!(stream.get_ref().1.handshake_kind(), full);
                stream.get_ref().1.tls13_tickets_received()
            },
        )
        .await;
        assert_eq!((kind, tickets), (full, 0));
    }
    // Our client, and a server that hands out tickets.
    let client = authority.credentials(&web);
    let Presented { chain, key } = authority.good(&ledger);
    let generous = LawlessServer::presenting(&chain, &key, &["h2"]);
    for _ in 0..3 {
        let (kind, tickets) = both(
            async |stream| {
                let mut stream = generous.accept(stream).await.expect("accepts");
                stream.write_all(b"!").await.expect("writes");
                stream.flush().await.expect("flushes");
                stream.get_ref().1.handshake_kind()
            },
            async |stream| {
                let expected = std::slice::from_ref(&ledger);
                let connected = handshake::connect(stream, &client, expected, &[Alpn::Http2], DEADLINE).await;
                let (mut stream, _, _) = connected.expect("connects");
                stream.read_exact(&mut [0; 1]).await.expect("reads");
                stream.get_ref().1.tls13_tickets_received()
            },
        )
        .await;
        assert_eq!(kind, full);
        assert!(tickets > 0, "this test needs a server that hands out tickets");
    }
}

#[tokio::test]
async fn the_control_planes_port_admits_a_client_without_an_identity_but_none_with_a_bad_one() {
    let authority = TestAuthority::new("bank.example");
    let id = authority.trust_domain().control_plane();
    let control = authority.credentials(&id);
    let port = async |stream| handshake::accept_optional(stream, &control, DEADLINE).await.map(|(_, peer)| peer);
    let bundles = authority.bundles();
    let (peer, server) = both(port, async |stream| {
        handshake::connect_without_identity(stream, &bundles, &id, DEADLINE).await.map(|(_, peer)| peer)
    })
    .await;
    assert!(peer.expect("admitted").is_none());
    assert_eq!(server.expect("connects").id(), &id);

    let web = authority.id("web");
    let client = authority.credentials(&web);
    let (peer, _) = both(port, async |stream| {
        handshake::connect(stream, &client, std::slice::from_ref(&id), &[Alpn::Http2], DEADLINE).await.map(drop)
    })
    .await;
    assert_eq!(peer.expect("admitted").expect("known").id(), &web);

    for flaw in Flaw::ALL {
        let Presented { chain, key } = authority.flawed(flaw, &web);
        let client = LawlessClient::new().presenting(&chain, &key).alpn(&["h2"]);
        let (refused, _) = both(port, async |stream| client.connect(stream).await.map(drop)).await;
        assert_eq!(reason(&refused), Some(flaw.reason()), "{flaw:?}");
    }
}

#[tokio::test]
async fn the_first_call_goes_to_nobody_but_the_control_plane() {
    let (authority, bundles) = (TestAuthority::new("bank.example"), TestAuthority::new("bank.example").bundles());
    let id = authority.trust_domain().control_plane();
    let impostor = authority.credentials(&authority.id("web"));
    let (_, refused) = both(
        async |stream| handshake::accept_optional(stream, &impostor, DEADLINE).await.map(drop),
        async |stream| handshake::connect_without_identity(stream, &authority.bundles(), &id, DEADLINE).await.map(drop),
    )
    .await;
    assert_eq!(reason(&refused), Some(Reason::PeerUnexpected));
    // Never trust on first use: a bundle with another root does not do.
    let control = authority.credentials(&id);
    let (_, refused) = both(
        async |stream| handshake::accept_optional(stream, &control, DEADLINE).await.map(drop),
        async |stream| handshake::connect_without_identity(stream, &bundles, &id, DEADLINE).await.map(drop),
    )
    .await;
    assert_eq!(reason(&refused), Some(Reason::PeerUntrusted));
}

#[tokio::test]
async fn a_server_refuses_own_credentials_that_expired_since() {
    // Built while it was valid, presented after: the peer looks at its own clock.
    let authority = TestAuthority::new("bank.example");
    let server = authority.credentials(&authority.id("ledger"));
    let leaf = Leaf { not_after: pki::now().minus(Duration::from_secs(60)), ..Leaf::good(&authority.id("web")) };
    let Presented { chain, key } = authority.mint(&leaf);
    let then = pki::now().minus(Duration::from_secs(120));
    let client = Credentials::build(&key, chain, authority.bundles(), then).expect("valid then");
    let (refused, connected) = both(
        async |stream| handshake::accept(stream, &server, Serves::Http, DEADLINE).await.map(drop),
        async |stream| {
            let connected = handshake::connect(stream, &client, &[authority.id("ledger")], &[Alpn::Http2], DEADLINE).await;
            told(Ok(connected.expect("in TLS 1.3 a client hears of it later").0)).await
        },
    )
    .await;
    assert_eq!(reason(&refused), Some(Reason::PeerExpired));
    assert_eq!(connected, "the peer refused with the alert `certificate_expired`");
}

#[test]
fn a_refusal_is_found_under_what_wraps_it_and_nothing_else_is_one() {
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
    let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert));
    let refusal = handshake::refused_by_peer(&wrapped).expect("found");
    assert_eq!(refusal.reason(), Reason::HandshakeFailed);
    assert!(refusal.to_string().contains("certificate_expired"));
    assert_eq!(handshake::refused_by_peer(&io::Error::other(rustls::Error::DecryptError)), None);
    assert_eq!(handshake::refused_by_peer(&io::Error::from(io::ErrorKind::BrokenPipe)), None);
}
