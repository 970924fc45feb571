//! Values that no explanation, record or log shows: what the schema says is sensitive.

use crate::compile::{Policies, Rule};
use crate::decide::Denied;
use crate::headers::HEADERS;
use crate::reads::Reads;
use crate::slice::{BODY, USER};
use model::snapshot::Sensitive;

/// Stands for a value that is not shown.
pub(crate) const REDACTED: &str = "(redacted)";

impl Policies {
    /// The same policies; what is told of their decisions shows no value that is sensitive.
    #[must_use]
    pub fn concealing(mut self, sensitive: Sensitive) -> Self {
        self.sensitive = sensitive;
        self
    }

    /// A denial of these policies as it may be told: an error of a policy that reads something sensitive says only that it failed, for the
    /// evaluator's words can hold values.
    #[must_use]
    pub fn conceal(&self, denied: Denied) -> Denied {
        if self.sensitive.is_empty() || denied.errors.is_empty() {
            return denied;
        }
        let errors = denied.errors.iter().map(|error| if self.may_be_told(error) { error.clone() } else { FAILED.to_owned() });
        Denied { errors: errors.collect(), ..denied }
    }

    /// Whether the value at `path` is sensitive, or holds what is.
    pub(crate) fn hides(&self, path: &[String]) -> bool {
        let holds = |place: &[&str], names: &std::collections::BTreeSet<String>| {
            let meets = path.iter().zip(place).all(|(name, known)| name == known);
            meets && !names.is_empty() && path.get(place.len()).is_none_or(|name| names.contains(name))
        };
        // The user by itself shows as who it is, without attributes.
        let is_user = path.len() <= USER.len() && path.last().is_some_and(|last| last == "user");
        holds(&BODY, &self.sensitive.body)
            || holds(&HEADERS, &self.sensitive.headers)
            || !is_user && holds(&USER, &self.sensitive.user)
    }

    /// Whether something that reads so could show a sensitive value.
    pub(crate) fn hides_any(&self, reads: &Reads) -> bool {
        !self.sensitive.is_empty() && (reads.opaque || reads.values.iter().any(|path| self.hides(path)))
    }

    /// What is said of an error of `rule`.
    pub(crate) fn error_of(&self, rule: &Rule, error: String) -> String {
        if self.hides_any(&rule.reads) { FAILED.to_owned() } else { error }
    }

    /// Our own words hold no values; Cedar's may hold those of the policy that they name.
    fn may_be_told(&self, error: &str) -> bool {
        let is_ours = error.starts_with("header `") || error.starts_with("user attribute `");
        let named = |rule: &&Rule| error.contains(&format!("`{}`", rule.id));
        is_ours || self.rules.iter().find(named).is_some_and(|rule| !self.hides_any(&rule.reads))
    }
}

/// What is told of an error whose words could hold a sensitive value.
const FAILED: &str = "a policy that reads sensitive attributes could not be evaluated; why is not shown";

#[cfg(test)]
mod tests {
    use crate::explain;
    use crate::fixture::*;
    use crate::{Denied, Permit};
    use model::AuthzRequest;
    use model::authz::AttributeType;
    use model::snapshot::Sensitive;
    use std::collections::BTreeSet;

    const RULES: &str = r#"
@id("small") permit (principal, action, resource)
when { context.request has body && context.request.body.amount < 100 };
@id("all-of-it") permit (principal, action, resource)
when { context.request has body && context.request.body == { amount: 1 } };
@id("limit") permit (principal, action, resource)
when { context has user && context.user has limit && context.user.limit < 7 && context.user.scopes.contains("x") };
@id("twisted") permit (principal, action, resource)
when { context has user && (if context.request.path == "/x" then context.user else context.user) has limit && (if context.request.path == "/x" then context.user else context.user).limit < 8 };
@id("tenant") permit (principal, action, resource)
when { context.request.headers has "x-tenant" && context.request.headers["x-tenant"] == "other" };
@id("path") permit (principal, action, resource) when { context.request.path == "/elsewhere" };
"#;

    fn sensitive() -> Sensitive {
        let one = |name: &str| BTreeSet::from([name.to_owned()]);
        Sensitive { body: one("amount"), user: one("limit"), headers: one("x-tenant") }
    }

    fn told(decided: Result<Permit, Denied>) -> model::Decision {
        decided.map_or_else(|denied| denied.decision, |permit| permit.decision().clone())
    }

    /// Everything that is told of a request, as one text.
    fn all_told(text: &str, sensitive: Sensitive, request: &AuthzRequest) -> String {
        let resource = resource("p", text, &[("amount", AttributeType::Long)]);
        let policies = compiled(&[resource]).unwrap_or_else(|errors| panic!("{errors:#?}")).concealing(sensitive);
        let decided = decided(&policies, request).map_err(|denied| policies.conceal(denied));
        let errors = decided.as_ref().err().map(|denied| denied.errors.join("; ")).unwrap_or_default();
        format!("{:#?} {errors}", explain(&policies, request, &told(decided)))
    }

    #[test]
    fn no_sensitive_value_is_told_and_every_other_is() {
        let request = changed(|request| amount(request, 31_337));
        let open = all_told(RULES, Sensitive::default(), &request);
        for value in ["31337", "1000", "acme", "/transfers"] {
            assert!(open.contains(value), "`{value}` of what is not sensitive is told: {open}");
        }
        let closed = all_told(RULES, sensitive(), &request);
        for value in ["31337", "1000", "acme"] {
            assert!(!closed.contains(value), "`{value}`: {closed}");
        }
        assert!(closed.contains("(redacted)") && closed.contains("/transfers") && closed.contains("openid"), "{closed}");
        assert!(closed.contains("alice"), "the user is told without attributes: {closed}");
        // That something is absent says nothing of its value.
        let without = all_told(RULES, sensitive(), &changed(|request| request.body = None));
        assert!(without.contains("(absent)"), "{without}");
    }

    #[test]
    fn the_evaluator_s_words_are_not_told_where_they_could_hold_a_value() {
        let overflow = r#"@id("sum") permit (principal, action, resource)
            when { context.request has body && context.request.body.amount + 9223372036854775807 > 0 };"#;
        let request = changed(|request| amount(request, 31_337));
        assert!(all_told(overflow, Sensitive::default(), &request).contains("31337"), "the evaluator tells values");
        let closed = all_told(overflow, sensitive(), &request);
        assert!(!closed.contains("31337") && closed.contains("why is not shown"), "{closed}");
        // An error of a policy that reads nothing sensitive is told.
        let user_only = Sensitive { body: BTreeSet::new(), ..sensitive() };
        assert!(all_told(overflow, user_only, &request).contains("31337"));
    }
}
