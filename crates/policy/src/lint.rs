//! What is sound and probably not meant: policies that never match, that say nothing, or that say more than they seem to.

use crate::compile::{Policies, Rule};
use crate::conjuncts::conjuncts;
use crate::country;
use crate::reads::{Path, path_of};
use crate::shadow::Shadow;
use crate::slice::{BODY, USER, admits};
use crate::text::{Places, find_behind};
use crate::vocabulary::ACTIONS;
use cedar_policy::pst::{
    ActionConstraint, BinaryOp, Clause, EntityOrSlot, Expr, Literal, PrincipalConstraint, ResourceConstraint,
};
use cedar_policy::{Effect, EntityUid};
use model::ids::{PolicyId, ServiceName, SpiffeId, TrustDomain, printable};
use model::snapshot::{AuthorizationPolicy, CountryHeader, TokenIssuer};
use model::{CountryCode, Principal, Roles};
use std::collections::BTreeSet;

/// What there is in the mesh for the policies of one workload to meet.
#[derive(Clone, Copy, Debug)]
pub struct Provided<'a> {
    /// The workload's service.
    pub service: &'a ServiceName,
    /// The trust domains whose workloads may call.
    pub domains: &'a [TrustDomain],
    /// The identities of the mesh's workloads.
    pub workloads: &'a BTreeSet<SpiffeId>,
    /// Whose tokens are accepted.
    pub issuers: &'a [TokenIssuer],
    /// How roles nest.
    pub roles: &'a Roles,
    /// Who is believed about the country.
    pub country: Option<&'a CountryHeader>,
    /// Whether a database is asked for it.
    pub country_database: bool,
    /// Whether an inbound port may carry opaque connections.
    pub opaque: bool,
    /// Whether an inbound port may carry HTTP.
    pub http: bool,
    /// Whether an inbound port lets plaintext callers in.
    pub permissive: bool,
}

/// Something that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lint {
    /// The file, relative to the configuration's directory.
    pub file: String,
    /// The line of the file, from 1.
    pub line: u32,
    /// The column of the policy text, from 1.
    pub column: u32,
    /// `RA1` and two digits (`docs/policy-checks.md`).
    pub code: &'static str,
    /// The policy; `None` where the resource as a whole is meant.
    pub policy: Option<PolicyId>,
    /// What it is, and what to do.
    pub message: String,
}

/// Looks at sound policies of one workload, and at those in shadow mode as if they were in force. `sources`: what all of them were compiled
/// from. What is live is not held against what is only tried. Cost: quadratic in the policies; for people, not
/// for the request path.
pub fn lint(policies: &Policies, shadow: Option<&Shadow>, sources: &[AuthorizationPolicy], provided: &Provided<'_>) -> Vec<Lint> {
    let all = shadow.map_or(policies, |shadow| &shadow.all);
    let is_tried = |rule: &Rule| shadow.is_some_and(|shadow| shadow.tried.contains(&rule.id));
    let facts: Vec<Facts<'_>> = all.rules.iter().map(|rule| Facts::of(rule, is_tried(rule))).collect();
    let mut found = Vec::new();
    for source in sources {
        let places = Places::of(&source.text);
        let own: Vec<&Facts<'_>> = facts.iter().filter(|each| each.rule.resource == source.name).collect();
        for each in &own {
            let mut say = |code, offset: usize, message: String| {
                let (line, column) = places.place(each.rule.start + offset);
                let line = source.line.saturating_add(line).saturating_sub(1);
                let policy = Some(each.rule.id.clone());
                found.push(Lint { file: source.file.clone(), line, column, code, policy, message });
            };
            let text = source.text.get(each.rule.start..).unwrap_or("");
            each.never(provided, text, &mut say);
            each.names(provided, text, &mut say);
            each.absent(provided, text, &mut say);
            each.countries(text, &mut say);
            each.among(&facts, &mut say);
        }
        if !source.body.is_empty() && !own.iter().any(|each| each.rule.reads_body()) {
            let fields = source.body.keys().map(String::as_str).collect::<Vec<_>>().join("`, `");
            let message =
                format!("the body's `{fields}` is declared, and no policy of `{}` reads it: remove `body`", source.name);
            found.push(Lint { file: source.file.clone(), line: source.line, column: 1, code: "RA109", policy: None, message });
        }
    }
    found.sort();
    found.dedup();
    found
}

