//! What a workload holds during the rehearsal of a rotation: an SVID of a shadow authority beside its own, and the handshakes
//! that it can make and answer with it. Nothing else ever uses it.

use crate::bundle::{BundleError, TrustBundles};
use crate::credentials::{self, Credentials, CredentialsError};
use crate::handshake::{self, Alpn, HandshakeRefusal};
use crate::key::PrivateKey;
use crate::verify::ClientSvid;
use model::snapshot::TrustBundle;
use model::{SpiffeId, Timestamp};
use rustls::ServerConfig;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

/// Which moment of a rotation a handshake stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The client has an SVID of the new authority and the server one of the old; both trust both.
    Activated,
    /// Both have one of the new authority and trust nothing else.
    Retired,
}

impl Moment {
    const fn alpn(self) -> Alpn {
        match self {
            Self::Activated => Alpn::RehearseActivated,
            Self::Retired => Alpn::RehearseRetired,
        }
    }
}

/// Why there is no shadow SVID to rehearse with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShadowError {
    /// The shadow authority's bundle cannot be used.
    #[error("the shadow authority's bundle: {0}")]
    Bundle(#[from] BundleError),
    /// The shadow SVID does not pass.
    #[error("the shadow SVID: {0}")]
    Svid(#[from] CredentialsError),
    /// It is somebody else's.
    #[error("the shadow SVID is for `{got}`, not for `{wanted}`")]
    Foreign {
        /// Who we are.
        wanted: SpiffeId,
        /// Whose it is.
        got: SpiffeId,
    },
}

/// The own SVID's shadow.
pub struct Shadow {
    shadow: Credentials,
    joint: Arc<TrustBundles>,
    activated: Arc<ServerConfig>,
    retired: Arc<ServerConfig>,
}

impl Shadow {
    /// From an SVID that a shadow authority issued (`chain`, DER, leaf first), that authority's bundle, and the SVID in use.
    ///
    /// # Errors
    /// - [`ShadowError`], naming what would go wrong in a rotation too.
    pub fn build(
        key: &PrivateKey,
        chain: Vec<Vec<u8>>,
        bundle: &TrustBundle,
        own: &Credentials,
        now: Timestamp,
    ) -> Result<Self, ShadowError> {
        // What is refused stays so: a rehearsal that is laxer says nothing of the rotation.
        let only = TrustBundles::from_model(std::slice::from_ref(bundle))?.restricted_as(own.bundles());
        let shadow = Credentials::build(key, chain, Arc::new(only), now)?;
        let (wanted, got) = (own.svid().id(), shadow.svid().id());
        if wanted != got {
            return Err(ShadowError::Foreign { wanted: wanted.clone(), got: got.clone() });
        }
        let mut both = own.bundles().to_model();
        if let Some(same) = both.iter_mut().find(|each| each.trust_domain == bundle.trust_domain) {
            same.authorities.extend_from_slice(&bundle.authorities);
        }
        let joint = Arc::new(TrustBundles::from_model(&both)?.restricted_as(own.bundles()));
        let tls = |error: rustls::Error| ShadowError::Svid(error.into());
        let activated =
            credentials::server_config(own.certified(), Arc::clone(&joint), &[Alpn::RehearseActivated], ClientSvid::Required);
        let retired = credentials::server_config(
            shadow.certified(),
            Arc::clone(shadow.bundles()),
            &[Alpn::RehearseRetired],
            ClientSvid::Required,
        );
        Ok(Self { joint, activated: activated.map_err(tls)?, retired: retired.map_err(tls)?, shadow })
    }

    /// The configuration for a client that asks for a rehearsal; `None` for every other.
    pub(crate) fn answering<'a>(&self, offered: impl Iterator<Item = &'a [u8]>) -> Option<Arc<ServerConfig>> {
        for name in offered {
            if name == Alpn::RehearseActivated.wire() {
                return Some(Arc::clone(&self.activated));
            }
            if name == Alpn::RehearseRetired.wire() {
                return Some(Arc::clone(&self.retired));
            }
        }
        None
    }

    /// Makes one handshake with the workload `expected`, and waits until it has taken our SVID too.
    ///
    /// # Errors
    /// - [`HandshakeRefusal`], also what the peer says of our SVID.
    pub async fn shake<S>(
        &self,
        stream: S,
        expected: &SpiffeId,
        moment: Moment,
        deadline: Duration,
    ) -> Result<(), HandshakeRefusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let bundles = match moment {
            Moment::Activated => &self.joint,
            Moment::Retired => self.shadow.bundles(),
        };
        let expected = std::slice::from_ref(expected);
        let config = credentials::client_config(Some(self.shadow.certified()), Arc::clone(bundles), expected, &[moment.alpn()]);
        let config = config.map_err(|error| handshake::refusal_of(&error))?;
        let (mut stream, _, _) = handshake::connect_with(stream, config, &[moment.alpn()], deadline).await?;
        // In TLS 1.3 a client learns only now what became of its own certificate: the end if it was taken, else an alert.
        match timeout(deadline, stream.read(&mut [0; 1])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(handshake::refusal(&error)),
            Err(_) => Err(HandshakeRefusal::Timeout { deadline }),
        }
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow").field("shadow", &self.shadow).finish_non_exhaustive()
    }
}
