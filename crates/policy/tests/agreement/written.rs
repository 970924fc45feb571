//! Meshes as users write them: schemas and policies that use all that Cedar has.

use super::dice::Dice;
use model::authz::AttributeType::{self, Boolean, Long, String as Text, StringSet};
use model::snapshot::{AuthorizationPolicy, ClaimMapping, JwtAlgorithm, KeySource, TokenIssuer};
use model::token::Requirements;
use model::{ClaimPath, Roles};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const ATTRIBUTES: [&str; 5] = ["limit", "country", "staff", "branches", "an odd name"];
pub(crate) const FIELDS: [&str; 4] = ["amount", "note", "urgent", "tags"];
pub(crate) const ROLES: [&str; 5] = ["teller", "auditor", "staff", "chief", "r\u{e9}gie"];
pub(crate) const TEXTS: [&str; 8] = ["CH", "DE", "/transfers", "/t/1", "acme", "", "caf\u{e9}*", "bank"];
pub(crate) const NUMBERS: [i64; 9] = [0, 1, -1, 7, 100, 1000, i64::MAX, i64::MIN + 1, 5_000_000_000];
pub(crate) const HEADERS: [&str; 2] = ["x-tenant", "beta"];

/// One mesh, as far as policies depend on it.
pub(crate) struct Written {
    pub(crate) issuer: TokenIssuer,
    pub(crate) roles: Roles,
    pub(crate) resources: Vec<AuthorizationPolicy>,
    /// Every field that some resource can declare.
    pub(crate) fields: BTreeMap<String, AttributeType>,
}

impl Written {
    pub(crate) fn by(dice: &mut Dice<'_>) -> Self {
        let types = |dice: &mut Dice<'_>, names: &[&str]| -> BTreeMap<String, AttributeType> {
            names.iter().map(|name| ((*name).to_owned(), *dice.pick(&[&Long, &Text, &Boolean, &StringSet]))).collect()
        };
        let (attributes, fields) = (types(dice, &ATTRIBUTES), types(dice, &FIELDS));
        let path = |name: &String| ClaimPath::parse(&format!("\"{name}\"")).expect("a name");
        let mapping = |(name, kind): (&String, &AttributeType)| (name.clone(), ClaimMapping { claim: path(name), kind: *kind });
        let issuer = TokenIssuer { name: "login".into(), attributes: attributes.iter().map(mapping).collect(), ..issuer() };
        let mut resources = Vec::new();
        for name in ["bank/a", "bank/b"] {
            let body: BTreeMap<String, AttributeType> = if dice.one_in(3) {
                BTreeMap::new()
            } else {
                fields.iter().filter(|_| !dice.one_in(3)).map(|(name, kind)| (name.clone(), *kind)).collect()
            };
            let mut writing = Writing { dice, attributes: &attributes, body: &body, guards: BTreeSet::new() };
            let text: String = (0..writing.dice.roll(6)).map(|number| writing.policy(number)).collect();
            resources.push(AuthorizationPolicy { name: name.into(), file: name.into(), text, body, ..resource() });
        }
        Self { issuer, roles: roles(dice), resources, fields }
    }
}

fn issuer() -> TokenIssuer {
    TokenIssuer {
        name: "login".into(),
        issuer: "https://login.example".into(),
        audiences: vec!["bank".into()],
        keys: KeySource::Discovery,
        introspection: None,
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: None,
        attributes: BTreeMap::new(),
        require: Requirements::default(),
    }
}

fn resource() -> AuthorizationPolicy {
    AuthorizationPolicy { name: String::new(), file: String::new(), line: 1, text: String::new(), body: BTreeMap::new() }
}

/// Each role within some of those after it.
fn roles(dice: &mut Dice<'_>) -> Roles {
    let mut within = BTreeMap::new();
    for (at, role) in ROLES.iter().enumerate() {
        let above = dice.some(&ROLES[at + 1..]);
        within.insert((*role).to_owned(), above.into_iter().filter(|_| dice.one_in(2)).map(str::to_owned).collect());
    }
    Roles::new(within).expect("no role is within itself")
}

/// Writes expressions of a wanted type; what must be asked for before it is read is collected in `guards`.
struct Writing<'a, 'b> {
    dice: &'a mut Dice<'b>,
    attributes: &'a BTreeMap<String, AttributeType>,
    body: &'a BTreeMap<String, AttributeType>,
    guards: BTreeSet<String>,
}

