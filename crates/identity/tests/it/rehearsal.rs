//! A rehearsal over real handshakes, revoked peers, and a key exchange that is required.

use identity::authority::Authority;
use identity::handshake::{self, Alpn, HandshakeRefusal, Serves};
use identity::rehearsal::{Moment, Shadow, ShadowError};
use identity::{Credentials, PeerRefusal, PrivateKey, csr};
use model::snapshot::TrustBundle;
use model::{Reason, SpiffeId, TrustDomain};
use std::sync::Arc;
use std::time::Duration;
use testkit::pki::{self, LawlessClient, TestAuthority};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

const DEADLINE: Duration = Duration::from_secs(5);

/// An SVID of a shadow authority beside these credentials.
fn shadow(own: &Credentials, authority: &Authority) -> Result<Shadow, ShadowError> {
    let key = PrivateKey::generate().expect("key");
    let request = csr::prove(&csr::build(&key, own.svid().id()).expect("request")).expect("proven");
    let issued = authority.issue(&request, own.svid().id(), Duration::from_secs(60), pki::now()).expect("issued");
    let bundle = TrustBundle::x509(authority.trust_domain().clone(), vec![authority.certificate_der().to_vec()]);
    Shadow::build(&key, issued.chain, &bundle, own, pki::now())
}

/// Makes a rehearsal's handshake with a sidecar that answers with `answers`, or with nothing but its own SVID.
async fn shaken(
    client: &Shadow,
    server: &Credentials,
    answers: Option<&Shadow>,
    expected: &SpiffeId,
    moment: Moment,
) -> Result<(), HandshakeRefusal> {
    let (near, far) = duplex(64 * 1024);
    let answering = async {
        let accepted = handshake::accept_or_rehearse(near, server, answers, Serves::Http, DEADLINE).await;
        if let Ok((mut stream, _, alpn)) = accepted {
            assert!(matches!(alpn, Some(Alpn::RehearseActivated | Alpn::RehearseRetired)), "{alpn:?}");
            let _gone = stream.shutdown().await;
        }
    };
    tokio::join!(answering, client.shake(far, expected, moment, DEADLINE)).1
}

#[tokio::test]
async fn a_rehearsal_shakes_hands_with_svids_that_nobody_else_believes() {
    let bank = TestAuthority::new("bank.example");
    let (web, ledger) = (bank.id("web"), bank.id("ledger"));
    let (client, server) = (bank.credentials(&web), bank.credentials(&ledger));
    let domain = TrustDomain::parse("bank.example").expect("domain");
    let authority = Authority::generate(&domain, pki::now(), Duration::from_secs(600)).expect("authority");
    let (ours, theirs) = (shadow(&client, &authority).expect("shadow"), shadow(&server, &authority).expect("shadow"));
    for moment in [Moment::Activated, Moment::Retired] {
        shaken(&ours, &server, Some(&theirs), &ledger, moment).await.expect("both have prepared");
        let refused = shaken(&ours, &server, None, &ledger, moment).await.expect_err("not prepared");
        assert!(refused.to_string().contains("no_application_protocol"), "{refused}");
        let refused = shaken(&ours, &server, Some(&theirs), &bank.id("fraud"), moment).await.expect_err("somebody else");
        assert_eq!(refused.reason(), Reason::PeerUnexpected);
    }
    // With another shadow authority than the peer's, both moments fail: the handshakes are real.
    let other = Authority::generate(&domain, pki::now(), Duration::from_secs(600)).expect("authority");
    let stranger = shadow(&client, &other).expect("shadow");
    for moment in [Moment::Activated, Moment::Retired] {
        shaken(&stranger, &server, Some(&theirs), &ledger, moment).await.expect_err("another authority");
    }
    // Beside it ordinary handshakes go on, and none is made with the shadow's SVID.
    let (near, far) = duplex(64 * 1024);
    let (accepted, connected) = tokio::join!(
        handshake::accept_or_rehearse(near, &server, Some(&theirs), Serves::Http, DEADLINE),
        handshake::connect(far, &client, std::slice::from_ref(&ledger), &[Alpn::Http2], DEADLINE),
    );
    assert_eq!(accepted.expect("accepts").2, Some(Alpn::Http2));
    assert_eq!(connected.expect("connects").1.serial(), server.svid().serial());
}

#[tokio::test]
async fn a_rehearsal_refuses_whom_the_mesh_refuses() {
    let bank = TestAuthority::new("bank.example");
    let (web, ledger) = (bank.id("web"), bank.id("ledger"));
    let (client, server) = (bank.credentials(&web), bank.credentials(&ledger));
    let authority = Authority::generate(bank.trust_domain(), pki::now(), Duration::from_secs(600)).expect("authority");
    let under = |own: &Credentials, revoked: &str, post_quantum_required| {
        let bundles = (**own.bundles()).clone().restricted([revoked.to_owned()], post_quantum_required);
        own.with_bundles(Arc::new(bundles), pki::now()).expect("credentials")
    };
    let ours = shadow(&under(&client, server.svid().serial(), false), &authority).expect("shadow");
    let theirs = shadow(&server, &authority).expect("shadow");
    let refused = shaken(&ours, &server, Some(&theirs), &ledger, Moment::Activated).await.expect_err("revoked");
    assert_eq!(refused, HandshakeRefusal::Peer(PeerRefusal::Revoked));

    let theirs = shadow(&under(&server, "0a", true), &authority).expect("shadow");
    for moment in [Alpn::RehearseActivated, Alpn::RehearseRetired] {
        let classical = LawlessClient::classical().alpn(&[moment.as_str()]);
        let (near, far) = duplex(64 * 1024);
        let answering = handshake::accept_or_rehearse(near, &server, Some(&theirs), Serves::Http, DEADLINE);
        let refused = tokio::join!(answering, classical.connect(far)).0.expect_err("a classical key exchange").to_string();
        assert!(refused.contains("X25519MLKEM768"), "{refused}");
    }
}