/// One policy with what is asked of it more than once.
struct Facts<'a> {
    rule: &'a Rule,
    /// It is in shadow mode.
    is_tried: bool,
    /// As text, each of which must hold.
    conjuncts: BTreeSet<String>,
    /// The values that a path is compared with: `==`, `>` and `<` with a literal.
    bounds: Vec<(Path, BinaryOp, Literal)>,
}

type Say<'a> = dyn FnMut(&'static str, usize, String) + 'a;

impl<'a> Facts<'a> {
    fn of(rule: &'a Rule, is_tried: bool) -> Self {
        let parts = conjuncts(rule.body.clauses());
        let bounds = parts.iter().filter_map(|part| match part.as_ref() {
            Expr::BinaryOp { op, left, right } => match (path_of(left), right.as_ref()) {
                (Some(path), Expr::Literal(literal)) => Some((path, *op, literal.clone())),
                _ => None,
            },
            _ => None,
        });
        Self { rule, is_tried, bounds: bounds.collect(), conjuncts: parts.iter().map(ToString::to_string).collect() }
    }

    fn is_permit(&self) -> bool {
        self.rule.effect == Effect::Permit
    }

    /// Whether its scope admits the action.
    fn admits(&self, (action, group): (&str, Option<&str>)) -> bool {
        admits(&self.rule.body.action, action, group)
    }

    /// Policies that no call of this workload can meet.
    fn never(&self, provided: &Provided<'_>, text: &str, say: &mut Say<'_>) {
        if let ResourceConstraint::Eq(EntityOrSlot::Entity(uid)) = &self.rule.body.resource
            && uid.eid != provided.service.as_str()
        {
            let named = printable(uid.eid.as_str());
            let at = find_behind(text, "Service", uid.eid.as_str()).unwrap_or(0);
            say("RA101", at, format!("it never matches: it is about `{named}`, and is enforced by `{}` alone", provided.service));
        }
        let is_met = |(action, _): (&str, _)| if action == "connect" { provided.opaque } else { provided.http };
        if !ACTIONS.into_iter().any(|action| self.admits(action) && is_met(action)) {
            let lacks = if provided.http { "opaque connections" } else { "HTTP" };
            say("RA101", 0, format!("it never matches: no inbound port of `{}` carries {lacks}", provided.service));
        }
        if let Some(part) = self.conjuncts.iter().find(|part| self.conjuncts.contains(&format!("!({part})"))) {
            say("RA101", 0, format!("it never matches: it demands both `{part}` and its opposite"));
        }
        for (path, op, literal) in &self.bounds {
            if let (BinaryOp::Eq, Literal::String(text)) = (op, literal)
                && let Some(why) = never_said(path, text)
            {
                say("RA101", 0, format!("it never matches: `{}` is never `{}`: {why}", path.join("."), printable(text)));
            }
        }
        for (number, (path, one, first)) in self.bounds.iter().enumerate() {
            let later = self.bounds.get(number + 1..).unwrap_or_default();
            if let Some((_, two, second)) =
                later.iter().find(|(other, two, second)| other == path && excludes(*one, first, *two, second))
            {
                let path = path.join(".");
                say("RA101", 0, format!("it never matches: `{path}` cannot be {} and {}", told(*one, first), told(*two, second)));
            }
        }
    }

