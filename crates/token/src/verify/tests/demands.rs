//! What an issuer's configuration demands beyond signature, audience and time, and what the operator has revoked.

use super::*;
use model::token::RevokedTokens;

fn path(text: &str) -> ClaimPath {
    ClaimPath::parse(text).expect(text)
}

/// A site whose issuer demands this.
fn demanding(require: Requirements) -> Site {
    let mut site = Site::new(JwtAlgorithm::Es256);
    site.issuers[0].require = require;
    site
}

#[test]
fn rfc9068_2_1_and_2_2_the_profile_demands_its_type_and_its_claims() {
    let site = demanding(Requirements { at_jwt: true, ..Requirements::default() });
    let full = json!({ "client_id": "shop", "jti": "j" });
    site.outcome(&full).expect("the issuer's usual tokens are at+jwt");
    for (typ, is_good) in [("at+jwt", true), ("AT+JWT", true), ("application/at+jwt", true), ("JWT", false), ("dpop+jwt", false)]
    {
        let header = json!({ "alg": "ES256", "typ": typ, "kid": "k1" });
        let token = site.issuer.mint_with_header(&header, &claims(&full));
        assert_eq!(site.verify(&token).is_ok(), is_good, "{typ}");
    }
    let untyped = site.issuer.mint_with_header(&json!({ "alg": "ES256", "kid": "k1" }), &claims(&full));
    assert!(matches!(site.verify(&untyped), Err(Refusal::Malformed { .. })), "§2.1: the type is not optional");
    for claim in ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"] {
        let mut without = full.clone();
        without[claim] = Value::Null;
        let refusal = site.outcome(&without).expect_err(claim);
        assert_eq!(refusal, Refusal::ClaimMissing { claim: claim.to_owned() });
    }
    for change in
        [json!({ "client_id": 5, "jti": "j" }), json!({ "client_id": "", "jti": "j" }), json!({ "client_id": "c", "jti": [] })]
    {
        assert!(matches!(site.outcome(&change), Err(Refusal::ClaimType { .. })), "{change}");
    }
}

#[test]
fn rfc6750_3_1_every_demanded_scope_must_be_there() {
    let site = demanding(Requirements { scopes: vec!["pay".into(), "read".into()], ..Requirements::default() });
    for (claims, missing) in [
        (json!({ "scope": "read pay more" }), None),
        (json!({ "scp": ["pay", "read"] }), None),
        (json!({ "scope": "pay" }), Some("read")),
        (json!({ "scope": "payread" }), Some("pay")),
        (json!({ "scope": "" }), Some("pay")),
        (json!({}), Some("pay")),
        // RFC 8693 §4.2 counts where both stand.
        (json!({ "scope": "read", "scp": ["pay", "read"] }), Some("pay")),
    ] {
        let outcome = site.outcome(&claims).err();
        let expected = missing.map(|missing| Refusal::Scope {
            issuer: login(),
            missing: missing.to_owned(),
            required: "pay read".to_owned(),
        });
        assert_eq!(outcome, expected, "{claims}");
    }
}

#[test]
fn a_demanded_claim_must_have_one_of_its_values_wherever_it_stands() {
    let site = demanding(Requirements {
        claims: BTreeMap::from([
            (path("tenant.id"), vec!["acme".into(), "7".into()]),
            (path("\"https://x.y/beta\""), vec!["true".into()]),
        ]),
        ..Requirements::default()
    });
    for (tenant, beta, is_good) in [
        (json!({ "id": "acme" }), json!(true), true),
        (json!({ "id": 7 }), json!("true"), true),
        (json!({ "id": ["other", "acme"] }), json!([true]), true),
        (json!({ "id": "acme" }), json!(false), false),
        (json!({ "id": "acme" }), json!(1), false),
        (json!({ "id": "ACME" }), json!(true), false),
        (json!({ "id": "acme " }), json!(true), false),
        (json!({ "id": [] }), json!(true), false),
        (json!({ "id": [["acme"]] }), json!(true), false),
        (json!({ "id": { "acme": true } }), json!(true), false),
        (json!({ "id": 7.5 }), json!(true), false),
        (json!("acme"), json!(true), false),
        (json!(["acme"]), json!(true), false),
    ] {
        let outcome = site.outcome(&json!({ "tenant": tenant, "https://x.y/beta": beta }));
        assert_eq!(outcome.is_ok(), is_good, "{tenant} {beta}: {outcome:?}");
    }
    // A name with dots is not a path, and a path is not a name with dots.
    assert!(site.outcome(&json!({ "tenant.id": "acme", "https://x.y/beta": true })).is_err());
}

