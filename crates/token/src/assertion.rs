//! How a client shows by a key that it is itself (RFC 7523 §2.2, §3): a JWT that it signs for the issuer.

use crate::introspection::IntrospectionError;
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use model::Timestamp;
use serde_json::json;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long an assertion is good for: it is made for each request.
const LIFETIME: Duration = Duration::from_secs(60);

/// A client's private key.
pub(crate) enum ClientKey {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(RsaKeyPair),
}

impl ClientKey {
    /// Reads a PKCS#8 key in PEM (RFC 7468 §10); what stands around it is passed over.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, IntrospectionError> {
        const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
        let text = std::str::from_utf8(pem).map_err(|_| IntrospectionError::Key)?;
        let (_, rest) = text.split_once(BEGIN).ok_or(IntrospectionError::Key)?;
        let (body, _) = rest.split_once("-----END PRIVATE KEY-----").ok_or(IntrospectionError::Key)?;
        let letters: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        let der = Zeroizing::new(STANDARD.decode(letters.as_bytes()).map_err(|_| IntrospectionError::Key)?);
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der) {
            return Ok(Self::Es256(pair));
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
            return Ok(Self::EdDsa(pair));
        }
        let pair = RsaKeyPair::from_pkcs8(&der).map_err(|_| IntrospectionError::Key)?;
        if pair.public_modulus_len() < 256 { Err(IntrospectionError::Key) } else { Ok(Self::Rs256(pair)) }
    }

    /// The assertion of `client` for `audience`, which is the issuer itself.
    pub(crate) fn assertion(
        &self,
        client: &str,
        audience: &str,
        key_id: Option<&str>,
        now: Timestamp,
    ) -> Result<String, IntrospectionError> {
        let mut id = [0_u8; 16];
        rand::fill(&mut id).map_err(|_| IntrospectionError::Sign)?;
        let header = match key_id {
            Some(key_id) => json!({ "alg": self.algorithm(), "typ": "JWT", "kid": key_id }),
            None => json!({ "alg": self.algorithm(), "typ": "JWT" }),
        };
        let claims = json!({
            "iss": client, "sub": client, "aud": audience, "jti": URL_SAFE_NO_PAD.encode(id),
            "iat": now.seconds(), "exp": now.plus(LIFETIME).seconds(),
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.sign(signed.as_bytes()).map_err(|_| IntrospectionError::Sign)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
            Self::Rs256(_) => "RS256",
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
        match self {
            Self::Es256(pair) => pair.sign(&SystemRandom::new(), message).map(|signature| signature.as_ref().to_vec()),
            Self::EdDsa(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Self::Rs256(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
                Ok(signature)
            }
        }
    }
}
