//! The extension values that a policy writes out: Cedar itself reads them, once.

use super::code::{Code, Range};
use cedar_policy::pst::UnaryOp;
use cedar_policy::{Context, Entities, EntityUid, EvalResult, Expression, Request, eval_expression};
use std::net::IpAddr;
use std::str::FromStr;

/// `ip("…")`, `decimal("…")`, `datetime("…")`, `duration("…")`; `None` for anything else and for a text that Cedar refuses.
pub(super) fn of(constructor: UnaryOp, text: &str) -> Option<Code> {
    let written = |name: &str| format!("{name}(\"{}\")", text.escape_debug());
    Some(match constructor {
        UnaryOp::Ip => Code::Address(range(&evaluated(&written("ip"))?)?),
        UnaryOp::Decimal => Code::Decimal(ten_thousandths(&evaluated(&written("decimal"))?)?),
        UnaryOp::Datetime => {
            let since = format!("{}.durationSince(datetime(\"1970-01-01\")).toMilliseconds()", written("datetime"));
            Code::Datetime(number(&since)?)
        }
        UnaryOp::Duration => Code::Duration(number(&format!("{}.toMilliseconds()", written("duration")))?),
        _ => return None,
    })
}

fn evaluate(expression: &str) -> Option<EvalResult> {
    let nobody = EntityUid::from_str("Workload::\"\"").ok()?;
    let request = Request::new(nobody.clone(), nobody.clone(), nobody, Context::empty(), None).ok()?;
    eval_expression(&request, &Entities::empty(), &Expression::from_str(expression).ok()?).ok()
}

fn number(expression: &str) -> Option<i64> {
    if let EvalResult::Long(number) = evaluate(expression)? { Some(number) } else { None }
}

/// The text of an extension value as Cedar prints it: `decimal("1.2300")`, `ip("10.0.0.0/8")`.
fn evaluated(expression: &str) -> Option<String> {
    let EvalResult::ExtensionValue(printed) = evaluate(expression)? else { return None };
    printed.split('"').nth(1).map(str::to_owned)
}

fn range(text: &str) -> Option<Range> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().ok()?;
    let prefix = match prefix {
        Some(prefix) => prefix.parse().ok()?,
        None if address.is_ipv4() => 32,
        None => 128,
    };
    Some(Range { address, prefix })
}

/// A decimal that Cedar took: at most four digits behind the point.
fn ten_thousandths(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.')?;
    format!("{whole}{fraction:0<4}").parse().ok()
}
