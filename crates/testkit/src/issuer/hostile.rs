//! Tokens that must be refused. Each has the claims of a good one, so that only the trick stands between it and a user.

use super::{Issuer, Pair, base64url};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use model::snapshot::JwtAlgorithm;
use serde_json::{Value, json};

/// One trick. [`Hostile::ALL`] lists them, so that a test can match all of them without a `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostile {
    /// `alg: none` and an empty signature (RFC 8725 §2.1).
    AlgNone,
    /// `alg: nOnE`, for readers that compare too loosely.
    AlgNoneInOtherCase,
    /// `alg: none` over a signature that is good.
    AlgNoneSigned,
    /// HS256 by the public key's PEM (RFC 8725 §2.1).
    HmacByPublicPem,
    /// HS256 by the public key's DER.
    HmacByPublicDer,
    /// HS256 by the text of the public key's JWK.
    HmacByPublicJwk,
    /// HS256 by an empty secret.
    HmacByNothing,
    /// The issuer's own signature, but under another algorithm's name.
    AlgOfAnotherKey,
    /// A key id that the issuer does not have, signed by an attacker's key.
    KidUnknown,
    /// A key id that is a file whose content everybody knows; HS256 by that content (nothing).
    KidPath,
    /// A key id that would be a path, signed by the issuer's own key.
    KidPathSigned,
    /// A key id that would end an SQL string.
    KidSql,
    /// A key id with a line break and a forged log line.
    KidNewline,
    /// A key id that is a list.
    KidList,
    /// `jku` to an attacker's key set, signed by the attacker's key (RFC 8725 §2.8).
    Jku,
    /// `x5u` to an attacker's certificate, signed by the attacker's key.
    X5u,
    /// The attacker's public key in the header, signed by the attacker's key (CVE-2018-0114).
    EmbeddedJwk,
    /// The right key id, signed by an attacker's key.
    ForeignKey,
    /// The last 10 characters are missing.
    Truncated,
    /// Nothing after the second dot.
    SignatureStripped,
    /// The second dot is missing too.
    SignaturePartStripped,
    /// A good token's signature under other claims.
    PayloadSwapped,
    /// An ECDSA signature of zeros (CVE-2022-21449), in the right length for the key.
    SignatureOfZeros,
    /// An ECDSA signature in DER instead of two numbers; of another algorithm, the signature in a DER octet string.
    SignatureInDer,
    /// A good signature with a byte after it.
    SignatureWithTail,
    /// A good token, its parts with base64 padding.
    Padded,
    /// A good token with another one appended: five parts.
    FiveParts,
    /// A good token with a space at its end.
    TrailingSpace,
    /// The claim `sub` twice: what it should be, then `admin`.
    ClaimTwice,
    /// A key twice inside a nested claim.
    NestedClaimTwice,
    /// The header's `alg` twice.
    HeaderTwice,
    /// A critical extension (RFC 7515 §4.1.11).
    Crit,
    /// `b64: false` (RFC 7797).
    PayloadUnencoded,
    /// A token of another purpose by the same key: `typ: logout+jwt` (RFC 8725 §2.8).
    OtherType,
    /// The header is a list.
    HeaderNotObject,
    /// The payload is a text.
    PayloadNotObject,
    /// Another issuer's name over our key.
    OtherIssuer,
    /// Bound to a holder's key (RFC 7800), which nobody proves to have.
    Bound,
}

impl Hostile {
    /// Every trick.
    pub const ALL: [Self; 38] = [
        Self::AlgNone,
        Self::AlgNoneInOtherCase,
        Self::AlgNoneSigned,
        Self::HmacByPublicPem,
        Self::HmacByPublicDer,
        Self::HmacByPublicJwk,
        Self::HmacByNothing,
        Self::AlgOfAnotherKey,
        Self::KidUnknown,
        Self::KidPath,
        Self::KidPathSigned,
        Self::KidSql,
        Self::KidNewline,
        Self::KidList,
        Self::Jku,
        Self::X5u,
        Self::EmbeddedJwk,
        Self::ForeignKey,
        Self::Truncated,
        Self::SignatureStripped,
        Self::SignaturePartStripped,
        Self::PayloadSwapped,
        Self::SignatureOfZeros,
        Self::SignatureInDer,
        Self::SignatureWithTail,
        Self::Padded,
        Self::FiveParts,
        Self::TrailingSpace,
        Self::ClaimTwice,
        Self::NestedClaimTwice,
        Self::HeaderTwice,
        Self::Crit,
        Self::PayloadUnencoded,
        Self::OtherType,
        Self::HeaderNotObject,
        Self::PayloadNotObject,
        Self::OtherIssuer,
        Self::Bound,
    ];
}

