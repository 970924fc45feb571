//! What it costs to read a mesh of many policies, and to read it again when one was edited:
//! `cargo run --release -p config --example load [WORKLOADS] [POLICIES OF EACH] [POLICIES OF ALL]`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use config::{Checked, Source, parse_again};
use std::time::Instant;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|number| number.parse::<usize>().ok());
    let (workloads, own, common) =
        (arguments.next().unwrap_or(100), arguments.next().unwrap_or(100), arguments.next().unwrap_or(0));
    let mut sources = mesh(workloads, own, common);
    let mut checked = Checked::default();
    let mut read = |what: &str, sources: &[Source]| {
        let begun = Instant::now();
        match parse_again(sources, &mut checked) {
            Ok(mesh) => println!(
                "{what}: {} workloads with {} policies each, {} ms",
                mesh.workloads.len(),
                own + common,
                begun.elapsed().as_millis()
            ),
            Err(errors) => errors.iter().for_each(|error| println!("{error}")),
        }
    };
    read("first", &sources);
    read("unchanged", &sources);
    if let Some(last) = sources.last_mut() {
        last.text = last.text.replacen("limit > 0", "limit > 1", 1);
    }
    read("one edited", &sources);
}

fn mesh(workloads: usize, own: usize, common: usize) -> Vec<Source> {
    let settings = "apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: { name: large }
spec: { trustDomain: shop.example }
---
apiVersion: rondel.dev/v1alpha1
kind: TokenIssuer
metadata: { name: login }
spec:
  issuer: https://login.example
  audiences: [shop]
  claims: { roles: roles, attributes: { limit: { claim: limit, type: Long } } }
";
    let mut sources = vec![Source { file: "mesh.yaml".to_owned(), text: settings.to_owned() }];
    if common > 0 {
        sources.push(Source { file: "all.yaml".to_owned(), text: policies("", "all", common) });
    }
    for number in 0..workloads {
        let (name, port) = (format!("s{number}"), 20_000 + number);
        let workload = format!(
            "apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ admin: \"127.0.0.1:{port}\" }}\n"
        );
        let policies = policies(&format!("  selector: {{ account: {name} }}\n"), &name, own);
        sources.push(Source { file: format!("{name}.yaml"), text: format!("{workload}---\n{policies}") });
    }
    sources
}

fn policies(selector: &str, name: &str, count: usize) -> String {
    let rule = |number: usize| {
        format!(
            "    @id(\"{name}-{number}\") permit (principal == Workload::\"spiffe://shop.example/ns/shop/sa/caller-{number}\", \
             action in Action::\"read\", resource) when {{ context.request.path like \"/{name}/{number}/*\" && context has user && \
             context.user in Role::\"role-{number}\" && context.user has limit && context.user.limit > {number} }};\n"
        )
    };
    let rules: String = (0..count).map(rule).collect();
    format!(
        "apiVersion: rondel.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n{selector}  policies: |\n{rules}"
    )
}
