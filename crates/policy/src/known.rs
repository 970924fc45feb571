//! Resources that were validated already, so that one that selects many workloads is validated once for all of them.

use crate::compile::Policies;
use crate::compile::{Take, compile_knowing};
use crate::flaw::{Flaw, PolicyError};
use crate::headers::{self, HEADERS, HeaderNames};
use crate::text::{Places, find_behind};
use crate::vocabulary::Vocabulary;
use model::Roles;
use model::snapshot::{AuthorizationPolicy, TokenIssuer};
use model::token::TokenUse;
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
/// reader of many workloads; and whether none of them reads a header of its `token`. Cost: theirs, less the validation of what `known` knows.
///
/// # Errors
/// - as [`crate::compile`];
/// - a header that carries the token, or that the sidecar sets to tell the application of a claim.
pub fn check(
    live: &[AuthorizationPolicy],
    shadow: &[AuthorizationPolicy],
    issuers: &[TokenIssuer],
    roles: &Roles,
    token: &TokenUse,
    known: &Known,
) -> Result<(), Vec<PolicyError>> {
    read_no_token(&compile_knowing(Some(known), Take::Live, live, issuers, roles)?, live, issuers, token)?;
    let is_tried = |policy: &AuthorizationPolicy| policy.text.contains("@mode");
    if !shadow.is_empty() || live.iter().any(is_tried) {
        let both: Vec<AuthorizationPolicy> = live.iter().chain(shadow).cloned().collect();
        read_no_token(&compile_knowing(Some(known), Take::All, &both, issuers, roles)?, &both, issuers, token)?;
    }
    Ok(())
}

/// What policies of a workload that uses tokens so cannot read, each with its place.
fn read_no_token(
    policies: &Policies,
    sources: &[AuthorizationPolicy],
    issuers: &[TokenIssuer],
    token: &TokenUse,
) -> Result<(), Vec<PolicyError>> {
    let mut errors = Vec::new();
    for rule in &policies.rules {
        let Some(source) = sources.iter().find(|source| source.name == rule.resource) else { continue };
        let mut named: Vec<&String> = rule.reads.names_below(&HEADERS).collect();
        named.sort();
        named.dedup();
        for name in named {
            let Some(message) = headers::of_token(name, token, issuers) else { continue };
            let text = source.text.get(rule.start..).unwrap_or("");
            let (line, column) = Places::of(&source.text).place(rule.start + find_behind(text, "headers", name).unwrap_or(0));
            let (file, policy) = (source.file.clone(), Some(rule.id.clone()));
            let line = source.line.saturating_add(line).saturating_sub(1);
            errors.push(PolicyError { file, line, column, policy, message, flaw: Flaw::Header });
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
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
            check(&policies, &[], &issuers, &Roles::default(), &TokenUse::default(), &known)
                .unwrap_or_else(|errors| panic!("{what}: {errors:#?}"));
            assert_eq!(count(), expected, "{what}");
        }
        // What is wrong is never known, and what was right is wrong against another type.
        let broken = own("a", "context.nothing");
        for _ in 0..2 {
            assert!(
                check(std::slice::from_ref(&broken), &[], &issuers, &Roles::default(), &TokenUse::default(), &known).is_err()
            );
        }
        let other = [issuer(&[("limit", AttributeType::String)])];
        assert!(check(&[all], &[], &other, &Roles::default(), &TokenUse::default(), &known).is_err());
        assert_eq!(count(), 5);
    }

    #[test]
    fn no_policy_reads_a_header_that_is_the_token_or_tells_of_it() {
        let claims =
            [("x-user", "sub"), ("x-limit", "limit"), ("x-roles", "roles"), ("x-team", "team.name"), ("x-scope", "scope")];
        let path = |text: &str| model::ClaimPath::parse(text).expect("a path");
        let token = TokenUse {
            header: "x-session".into(),
            claims: claims.iter().map(|(header, claim)| ((*header).to_owned(), path(claim))).collect(),
            ..TokenUse::default()
        };
        let issuers = [bank_issuer()];
        for (header, told) in [
            ("x-user", "read `context.user.subject`"),
            (
                "x_user",
                "`x-user` tells the application of the claim `sub` when the policies have decided; read `context.user.subject`",
            ),
            ("x-limit", "read `context.user.limit`"),
            ("x-roles", "read `context.user in Role::"),
            ("x-team", "an attribute to which the `TokenIssuer` maps it"),
            ("x-scope", "read `context.user.scopes`"),
            ("x-session", "`x-session` carries the token, which is a secret: write conditions on `context.user`"),
            ("x-other", ""),
            ("x-users", ""),
        ] {
            let text = format!("permit (principal, action, resource) when {{\n  context.request.headers has \"{header}\" }};");
            for (live, shadow) in [(Some(&text), None), (None, Some(&text))] {
                let of = |text: Option<&String>| text.map(|text| resource("p", text, &[])).into_iter().collect::<Vec<_>>();
                let checked = check(&of(live), &of(shadow), &issuers, &Roles::default(), &token, &Known::default());
                if told.is_empty() {
                    assert_eq!(checked, Ok(()), "{header}");
                    continue;
                }
                let errors = checked.expect_err(header);
                let [error] = errors.as_slice() else { panic!("{header}: {errors:#?}") };
                assert!(error.message.contains(told) && error.message.contains(header), "{error}");
                let place = (error.file.as_str(), error.line, error.column, error.flaw.code());
                assert_eq!(place, ("policies/p.yaml", 11, 31, "RA005"), "{header}");
                assert_eq!(error.policy.as_ref().map(|id| id.as_str()), Some("bank/p/policy0"));
            }
        }
    }
}
