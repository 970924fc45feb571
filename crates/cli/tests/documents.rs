//! What the documents show is what the commands do.

#![expect(clippy::expect_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn rondel(arguments: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rondel"));
    command.args(arguments).current_dir(root()).env("NO_COLOR", "1").env_remove("RONDEL_STATE").output().expect("rondel runs")
}

fn run(arguments: &[&str]) -> (i32, String) {
    let output = rondel(&arguments.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>());
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("an exit code"), String::from_utf8(text).expect("text"))
}

/// The words of a command line: single quotes hold them together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// What a `console` block must say: each command, what it prints, and its exit code in brackets unless it is 0.
fn played(block: &str) -> String {
    let mut out = String::new();
    for line in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let output = rondel(&words(line.strip_prefix("rondel ").expect("a command of ours")));
        out.push_str(&format!("$ {line}\n"));
        out.push_str(&String::from_utf8([output.stdout, output.stderr].concat()).expect("text"));
        match output.status.code().expect("an exit code") {
            0 => {}
            code => out.push_str(&format!("[{code}]\n")),
        }
    }
    out
}

#[test]
fn the_commands_in_the_documents_print_what_the_documents_show() {
    let mut blocks = 0;
    for file in ["docs/policies.md", "docs/policy-checks.md", "docs/tokens/checking.md"] {
        let path = root().join(file);
        let text = std::fs::read_to_string(&path).expect(file);
        let mut mended = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("```console\n") {
            let (block, after) = after.split_once("```\n").expect("the block ends");
            let is = played(block);
            if std::env::var_os("UPDATE").is_none() {
                assert_eq!(block, is, "{file}: not what the command prints; UPDATE=1 writes it");
            }
            mended.push_str(&format!("{before}```console\n{is}```\n"));
            blocks += 1;
            rest = after;
        }
        mended.push_str(rest);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, mended).expect("write");
        }
    }
    assert!(blocks >= 5, "{blocks} blocks");
}

#[test]
fn the_worked_policies_are_shown_as_they_stand_in_their_files_and_pass_their_cases() {
    let text = std::fs::read_to_string(root().join("docs/policies.md")).expect("docs/policies.md");
    let shown: Vec<&str> = text.split("```cedar\n").skip(1).map(|rest| rest.split_once("```\n").expect("it ends").0).collect();
    let folder = root().join("docs/examples/policies/mesh");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let yaml = std::fs::read_to_string(entry.path()).expect("text");
        let Some((_, policy)) = yaml.split_once("  policies: |\n") else { continue };
        let policy: String = policy.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
        assert!(shown.contains(&policy.as_str()), "{:?} is not shown:\n{policy}", entry.path());
        files += 1;
    }
    assert!(files >= 10 && files == shown.len(), "{files} files, {} shown", shown.len());
    for (cases, mesh) in [
        ("docs/examples/policies/tests", "docs/examples/policies/mesh"),
        ("deploy/examples/bank/tests", "deploy/examples/bank/mesh"),
    ] {
        let (code, told) = run(&["authz", "test", cases, "--config", mesh]);
        assert_eq!(code, 0, "{told}");
        let (code, told) = run(&["authz", "check", mesh, "--deny", "warnings"]);
        assert_eq!(code, 0, "{told}");
    }
}

/// The pages on tokens, each with its text.
fn token_pages() -> Vec<(String, String)> {
    let mut pages = vec!["docs/tokens.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs/tokens")).expect("folder").flatten() {
        pages.push(format!("docs/tokens/{}", entry.file_name().to_string_lossy()));
    }
    assert!(pages.len() >= 6, "{pages:?}");
    pages.into_iter().map(|page| (page.clone(), std::fs::read_to_string(root().join(&page)).expect("text"))).collect()
}

/// The blocks of a page in this language.
fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    page.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split_once("```\n").expect("it ends").0).collect()
}