#[test]
fn nested_claims_become_roles_and_attributes() {
    let mut site = Site::new(JwtAlgorithm::Es256);
    site.issuers[0].roles_claim = Some(path("realm_access.roles"));
    site.issuers[0].attributes =
        BTreeMap::from([("limit".to_owned(), ClaimMapping { claim: path("a.\"b.c\".d"), kind: AttributeType::Long })]);
    let token = json!({ "realm_access": { "roles": ["teller"] }, "a": { "b.c": { "d": 5 } }, "roles": ["admin"] });
    let user = site.outcome(&token).expect("good").user().as_ref().clone();
    assert_eq!(user.roles, ["teller"]);
    assert_eq!(user.attributes, BTreeMap::from([("limit".to_owned(), AttributeValue::Long(5))]));
    for (change, refused) in [
        (json!({ "realm_access": "teller" }), false),
        (json!({ "realm_access": { "roles": 5 } }), true),
        (json!({ "realm_access": ["roles"] }), false),
        (json!({ "a": { "b.c": { "d": "5" } } }), true),
    ] {
        let outcome = site.outcome(&change);
        assert_eq!(outcome.is_err(), refused, "{change}");
        assert!(outcome.is_err() || outcome.expect("good").user().roles.is_empty(), "{change}");
    }
}

#[test]
fn rfc9470_3_a_login_that_falls_short_is_told_from_a_bad_token() {
    let require = Requirements {
        acr: vec!["gold".into(), "silver".into()],
        max_age: Some(Duration::from_secs(60)),
        clock_skew: Some(Duration::from_secs(5)),
        ..Requirements::default()
    };
    let site = demanding(require);
    let fresh = NOW_SECONDS - 10;
    for (claims, what) in [
        (json!({ "acr": "gold", "auth_time": fresh }), None),
        (json!({ "acr": "silver", "auth_time": NOW_SECONDS - 64 }), None),
        (json!({ "acr": "gold", "auth_time": NOW_SECONDS - 65 }), Some("`auth_time`")),
        (json!({ "acr": "gold" }), Some("`auth_time`")),
        (json!({ "acr": "bronze", "auth_time": fresh }), Some("`acr`")),
        (json!({ "acr": ["gold"], "auth_time": fresh }), Some("`acr`")),
        (json!({ "auth_time": fresh }), Some("`acr`")),
    ] {
        let expected =
            what.map(|what| Refusal::StepUp { issuer: login(), what, acr_values: "gold silver".into(), max_age: Some(60) });
        assert_eq!(site.outcome(&claims).err(), expected, "{claims}");
    }
    assert!(matches!(site.outcome(&json!({ "acr": "gold", "auth_time": "now" })), Err(Refusal::ClaimType { .. })));
    // What is remembered ends when the login is too long ago, though the token has not expired.
    let token = site.issuer.mint(&claims(&json!({ "acr": "gold", "auth_time": fresh })));
    let (cache, verified) = (TokenCache::new(10), site.verify(&token).expect("good"));
    cache.remember(&verified, of_config(1));
    assert!(cache.find(&token, of_config(1), Timestamp::from_seconds(fresh + 59)).is_some());
    assert!(cache.find(&token, of_config(1), Timestamp::from_seconds(fresh + 60)).is_none());
    assert!(site.verify_at(&token, Timestamp::from_seconds(fresh + 65)).is_err());
}