pub(super) fn mint(issuer: &Issuer, hostile: Hostile, claims: &Value) -> String {
    match hostile {
        Hostile::AlgNone
        | Hostile::AlgNoneInOtherCase
        | Hostile::AlgNoneSigned
        | Hostile::HmacByPublicPem
        | Hostile::HmacByPublicDer
        | Hostile::HmacByPublicJwk
        | Hostile::HmacByNothing
        | Hostile::AlgOfAnotherKey => other_algorithm(issuer, hostile, claims),
        Hostile::KidUnknown
        | Hostile::KidPath
        | Hostile::KidPathSigned
        | Hostile::KidSql
        | Hostile::KidNewline
        | Hostile::KidList => other_key_id(issuer, hostile, claims),
        Hostile::Jku | Hostile::X5u | Hostile::EmbeddedJwk | Hostile::ForeignKey => foreign_key(issuer, hostile, claims),
        Hostile::Truncated
        | Hostile::SignatureStripped
        | Hostile::SignaturePartStripped
        | Hostile::PayloadSwapped
        | Hostile::SignatureOfZeros
        | Hostile::SignatureInDer
        | Hostile::SignatureWithTail
        | Hostile::Padded
        | Hostile::FiveParts
        | Hostile::TrailingSpace => other_bytes(issuer, hostile, claims),
        Hostile::ClaimTwice
        | Hostile::NestedClaimTwice
        | Hostile::HeaderTwice
        | Hostile::Crit
        | Hostile::PayloadUnencoded
        | Hostile::OtherType
        | Hostile::HeaderNotObject
        | Hostile::PayloadNotObject
        | Hostile::OtherIssuer
        | Hostile::Bound => other_content(issuer, hostile, claims),
    }
}

/// `object` with one member set.
fn with(object: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut changed = object.clone();
    if let Some(members) = changed.as_object_mut() {
        members.insert(name.to_owned(), value.into());
    }
    changed
}

/// `object` as text with one member more at its end, even if that name is there already.
fn text_with(object: &Value, member: &str) -> String {
    let text = object.to_string();
    format!("{},{member}}}", text.strip_suffix('}').unwrap_or(&text))
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()))
}

fn hmac_signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let signed = unsigned(header, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", base64url(tag))
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN PUBLIC KEY-----\n");
    for (at, letter) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            out.push('\n');
        }
        out.push(letter);
    }
    out + "\n-----END PUBLIC KEY-----\n"
}

fn other_algorithm(issuer: &Issuer, hostile: Hostile, claims: &Value) -> String {
    let header = issuer.header();
    let key = issuer.signing_key();
    let hs256 = with(&header, "alg", "HS256");
    match hostile {
        Hostile::AlgNone => format!("{}.", unsigned(&with(&header, "alg", "none"), claims)),
        Hostile::AlgNoneInOtherCase => format!("{}.", unsigned(&with(&header, "alg", "nOnE"), claims)),
        Hostile::HmacByPublicPem => hmac_signed(&hs256, claims, pem(&key.pair.public_der()).as_bytes()),
        Hostile::HmacByPublicDer => hmac_signed(&hs256, claims, &key.pair.public_der()),
        Hostile::HmacByPublicJwk => hmac_signed(&hs256, claims, key.pair.jwk(&key.kid).to_string().as_bytes()),
        Hostile::HmacByNothing => hmac_signed(&hs256, claims, &[]),
        Hostile::AlgOfAnotherKey => {
            let other = if key.pair.algorithm() == JwtAlgorithm::Rs256 { "ES256" } else { "RS256" };
            issuer.mint_with_header(&with(&header, "alg", other), claims)
        }
        _ => issuer.mint_with_header(&with(&header, "alg", "none"), claims),
    }
}

fn other_key_id(issuer: &Issuer, hostile: Hostile, claims: &Value) -> String {
    let header = issuer.header();
    let key_id: Value = match hostile {
        Hostile::KidPath => return hmac_signed(&with(&with(&header, "alg", "HS256"), "kid", "/dev/null"), claims, &[]),
        Hostile::KidPathSigned => "../../../../dev/null".into(),
        Hostile::KidSql => "x' UNION SELECT 'secret' --".into(),
        Hostile::KidNewline => "k1\r\nlevel=info msg=\"token accepted\"".into(),
        Hostile::KidList => json!(["k1"]),
        _ => {
            let attacker = Issuer::generate(issuer.signing_key().pair.algorithm(), "no-such-key");
            return attacker.mint(claims);
        }
    };
    issuer.mint_with_header(&with(&header, "kid", key_id), claims)
}

