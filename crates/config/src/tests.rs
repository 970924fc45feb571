//! What is accepted, what is refused, and where the error points.

use crate::{Checked, Mesh, Source, Trust, UpstreamAuthority, parse, parse_again};
use model::snapshot::{KeySource, RevokedSvid, TrustBundle};
use model::token::{Requirements, SenderConstraint, TokenUse};
use model::{ClaimPath, Limit, Revision, Timestamp, TrustDomain, WorkloadName};
use std::collections::BTreeMap;
use std::time::Duration;

const MESH: &str = "apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: { name: test }
spec:
  trustDomain: shop.example
";

const SERVER: &str = "apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: server, namespace: shop }
spec:
  admin: 127.0.0.1:15002
  inbound: [ { listen: \"127.0.0.1:15102\", application: \"127.0.0.1:18102\", protocol: http } ]
";

const CLIENT: &str = "apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: client, namespace: shop }
spec:
  admin: 127.0.0.1:15001
  upstreams: [ { service: shop/server, listen: \"127.0.0.1:15201\", protocol: http } ]
";

const POLICY: &str = "apiVersion: rondel.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: server, namespace: shop }
spec:
  selector: { account: server }
  body: { amount: Long }
  policies: |
    @id(\"all\")
    permit (principal, action, resource);
";

const ISSUER: &str = "apiVersion: rondel.dev/v1alpha1
kind: TokenIssuer
metadata: { name: login }
spec:
  issuer: https://login.example
  audiences: [shop]
  claims: { roles: roles, attributes: { limit: { claim: limit, type: Long } } }
";

fn source(file: &str, text: &str) -> Source {
    Source { file: file.to_owned(), text: text.to_owned() }
}

fn good() -> Vec<Source> {
    vec![source("a.yaml", &format!("{MESH}---\n{SERVER}---\n{CLIENT}")), source("b.yaml", &format!("{POLICY}---\n{ISSUER}"))]
}

/// The errors of the good mesh with `from` replaced by `to`, as text.
fn broken(from: &str, to: &str) -> String {
    let mut sources = good();
    assert!(sources.iter().any(|source| source.text.contains(from)), "`{from}` is not in the good mesh");
    for source in &mut sources {
        source.text = source.text.replace(from, to);
    }
    let errors = parse(&sources).expect_err(to);
    errors.iter().map(|error| format!("{error}\n")).collect()
}

#[test]
fn a_good_mesh_is_read_with_its_defaults() {
    let mesh: Mesh = parse(&good()).expect("good");
    assert_eq!(mesh.settings.svid_lifetime, Duration::from_secs(3600));
    assert_eq!(mesh.settings.connection_age_max, Duration::from_secs(1800));
    assert_eq!(mesh.settings.limits.of(Limit::HandshakeMs), 5000);
    let names: Vec<_> = mesh.workloads.iter().map(|workload| workload.identity.as_str()).collect();
    assert_eq!(names, ["spiffe://shop.example/ns/shop/sa/client", "spiffe://shop.example/ns/shop/sa/server"]);
    assert_eq!((mesh.policies[0].policy.file.as_str(), mesh.policies[0].policy.line), ("b.yaml", 8));
}

#[test]
fn a_snapshot_holds_what_its_workload_needs_and_nothing_else() {
    let mesh = parse(&good()).expect("good");
    let bundle = TrustBundle::x509(TrustDomain::parse("shop.example").expect("domain"), vec![vec![1]]);
    let revoked = ["0b", "0a"].map(|serial| RevokedSvid { serial: serial.into(), until: Timestamp::from_millis(1) });
    let trust = Trust { bundles: vec![bundle], revoked: revoked.to_vec(), revoked_tokens: Vec::new() };
    let of = |name: &str| mesh.snapshot(&WorkloadName::parse(name).expect("name"), Revision(7), &trust);
    let client = of("shop/client").expect("client");
    assert_eq!(client.bundles, trust.bundles);
    assert_eq!(client.revoked.iter().map(|svid| svid.serial.as_str()).collect::<Vec<_>>(), ["0a", "0b"]);
    assert_eq!((client.policies.len(), client.upstreams[0].endpoints.len()), (0, 1));
    assert_eq!(client.upstreams[0].endpoints[0].identity.as_str(), "spiffe://shop.example/ns/shop/sa/server");
    let server = of("shop/server").expect("server");
    assert_eq!((server.policies.len(), server.upstreams.len(), server.revision), (1, 0, Revision(7)));
    assert!(of("shop/nobody").is_none());
}

#[test]
fn a_policy_in_shadow_mode_is_no_policy_that_is_enforced() {
    for (mode, live, shadow) in [("shadow", 0, 1), ("enforce", 1, 0)] {
        let mut sources = good();
        sources[1].text = sources[1].text.replace("spec:\n  selector", &format!("spec:\n  mode: {mode}\n  selector"));
        let mesh = parse(&sources).expect(mode);
        let server = mesh.snapshot(&WorkloadName::parse("shop/server").expect("name"), Revision(1), &Trust::default());
        let server = server.expect("server");
        assert_eq!((server.policies.len(), server.shadow.len()), (live, shadow), "{mode}");
    }
    let selector = "  selector: { account: server }\n";
    assert!(broken(selector, "  mode: shadwo\n").contains("did you mean `shadow`?"));
    // What is tried is checked like what is enforced.
    let text = "permit (principal, action, resource)";
    let told = broken(&format!("{text};\n"), &format!("{text};\n    @mode(\"shadow\") {text} when {{ context.nothing }};\n"));
    assert!(told.starts_with("b.yaml:10:") && told.contains("nothing"), "{told}");
    let told = broken(
        "  body: { amount: Long }\n  policies: |\n    @id(\"all\")\n",
        "  mode: shadow\n  policies: |\n    @id(\"all\") @x(\"y\")\n",
    );
    assert!(told.contains("unknown annotation `@x`"), "{told}");
}

#[test]
fn what_is_sensitive_is_said_beside_its_type() {
    let mut sources = good();
    let headers = "body: { amount: Long, pin: { type: String, sensitive: true }, note: { type: String } }\n  headers: { x-account: { sensitive: true }, x-open: {} }";
    let reads = "permit (principal, action, resource) when { context.request.headers has \"x-account\" || context.request.headers has \"x-open\" };";
    sources[1].text =
        sources[1].text.replace("body: { amount: Long }", headers).replace("permit (principal, action, resource);", reads);
    sources[1].text = sources[1].text.replace("type: Long }", "type: Long, sensitive: true }");
    let mesh = parse(&sources).expect("good");
    let of = |name: &str| mesh.snapshot(&WorkloadName::parse(name).expect("name"), Revision(1), &Trust::default()).expect(name);
    let sensitive = of("shop/server").sensitive;
    let [body, user, headers] =
        [&sensitive.body, &sensitive.user, &sensitive.headers].map(|names| names.iter().cloned().collect::<Vec<_>>());
    assert_eq!((body, user, headers), (vec!["pin".to_owned()], vec!["limit".to_owned()], vec!["x-account".to_owned()]));
    assert_eq!(of("shop/server").policies[0].body.len(), 3);
    assert!(of("shop/client").sensitive.body.is_empty());
    let field = "body: { amount: Long }";
    for (to, said) in [
        ("body: { amount: { sensitive: true } }", "type"),
        ("body: { amount: { type: Lang, sensitive: true } }", "did you mean `Long`?"),
        ("body: { amount: { type: Long, secret: true } }", "secret"),
        ("body: { amount: [Long] }", "expected"),
        ("headers: { x-misspelt: { sensitive: true } }", "no policy of this resource reads the header `x-misspelt`"),
    ] {
        let told = broken(field, to);
        assert!(told.starts_with("b.yaml:6:") && told.contains(said), "{to}: {told}");
    }
}

#[test]
fn no_policy_reads_the_header_by_which_the_application_is_told_of_a_claim() {
    let reads = "permit (principal, action, resource) when { context.request.headers has \"x-user\" };";
    let sources = |token: &str| {
        let mut sources = good();
        sources[0].text = sources[0].text.replace("  admin: 127.0.0.1:15002\n", &format!("  admin: 127.0.0.1:15002\n{token}"));
        sources[1].text = sources[1].text.replace("permit (principal, action, resource);", reads);
        sources
    };
    let mut checked = Checked::default();
    parse_again(&sources(""), &mut checked).expect("nobody is told anything");
    for (token, told) in [
        ("  token: { headers: { X-User: sub } }\n", "read `context.user.subject`"),
        ("  token: { header: x-user }\n", "carries the token, which is a secret"),
    ] {
        // The policies are the same as before: what is known of them does not hold here.
        let errors = parse_again(&sources(token), &mut checked).expect_err(told);
        let [error] = errors.as_slice() else { panic!("{errors:#?}") };
        let text = error.to_string();
        assert!(
            text.starts_with("b.yaml:") && text.contains("`shop/") && text.contains("`x-user`") && text.contains(told),
            "{text}"
        );
        assert_eq!(error.code, "RA005");
    }
}

/// A mesh of so many services with so many policies each, and as many more that select all of them.
fn large(services: usize, policies: usize) -> Vec<Source> {
    let rule = |name: &str, number: usize| {
        format!(
            "    @id(\"{name}-{number}\") permit (principal == Workload::\"spiffe://shop.example/ns/shop/sa/caller-{number}\", action in \
             Action::\"read\", resource) when {{ context.request.path like \"/{name}/{number}/*\" && context has user && \
             context.user in Role::\"role-{number}\" && context.user has limit && context.user.limit > {number} }};\n"
        )
    };
    let of = |selector: &str, name: &str| {
        let rules: String = (0..policies).map(|number| rule(name, number)).collect();
        format!(
            "apiVersion: rondel.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
             {selector}policies: |\n{rules}"
        )
    };
    let mut sources = vec![source("mesh.yaml", &format!("{MESH}---\n{ISSUER}")), source("all.yaml", &of("", "all"))];
    for number in 0..services {
        let port = 20_000 + number;
        let workload = format!(
            "apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: {{ name: s{number}, namespace: shop }}\nspec: {{ admin: \
             \"127.0.0.1:{port}\" }}\n"
        );
        let policy = of(&format!("selector: {{ account: s{number} }}\n  "), &format!("s{number}"));
        sources.push(source(&format!("s{number}.yaml"), &format!("{workload}---\n{policy}")));
    }
    sources
}

#[test]
fn only_what_changed_is_compiled_once_more_and_a_mistake_in_it_is_found() {
    let mut checked = Checked::default();
    let mut sources = large(6, 5);
    parse_again(&sources, &mut checked).expect("sound");
    let before = checked.clone();
    assert_eq!(before.len(), 6);
    sources[2].text = sources[2].text.replace("limit > 3", "limit > 33");
    parse_again(&sources, &mut checked).expect("sound");
    assert_eq!((checked.len(), checked.both(&before)), (6, 5), "one set is new");
    // What is known to be sound is not what is broken now: neither a text, nor what it is checked against.
    let good = sources.clone();
    for (file, from, to, place) in [
        (2, "limit > 33", "limit > true", "s0.yaml:"),
        (1, "user.limit > 1", "user.limits > 1", "all.yaml:"),
        (0, "type: Long", "type: String", "all.yaml:"),
    ] {
        sources.clone_from(&good);
        sources[file].text = sources[file].text.replace(from, to);
        let errors = parse_again(&sources, &mut checked).expect_err(to);
        assert!(errors.iter().any(|error| error.to_string().starts_with(place)), "{to}: {errors:#?}");
        assert_eq!(parse(&sources).expect_err(to), errors, "{to}: as whoever reads for the first time");
    }
    parse_again(&good, &mut checked).expect("mended");
}

#[test]
fn who_signs_the_authority_and_who_is_federated_with_is_read() {
    let with = |spec: &str| {
        let mut sources = good();
        let own = "trustDomain: shop.example\n";
        sources[0].text = sources[0].text.replace(own, &format!("{own}{spec}"));
        parse(&sources)
    };
    let settings = with(
        "  federation: [ { trustDomain: b.example, bundleEndpoint: \"https://b.example/bundle\" }, \
         { trustDomain: a.example, bundleEndpoint: \"https://127.0.0.1:8443\" } ]\n",
    );
    let federation = settings.expect("good").settings.federation;
    assert_eq!(federation.iter().map(|each| each.trust_domain.as_str()).collect::<Vec<_>>(), ["a.example", "b.example"]);
    for (spec, told) in [
        ("  federation: [ { trustDomain: shop.example, bundleEndpoint: \"https://a.example\" } ]\n", "its own trust domain"),
        ("  federation: [ { trustDomain: A, bundleEndpoint: \"https://a.example\" } ]\n", "trust domain"),
        ("  federation: [ { trustDomain: a.example, bundleEndpoint: \"http://127.0.0.1:1\" } ]\n", "by `https://` only"),
        ("  federation: [ { trustDomain: a.example, bundleEndpoint: \"https://169.254.169.254\" } ]\n", "link-local"),
        (
            "  federation: [ { trustDomain: a.example, bundleEndpoint: \"https://a.example\" }, \
             { trustDomain: a.example, bundleEndpoint: \"https://b.example\" } ]\n",
            "twice",
        ),
    ] {
        let errors = with(spec).expect_err(told);
        assert!(errors.iter().any(|error| error.to_string().contains(told)), "{told}: {errors:?}");
    }
    let files = "certificate: /web/tls.crt, key: /web/tls.key";
    let endpoint = |more: &str| with(&format!("  bundleEndpoint: {{ {more} }}\n"));
    let served = endpoint(&format!("listen: \"0.0.0.0:8443\", {files}")).expect("good").settings.bundle_endpoint.expect("one");
    assert_eq!((served.listen.port(), served.refresh_hint.as_secs()), (8443, 300));
    for (more, told) in [
        (format!("listen: somewhere, {files}"), "not an address"),
        (format!("listen: \"0.0.0.0:8443\", {files}, refreshHint: 59s"), "outside 60 s to 86400 s"),
        ("listen: \"0.0.0.0:8443\", certificate: tls.crt, key: /tls.key".into(), "must be an absolute path"),
        ("listen: \"0.0.0.0:8443\", certificate: /tls.crt".into(), "key"),
    ] {
        let errors = endpoint(&more).expect_err(told);
        assert!(errors.iter().any(|error| error.to_string().contains(told)), "{told}: {errors:?}");
    }
    let certificates = |line: &str| with(&format!("  certificates: {line}\n"));
    let command = certificates("{ postQuantum: required, upstream: { command: [sign, --now] } }").expect("good").settings;
    assert_eq!(command.upstream, UpstreamAuthority::Command(vec!["sign".into(), "--now".into()]));
    assert!(command.post_quantum_required);
    let files = certificates("{ upstream: { files: { certificate: /ca/cert.pem, key: /ca/key.pem } } }").expect("good").settings;
    assert_eq!(files.upstream, UpstreamAuthority::Files { certificate: "/ca/cert.pem".into(), key: "/ca/key.pem".into() });
    assert!(!files.post_quantum_required);
    for (line, told) in [
        ("{ postQuantum: maybe }", "not one of `preferred` and `required`"),
        ("{ upstream: {} }", "exactly one of"),
        ("{ upstream: { command: [] } }", "at least the program's name"),
        ("{ upstream: { files: { certificate: ca.pem, key: /k } } }", "must be an absolute path"),
        ("{ lifetime: 10s, authorityLifetime: 19s }", "outside"),
    ] {
        let errors = certificates(line).expect_err(told);
        assert!(errors.iter().any(|error| error.to_string().contains(told)), "{told}: {errors:?}");
    }
}

#[test]
fn an_issuer_that_is_a_workload_is_known_by_its_identity() {
    let mut sources = good();
    let service = "apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: { name: login, namespace: shop }\nspec:\n  captured: true\n  admin: 127.0.0.1:15000\n  inbound: [ { listen: \"10.77.1.5:18100\", protocol: http } ]\n";
    sources.push(source("c.yaml", service));
    let issuer = &mut sources[1].text;
    *issuer = issuer.replace("audiences: [shop]", "audiences: [shop]\n  jwksUri: http://10.77.1.5:18100/jwks");
    let mesh = parse(&sources).expect("good");
    let KeySource::Workload { endpoint, .. } = &mesh.issuers[0].keys else { panic!("{:?}", mesh.issuers) };
    assert_eq!((endpoint.address.port(), endpoint.identity.as_str()), (18100, "spiffe://shop.example/ns/shop/sa/login"));
    // A port of opaque bytes serves no keys.
    sources[2].text = sources[2].text.replace("protocol: http", "protocol: tcp");
    assert!(parse(&sources).expect_err("no port of HTTP").iter().any(|error| error.to_string().contains("it is plaintext")));
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_to_write() {
    for (from, to, place, said) in [
        ("kind: MeshConfig", "kind: MeshConfg", "a.yaml:2:", "did you mean `MeshConfig`?"),
        ("rondel.dev/v1alpha1\nkind: MeshConfig", "rondel.dev/v1\nkind: MeshConfig", "a.yaml:1:", "write `rondel.dev/v1alpha1`"),
        ("trustDomain:", "trustdomain:", "a.yaml:5:", "did you mean `trustDomain`?"),
        ("trustDomain: shop.example", "trustDomain: Shop", "a.yaml:5:", "not a trust domain"),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  certificates: { lifetime: 1 h }", "a.yaml:6:", "write `30s`"),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  federation: { a: b }",
            "a.yaml:6:",
            "a list is expected here",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  certificates: [a]",
            "a.yaml:6:",
            "a mapping is expected here",
        ),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  certificates: { lifetime: 9s }", "a.yaml:6:", "outside 10 s"),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  certificates: { connectionAge: 2h }",
            "a.yaml:6:",
            "outside 1 s",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  limits: { handshakems: 1 }",
            "a.yaml:6:",
            "did you mean `handshakeMs`?",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  limits: { handshakeMs: 1 }",
            "a.yaml:6:",
            "outside 100 to 60000",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  country: { header: x-c, trusted: [shop/servr] }",
            "a.yaml:6:",
            "did you mean `shop/server`?",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  country: {}",
            "a.yaml:6:",
            "`country` says nothing: write `header` with `trusted`, or `database`",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  country: { trusted: [shop/server] }",
            "a.yaml:6:",
            "`trusted` without `header`",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  country: { header: x-c }",
            "a.yaml:6:",
            "`header` without `trusted`",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  country: { database: country.mmdb }",
            "a.yaml:6:",
            "`country.mmdb` is not an absolute path: the file lies on the sidecar's machine",
        ),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  country: { databse: /country.mmdb }", "a.yaml:6:", "databse"),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  roles:\n    head: [teler]\n    teller: []",
            "a.yaml:7:12",
            "within `teler`, which is not declared; add `teler: []` if it is a role; did you mean `teller`?",
        ),
        (
            "trustDomain: shop.example",
            "trustDomain: shop.example\n  roles:\n    a: [b]\n    b: [a]",
            "a.yaml:7:8",
            "role `a`: it is within itself",
        ),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  roles: { \" a\": [] }", "a.yaml:6:", "printable characters"),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  roles: { a: teller }", "a.yaml:6:", "a list is expected"),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  roles: { a: [], a: [] }", "a.yaml:6:", "duplicate"),
        ("trustDomain: shop.example", "trustDomain: shop.example\n  trustDomain: b.example", "a.yaml:6:", "duplicate"),
        ("service: shop/server", "service: shop/servers", "a.yaml:19:", "did you mean `shop/server`?"),
        (
            "listen: \"127.0.0.1:15201\", protocol: http",
            "listen: \"127.0.0.1:15201\", protocol: tcp",
            "a.yaml:19:",
            "no workload of service `shop/server` has an inbound port with protocol `tcp`",
        ),
        ("protocol: http } ]\n---", "protocol: htp } ]\n---", "a.yaml:12:", "not one of `http`"),
        ("127.0.0.1:15201", "0.0.0.0:15201", "a.yaml:19:", "must be a loopback address"),
        ("application: \"127.0.0.1:18102\"", "application: \"10.0.0.1:18102\"", "a.yaml:12:", "must be a loopback address"),
        ("admin: 127.0.0.1:15001", "admin: 127.0.0.1:15002", "a.yaml:18:", "used already: admin port of server"),
        ("admin: 127.0.0.1:15001", "admin: localhost:15001", "a.yaml:18:", "not an address with a port"),
        ("name: client, namespace: shop", "name: client", "a.yaml:16:", "needs `metadata.namespace`"),
        ("name: login }", "name: login, namespace: shop }", "b.yaml:13:", "for the whole mesh"),
        ("name: client, namespace: shop", "name: server, namespace: shop", "a.yaml:16:", "a second `Workload`"),
        ("selector: { account: server }", "selector: { account: servr }", "b.yaml:5:", "selects nobody"),
        ("body: { amount: Long }", "body: { amount: long }", "b.yaml:6:", "did you mean `Long`?"),
        (
            "permit (principal, action, resource);",
            "permit (principal, action, resource) when { context.request.pth == \"/\" };",
            "b.yaml:9:",
            "pth",
        ),
        (
            "permit (principal, action, resource);",
            "permit (principal, action, resource)\n    when { context.request.headers has \"X-Tenant\" };",
            "b.yaml:10:",
            "write `x-tenant` for `X-Tenant`",
        ),
        (
            "permit (principal, action, resource);",
            "permit (principal, action, resource) when { context.request.headers has cookie };",
            "b.yaml:9:",
            "policies cannot read the header `cookie`: it is a secret; write conditions on `context.user`",
        ),
        ("permit (principal, action, resource);", "permit (principal, action", "b.yaml:9:", "unexpected end"),
        ("audiences: [shop]", "audiences: []", "b.yaml:16:", "at least one audience"),
        ("issuer: https://login.example", "issuer: login.example", "b.yaml:15:", "https://"),
        ("issuer: https://login.example", "issuer: http://login.example", "b.yaml:15:", "it is plaintext"),
        (
            "audiences: [shop]",
            "audiences: [shop]\n  jwksUri: http://127.0.0.2.evil.example/jwks",
            "b.yaml:17:",
            "it is plaintext",
        ),
        ("audiences: [shop]", "audiences: [shop]\n  jwksUri: http://10.0.0.9:80/jwks", "b.yaml:17:", "it is plaintext"),
        ("audiences: [shop]", "audiences: [shop]\n  algorithms: [HS256]", "b.yaml:17:", "HS256"),
        ("claim: limit", "clam: limit", "b.yaml:17:", "did you mean `claim`?"),
    ] {
        let told = broken(from, to);
        assert!(told.contains(place), "{to}: the place {place} is missing in\n{told}");
        assert!(told.contains(said), "{to}: `{said}` is missing in\n{told}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let mut sources = good();
    sources[0].text = sources[0].text.replace("shop/server", "shop/nobody").replace("admin: 127.0.0.1:15002", "admin: nowhere");
    assert!(parse(&sources).expect_err("two mistakes").len() >= 2);
}

#[test]
fn a_second_mesh_and_no_mesh_are_errors() {
    let mut sources = good();
    sources.push(source("c.yaml", &MESH.replace("name: test", "name: other")));
    assert!(parse(&sources).expect_err("two")[0].to_string().contains("a second `MeshConfig`"));
    assert!(parse(&[source("a.yaml", SERVER)]).expect_err("none")[0].to_string().contains("no `MeshConfig`"));
    assert!(!parse(&[]).expect_err("nothing").is_empty());
}

#[test]
fn ten_megabytes_of_policies_are_refused_with_their_place() {
    let rule = "    permit (principal, action, resource);\n";
    let mut sources = good();
    sources[1].text =
        sources[1].text.replace("    permit (principal, action, resource);\n", &rule.repeat(10 * 1024 * 1024 / rule.len()));
    let errors = parse(&sources).expect_err("ten megabytes");
    assert!(errors.len() == 1 && errors[0].file == "b.yaml", "{errors:?}");
    // And no file of that size is read.
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("a.yaml"), &sources[1].text).expect("written");
    let error = crate::read(dir.path()).expect_err("too large").to_string();
    assert!(error.starts_with("a.yaml") && error.contains("bytes"), "{error}");
}

#[test]
fn yaml_bombs_end_quickly() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        bomb.push_str(&format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", level - 1));
    }
    assert!(parse(&[source("a.yaml", &format!("{MESH}{bomb}"))]).is_err());
    let deep = format!("{MESH}  limits: {}", "{a: ".repeat(5000));
    assert!(parse(&[source("a.yaml", &deep)]).is_err());
}

#[test]
fn windows_line_ends_keep_their_lines() {
    let mut sources = good();
    for source in &mut sources {
        source.text = source.text.replace('\n', "\r\n");
    }
    let mesh = parse(&sources).expect("CRLF is read");
    assert_eq!(mesh.policies[0].policy.line, 8);
    sources[1].text = sources[1].text.replace("resource);", "resource) when { context.nothing };");
    assert!(parse(&sources).expect_err("broken")[0].to_string().starts_with("b.yaml:9:"));
}

#[test]
fn the_examples_are_meshes() {
    for example in ["bank/mesh", "pods"] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples").join(example);
        let sources = crate::read(&folder).expect("the example's files");
        crate::parse(&sources).unwrap_or_else(|errors| panic!("{example}: {errors:?}"));
    }
}

const PODS: &str = r#"
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: cache, namespace: shop }
spec:
  captured: true
  admin: 127.0.0.1:15000
  inbound:
    - { listen: "10.77.1.2:8080", protocol: http }
    - { listen: "10.77.1.2:6379" }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: caller, namespace: shop }