impl Writing<'_, '_> {
    fn policy(&mut self, number: usize) -> String {
        let effect = self.dice.pick(&["permit", "permit", "forbid"]);
        let web = "Workload::\"spiffe://bank.example/ns/bank/sa/web\"";
        let principal = match self.dice.roll(7) {
            0 => format!("principal == {web}"),
            1 => "principal == Workload::\"unauthenticated\"".to_owned(),
            2 => "principal is Workload".to_owned(),
            3 => format!("principal in {web}"),
            4 => format!("principal is Workload in {web}"),
            _ => "principal".to_owned(),
        };
        let action = self.dice.pick(&[
            "action",
            "action",
            "action == Action::\"POST\"",
            "action in Action::\"read\"",
            "action in [Action::\"write\", Action::\"connect\"]",
        ]);
        let resource = self.dice.pick(&[
            "resource",
            "resource",
            "resource == Service::\"bank/payments\"",
            "resource in Service::\"bank/payments\"",
            "resource is Service",
            "resource is Service in Service::\"bank/ledger\"",
        ]);
        let mut text = format!("@id(\"p{number}\") {effect} ({principal}, {action}, {resource})");
        for _ in 0..self.dice.roll(3) {
            let word = self.dice.pick(&["when", "when", "unless"]);
            text += &format!(" {word} {{ {} }}", self.condition(3));
        }
        text + ";\n"
    }

    /// A condition that guards all that it reads.
    fn condition(&mut self, depth: usize) -> String {
        if depth == 0 {
            return self.guarded();
        }
        match self.dice.roll(9) {
            0 => format!("!({})", self.condition(depth - 1)),
            1 => format!("({}) || ({})", self.condition(depth - 1), self.condition(depth - 1)),
            2 => format!(
                "(if {} then {} else {})",
                self.condition(depth - 1),
                self.condition(depth - 1),
                self.condition(depth - 1)
            ),
            3 | 4 => format!("({}) && ({})", self.condition(depth - 1), self.condition(depth - 1)),
            _ => self.guarded(),
        }
    }

    fn guarded(&mut self) -> String {
        let outer = std::mem::take(&mut self.guards);
        let atom = self.atom();
        let guards = std::mem::replace(&mut self.guards, outer);
        if guards.is_empty() {
            return format!("({atom})");
        }
        // A guard sorts before what it guards: `context has user` before `context.user has limit`.
        let all = guards.into_iter().chain([format!("({atom})")]).collect::<Vec<_>>().join(" && ");
        format!("({all})")
    }

    /// Something that is true or false.
    fn atom(&mut self) -> String {
        match self.dice.roll(22) {
            0 => format!("{} {} {}", self.long(2), self.dice.pick(&["<", "<=", ">", ">=", "==", "!="]), self.long(2)),
            1 => format!("{} {} {}", self.text(), self.dice.pick(&["==", "!="]), self.text()),
            2 => format!("context.request.path == \"{}\"", self.dice.pick(&TEXTS)),
            3 => format!("{} like \"{}\"", self.text(), self.dice.pick(&["*", "/t*", "*a*", "caf\u{e9}\\*", "*k", "b*n*k", ""])),
            4 => self.has(),
            5 => format!("{}.contains({})", self.set(), self.text()),
            6 => format!("{}.{}({})", self.set(), self.dice.pick(&["containsAll", "containsAny"]), self.set()),
            7 => format!("{} == {}", self.set(), self.set()),
            8 => format!("{}.isEmpty()", self.set()),
            9 | 10 => self.member(),
            11 => self
                .dice
                .pick(&[
                    "action in Action::\"write\"",
                    "action == Action::\"GET\"",
                    "action in [Action::\"read\", Action::\"POST\"]",
                ])
                .to_owned(),
            12 => self.address(),
            13 => {
                let comparison = self.dice.pick(&["lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"]);
                format!("{}.{comparison}({})", self.decimal(), self.decimal())
            }
            14 => format!("{} == {}", self.decimal(), self.decimal()),
            15 => format!("{} {} {}", self.moment(), self.dice.pick(&["<", "<=", ">", ">=", "==", "!="]), self.moment()),
            16 => format!("{} {} {}", self.length(), self.dice.pick(&["<", "<=", ">", ">=", "==", "!="]), self.length()),
            17 => self.truth(),
            18 => format!("{} == {}", self.entity(), self.entity()),
            19 => format!("[{}, {}].contains({})", self.long(1), self.long(0), self.long(1)),
            20 => format!("[principal, {}].contains(principal)", "Workload::\"spiffe://bank.example/ns/bank/sa/fraud\""),
            _ => self.untranslated(),
        }
    }

