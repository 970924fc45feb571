//! Public keys that JWT-SVIDs are checked with, as JSON Web Keys (RFC 7517), and the algorithms of SPIFFE JWT-SVID §2.1.

use crate::jwt_svid::JwtRefusal;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use std::fmt;

/// LIMIT: JWT authorities of one trust domain.
pub const AUTHORITIES_MAX: usize = 64;
/// LIMIT: bytes of one JSON Web Key.
const JWK_BYTES_MAX: usize = 8 * 1024;
/// LIMIT: bytes of a key id.
const KEY_ID_BYTES_MAX: usize = 256;

/// Why something is no public key of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// It is not a JSON Web Key with a `kid` that is no secret.
    #[error("it is not a public JSON Web Key with a `kid`")]
    Malformed,
    /// The key is of a kind, curve or strength that a JWT-SVID cannot be checked with.
    #[error("its key is not RSA of 2048 to 8192 bits, nor EC on P-256, P-384 or P-521")]
    Kind,
    /// More than the bound.
    #[error("there are more than {AUTHORITIES_MAX} JWT authorities in one trust domain")]
    TooMany,
}

/// A public key that JWT-SVIDs of one trust domain are checked with.
#[derive(Clone)]
pub struct JwtAuthority {
    key_id: String,
    jwk: Vec<u8>,
    key: PublicKey,
}

#[derive(Clone)]
enum PublicKey {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: Curve, point: Vec<u8> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl JwtAuthority {
    /// The key of an authority of our own: the point is not compressed.
    pub(crate) fn p256(key_id: String, point: Vec<u8>) -> Self {
        let key = PublicKey::Ec { curve: Curve::P256, point };
        Self { jwk: key.to_jwk(&key_id), key_id, key }
    }

    /// Reads a public JSON Web Key (RFC 7517); its `kid` is required (SPIFFE JWT-SVID §6.1).
    ///
    /// # Errors
    /// - [`JwkError`].
    pub fn from_jwk_json(json: &[u8]) -> Result<Self, JwkError> {
        if json.len() > JWK_BYTES_MAX {
            return Err(JwkError::Malformed);
        }
        let jwk: Jwk = serde_json::from_slice(json).map_err(|_| JwkError::Malformed)?;
        let key_id = jwk.kid.filter(|id| !id.is_empty() && id.len() <= KEY_ID_BYTES_MAX).ok_or(JwkError::Malformed)?;
        // A private key that everybody can read vouches for nobody.
        if jwk.d.is_some() {
            return Err(JwkError::Malformed);
        }
        let number =
            |text: Option<String>| URL_SAFE_NO_PAD.decode(text.ok_or(JwkError::Malformed)?).map_err(|_| JwkError::Malformed);
        let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => PublicKey::Rsa { n: number(jwk.n)?, e: number(jwk.e)? },
            ("EC", Some(name)) => {
                let curve = Curve::named(name).ok_or(JwkError::Kind)?;
                let (x, y) = (number(jwk.x)?, number(jwk.y)?);
                // RFC 7518 §6.2.1: both in full length.
                if x.len() != curve.bytes() || y.len() != curve.bytes() {
                    return Err(JwkError::Malformed);
                }
                PublicKey::Ec { curve, point: [&[4], x.as_slice(), &y].concat() }
            }
            _ => return Err(JwkError::Kind),
        };
        if let PublicKey::Rsa { n, e } = &key
            && !is_strong(n, e)
        {
            return Err(JwkError::Kind);
        }
        // The library checks that a point is on its curve.
        let first = match &key {
            PublicKey::Rsa { .. } => Algorithm::Rs256,
            PublicKey::Ec { curve, .. } => curve.algorithm(),
        };
        key.parsed(first).ok_or(JwkError::Kind)?;
        Ok(Self { jwk: key.to_jwk(&key_id), key_id, key })
    }

    /// The key as a JSON Web Key with `use` `jwt-svid`.
    pub fn to_jwk_json(&self) -> Vec<u8> {
        self.jwk.clone()
    }

    /// Whether it signed this.
    pub(crate) fn check(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> Result<(), JwtRefusal> {
        self.key.check(algorithm, signed, signature)
    }

    /// Its `kid`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }
}

impl fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthority").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<serde_json::Value>,
}

/// The algorithms of SPIFFE JWT-SVID §2.1: no symmetric one, and not `none`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            _ => return None,
        })
    }
}

impl Curve {
    fn named(name: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::P521].into_iter().find(|curve| curve.as_str() == name)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Of one coordinate.
    const fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    const fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }
}

impl PublicKey {
    fn check(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> Result<(), JwtRefusal> {
        let key = self.parsed(algorithm).ok_or(JwtRefusal::KeyAlgorithm)?;
        key.verify_sig(signed, signature).map_err(|_| JwtRefusal::Signature)
    }

    /// The key for one algorithm; `None` if it is not for it.
    fn parsed(&self, algorithm: Algorithm) -> Option<ParsedPublicKey> {
        match self {
            Self::Rsa { n, e } => {
                let with = match algorithm {
                    Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => return None,
                };
                RsaPublicKeyComponents { n, e }.to_parsed_public_key(with).ok()
            }
            Self::Ec { curve, point } => {
                let with: &'static dyn VerificationAlgorithm = match (curve, algorithm) {
                    (Curve::P256, Algorithm::Es256) => &ECDSA_P256_SHA256_FIXED,
                    (Curve::P384, Algorithm::Es384) => &ECDSA_P384_SHA384_FIXED,
                    (Curve::P521, Algorithm::Es512) => &ECDSA_P521_SHA512_FIXED,
                    _ => return None,
                };
                ParsedPublicKey::new(with, point).ok()
            }
        }
    }

    fn to_jwk(&self, key_id: &str) -> Vec<u8> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = match self {
            Self::Rsa { n, e } => {
                serde_json::json!({ "kty": "RSA", "kid": key_id, "use": "jwt-svid", "n": text(n), "e": text(e) })
            }
            Self::Ec { curve, point } => {
                let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(curve.bytes()).unwrap_or_default();
                serde_json::json!({
                    "kty": "EC", "kid": key_id, "use": "jwt-svid", "crv": curve.as_str(), "x": text(x), "y": text(y),
                })
            }
        };
        jwk.to_string().into_bytes()
    }
}

/// RFC 7518 §3.3 demands 2048 bits or more; above 8192 a check costs more than it is worth.
fn is_strong(n: &[u8], e: &[u8]) -> bool {
    let leading = n.first().map_or(8, |first| usize::try_from(first.leading_zeros()).unwrap_or(8));
    let bits = n.len().saturating_mul(8).saturating_sub(leading);
    let is_odd = e.last().is_some_and(|last| last % 2 == 1);
    (2048..=8192).contains(&bits) && is_odd && e != [1] && e.len() <= 4
}