    /// Roles and callers that there are none of.
    fn names(&self, provided: &Provided<'_>, text: &str, say: &mut Say<'_>) {
        let mut named: Vec<EntityUid> = self.rule.policy.entity_literals();
        named.sort();
        named.dedup();
        for uid in named {
            let (kind, id) = (uid.type_name().basename().to_owned(), uid.id().unescaped().to_owned());
            let at = find_behind(text, &kind, &id).unwrap_or(0);
            let shown = printable(&id);
            match kind.as_str() {
                "Role" if provided.issuers.iter().all(|issuer| issuer.roles_claim.is_none()) => {
                    say(
                        "RA104",
                        at,
                        format!("nobody has the role `{shown}`: no `TokenIssuer` maps a claim to roles (`claims.roles`)"),
                    );
                }
                "Role" if !provided.roles.is_empty() && !provided.roles.declared().contains_key(&id) => {
                    say(
                        "RA105",
                        at,
                        format!(
                            "the role `{shown}` is not among `spec.roles` of the `MeshConfig`: a spelling mistake? Add `{shown}: []` if not"
                        ),
                    );
                }
                "Workload" if id == Principal::Unauthenticated.as_str() && !provided.permissive => {
                    say(
                        "RA111",
                        at,
                        "no plaintext caller gets in: no inbound port is permissive (`PeerAuthentication`)".to_owned(),
                    );
                }
                "Workload" => match SpiffeId::parse(&id) {
                    Ok(caller) if !provided.domains.contains(caller.trust_domain()) => {
                        say(
                            "RA106",
                            at,
                            format!("nobody proves to be `{shown}`: its trust domain is neither the mesh's nor federated"),
                        );
                    }
                    Ok(caller)
                        if provided.domains.first() == Some(caller.trust_domain()) && !provided.workloads.contains(&caller) =>
                    {
                        say("RA106", at, format!("no workload of the mesh is `{shown}`"));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }

    /// Facts that no call brings, or that anybody can bring.
    fn absent(&self, provided: &Provided<'_>, text: &str, say: &mut Say<'_>) {
        let reads = &self.rule.reads;
        if provided.country.is_none() && !provided.country_database && reads.name(&["context", "source", "country"]) {
            let at = find_behind(text, "source", "country").unwrap_or(0);
            say("RA107", at, "the country of a call is never known: the `MeshConfig` says no `country`".to_owned());
        }
        if provided.issuers.is_empty() && reads.name(&USER) {
            let at = find_behind(text, "has", "user").unwrap_or(0);
            say("RA108", at, "no call has a user: the mesh has no `TokenIssuer`".to_owned());
        }
        if let Some(country) = provided.country
            && reads.name(&["context", "request", "headers", &country.header])
        {
            let at = find_behind(text, "headers", &country.header).unwrap_or(0);
            let message = format!(
                "anybody can claim `{}`: write `context.source.country`, which believes the trusted services alone",
                country.header
            );
            say("RA110", at, message);
        }
    }

    /// Countries that no call comes from: a forbid that names one silently forbids nothing.
    fn countries(&self, text: &str, say: &mut Say<'_>) {
        let mut unknown = BTreeSet::new();
        for clause in self.rule.body.clauses() {
            let (Clause::When(condition) | Clause::Unless(condition)) = clause;
            country::unknown(condition, &mut unknown);
        }
        for name in unknown {
            let at = find_behind(text, "country", &name).unwrap_or(0);
            let upper = name.to_ascii_uppercase();
            let near = if CountryCode::parse(&upper).is_some() { format!("; write `{upper}`") } else { String::new() };
            let shown = printable(&name);
            say("RA116", at, format!("no call comes from `{shown}`: a country is two upper-case letters (ISO 3166-1){near}"));
        }
    }

    /// What other policies make of it: of one that is tried, all; of one that is live, the live ones.
    fn among(&self, all: &[Facts<'_>], say: &mut Say<'_>) {
        let all: Vec<&Facts<'_>> = all.iter().filter(|other| self.is_tried || !other.is_tried).collect();
        let body = format!("context.request has {}", BODY[2]);
        if self.is_permit() {
            let reads = &self.rule.reads;
            let anybody = matches!(self.rule.body.principal, PrincipalConstraint::Any | PrincipalConstraint::Is(_));
            if anybody && !reads.name(&["principal"]) && !reads.name(&USER) {
                say("RA103", 0, "it allows every caller of the mesh: name the principal, or demand a user or a role".to_owned());
            }
            if let Some(forbid) = all.iter().find(|other| !other.is_permit() && other.covers(self)) {
                let (id, position) = (&forbid.rule.id, &forbid.rule.position);
                say("RA102", 0, format!("it has no effect: whatever it allows is forbidden by `{id}` ({position})"));
            }
            let is_earlier =
                |other: &Facts<'_>| (&other.rule.resource, other.rule.start) < (&self.rule.resource, self.rule.start);
            let wider = all.iter().filter(|other| other.is_permit() && other.rule.id != self.rule.id && other.covers(self));
            if let Some(other) = wider.into_iter().find(|other| !self.covers(other) || is_earlier(other)) {
                let (id, position) = (&other.rule.id, &other.rule.position);
                say("RA112", 0, format!("it adds nothing: whatever it allows is allowed by `{id}` ({position})"));
            }
        } else if self.conjuncts.contains(&body) {
            let meets = |permit: &&&Facts<'_>| ACTIONS.into_iter().any(|action| self.admits(action) && permit.admits(action));
            let open = |permit: &&&Facts<'_>| permit.is_permit() && !permit.conjuncts.contains(&body);
            if let Some(permit) = all.iter().filter(open).find(meets) {
                let id = &permit.rule.id;
                let message =
                    format!("a call without a body passes it: demand `{body}` in the permit `{id}`, or forbid what has none");
                say("RA113", 0, message);
            }
        }
    }

    /// Whether every call that `other` applies to is one that this applies to. Told by the texts of the conditions alone: never wrongly yes.
    fn covers(&self, other: &Facts<'_>) -> bool {
        let (own, theirs) = (&self.rule.body, &other.rule.body);
        let principal = own.principal == PrincipalConstraint::Any || own.principal == theirs.principal;
        let resource = own.resource == ResourceConstraint::Any || own.resource == theirs.resource;
        let action =
            own.action == ActionConstraint::Any || ACTIONS.into_iter().all(|each| !other.admits(each) || self.admits(each));
        // The same words mean the same body only with the same declaration.
        let shape = !self.rule.reads_body() || self.rule.shape == other.rule.shape;
        principal && resource && action && shape && self.conjuncts.is_subset(&other.conjuncts)
    }
}

/// Why no call says this text at this path: each fact has one form, and a policy that writes another waits for it in vain.
fn never_said(path: &Path, text: &str) -> Option<String> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["context", "request", "host"] if text.contains(|c: char| c.is_ascii_uppercase()) => {
            Some("it is in lower case".to_owned())
        }
        ["context", "request", "host"] if text.ends_with('.') => Some("it is without the dot that may end a name".to_owned()),
        ["context", "request", "host"] if text.contains(':') && !text.ends_with(']') => Some("it is without the port".to_owned()),
        ["context", "request", "path"] if text != "*" => {
            let mut normal = String::new();
            match model::path::normalise(text.as_bytes(), &mut normal) {
                Err(rule) => Some(format!("a path that {rule} is refused")),
                Ok(()) => (normal != text).then(|| format!("policies see `{}`", printable(&normal))),
            }
        }
        _ => None,
    }
}

/// Whether no value is both.
fn excludes(one: BinaryOp, first: &Literal, two: BinaryOp, second: &Literal) -> bool {
    if one == BinaryOp::Eq && two == BinaryOp::Eq {
        return first != second;
    }
    let (Literal::Long(first), Literal::Long(second)) = (first, second) else { return false };
    let range = |op: BinaryOp, bound: i64| match op {
        BinaryOp::Eq => Some((bound, bound)),
        BinaryOp::Greater => Some((bound.saturating_add(1), i64::MAX)),
        BinaryOp::GreaterEq => Some((bound, i64::MAX)),
        BinaryOp::Less => Some((i64::MIN, bound.saturating_sub(1))),
        BinaryOp::LessEq => Some((i64::MIN, bound)),
        _ => None,
    };
    match (range(one, *first), range(two, *second)) {
        (Some((least, most)), Some((low, high))) => least.max(low) > most.min(high),
        _ => false,
    }
}

fn told(op: BinaryOp, literal: &Literal) -> String {
    let symbol = match op {
        BinaryOp::Eq => "",
        BinaryOp::Greater => "> ",
        BinaryOp::GreaterEq => ">= ",
        BinaryOp::Less => "< ",
        BinaryOp::LessEq => "<= ",
        _ => "otherwise than ",
    };
    format!("{symbol}{}", Expr::Literal(literal.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{bank_issuer, bank_roles, compiled, resource};
    use model::authz::AttributeType;

    fn codes(text: &str, body: &[(&str, AttributeType)]) -> Vec<&'static str> {
        codes_beside(text, "", body)
    }

    /// `tried`: a resource in shadow mode.
    fn codes_beside(text: &str, tried: &str, body: &[(&str, AttributeType)]) -> Vec<&'static str> {
        let sources = [resource("p", text, if tried.is_empty() { body } else { &[] })];
        let beside: Vec<_> = (!tried.is_empty()).then(|| resource("s", tried, body)).into_iter().collect();
        let policies = compiled(&sources).unwrap_or_else(|errors| panic!("{text}: {errors:#?}"));
        let id = |account: &str| SpiffeId::parse(&format!("spiffe://bank.example/ns/bank/sa/{account}")).expect("id");
        let (issuers, roles, workloads) = ([bank_issuer()], bank_roles(), BTreeSet::from([id("web"), id("payments")]));
        let shadow = Shadow::compile(&sources, &beside, &issuers, &roles);
        let shadow = shadow.unwrap_or_else(|errors| panic!("{tried}: {errors:#?}"));
        let provided = Provided {
            service: &ServiceName::parse("bank/payments").expect("name"),
            domains: &[
                TrustDomain::parse("bank.example").expect("domain"),
                TrustDomain::parse("partner.example").expect("domain"),
            ],
            workloads: &workloads,
            issuers: &issuers,
            roles: &roles,
            country: Some(&CountryHeader { header: "x-country".into(), trusted: Vec::new() }),
            country_database: false,
            opaque: false,
            http: true,
            permissive: false,
        };
        let both = [sources.as_slice(), &beside].concat();
        lint(&policies, shadow.as_ref(), &both, &provided).into_iter().map(|lint| lint.code).collect()
    }

    #[test]
    fn what_may_be_meant_is_not_told() {
        const WEB: &str = "principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\"";
        for text in [
            crate::fixture::PAYMENTS.to_owned(),
            format!("permit ({WEB}, action, resource);"),
            format!("permit ({WEB}, action, resource == Service::\"bank/payments\");"),
            "permit (principal == Workload::\"spiffe://partner.example/any\", action, resource);".to_owned(),
            "permit (principal, action, resource) when { context has user };".to_owned(),
            "permit (principal, action, resource) when { principal has account };".to_owned(),
            // A forbid that is narrower, about another method, or for another caller takes back a part alone.
            format!(
                "permit ({WEB}, action, resource); forbid (principal, action, resource) when {{ context.request.path == \"/a\" }};"
            ),
            format!(
                "permit ({WEB}, action in Action::\"read\", resource); forbid (principal, action == Action::\"GET\", resource);"
            ),
            format!("permit ({WEB}, action, resource); forbid (principal == Workload::\"unauthenticated\", action, resource);"),
            // Ranges that meet, and values that do not exclude each other.
            format!(
                "permit ({WEB}, action, resource) when {{ context has user && context.user has limit && context.user.limit >= 5 && context.user.limit <= 5 }};"
            ),
            format!(
                "permit ({WEB}, action, resource) when {{ context.request.path == \"/a\" && context.request.host == \"b\" }};"
            ),
        ] {
            let body = [("amount", AttributeType::Long)];
            let found = codes(&text, if text.contains("request.body") { &body } else { &[] });
            // The plaintext caller is told of for its own sake.
            assert_eq!(found, if text.contains("unauthenticated") { vec!["RA111"] } else { vec![] }, "{text}");
        }
    }

    #[test]
    fn what_is_in_shadow_mode_is_looked_at_as_if_it_were_in_force_and_nothing_live_for_its_sake() {
        const WEB: &str = "principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\"";
        let live = format!("@id(\"live\") permit ({WEB}, action, resource);");
        let amount = [("amount", AttributeType::Long)];
        for (tried, body, expected) in [
            (format!("@id(\"t\") permit ({WEB}, action == Action::\"GET\", resource);"), &[][..], &["RA112"][..]),
            ("@id(\"t\") permit (principal, action, resource);".to_owned(), &[], &["RA103"]),
            ("@id(\"t\") forbid (principal, action, resource);".to_owned(), &[], &[]),
            (format!("@id(\"t\") forbid ({WEB}, action, resource); @id(\"u\") permit ({WEB}, action == Action::\"PUT\", resource);"), &[], &["RA102", "RA112"]),
            ("@id(\"t\") forbid (principal == Workload::\"unauthenticated\", action, resource);".to_owned(), &[], &["RA111"]),
            ("@id(\"t\") forbid (principal, action == Action::\"connect\", resource);".to_owned(), &[], &["RA101"]),
            (
                "@id(\"t\") forbid (principal, action, resource) when { context.request has body && context.request.body.amount > 9 };"
                    .to_owned(),
                &amount,
                &["RA113"],
            ),
        ] {
            assert_eq!(codes_beside(&live, &tried, body), expected, "{tried}");
            // The same said of single policies of a resource that is live.
            let annotated = tried.replace("@id", "@mode(\"shadow\") @id");
            assert_eq!(codes(&format!("{live} {annotated}"), body), expected, "{annotated}");
        }
        // A body that nobody reads, and one that only what is tried reads.
        let reads = "@mode(\"shadow\") forbid (principal, action, resource) when { context.request has body && context.request.body.amount > 9 };";
        assert_eq!(codes(&live, &amount), ["RA109"]);
        assert!(!codes(&format!("{live} {reads}"), &amount).contains(&"RA109"));
    }

    #[test]
    fn a_country_that_there_cannot_be_is_told_wherever_it_stands() {
        const WEB: &str = "permit (principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\", action, resource)";
        for (condition, expected) in [
            ("context.source.country == \"DE\"", &[][..]),
            ("context.source.country == \"de\"", &["RA116"]),
            ("\"Germany\" != context.source.country", &["RA116"]),
            ("[\"DE\", \"FR\"].contains(context.source.country)", &[]),
            ("[\"DE\", \"fr\", \"at\"].contains(context.source.country)", &["RA116", "RA116"]),
            ("context.request.path == \"/de\"", &[]),
        ] {
            for clause in ["when", "unless"] {
                let text = format!("{WEB} {clause} {{ context.source has country && {condition} }};");
                assert_eq!(codes(&text, &[]), expected, "{text}");
            }
        }
    }

    #[test]
    fn what_excludes_itself_never_matches() {
        const SCOPE: &str = "permit (principal == Workload::\"spiffe://bank.example/ns/bank/sa/web\", action, resource)";
        for condition in [
            "context.request.path == \"/a\" && context.request.path == \"/b\"",
            "context.request.host == \"Admin.bank.example\"",
            "context.request.host == \"admin.bank.example.\"",
            "context.request.host == \"admin.bank.example:8443\"",
            "context.request.path == \"admin\"",
            "context.request.path == \"/caf\u{e9}\"",
            "context.request.path == \"/caf%c3%a9\"",
            "context.request.path == \"/a/../b\"",
            "context.request.path == \"/a\" && !(context.request.path == \"/a\")",
            "context has user && context.user has limit && context.user.limit > 5 && context.user.limit < 6",
            "context has user && context.user has limit && context.user.limit == 5 && context.user.limit >= 6",
        ] {
            assert_eq!(codes(&format!("{SCOPE} when {{ {condition} }};"), &[]), ["RA101"], "{condition}");
        }
        let connect = SCOPE.replace("action", "action == Action::\"connect\"");
        assert_eq!(codes(&format!("{connect};"), &[]), ["RA101"]);
        assert_eq!(codes(&format!("{SCOPE} unless {{ context.request.path == \"/a\" }};"), &[]), Vec::<&str>::new());
    }
}
