use super::*;
use crate::fixture::*;
use crate::text::{NESTING_MAX, OPERATORS_MAX};
use model::authz::AttributeType;

#[test]
fn peek() {
    let n = OPERATORS_MAX - 20;
    let d = NESTING_MAX - 3;
    for (name, cond) in [
        ("and", vec!["context.request.path == \"a\""; n / 3].join(" && ")),
        ("or", vec!["true"; n].join(" || ")),
        ("plus", format!("{} == 1", vec!["1"; n].join(" + "))),
        ("paren", format!("{}true{}", "(".repeat(d), ")".repeat(d))),
        ("if", format!("{}true", "if context.request.path == \"a\" then true else ".repeat(n / 3))),
        ("ifparen", format!("{}true{}", "if (".repeat(d), ") then true else false".repeat(d))),
        ("not", format!("{}true{}", "!!!!(".repeat(d), ")".repeat(d))),
        ("set", format!("{}1{} == [1]", "[".repeat(d), "]".repeat(d))),
        ("rec", format!("{}1{} == {{}}", "{a:".repeat(d), "}".repeat(d))),
        ("dot", format!("context{} == 1", ".a".repeat(n))),
        ("minus", format!("{}1 == 1", "- - - - (".repeat(d)) + &")".repeat(d)),
        ("whens", format!("true {}", "} when { true".repeat(n))),
        ("neq", vec!["(1 == 1)"; d].join(" == ")),
    ] {
        for kib in [std::env::var("KIB").unwrap().parse::<usize>().unwrap()] { if name != std::env::var("CASE").unwrap() { continue }
            let text = format!("permit(principal, action, resource) when {{ {cond} }};");
            let started = std::time::Instant::now();
            let out = std::thread::Builder::new().stack_size(kib * 1024).spawn(move || {
                match compiled(&[resource("p", &text, &[("amount", AttributeType::Long)])]) {
                    Ok(p) => { let r = transfer(); let d = decided(&p, &r); let d = match d { Ok(p) => p.decision().clone(), Err(d) => { eprint!("{:?} ", d.errors);d.decision} }; let e = crate::explain(&p, &r, &d); format!("ok {:?} {}", d.effect, e.nearest_miss.unwrap_or_default().len()) }
                    Err(e) => e[0].message.chars().take(60).collect::<String>(),
                }
            }).unwrap().join();
            eprintln!("{name} {kib} {:?} {:?}", out, started.elapsed());
        }
    }
}