/// What stands beside a block of the pages on tokens, unless the block has it itself.
const TOKEN_BASE: [(&str, &str, &str); 4] = [
    ("kind: MeshConfig", "mesh.yaml", BASE[0].1),
    (
        "name: web",
        "web.yaml",
        "apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: { name: web, namespace: shop }\nspec: { admin: \"127.0.0.1:15001\" }\n",
    ),
    (
        "name: till",
        "till.yaml",
        "apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: { name: till, namespace: shop }\nspec:\n  admin: 127.0.0.1:15002\n  \
         inbound: [ { listen: \"127.0.0.1:15102\", application: \"127.0.0.1:18102\", protocol: http } ]\n",
    ),
    (
        "kind: TokenIssuer",
        "login.yaml",
        "apiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: { name: login }\n\
         spec: { issuer: \"https://login.shop.example\", audiences: [shop] }\n",
    ),
];

#[test]
fn every_configuration_on_the_pages_on_tokens_is_taken_by_the_control_plane() {
    let mut taken = 0;
    for (page, text) in token_pages() {
        for block in blocks(&text, "yaml") {
            let dir = tempfile::tempdir().expect("directory");
            for (_, name, text) in TOKEN_BASE.iter().filter(|(kind, ..)| !block.contains(kind)) {
                std::fs::write(dir.path().join(name), text).expect("write");
            }
            std::fs::write(dir.path().join("block.yaml"), block).expect("write");
            let path = dir.path().to_str().expect("path");
            let (code, told) = run(&["check", path]);
            assert_eq!(code, 0, "{page}:\n{block}\n{told}");
            if block.contains("kind: AuthorizationPolicy") {
                let (code, told) = run(&["authz", "check", path, "--deny", "warnings"]);
                assert_eq!(code, 0, "{page}:\n{block}\n{told}");
            }
            taken += 1;
        }
    }
    assert!(taken >= 14, "{taken} blocks");
}

#[test]
fn what_the_pages_on_tokens_show_of_the_servers_is_what_they_are_run_with() {
    let read = |file: &str| std::fs::read_to_string(root().join("tests/interop/issuers").join(file)).expect(file);
    let (server, calls) = (read("oidc-provider.mjs"), read("keycloak.rs"));
    let realm: serde_json::Value = serde_json::from_str(&read("shop-realm.json")).expect("a realm");
    let called: String = calls.split_whitespace().collect();
    let mut shown = 0;
    for (page, text) in token_pages() {
        for line in blocks(&text, "js").iter().flat_map(|block| block.lines()).map(str::trim) {
            assert!(server.contains(line), "{page}: not in oidc-provider.mjs: {line}");
            shown += 1;
        }
        for block in blocks(&text, "json") {
            let wanted: serde_json::Value = serde_json::from_str(block).expect(block);
            let text: String = block.split_whitespace().collect();
            assert!(is_within(&wanted, &realm) || called.contains(&text), "{page}: neither in the realm nor sent to it: {block}");
            shown += 1;
        }
    }
    assert!(shown >= 20, "{shown} lines");
}

/// Whether a value stands somewhere in another: an object with these members and perhaps more.
fn is_within(wanted: &serde_json::Value, all: &serde_json::Value) -> bool {
    use serde_json::Value;
    fn is_part(wanted: &Value, of: &Value) -> bool {
        match (wanted, of) {
            (Value::Object(wanted), Value::Object(of)) => {
                wanted.iter().all(|(name, value)| of.get(name).is_some_and(|found| is_part(value, found)))
            }
            (Value::Array(wanted), Value::Array(of)) => wanted.iter().all(|value| of.iter().any(|found| is_part(value, found))),
            (wanted, of) => wanted == of,
        }
    }
    let deeper = match all {
        Value::Object(members) => members.values().any(|value| is_within(wanted, value)),
        Value::Array(items) => items.iter().any(|value| is_within(wanted, value)),
        _ => false,
    };
    is_part(wanted, all) || deeper
}