    /// What is left to the reference evaluator.
    fn untranslated(&mut self) -> String {
        match self.dice.roll(4) {
            0 => "User::\"login#alice\" in Role::\"teller\"".to_owned(),
            1 => "context.source == context.source".to_owned(),
            2 => format!("(if {} then principal else principal).id == \"x\"", self.condition(0)),
            _ => format!("{{ a: {} }} == {{ a: 1 }}", self.long(1)),
        }
    }

    fn has(&mut self) -> String {
        match self.dice.roll(8) {
            0 => "context has user".to_owned(),
            1 => "principal has namespace".to_owned(),
            2 => "principal has account".to_owned(),
            3 => "context.source has country".to_owned(),
            4 if !self.body.is_empty() => "context.request has body".to_owned(),
            5 => format!("context.request.headers has \"{}\"", self.dice.pick(&HEADERS)),
            6 => "context has user.limit".to_owned(),
            _ => self.guard_user("context.user has staff"),
        }
    }

    fn guard_user(&mut self, expression: &str) -> String {
        self.guards.insert("context has user".to_owned());
        expression.to_owned()
    }

    fn member(&mut self) -> String {
        let role = |role: &str| format!("Role::\"{role}\"");
        match self.dice.roll(7) {
            0 => "principal in [Workload::\"spiffe://bank.example/ns/bank/sa/web\", Workload::\"unauthenticated\"]".to_owned(),
            1 => "resource in Service::\"bank/ledger\"".to_owned(),
            2 => {
                let roles: Vec<String> = (0..2).map(|_| role(self.dice.pick(&ROLES))).collect();
                self.guard_user(&format!("context.user in [{}]", roles.join(", ")))
            }
            3 => {
                let (condition, one, other) = (self.condition(0), role(self.dice.pick(&ROLES)), role(self.dice.pick(&ROLES)));
                self.guard_user(&format!("context.user in (if {condition} then {one} else {other})"))
            }
            4 => self.guard_user("context.user is User"),
            _ => {
                let expression = format!("context.user in {}", role(self.dice.pick(&ROLES)));
                self.guard_user(&expression)
            }
        }
    }

    fn entity(&mut self) -> String {
        match self.dice.roll(4) {
            0 => "principal".to_owned(),
            1 => "Workload::\"spiffe://bank.example/ns/bank/sa/web\"".to_owned(),
            2 => self.guard_user("context.user"),
            _ => "User::\"login#alice\"".to_owned(),
        }
    }

    /// A declared attribute or field of this type, guarded.
    fn declared(&mut self, kind: AttributeType) -> Option<String> {
        let named = |of: &BTreeMap<String, AttributeType>| -> Vec<String> {
            of.iter().filter(|(_, each)| **each == kind).map(|(name, _)| name.clone()).collect()
        };
        let (attributes, fields) = (named(self.attributes), named(self.body));
        let at = self.dice.roll((attributes.len() + fields.len()).max(1));
        if let Some(name) = attributes.get(at) {
            self.guards.insert("context has user".to_owned());
            self.guards.insert(format!("context.user has \"{name}\""));
            return Some(format!("context.user[\"{name}\"]"));
        }
        let name = fields.get(at - attributes.len().min(at))?;
        self.guards.insert("context.request has body".to_owned());
        Some(format!("context.request.body[\"{name}\"]"))
    }

    fn truth(&mut self) -> String {
        match self.dice.roll(3) {
            0 => "true".to_owned(),
            _ => self.declared(Boolean).unwrap_or_else(|| "principal == principal".to_owned()),
        }
    }

