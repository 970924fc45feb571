//! Resources that were validated already, so that one that selects many workloads is validated once for all of them.

use crate::compile::{Take, compile_knowing};
use crate::flaw::PolicyError;
use crate::headers::HeaderNames;
use crate::vocabulary::Vocabulary;
use model::Roles;
use model::snapshot::{AuthorizationPolicy, TokenIssuer};
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// What is known of the resources of one mesh. Share it between the threads that check its workloads.
#[derive(Debug, Default)]
pub struct Known {
    /// Two keyed hashes, so that nobody can write two resources that are taken for each other.
    keys: [RandomState; 2],
    valid: Mutex<HashSet<[u64; 2]>>,
}

/// Whether a workload's policies compile, live and in shadow mode: as [`crate::compile`] and [`crate::Shadow::compile`] say, for a
/// reader of many workloads. Cost: theirs, less the validation of what `known` knows.
///
/// # Errors
/// - as [`crate::compile`].
pub fn check(
    live: &[AuthorizationPolicy],
    shadow: &[AuthorizationPolicy],
    issuers: &[TokenIssuer],
    roles: &Roles,
    known: &Known,
) -> Result<(), Vec<PolicyError>> {
    compile_knowing(Some(known), Take::Live, live, issuers, roles)?;
    let is_tried = |policy: &AuthorizationPolicy| policy.text.contains("@mode");
    if !shadow.is_empty() || live.iter().any(is_tried) {
        let both: Vec<AuthorizationPolicy> = live.iter().chain(shadow).cloned().collect();
        compile_knowing(Some(known), Take::All, &both, issuers, roles)?;
    }
    Ok(())
}

impl Known {
    /// A resource, and all that its validation sees.
    pub(crate) fn name(
        &self,
        take: Take,
        resource: &AuthorizationPolicy,
        vocabulary: &Vocabulary,
        headers: &HeaderNames,
    ) -> [u64; 2] {
        let AuthorizationPolicy { name, file, line, text, body } = resource;
        self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            (take == Take::All, name, file, line, text, body).hash(&mut hasher);
            (&vocabulary.attributes, headers).hash(&mut hasher);
            hasher.finish()
        })
    }

    pub(crate) fn has(&self, name: [u64; 2]) -> bool {
        self.valid.lock().unwrap_or_else(PoisonError::into_inner).contains(&name)
    }

    pub(crate) fn add(&self, name: [u64; 2]) {
        self.valid.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{bank_issuer, issuer, resource};
    use model::authz::AttributeType;

    #[test]
    fn a_resource_is_validated_once_and_again_where_it_sees_something_else() {
        let known = Known::default();
        let issuers = [bank_issuer()];
        let count = || known.valid.lock().expect("whole").len();
        let rule = |id: &str, when: &str| format!("@id(\"{id}\") permit (principal, action, resource) when {{ {when} }};");
        let limit = rule("limit", "context has user && context.user has limit && context.user.limit > 1");
        let all = resource("all", &limit, &[]);
        let own = |name: &str, when: &str| resource(name, &rule("own", when), &[]);
        let header = "context.request.headers has \"x-tenant\"";
        for (what, policies, issuers, expected) in [
            ("the first", vec![all.clone(), own("a", "true")], issuers.to_vec(), 2),
            ("another workload", vec![all.clone(), own("b", "true")], issuers.to_vec(), 3),
            ("the same once more", vec![all.clone(), own("b", "true")], issuers.to_vec(), 3),
            ("beside one that reads a header", vec![all.clone(), own("c", header)], issuers.to_vec(), 5),
        ] {
            check(&policies, &[], &issuers, &Roles::default(), &known).unwrap_or_else(|errors| panic!("{what}: {errors:#?}"));
            assert_eq!(count(), expected, "{what}");
        }
        // What is wrong is never known, and what was right is wrong against another type.
        let broken = own("a", "context.nothing");
        for _ in 0..2 {
            assert!(check(std::slice::from_ref(&broken), &[], &issuers, &Roles::default(), &known).is_err());
        }
        let other = [issuer(&[("limit", AttributeType::String)])];
        assert!(check(&[all], &[], &other, &Roles::default(), &known).is_err());
        assert_eq!(count(), 5);
    }
}