#[test]
fn the_commands_on_the_pages_on_tokens_are_commands() {
    let mut tried = 0;
    for (page, text) in token_pages() {
        for line in blocks(&text, "sh").iter().flat_map(|block| block.lines()) {
            let mut arguments = words(&line.replace('"', "'"));
            assert_eq!(arguments.remove(0), "rondel", "{page}: {line}");
            arguments.extend(["--state", "/no/such/state"].map(str::to_owned));
            let output = rondel(&arguments);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(1) && told.contains("no control plane answers"), "{page}: {line}: {told}");
            tried += 1;
        }
    }
    assert!(tried >= 4, "{tried} commands");
}

/// A token of the issuer of `docs/examples/tokens/mesh`, whose key is that of RFC 8037 appendix A.
fn minted(payload: &serde_json::Value) -> String {
    use aws_lc_rs::signature::Ed25519KeyPair;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").expect("base64url");
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a key");
    let header = serde_json::json!({ "alg": "EdDSA", "kid": "k1", "typ": "at+jwt" });
    let signed = [&header, payload].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())))
}

/// The claims of the example's good token, with changes; `null` takes one out. It lives from noon to one.
fn claims(changes: &serde_json::Value) -> serde_json::Value {
    let mut claims = serde_json::json!({
        "iss": "https://login.shop.example", "sub": "tina", "aud": "shop", "client_id": "till-app", "jti": "7b1a",
        "iat": 1_796_040_000, "exp": 1_796_043_600, "scope": "pay read", "acr": "gold",
        "realm_access": { "roles": ["teller"] }, "https://shop.example/country": "DE",
    });
    let members = claims.as_object_mut().expect("object");
    members.extend(changes.as_object().expect("object").clone());
    members.retain(|_, value| !value.is_null());
    claims
}

#[test]
fn the_example_tokens_are_what_the_example_issuer_would_make() {
    for (name, changes) in [
        ("tina", serde_json::json!({})),
        ("guest", serde_json::json!({ "scope": "read", "acr": "bronze", "aud": ["shop", "blog"] })),
        ("bound", serde_json::json!({ "cnf": { "x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0" } })),
    ] {
        let path = root().join(format!("docs/examples/tokens/{name}.jwt"));
        let token = format!("{}\n", minted(&claims(&changes)));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &token).expect("write");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), token, "{name}: UPDATE=1 writes it");
    }
}

/// Files of the mesh that the examples of the checks are about.
const BASE: [(&str, &str); 2] = [
    (
        "mesh.yaml",
        "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: { name: shop }\nspec: { trustDomain: shop.example }\n",
    ),
    (
        "workloads.yaml",
        "apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: { name: web, namespace: shop }\nspec: { admin: \"127.0.0.1:15001\" }\n---\n\
         apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: { name: orders, namespace: shop }\nspec:\n  admin: 127.0.0.1:15002\n  \
         inbound: [ { listen: \"127.0.0.1:15102\", application: \"127.0.0.1:18102\", protocol: http } ]\n",
    ),
];

#[test]
fn every_check_is_documented_with_an_example_that_it_finds() {
    let text = std::fs::read_to_string(root().join("docs/policy-checks.md")).expect("docs/policy-checks.md");
    let (_, list) = run(&["authz", "check", "--list"]);
    let codes: Vec<&str> = list.lines().filter_map(|line| line.split(' ').next()).collect();
    let sections: Vec<&str> = text.split("\n## RA").skip(1).collect();
    let documented: Vec<String> = sections.iter().map(|section| format!("RA{}", section.get(..3).expect("a code"))).collect();
    assert_eq!(documented, codes);
    for (section, code) in sections.iter().zip(&codes) {
        let (_, block) = section.split_once("```yaml\n").expect("an example");
        let (block, _) = block.split_once("```\n").expect("it ends");
        let dir = tempfile::tempdir().expect("directory");
        for (name, text) in BASE.iter().filter(|(name, _)| *name != "mesh.yaml" || !block.contains("kind: MeshConfig")) {
            std::fs::write(dir.path().join(name), text).expect("write");
        }
        std::fs::write(dir.path().join("example.yaml"), block).expect("write");
        let path = dir.path().to_str().expect("path");
        let (exit, told) = run(&["authz", "check", path]);
        let found = told.lines().find(|line| line.contains(&format!(" {code}: ")));
        let found = found.unwrap_or_else(|| panic!("{code} is not found in its example:\n{block}\n{told}"));
        assert!(found.starts_with("example.yaml:"), "{found}");
        assert_eq!(exit, i32::from(code.starts_with("RA0")), "{told}");
        let (denied, _) = run(&["authz", "check", path, "--deny", "warnings"]);
        assert_eq!(denied, 1, "{code}");
        if code.starts_with("RA1") {
            let (_, told) = run(&["authz", "check", path, "--allow", code]);
            assert!(!told.contains(&format!(" {code}: ")), "{told}");
        }
    }
}