#[test]
fn rfc7519_4_1_4_the_skew_is_the_issuers_own_where_it_says_one() {
    let mut site = demanding(Requirements { clock_skew: Some(Duration::ZERO), ..Requirements::default() });
    let token = site.issuer.mint(&claims(&json!({ "exp": NOW_SECONDS })));
    assert!(matches!(site.verify(&token), Err(Refusal::Expired { .. })));
    assert!(site.verify_at(&token, NOW.minus(Duration::from_millis(1))).is_ok());
    site.issuers[0].require.clock_skew = Some(Duration::from_secs(10));
    assert!(site.verify_at(&token, NOW.plus(Duration::from_millis(9999))).is_ok());
    assert!(site.verify_at(&token, NOW.plus(Duration::from_secs(10))).is_err());
}

#[test]
fn a_revocation_means_the_tokens_of_which_everything_is_true() {
    let site = Site::new(JwtAlgorithm::Es256);
    let verified = site.outcome(&json!({ "client_id": "app", "jti": "j1" })).expect("good");
    let undated = site.outcome(&json!({ "iat": null, "jti": null })).expect("good");
    let by_azp = site.outcome(&json!({ "azp": "app" })).expect("good");
    let by_both = site.outcome(&json!({ "client_id": "app", "azp": "party" })).expect("good");
    for (client, is_meant) in [("app", true), ("party", true), ("other", false)] {
        let revoked =
            RevokedTokens { client: Some(client.into()), until: NOW.plus(Duration::from_secs(60)), ..RevokedTokens::default() };
        assert_eq!(Revocations::of(&[revoked]).check(&by_both, NOW).is_err(), is_meant, "{client}");
    }
    let until = NOW.plus(Duration::from_secs(60));
    let said = |text: &str| Some(text.to_owned());
    let iat = Timestamp::from_seconds(NOW_SECONDS - 10);
    let every = RevokedTokens { until, ..RevokedTokens::default() };
    for (name, revoked, expected) in [
        ("jti", RevokedTokens { jti: said("j1"), ..every.clone() }, [true, false, false]),
        ("another jti", RevokedTokens { jti: said("j2"), ..every.clone() }, [false, false, false]),
        ("subject", RevokedTokens { subject: said("alice"), ..every.clone() }, [true, true, true]),
        ("another subject", RevokedTokens { subject: said("alic"), ..every.clone() }, [false, false, false]),
        ("client", RevokedTokens { client: said("app"), ..every.clone() }, [true, false, true]),
        ("time", RevokedTokens { issued_before: Some(iat.plus(Duration::from_millis(1))), ..every.clone() }, [true, true, true]),
        ("the very moment", RevokedTokens { issued_before: Some(iat), ..every.clone() }, [false, true, false]),
        ("issuer", RevokedTokens { issuer: said("login"), jti: said("j1"), ..every.clone() }, [true, false, false]),
        ("another issuer", RevokedTokens { issuer: said("other"), jti: said("j1"), ..every.clone() }, [false, false, false]),
        ("both", RevokedTokens { subject: said("alice"), client: said("app"), ..every.clone() }, [true, false, true]),
        ("one of two", RevokedTokens { subject: said("bob"), client: said("app"), ..every.clone() }, [false, false, false]),
        (
            "subject, before",
            RevokedTokens { subject: said("alice"), issued_before: Some(iat), ..every.clone() },
            [false, true, false],
        ),
        ("over", RevokedTokens { jti: said("j1"), until: NOW, ..every }, [false, false, false]),
    ] {
        let revocations = Revocations::of(std::slice::from_ref(&revoked));
        let refused = [&verified, &undated, &by_azp].map(|claims| revocations.check(claims, NOW).is_err());
        assert_eq!(refused, expected, "{name}");
    }
    assert!(Revocations::of(&[]).is_empty());
}
