use super::*;
use crate::fixture::*;
use std::sync::Arc;

#[test]
fn peek() {
    let p = compiled(&[resource("payments", PAYMENTS, &[("amount", AttributeType::Long)])]).unwrap_or_else(|e| panic!("{e:#?}"));
    for request in [
        transfer(),
        changed(|r| amount(r, 5000)),
        changed(|r| r.user = None),
        changed(|r| r.user = Some(Arc::new(user(&["auditor"])))),
        changed(|r| {
            let mut u = user(&[]);
            u.attributes.clear();
            r.user = Some(Arc::new(u));
            r.source.country = None;
            r.body = None;
            r.body_note = Some("the content type is not JSON".into())
        }),
        changed(|r| {
            r.principal = id("fraud");
            r.action = "GET".into()
        }),
        changed(|r| r.action = "PURGE".into()),
    ] {
        let d = match decided(&p, &request) {
            Ok(p) => p.decision().clone(),
            Err(d) => {
                println!("{} {:?}", d.user_could_be_allowed, d.errors);
                d.decision
            }
        };
        println!("{d:?}\n{:#?}", explain(&p, &request, &d));
    }
}