const CASE: &str = "apiVersion: rondel.dev/v1alpha1
kind: AuthorizationTest
metadata: { name: one }
spec:
  on: bank/payments
  users: { tina: { roles: [teller], attributes: { limit: 1000, country: DE } } }
  cases:
    - name: <within> & \"limit\"
      as: bank/web
      user: tina
      request: { method: POST, path: /transfers, country: DE, body: { amount: 1 } }
      expect: { decision: allow, by: [bank/payments/transfer] }
";

#[test]
fn a_case_fails_for_every_answer_but_the_expected_one_and_nonsense_never_passes() {
    let dir = tempfile::tempdir().expect("directory");
    let (file, junit) = (dir.path().join("case.yaml"), dir.path().join("junit.xml"));
    let run_with = |from: &str, to: &str| {
        assert!(CASE.contains(from), "{from}");
        std::fs::write(&file, CASE.replace(from, to)).expect("write");
        let junit = junit.to_str().expect("path");
        run(&["authz", "test", file.to_str().expect("path"), "--config", "deploy/examples/bank/mesh", "--junit", junit])
    };
    let (code, told) = run_with("amount: 1 ", "amount: 1 ");
    assert_eq!((code, told.as_str()), (0, "one: 1 of 1 passed\n1 case: 1 passed, 0 failed\n"));
    for (from, to, expected, part) in [
        ("amount: 1 ", "amount: 1001 ", 1, "expected allow, got deny (not_permitted)"),
        ("amount: 1 ", "amount: 1001 ", 1, "(1001 <= 1000)"),
        (
            "decision: allow, by: [bank/payments/transfer]",
            "decision: deny",
            1,
            "expected deny, got allow by bank/payments/transfer",
        ),
        ("by: [bank/payments/transfer]", "by: [bank/payments/auditor-reads]", 1, "expected allow by bank/payments/auditor-reads"),
        ("by: [bank/payments/transfer]", "by: [bank/payments/transfr]", 1, "did you mean `bank/payments/transfer`?"),
        ("decision: allow, by", "decision: deny, by", 1, "is a permit, which never denies a call"),
        ("as: bank/web", "as: bank/wib", 1, "did you mean `bank/web`?"),
        ("as: bank/web", "as: unauthenticated", 1, "no inbound port of `bank/payments` is permissive"),
        ("as: bank/web", "as: bank/fraud", 1, "is not believed about the country"),
        ("country: DE, body", "country: Germany, body", 1, "is not a country"),
        ("on: bank/payments", "on: bank/payment", 1, "did you mean `bank/payments`?"),
        ("limit: 1000", "limt: 1000", 1, "did you mean `limit`?"),
        ("limit: 1000", "limit: \"1000\"", 1, "the attribute `limit` is a Long"),
        ("path: /transfers", "path: \"/transfers?x=1\"", 1, "without the query"),
        ("path: /transfers", "path: /a/../transfers", 1, "they see `/transfers`"),
        (
            "path: /transfers",
            "path: \"/a/..;x/transfers\"",
            1,
            "the sidecar refuses one that holds a dot segment with a parameter",
        ),
        ("path: /transfers", "path: \"/a%2Fb\"", 1, "the sidecar refuses one that holds an escaped `/`"),
        ("path: /transfers", "path: transfers", 1, "the sidecar refuses one that does not begin with `/`"),
        ("path: /transfers", "path: \"*\"", 1, "it is for `OPTIONS` alone"),
        ("path: /transfers", "path: /%74ransfers", 1, "they see `/transfers`"),
        ("method: POST", "method: connect", 1, "has no user, headers, body or country"),
        ("method: POST", "method: \"PO ST\"", 1, "is not a method"),
        ("expect:", "expects:", 2, "case.yaml:12:"),
        ("  cases:", "  cases: []\n  other:", 2, "rondel: the cases cannot be read"),
    ] {
        let (code, told) = run_with(from, to);
        assert!(code == expected && told.contains(part), "{from} -> {to}: {code} {told}");
    }
    let (_, _) = run_with("amount: 1 ", "amount: 1001 ");
    let xml = std::fs::read_to_string(&junit).expect("junit");
    assert!(xml.contains("tests=\"1\" failures=\"1\"") && xml.contains("&lt;within&gt; &amp; &quot;limit&quot;"), "{xml}");
    let path = file.to_str().expect("path");
    let (code, told) = run(&["authz", "test", path, "--config", "deploy/examples/bank/mesh", "--filter", "nothing of that name"]);
    assert!(code == 2 && told.contains("no case to run"), "{code} {told}");
    let (code, told) = run(&["authz", "test", path, "--config", "deploy/examples/bank/mesh", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&told).expect("json");
    assert!(code == 1 && json["failed"] == 1 && json["results"][0]["line"] == 8, "{told}");
    let (code, told) = run(&["authz", "test", path, "--config", dir.path().to_str().expect("path")]);
    assert!(code == 2 && told.contains("tests of policies are no part of the mesh"), "{code} {told}");
}

#[test]
fn where_a_database_knows_countries_a_case_says_what_it_knows_of_any_caller() {
    let mesh = tempfile::tempdir().expect("directory");
    let settings =
        "apiVersion: rondel.dev/v1alpha1\nkind: MeshConfig\nmetadata: { name: m }\nspec:\n  trustDomain: shop.example\n";
    let workloads = "---\napiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: { name: api, namespace: shop }\nspec:\n  \
         admin: 127.0.0.1:9101\n  inbound: [{ listen: \"127.0.0.1:8001\", application: \"127.0.0.1:9001\" }]\n";
    let policies = "---\napiVersion: rondel.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: shop }\nspec:\n  \
         policies: |\n    permit (principal == Workload::\"spiffe://shop.example/ns/shop/sa/api\", action, resource) when { \
         context.source has country && context.source.country == \"DE\" };\n";
    let (path, file) = (mesh.path().to_str().expect("path"), mesh.path().join("mesh.yaml"));
    let asked = |country: &[&str]| {
        let ask = ["authz", "can", "--offline", path, "--as", "shop/api", "--on", "shop/api"];
        run(&[ask.as_slice(), country, &["GET", "/"]].concat())
    };
    for (line, from_germany, from_elsewhere, checked) in
        [("  country: { database: /var/lib/GeoLite2-Country.mmdb }\n", 0, 1, "0 errors, 0 warnings\n"), ("", 2, 2, "RA107")]
    {
        std::fs::write(&file, format!("{settings}{line}{workloads}{policies}")).expect("write");
        let (code, told) = asked(&["--country", "DE"]);
        assert_eq!(code, from_germany, "{told}");
        let (code, told) = asked(&["--country", "FR"]);
        assert_eq!(code, from_elsewhere, "{told}");
        let (code, told) = asked(&[]);
        assert!(code == 1 && told.contains("the country of the call were known"), "{told}");
        let (_, told) = run(&["authz", "check", path]);
        assert!(told.contains(checked), "{told}");
    }
}

#[test]
fn what_may_be_done_is_told_by_the_exit_code() {
    let ask =
        |more: &[&str]| run(&[&["authz", "can", "--offline", "deploy/examples/bank/mesh", "--as", "bank/web"], more].concat());
    let tina = ["--user", "tina", "--role", "teller", "--attribute", "limit=10", "--attribute", "country=DE", "--country", "DE"];
    let post = |body: &str| ask(&[tina.as_slice(), &["--body", body, "POST", "/transfers"]].concat());
    assert_eq!(post(r#"{"amount": 10}"#).0, 0);
    assert_eq!(post(r#"{"amount": 11}"#).0, 1);
    let (code, told) = post(r#"{"amount": 1, "amount": 2}"#);
    assert!(code == 1 && told.contains("DENY (body_ambiguous)"), "{told}");
    let (code, told) = ask(&["GET", "/transfers"]);
    assert!(code == 1 && told.contains("DENY (token_missing)"), "{told}");
    let (code, told) = ask(&["--user", "aura", "--role", "auditor", "GET", "/transfers", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&told).expect("json");
    assert!(code == 0 && json["allowed"] == true && json["determining"][0] == "bank/payments/auditor-reads", "{told}");
    for (arguments, part) in [
        (&["--user", "x", "--attribute", "limit=much", "GET", "/"] as &[&str], "the attribute is a Long"),
        (&["--user", "x", "--attribute", "limits=1", "GET", "/"], "did you mean `limit`?"),
        (&["--user", "x", "--issuer", "logon", "GET", "/"], "did you mean `login`?"),
        (&["--on", "bank/none", "GET", "/"], "no workload of service `bank/none`"),
        (&["--role", "x", "GET", "/"], "--user"),
        (&["--body", "@/no/such/file", "POST", "/"], "--body @/no/such/file"),
        (&["--at", "now", "GET", "/"], "is not a time"),
        (&["--header", "nocolon", "GET", "/"], "NAME: VALUE"),
        (&["GET", "transfers"], "does not begin with `/`"),
    ] {
        let (code, told) = ask(arguments);
        assert!(code == 2 && told.contains(part), "{arguments:?}: {code} {told}");
    }
    let (code, told) = run(&["authz", "can", "--as", "bank/web", "--state", "/no/such/state", "GET", "/"]);
    assert!(code == 2 && told.contains("no control plane answers"), "{code} {told}");
}

#[test]
fn whether_a_token_is_good_is_told_by_the_exit_code() {
    let (mesh, noon) = ("docs/examples/tokens/mesh", "2026-11-30T12:00:00Z");
    let check = |token: &str, more: &[&str]| {
        let fixed = ["token", "check", token, "--for", "shop/till", "--offline", mesh, "--at", noon];
        run(&[fixed.as_slice(), more].concat())
    };
    let of = |changes: serde_json::Value| minted(&claims(&changes));
    let good = of(serde_json::json!({}));
    for (name, token, code, told) in [
        ("good", good.clone(), 0, "GOOD"),
        ("with its scheme", format!("Bearer {good}"), 0, "GOOD"),
        (
            "expired",
            of(serde_json::json!({ "exp": 1_796_028_480 })),
            1,
            "NO  exp                2026-11-30T08:48:00.000Z, 3 h 12 min ago",
        ),
        ("another audience", of(serde_json::json!({ "aud": "blog" })), 1, "REFUSED (token_audience)"),
        ("no scope", of(serde_json::json!({ "scope": null })), 1, "answer   403 token_scope"),
        ("no scope", of(serde_json::json!({ "scope": null })), 1, "error=\"insufficient_scope\""),
        ("no gold", of(serde_json::json!({ "acr": "tin" })), 1, "error=\"insufficient_user_authentication\""),
        ("of nobody", of(serde_json::json!({ "iss": "https://evil.example" })), 1, "one of https://login.shop.example (`login`)"),
        ("expired", of(serde_json::json!({ "exp": 1_796_028_480 })), 1, "\"why\": \"the token expired 3 h 12 min ago\""),
        ("no profile", of(serde_json::json!({ "jti": null })), 1, "NO  profile"),
        ("a letter more", format!("{good}A"), 1, "\"reason\": \"token_signature\""),
        ("two", format!("{good} {good}"), 1, "NO  place"),
        ("no token", "opaque".to_owned(), 1, "REFUSED (token_malformed)"),
    ] {
        let (got, text) = check(&token, &["--output", if told.starts_with('"') { "json" } else { "text" }]);
        assert!(got == code && text.contains(told), "{name}: {got} {text}");
        let signature = token.rsplit('.').next().expect("a part");
        assert!(signature.len() < 10 || !text.contains(&signature[..10]), "{name}: the signature is shown: {text}");
    }
    let dir = tempfile::tempdir().expect("directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        path.to_str().expect("path").to_owned()
    };
    let yaml = std::fs::read_to_string(root().join(mesh).join("mesh.yaml")).expect("mesh");
    let (before, after) = yaml.split_once("  jwks:\n").expect("keys");
    let (keys, after) = after.split_once("  claims:\n").expect("claims");
    let (_, jwk) = keys.split_once("- ").expect("a key");
    let asked = "  introspection: { clientId: till, authentication: tls_client_auth, prefix: op_ }\n";
    file("mesh.yaml", &format!("{before}{asked}  claims:\n{after}"));
    let quoted = jwk.trim().replace("{ ", "{ \"").replace(" }", "\" }").replace(": ", "\": \"").replace(", ", "\", \"");
    let jwks = file("jwks.json", &format!("{{ \"keys\": [ {quoted} ] }}"));
    let elsewhere = dir.path().to_str().expect("path").to_owned();
    let fetched = |token: &str, more: &[&str]| {
        let fixed = ["token", "check", token, "--for", "shop/till", "--offline", &elsewhere, "--at", noon];
        run(&[fixed.as_slice(), more].concat())
    };
    let (code, told) = fetched(&good, &[]);
    assert!(
        code == 3 && told.contains("UNKNOWN") && told.contains("give them with --keys FILE") && told.contains("subject  tina"),
        "{told}"
    );
    let (code, told) = fetched(&good, &["--keys", &jwks]);
    assert!(code == 0 && told.contains("(--keys)"), "{told}");
    let (code, told) = fetched(&of(serde_json::json!({ "aud": "blog" })), &[]);
    assert!(code == 1 && told.contains("its signature could not be checked"), "{told}");
    // Beside it an issuer of JWT-SVIDs, and one that this workload does not believe.
    let more = "---\napiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: { name: workloads }\n\
                spec: { jwtSvid: { trustDomain: shop.example }, audiences: [shop] }\n---\n\
                apiVersion: rondel.dev/v1alpha1\nkind: TokenIssuer\nmetadata: { name: partner }\n\
                spec: { issuer: \"https://partner.example\", audiences: [shop] }\n";
    let chosen =
        format!("{before}{asked}  claims:\n{after}{more}").replace("  resource: ", "  issuers: [login, workloads]\n  resource: ");
    file("mesh.yaml", &chosen);
    let svid = serde_json::json!({ "sub": "spiffe://shop.example/ns/shop/sa/web", "aud": "shop", "exp": 1_796_043_600 });
    let authority = testkit::issuer::Issuer::generate(model::snapshot::JwtAlgorithm::Es256, "k1");
    let svid = authority.mint_with_header(&serde_json::json!({ "alg": "ES256", "kid": "k1", "typ": "JOSE" }), &svid);
    let (code, told) = fetched(&svid, &[]);
    assert!(code == 3 && told.contains("they are in the bundle of trust domain shop.example"), "{told}");
    let bundle = file("bundle.json", &authority.jwks().to_string().replace("\"sig\"", "\"jwt-svid\""));
    let (code, told) = fetched(&svid, &["--keys", &bundle]);
    assert!(code == 0 && told.contains("issuer   workloads") && told.contains("spiffe://shop.example/ns/shop/sa/web"), "{told}");
    let (code, told) = fetched(&of(serde_json::json!({ "iss": "https://partner.example" })), &[]);
    assert!(
        code == 1 && told.contains("hint     `partner` is a `TokenIssuer` of the mesh, and not among the `issuers`"),
        "{told}"
    );
    let (code, told) = fetched("op_2YotnFZFEjr1zCsicMWpAA", &["--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&told).expect("json");
    assert!(code == 3 && json["verdict"] == "unknown" && told.contains("as client `till` by tls_client_auth"), "{told}");
    let (huge, empty, foreign) =
        (file("huge", &"a".repeat(1024 * 1024 + 1)), file("empty", "\n"), file("foreign", "{\"keys\":[]}"));
    for (token, more, part) in [
        (format!("@{huge}"), &[][..], "more than 1048576 bytes"),
        (format!("@{empty}"), &[], "there is no token"),
        ("@/no/such".to_owned(), &[], "`/no/such`"),
        (good.clone(), &["--keys", &foreign], "no usable key"),
        (good.clone(), &["--certificate", &jwks], "no PEM certificate"),
    ] {
        let (code, told) = check(&token, more);
        assert!(code == 2 && told.contains(part), "{code} {told}");
    }
    let (code, told) = run(&["token", "check", "x", "--for", "shop/till", "--offline", mesh, "--at", "noon"]);
    assert!(code == 2 && told.contains("is neither `now`"), "{told}");
    let (code, told) = run(&["token", "check", "x", "--for", "shop/tull", "--offline", mesh]);
    assert!(code == 2 && told.contains("did you mean `shop/till`?"), "{told}");
    let (code, told) = run(&["token", "check", "x", "--for", "shop/till", "--state", "/no/such/state"]);
    assert!(code == 2 && told.contains("no control plane answers"), "{told}");
}

#[test]
fn a_token_can_come_by_the_standard_input_and_its_holder_by_a_certificate() {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use std::io::Write as _;
    let dir = tempfile::tempdir().expect("directory");
    let pem = |name: &str, der: &[u8]| {
        let path = dir.path().join(name);
        let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der));
        std::fs::write(&path, text).expect("write");
        path.to_str().expect("path").to_owned()
    };
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"the holder's");
    let bound = serde_json::json!({ "cnf": { "x5t#S256": URL_SAFE_NO_PAD.encode(thumbprint) } });
    let token = format!("{}\n", minted(&claims(&bound)));
    let piped = |text: &str, more: &[&str]| {
        let fixed = ["token", "check", "-", "--for", "shop/till", "--offline", "docs/examples/tokens/mesh", "--at", "1796040001"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_rondel"));
        command.args(fixed).args(more).current_dir(root()).env("NO_COLOR", "1").env_remove("RONDEL_STATE");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("rondel runs");
        child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let told = [output.stdout, output.stderr].concat();
        (output.status.code().expect("an exit code"), String::from_utf8(told).expect("text"))
    };
    let (code, told) = piped(&token, &[]);
    assert!(code == 0 && told.contains("its sender presents the certificate of SHA-256"), "{told}");
    let (code, told) = piped(&token, &["--certificate", &pem("own.pem", b"the holder's")]);
    assert!(code == 0 && !told.contains("its sender presents"), "{told}");
    let (code, told) = piped(&token, &["--certificate", &pem("other.pem", b"another's")]);
    assert!(code == 1 && told.contains("answer   401 token_sender") && told.contains("NO  certificate"), "{told}");
    let (code, told) = piped("\n", &[]);
    assert!(code == 2 && told.contains("there is no token"), "{told}");
}

#[test]
fn an_answer_that_nobody_reads_to_its_end_is_no_failure() {
    for arguments in [
        &["authz", "check", "--list"][..],
        &["authz", "check", "--list", "--output", "json"],
        &["check", "deploy/examples/bank/mesh"],
        &["authz", "test", "docs/examples/policies/tests", "--config", "docs/examples/policies/mesh"],
        &["authz", "schema", "pay/accounts", "--offline", "docs/examples/policies/mesh"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rondel"));
        let ended = command.args(arguments).current_dir(root()).stdout(writer).output().expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(141) && said.is_empty(), "{arguments:?}: {} {said}", ended.status);
    }
}
