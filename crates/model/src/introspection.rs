//! How an issuer is asked about tokens that are no JWTs (RFC 7662), and as whom.

/// An issuer's introspection endpoint, and which tokens it is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introspection {
    /// Where it is asked; `None`: where its discovery document says (`introspection_endpoint`, RFC 8414 §2).
    pub endpoint: Option<String>,
    /// What its opaque tokens begin with. Empty: every opaque token that this workload is sent.
    pub prefix: String,
    /// The `client_id` of the sidecars at the issuer.
    pub client_id: String,
    /// How the sidecars prove that they are that client.
    pub authentication: ClientAuthentication,
}

/// How a client authenticates to an endpoint of an issuer. Paths are absolute, on the sidecar's machine, and read whenever they are
/// used, so that a new secret needs no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuthentication {
    /// `client_secret_basic` (RFC 6749 §2.3.1).
    SecretBasic {
        /// The file with the secret; one line break at its end is not part of it.
        secret_file: String,
    },
    /// `client_secret_post` (RFC 6749 §2.3.1).
    SecretPost {
        /// As above.
        secret_file: String,
    },
    /// `private_key_jwt` (RFC 7523 §2.2).
    PrivateKeyJwt {
        /// A private key, PKCS#8 in PEM: EC on P-256 signs ES256, Ed25519 EdDSA, RSA of 2048 bits or more RS256.
        key_file: String,
        /// The `kid` of the assertion; `None`: none is written.
        key_id: Option<String>,
    },
    /// `tls_client_auth` (RFC 8705 §2.1): mutual TLS with the workload's own SVID.
    Svid,
}

impl ClientAuthentication {
    /// The word of RFC 8414 §2 that a user writes.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::SecretBasic { .. } => "client_secret_basic",
            Self::SecretPost { .. } => "client_secret_post",
            Self::PrivateKeyJwt { .. } => "private_key_jwt",
            Self::Svid => "tls_client_auth",
        }
    }

    /// Every word.
    pub const WORDS: [&'static str; 4] = ["client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth"];
}
