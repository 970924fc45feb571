//! The outer form of a token (RFC 7515 §3.1, §7.1) and its header (RFC 7515 §4).

use crate::json::{self, Json, JsonFault, Object};
use crate::refusal::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::snapshot::JwtAlgorithm;

/// A token cut at its dots, decoded. Nothing of it is believed.
pub(crate) struct Parts<'a> {
    pub(crate) header: Object,
    pub(crate) payload: Object,
    /// What the signature is over: the first two parts as sent, with the dot between.
    pub(crate) signed: &'a str,
    pub(crate) signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    pub(crate) fn split(token: &'a str) -> Result<Self, Refusal> {
        let malformed = |rule| Refusal::Malformed { rule };
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed("it has not three parts"))?;
        let (header, payload) = signed.split_once('.').ok_or(malformed("it has not three parts"))?;
        if payload.contains('.') {
            // Five parts are an encrypted token (RFC 7516 §3.1), which we have no key for.
            return Err(malformed("it has not three parts"));
        }
        let header =
            object(header, "its header is not base64url", "its header is not a JSON object", "its header has a key twice")?;
        let payload =
            object(payload, "its payload is not base64url", "its payload is not a JSON object", "its payload has a claim twice")?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed("its signature is not base64url"))?;
        Ok(Self { header, payload, signed, signature })
    }
}

/// Decodes one part. The alphabet is strict: no padding, no stray bits, so that no two texts are the same part.
fn object(part: &str, not_base64: &'static str, not_object: &'static str, twice: &'static str) -> Result<Object, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Malformed { rule: not_base64 })?;
    match json::parse(&bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) | Err(JsonFault::Syntax) => Err(Refusal::Malformed { rule: not_object }),
        Err(JsonFault::DuplicateKey) => Err(Refusal::Malformed { rule: twice }),
    }
}

/// What counts of a header. Addresses and keys that the token brings along (`jku`, `jwk`, `x5u`, `x5c`) are not even read:
/// RFC 8725 §3.10.
pub(crate) struct Header<'a> {
    pub(crate) algorithm: JwtAlgorithm,
    pub(crate) key_id: Option<&'a str>,
    pub(crate) typ: Type,
}

/// What a header's `typ` says (RFC 7515 §4.1.9). Tokens with another purpose say another type (RFC 8725 §3.11), such as `dpop+jwt` or
/// `logout+jwt`: those are refused before their issuer is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// Nothing.
    Unsaid,
    /// `JWT` (RFC 7519 §5.1).
    Jwt,
    /// `at+jwt`: of the profile of RFC 9068.
    AtJwt,
    /// `JOSE`, which a JWT-SVID may say (SPIFFE JWT-SVID §2.3).
    Jose,
}

/// The rule of what an access token may say.
pub(crate) const TYPE_RULE: &str = "its `typ` is neither JWT nor at+jwt";

impl<'a> Header<'a> {
    pub(crate) fn read(object: &'a Object) -> Result<Self, Refusal> {
        let malformed = |rule| Refusal::Malformed { rule };
        let algorithm = match object.get("alg") {
            Some(Json::Text(word)) => algorithm(word).ok_or(Refusal::AlgorithmUnsupported)?,
            _ => return Err(malformed("its header has no `alg`")),
        };
        // RFC 7515 §4.1.11: a critical extension that is not understood refuses, and none is understood here.
        if object.contains_key("crit") {
            return Err(malformed("its header has `crit`"));
        }
        // RFC 7797 §3: with `b64` false the payload is signed unencoded; RFC 7797 §7 forbids that for JWTs.
        if object.get("b64").is_some_and(|value| *value != Json::Boolean(true)) {
            return Err(malformed("its header has `b64` other than true"));
        }
        let typ = match object.get("typ") {
            None => Type::Unsaid,
            Some(Json::Text(word)) => typ(word).ok_or(malformed(TYPE_RULE))?,
            Some(_) => return Err(malformed(TYPE_RULE)),
        };
        let key_id = match object.get("kid") {
            None => None,
            Some(Json::Text(kid)) => Some(kid.as_str()),
            Some(_) => return Err(malformed("its `kid` is not a text")),
        };
        Ok(Self { algorithm, key_id, typ })
    }
}

/// The algorithm of an `alg` word, exactly as registered. `Ed25519` is what RFC 9864 §2.2 calls EdDSA with that curve.
pub(crate) fn algorithm(word: &str) -> Option<JwtAlgorithm> {
    let word = if word == "Ed25519" { "EdDSA" } else { word };
    JwtAlgorithm::ALL.into_iter().find(|each| each.as_str() == word)
}

/// RFC 7515 §4.1.9 lets `application/` be left out, and RFC 9068 §4 wants both forms read.
fn typ(word: &str) -> Option<Type> {
    let is = |known: &[&str]| known.iter().any(|each| word.eq_ignore_ascii_case(each));
    match word {
        _ if is(&["at+jwt", "application/at+jwt"]) => Some(Type::AtJwt),
        _ if is(&["JWT", "application/jwt"]) => Some(Type::Jwt),
        _ if is(&["JOSE"]) => Some(Type::Jose),
        _ => None,
    }
}