fn foreign_key(issuer: &Issuer, hostile: Hostile, claims: &Value) -> String {
    let key = issuer.signing_key();
    let attacker = Issuer::generate(key.pair.algorithm(), &key.kid);
    let header = issuer.header();
    let header = match hostile {
        Hostile::Jku => with(&header, "jku", "https://attacker.example/jwks"),
        Hostile::X5u => with(&header, "x5u", "https://attacker.example/cert.pem"),
        Hostile::EmbeddedJwk => with(&header, "jwk", attacker.signing_key().pair.jwk(&key.kid)),
        _ => header,
    };
    attacker.mint_with_header(&header, claims)
}

fn other_bytes(issuer: &Issuer, hostile: Hostile, claims: &Value) -> String {
    let good = issuer.mint(claims);
    let (signed, signature) = good.rsplit_once('.').unwrap_or_default();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
    match hostile {
        Hostile::Truncated => good.get(..good.len().saturating_sub(10)).unwrap_or_default().to_owned(),
        Hostile::SignatureStripped => format!("{signed}."),
        Hostile::SignaturePartStripped => signed.to_owned(),
        Hostile::PayloadSwapped => format!("{}.{signature}", unsigned(&issuer.header(), &with(claims, "sub", "admin"))),
        Hostile::SignatureOfZeros => format!("{signed}.{}", base64url(vec![0; raw.len()])),
        Hostile::SignatureInDer => format!("{signed}.{}", base64url(der_signature(&issuer.signing_key().pair, &raw))),
        Hostile::SignatureWithTail => format!("{signed}.{}", base64url([raw.as_slice(), &[0]].concat())),
        Hostile::Padded => {
            // One more letter than a multiple of three needs two `=`.
            let payload = URL_SAFE.encode(padded_to_need_padding(&claims.to_string()));
            let signed = format!("{}.{payload}", base64url(issuer.header().to_string()));
            format!("{signed}.{}", base64url(issuer.signing_key().pair.sign(signed.as_bytes())))
        }
        Hostile::FiveParts => format!("{good}.{}.{signature}", base64url(claims.to_string())),
        _ => format!("{good} "),
    }
}

/// White space at the end until base64 needs padding.
fn padded_to_need_padding(text: &str) -> String {
    let mut text = text.to_owned();
    while text.len() % 3 != 1 {
        text.push(' ');
    }
    text
}

/// The two numbers of an ECDSA signature as a DER sequence (RFC 3279 §2.2.3); other signatures as an octet string.
fn der_signature(pair: &Pair, raw: &[u8]) -> Vec<u8> {
    if !matches!(pair, Pair::Ec(..)) {
        return [&[0x04, 0x40], raw].concat();
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    let content = [der_integer(r), der_integer(s)].concat();
    let length = u8::try_from(content.len()).unwrap_or_default();
    // X.690 §8.1.3.5: a length of 128 or more says first in how many bytes it stands.
    let long: &[u8] = if length >= 0x80 { &[0x81] } else { &[] };
    [&[0x30], long, &[length], content.as_slice()].concat()
}

fn der_integer(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len().saturating_sub(1));
    let digits = bytes.get(start..).unwrap_or_default();
    // A leading bit of one would make the number negative.
    let sign: &[u8] = if digits.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
    let length = u8::try_from(sign.len() + digits.len()).unwrap_or_default();
    [&[0x02, length], sign, digits].concat()
}

fn other_content(issuer: &Issuer, hostile: Hostile, claims: &Value) -> String {
    let header = issuer.header();
    match hostile {
        Hostile::ClaimTwice => issuer.mint_text(&header.to_string(), &text_with(claims, r#""sub":"admin""#)),
        Hostile::NestedClaimTwice => issuer.mint_text(&header.to_string(), &text_with(claims, r#""x":{"a":1,"a":2}"#)),
        Hostile::HeaderTwice => issuer.mint_text(&text_with(&header, r#""alg":"none""#), &claims.to_string()),
        Hostile::Crit => {
            let header =
                with(&with(&header, "crit", json!(["http://example.com/UNDEFINED"])), "http://example.com/UNDEFINED", true);
            issuer.mint_with_header(&header, claims)
        }
        Hostile::PayloadUnencoded => issuer.mint_with_header(&with(&header, "b64", false), claims),
        Hostile::OtherType => issuer.mint_with_header(&with(&header, "typ", "logout+jwt"), claims),
        Hostile::HeaderNotObject => issuer.mint_with_header(&json!([header]), claims),
        Hostile::PayloadNotObject => issuer.mint_with_header(&header, &Value::String(claims.to_string())),
        Hostile::OtherIssuer => issuer.mint(&with(claims, "iss", "https://attacker.example")),
        _ => issuer.mint(&with(claims, "cnf", json!({ "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" }))),
    }
}