spec:
  captured: true
  admin: 127.0.0.1:15000
  upstreams: [ { service: shop/cache } ]
---
apiVersion: rondel.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: old, namespace: shop }
spec: { selector: { account: cache }, mode: permissive, ports: [8080] }
"#;

fn pods(change: impl Fn(String) -> String) -> Result<crate::Mesh, String> {
    let mesh = "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: { name: m }\nspec: { trustDomain: shop.example }";
    let text = change(format!("{mesh}{PODS}"));
    let source = crate::Source { file: "mesh.yaml".to_owned(), text };
    crate::parse(&[source]).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

#[test]
fn a_captured_workload_calls_every_port_by_its_own_protocol() {
    use model::snapshot::Protocol;
    let mesh = pods(|text| text).expect("a mesh");
    let caller = model::WorkloadName::parse("shop/caller").expect("name");
    let snapshot = mesh.snapshot(&caller, model::Revision(1), &Trust::default()).expect("snapshot");
    let ports: Vec<(Protocol, u16)> =
        snapshot.upstreams.iter().map(|upstream| (upstream.protocol, upstream.endpoints[0].address.port())).collect();
    assert_eq!(ports, [(Protocol::Detect, 6379), (Protocol::Http, 8080)]);
    assert!(snapshot.captured);
    let cache = model::WorkloadName::parse("shop/cache").expect("name");
    let inbound = mesh.snapshot(&cache, model::Revision(1), &Trust::default()).expect("snapshot").inbound;
    assert_eq!(inbound.iter().map(|port| port.permissive).collect::<Vec<_>>(), [true, false]);
    assert!(inbound.iter().all(|port| port.application == port.listen));
}

#[test]
fn a_port_may_be_declared_in_the_words_of_a_service() {
    use model::snapshot::Protocol::{Detect, Http, Tcp};
    for (words, wanted) in [
        ("appProtocol: http", Http),
        ("appProtocol: grpc", Http),
        ("appProtocol: kubernetes.io/h2c", Http),
        ("appProtocol: kubernetes.io/ws", Http),
        ("appProtocol: https", Tcp),
        ("appProtocol: example.com/custom", Detect),
        ("name: http", Http),
        ("name: grpc-api", Http),
        ("name: tcp-replies", Tcp),
        ("name: httpx", Detect),
        ("name: replies-http", Detect),
        ("name: http-api, appProtocol: redis", Tcp),
        ("name: http-api, appProtocol: example.com/custom", Http),
        ("name: http-api, appProtocol: http, protocol: tcp", Tcp),
        ("name: tcp-api, appProtocol: redis, protocol: http", Http),
    ] {
        let mesh = pods(|text| {
            let from = "\"10.77.1.2:6379\"";
            assert!(text.contains(from), "{text}");
            text.replacen(from, &format!("{from}, {words}"), 1)
        });
        let cache = model::WorkloadName::parse("shop/cache").expect("name");
        let snapshot = mesh.expect(words).snapshot(&cache, model::Revision(1), &Trust::default()).expect("snapshot");
        let port = snapshot.inbound.iter().find(|port| port.listen.port() == 6379).expect("port");
        assert_eq!(port.protocol, wanted, "{words}");
    }
}

#[test]
fn what_only_capture_makes_possible_is_refused_without_it() {
    for (from, to, wanted) in [
        (
            "  captured: true\n  admin: 127.0.0.1:15000\n  inbound",
            "  admin: 127.0.0.1:15000\n  inbound",
            "`application` is missing",
        ),
        (
            "  captured: true\n  admin: 127.0.0.1:15000\n  upstreams",
            "  admin: 127.0.0.1:15001\n  upstreams",
            "`listen` is missing",
        ),
        ("ports: [8080]", "ports: [8081]", "no selected workload has an inbound port 8081"),
        ("account: cache", "account: cash", "no selected workload has an inbound port 8080"),
        ("mode: permissive", "mode: permisive", "did you mean `permissive`"),
        (
            "upstreams: [ { service: shop/cache } ]",
            "upstreams: [ { service: shop/cache, listen: \"10.96.0.1:80\" } ]",
            "say which",
        ),
        ("upstreams: [ { service: shop/cache } ]", "upstreams: [ { service: shop/cache, port: 81 } ]", "has an inbound port 81"),
        ("trustDomain: shop.example", "trustDomain: shop.example, egress: perhaps", "egress `perhaps` is not one of"),
        ("trustDomain: shop.example", "trustDomain: shop.example, forwarders: [shop/edge]", "no workload of service `shop/edge`"),
    ] {
        let error = pods(|text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let error = error.err().unwrap_or_default();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn what_is_asked_of_tokens_and_where_they_are_taken_from_is_read() {
    let mut sources = good();
    let require = "  clockSkew: 5s
  require:
    profile: at+jwt
    scopes: [pay, \"shop:read\"]
    claims: { tenant.id: acme, beta: true, '\"https://x.y/level\"': [1, two] }
    acr: [gold]
    maxAge: 1h
    sender: any
    dpopNonce: true
";
    sources[1].text.push_str(require);
    let token = "  resource: https://shop.example/api
  token:
    cookie: session
    query: access_token
    strip: true
    headers: { X-User: sub, x-roles: realm_access.roles }
";
    sources[0].text = sources[0].text.replace("  admin: 127.0.0.1:15002\n", &format!("  admin: 127.0.0.1:15002\n{token}"));
    let mesh = parse(&sources).expect("good");
    let path = |text| ClaimPath::parse(text).expect(text);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let expected = Requirements {
        at_jwt: true,
        scopes: words(&["pay", "shop:read"]),
        claims: BTreeMap::from([
            (path("tenant.id"), words(&["acme"])),
            (path("beta"), words(&["true"])),
            (path("\"https://x.y/level\""), words(&["1", "two"])),
        ]),
        acr: words(&["gold"]),
        max_age: Some(Duration::from_secs(3600)),
        sender: SenderConstraint::Any,
        dpop_nonce: true,
        clock_skew: Some(Duration::from_secs(5)),
    };
    assert_eq!(mesh.issuers[0].require, expected);
    let server = mesh.workloads.iter().find(|workload| workload.name.as_str() == "shop/server").expect("server");
    let expected = TokenUse {
        cookie: Some("session".into()),
        query: Some("access_token".into()),
        strip: true,
        claims: BTreeMap::from([("x-user".into(), path("sub")), ("x-roles".into(), path("realm_access.roles"))]),
        resource: Some("https://shop.example/api".into()),
        ..TokenUse::default()
    };
    assert_eq!(server.token, expected);
    let client = mesh.workloads.iter().find(|workload| workload.name.as_str() == "shop/client").expect("client");
    assert_eq!(client.token, TokenUse::default());
}

#[test]
fn every_mistake_about_tokens_is_told_with_its_place() {
    let claims = "  claims: { roles: roles,";
    for (from, to, place, told) in [
        (claims, "  claims: { roles: https://x.y/roles,", "b.yaml:17", "`\"https://x.y/roles\"`"),
        ("{ claim: limit,", "{ claim: a..b,", "b.yaml:17", "a name in it is empty"),
        (claims, "  clockSkew: 2m\n  claims: { roles: roles,", "b.yaml:17", "outside 0 s to 60 s"),
        (claims, "  require: { profile: jwt }\n  claims: { roles: roles,", "b.yaml:17", "not `at+jwt`"),
        (claims, "  require: { scopes: [\"a b\"] }\n  claims: { roles: roles,", "b.yaml:17", "not one word"),
        (claims, "  require: { acr: ['a\"b'] }\n  claims: { roles: roles,", "b.yaml:17", "not one word"),
        (claims, "  require: { claims: { tenant: [] } }\n  claims: { roles: roles,", "b.yaml:17", "with no value"),
        (claims, "  require: { claims: { 'a/b': x } }\n  claims: { roles: roles,", "b.yaml:17", "double quotes"),
        (claims, "  require: { claims: { a: x, '\"a\"': y } }\n  claims: { roles: roles,", "b.yaml:17", "in two ways"),
        (claims, "  require: { maxAge: 0s }\n  claims: { roles: roles,", "b.yaml:17", "outside 1 s"),
        (claims, "  require: { sender: dpopp }\n  claims: { roles: roles,", "b.yaml:17", "did you mean `dpop`"),
        (claims, "  require: { dpopNonce: true }\n  claims: { roles: roles,", "b.yaml:17", "`sender: dpop` or `any`"),
        (claims, "  require: { scope: [a] }\n  claims: { roles: roles,", "b.yaml:17", "unknown field `scope`"),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  resource: http://a\n",
            "a.yaml:12",
            "without query and fragment",
        ),
        ("  admin: 127.0.0.1:15002\n", "  admin: 127.0.0.1:15002\n  resource: \"https://a/?b\"\n", "a.yaml:12", "`https://HOST`"),
        ("  admin: 127.0.0.1:15002\n", "  admin: 127.0.0.1:15002\n  resource: https://a/../b\n", "a.yaml:12", "`https://HOST`"),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { header: cookie }\n",
            "a.yaml:12",
            "cannot be this header",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { cookie: \"a b\" }\n",
            "a.yaml:12",
            "cannot be the cookie's name",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { query: \"a&b\" }\n",
            "a.yaml:12",
            "cannot be the parameter's name",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { headers: { host: sub } }\n",
            "a.yaml:12",
            "cannot be this header",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { headers: { X-Rondel-User: sub } }\n",
            "a.yaml:12",
            "sidecar's own",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { headers: { x-a: b/c } }\n",
            "a.yaml:12",
            "double quotes",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { headers: { x-a: b, X-A: c } }\n",
            "a.yaml:12",
            "written twice",
        ),
        (
            "  admin: 127.0.0.1:15002\n",
            "  admin: 127.0.0.1:15002\n  token: { header: x-a, headers: { x-a: b } }\n",
            "a.yaml:12",
            "carries the token",
        ),
    ] {
        let errors = broken(from, to);
        assert!(errors.starts_with(place) && errors.contains(told), "{to}: {errors}");
    }
}
