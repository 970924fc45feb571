//! Tokens that the operator has revoked.

use crate::refusal::Refusal;
use crate::verify::VerifiedClaims;
use model::Timestamp;
use model::token::RevokedTokens;
use std::collections::HashMap;

/// What is revoked, found by the first of `jti`, `sub` and `client_id` that a revocation says.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    by_jti: HashMap<String, Vec<RevokedTokens>>,
    by_subject: HashMap<String, Vec<RevokedTokens>>,
    by_client: HashMap<String, Vec<RevokedTokens>>,
    by_time: Vec<RevokedTokens>,
}

impl Revocations {
    /// Sorts the revocations of a configuration.
    pub fn of(revoked: &[RevokedTokens]) -> Self {
        let mut sorted = Self::default();
        for each in revoked {
            let (place, name) = match (&each.jti, &each.subject, &each.client) {
                (Some(jti), _, _) => (&mut sorted.by_jti, jti),
                (None, Some(subject), _) => (&mut sorted.by_subject, subject),
                (None, None, Some(client)) => (&mut sorted.by_client, client),
                (None, None, None) => {
                    sorted.by_time.push(each.clone());
                    continue;
                }
            };
            place.entry(name.clone()).or_default().push(each.clone());
        }
        sorted
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.by_jti.is_empty() && self.by_subject.is_empty() && self.by_client.is_empty() && self.by_time.is_empty()
    }

    /// Passes claims that no revocation means. Costs four look-ups.
    ///
    /// # Errors
    /// - [`Refusal::Revoked`].
    pub fn check(&self, claims: &VerifiedClaims, now: Timestamp) -> Result<(), Refusal> {
        let said = claims.said();
        let jti = said.jti.as_ref().and_then(|jti| self.by_jti.get(jti));
        let subject = self.by_subject.get(&claims.user().subject);
        let [client, party] = said.clients.each_ref().map(|client| self.by_client.get(client.as_ref()?));
        let by_time = Some(&self.by_time);
        let candidates = [("`jti`", jti), ("`sub`", subject), ("`client_id`", client), ("`azp`", party), ("`iat`", by_time)];
        for (by, revoked) in candidates {
            if revoked.is_some_and(|revoked| revoked.iter().any(|each| now < each.until && means(each, claims))) {
                return Err(Refusal::Revoked { by });
            }
        }
        Ok(())
    }
}

/// Whether everything that a revocation says is true of these claims.
fn means(revoked: &RevokedTokens, claims: &VerifiedClaims) -> bool {
    let said = claims.said();
    let is = |wanted: &Option<String>, got: Option<&str>| wanted.is_none() || wanted.as_deref() == got;
    is(&revoked.issuer, Some(claims.issuer()))
        && is(&revoked.jti, said.jti.as_deref())
        && is(&revoked.subject, Some(&claims.user().subject))
        && said.clients.iter().any(|client| is(&revoked.client, client.as_deref()))
        && revoked.issued_before.is_none_or(|before| said.issued_at.is_none_or(|at| at < before))
}