    fn long(&mut self, depth: usize) -> String {
        let literal = |dice: &mut Dice<'_>| NUMBERS[dice.roll(NUMBERS.len())].to_string();
        match self.dice.roll(if depth == 0 { 3 } else { 7 }) {
            0 => literal(self.dice),
            1 | 2 => self.declared(Long).unwrap_or_else(|| literal(self.dice)),
            3 => format!("({} {} {})", self.long(depth - 1), self.dice.pick(&["+", "-", "*"]), self.long(depth - 1)),
            4 => format!("(-{})", self.long(0)),
            5 => format!(
                "{}.{}()",
                self.length(),
                self.dice.pick(&["toMilliseconds", "toSeconds", "toMinutes", "toHours", "toDays"])
            ),
            _ => format!("(if {} then {} else {})", self.condition(0), self.long(0), self.long(0)),
        }
    }

    fn text(&mut self) -> String {
        let optional = |writing: &mut Self, guard: &str, path: &str| {
            writing.guards.insert(guard.to_owned());
            path.to_owned()
        };
        match self.dice.roll(14) {
            0 => "context.request.path".to_owned(),
            1 => "context.request.host".to_owned(),
            2 => "principal.id".to_owned(),
            3 => "principal.trust_domain".to_owned(),
            4 => optional(self, "principal has namespace", "principal.namespace"),
            5 => optional(self, "principal has account", "principal.account"),
            6 => "resource.name".to_owned(),
            7 => "resource.namespace".to_owned(),
            8 => optional(self, "context.source has country", "context.source.country"),
            9 => {
                let name = self.dice.pick(&HEADERS);
                let guard = format!("context.request.headers has \"{name}\"");
                optional(self, &guard, &format!("context.request.headers[\"{name}\"]"))
            }
            10 => self.guard_user("context.user.subject"),
            11 => self.guard_user("context.user.issuer"),
            12 => self.declared(Text).unwrap_or_else(|| "resource.name".to_owned()),
            _ => format!("\"{}\"", self.dice.pick(&TEXTS)),
        }
    }

    fn set(&mut self) -> String {
        match self.dice.roll(4) {
            0 => self.guard_user("context.user.scopes"),
            1 => self.declared(StringSet).unwrap_or_else(|| "[\"CH\", \"DE\"]".to_owned()),
            2 => format!("[\"{}\", {}]", self.dice.pick(&TEXTS), self.text()),
            _ => format!("[\"{}\", \"{}\", \"a\"]", self.dice.pick(&TEXTS), self.dice.pick(&TEXTS)),
        }
    }

    fn address(&mut self) -> String {
        let own = "context.source.address";
        let written =
            self.dice.pick(&["10.0.0.0/8", "10.1.2.3", "0.0.0.0/0", "::/0", "2001:db8::/32", "127.0.0.0/8", "224.0.0.0/3"]);
        match self.dice.roll(5) {
            0 => format!("{own} == ip(\"{written}\")"),
            1 => format!("ip(\"{written}\").isInRange({own})"),
            2 => format!("{own}.{}()", self.dice.pick(&["isIpv4", "isIpv6", "isLoopback", "isMulticast"])),
            3 => format!("ip(\"{written}\").{}()", self.dice.pick(&["isIpv4", "isLoopback", "isMulticast"])),
            _ => format!("{own}.isInRange(ip(\"{written}\"))"),
        }
    }

    fn decimal(&mut self) -> String {
        format!("decimal(\"{}\")", self.dice.pick(&["1.0", "-0.5", "0.0001", "922337203685477.5807", "1.00"]))
    }

    fn moment(&mut self) -> String {
        let written =
            self.dice.pick(&["2026-11-24", "2026-11-24T10:00:00.000Z", "1969-12-31T23:59:59.999Z", "9999-12-31", "0000-01-01"]);
        match self.dice.roll(5) {
            0 | 1 => "context.now".to_owned(),
            2 => format!("datetime(\"{written}\").toDate()"),
            3 => format!("datetime(\"{written}\").offset({})", self.plain_length()),
            _ => format!("datetime(\"{written}\")"),
        }
    }

    fn plain_length(&mut self) -> String {
        let written = self.dice.pick(&["1h", "-1d", "9223372036854775807ms", "-9223372036854775808ms", "1d2h3m4s5ms"]);
        format!("duration(\"{written}\")")
    }

    fn length(&mut self) -> String {
        match self.dice.roll(4) {
            0 => "context.now.toTime()".to_owned(),
            1 => format!("{}.durationSince({})", self.moment(), self.moment()),
            _ => self.plain_length(),
        }
    }
}
