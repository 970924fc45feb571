//! What an operator asks of revoked tokens.

use super::OperatorClient;
use crate::client::{CallFailure, within};
use crate::convert::{ConvertError, revoked_token_to_wire, revoked_tokens_from_wire};
use crate::proto;
use model::token::RevokedTokens;
use model::{Revision, Timestamp};
use std::time::Duration;

/// Tokens that are refused, since when and why.
#[derive(Clone, Debug)]
pub struct TokenRevocation {
    /// Which tokens.
    pub what: RevokedTokens,
    /// When they were revoked.
    pub at: Timestamp,
    /// For people.
    pub reason: String,
}

/// What came of a revocation of tokens.
#[derive(Clone, Debug)]
pub struct TokensRevoked {
    /// It, or the one that said the same before.
    pub revoked: TokenRevocation,
    /// The revision that tells it to the sidecars.
    pub revision: Revision,
}

impl OperatorClient {
    /// Revokes tokens everywhere.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn revoke_tokens(
        &mut self,
        what: &RevokedTokens,
        reason: &str,
        deadline: Duration,
    ) -> Result<TokensRevoked, CallFailure> {
        let request = proto::RevokeTokensRequest { what: Some(revoked_token_to_wire(what)), reason: reason.to_owned() };
        let response = within(deadline, self.client.revoke_tokens(request)).await?.into_inner();
        let revoked = revocation((0, response.revoked.unwrap_or_default()))?;
        Ok(TokensRevoked { revoked, revision: Revision(response.revision) })
    }

    /// Asks for the revocations of tokens that have not ended.
    ///
    /// # Errors
    /// - [`CallFailure`].
    pub async fn token_revocations(&mut self, deadline: Duration) -> Result<Vec<TokenRevocation>, CallFailure> {
        let response = within(deadline, self.client.token_revocations(proto::TokenRevocationsRequest {})).await?.into_inner();
        Ok(response.revoked.into_iter().enumerate().map(revocation).collect::<Result<_, _>>()?)
    }
}

fn revocation((index, wire): (usize, proto::TokenRevocation)) -> Result<TokenRevocation, ConvertError> {
    let what = revoked_tokens_from_wire(&[wire.what.unwrap_or_default()]);
    let what = what.map_err(|error| error.within(&format!("revoked[{index}]")))?.pop().unwrap_or_default();
    Ok(TokenRevocation { what, at: Timestamp::from_millis(wire.revoked_at_ms), reason: wire.reason })
}
