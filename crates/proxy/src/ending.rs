//! The ends that a connection may be asked to come to.

use model::Reason;

/// Why a connection is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Draining,
    Age,
    Idle,
    Revoked,
}

impl Ending {
    /// The word for logs and metrics.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Draining => Reason::Draining,
            Self::Age => Reason::ConnectionAge,
            Self::Idle => Reason::IdleTimeout,
            Self::Revoked => Reason::PeerRevoked,
        }
    }
}

/// How far a connection is with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nobody asks for it.
    No,
    /// After what is under way.
    ToEnd(Ending),
    /// At once: nothing is under way any more and a grace has passed, or the certificate that opened it has ended.
    AtOnce(Ending),
}

impl Asked {
    /// Each, at the place of its number.
    pub(crate) const ALL: [Self; 8] = [
        Self::No,
        Self::ToEnd(Ending::Draining),
        Self::ToEnd(Ending::Age),
        Self::ToEnd(Ending::Idle),
        Self::AtOnce(Ending::Draining),
        Self::AtOnce(Ending::Age),
        Self::AtOnce(Ending::Idle),
        Self::AtOnce(Ending::Revoked),
    ];

    /// Why it is to end, if it is.
    pub(crate) const fn why(self) -> Option<Ending> {
        match self {
            Self::No => None,
            Self::ToEnd(why) | Self::AtOnce(why) => Some(why),
        }
    }
}