#[test]
fn a_shadow_svid_of_somebody_else_is_refused() {
    let bank = TestAuthority::new("bank.example");
    let (web, ledger) = (bank.credentials(&bank.id("web")), bank.id("ledger"));
    let authority = Authority::generate(bank.trust_domain(), pki::now(), Duration::from_secs(600)).expect("authority");
    let key = PrivateKey::generate().expect("key");
    let request = csr::prove(&csr::build(&key, &ledger).expect("request")).expect("proven");
    let issued = authority.issue(&request, &ledger, Duration::from_secs(60), pki::now()).expect("issued");
    let bundle = TrustBundle::x509(bank.trust_domain().clone(), vec![authority.certificate_der().to_vec()]);
    let built = Shadow::build(&key, issued.chain.clone(), &bundle, &web, pki::now());
    assert!(matches!(built, Err(ShadowError::Foreign { .. })));
    let built = Shadow::build(&key, issued.chain, &bank.bundle(), &web, pki::now());
    assert!(matches!(built, Err(ShadowError::Svid(_))), "not of that authority");
}

#[tokio::test]
async fn a_revoked_peer_is_refused_on_either_side_and_hears_why() {
    let bank = TestAuthority::new("bank.example");
    let (web, ledger) = (bank.id("web"), bank.id("ledger"));
    let (client, server) = (bank.credentials(&web), bank.credentials(&ledger));
    let without = |own: &Credentials, serial: &str| {
        let bundles = (**own.bundles()).clone().restricted([serial.to_owned()], false);
        own.with_bundles(Arc::new(bundles), pki::now()).expect("its own SVID is for others to refuse")
    };
    let same = |own: &Credentials| own.with_bundles(Arc::clone(own.bundles()), pki::now()).expect("credentials");
    for (name, client, server, expected) in [
        ("the caller", same(&client), without(&server, client.svid().serial()), Some("server")),
        ("the called", without(&client, server.svid().serial()), same(&server), Some("client")),
        ("oneself", without(&client, client.svid().serial()), same(&server), None),
    ] {
        let (near, far) = duplex(64 * 1024);
        let (accepted, connected) = tokio::join!(
            handshake::accept(near, &server, Serves::Http, DEADLINE),
            handshake::connect(far, &client, std::slice::from_ref(&ledger), &[Alpn::Http2], DEADLINE),
        );
        let refused = |refusal: &HandshakeRefusal| *refusal == HandshakeRefusal::Peer(PeerRefusal::Revoked);
        match expected {
            Some("server") => {
                assert!(accepted.as_ref().is_err_and(refused), "{name}");
                let error = connected.expect("TLS 1.3 tells later").0.read(&mut [0; 1]).await.expect_err("told");
                let told = handshake::refused_by_peer(&error).expect("an alert").to_string();
                assert!(told.contains("certificate_revoked"), "{name}: {told}");
            }
            Some(_) => assert!(connected.as_ref().is_err_and(refused), "{name}"),
            None => assert!(accepted.is_ok() && connected.is_ok(), "{name}"),
        }
    }
    assert_eq!(PeerRefusal::Revoked.reason(), Reason::PeerRevoked);
}

#[tokio::test]
async fn where_post_quantum_is_required_a_classical_peer_gets_no_connection() {
    let bank = TestAuthority::new("bank.example");
    let ledger = bank.id("ledger");
    let server = bank.credentials(&ledger);
    let bundles = (**server.bundles()).clone().restricted([], true);
    let strict = server.with_bundles(Arc::new(bundles), pki::now()).expect("credentials");
    let web = bank.good(&bank.id("web"));
    for (server, classical_gets_in) in [(&*server, true), (&strict, false)] {
        let client = LawlessClient::classical().presenting(&web.chain, &web.key).alpn(&["h2"]);
        let (near, far) = duplex(64 * 1024);
        let (accepted, _) = tokio::join!(handshake::accept(near, server, Serves::Http, DEADLINE), client.connect(far));
        match accepted {
            Ok((_, peer, _)) => assert!(classical_gets_in && peer.key_exchange_group() == "X25519"),
            Err(refusal) => assert!(!classical_gets_in && refusal.to_string().contains("X25519MLKEM768"), "{refusal}"),
        }
    }
    // Our own side offers nothing else then either.
    let client = bank.credentials_trusting(&bank.id("web"), Arc::clone(strict.bundles()));
    let (near, far) = duplex(64 * 1024);
    let (accepted, connected) = tokio::join!(
        handshake::accept(near, &strict, Serves::Http, DEADLINE),
        handshake::connect(far, &client, std::slice::from_ref(&ledger), &[Alpn::Http2], DEADLINE),
    );
    assert_eq!(accepted.expect("accepts").1.key_exchange_group(), "X25519MLKEM768");
    assert_eq!(connected.expect("connects").1.key_exchange_group(), "X25519MLKEM768");
}
