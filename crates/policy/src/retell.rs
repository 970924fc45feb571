//! What Cedar's parser and validator say, for whoever wrote the policy: without what is said already, and with what to write.

use crate::vocabulary::ACTIONS;
use model::ids::printable;

/// How the validator begins to tell that something optional is read without `has`.
pub(crate) const UNSAFE: &str = "unable to guarantee safety of access to optional attribute";

/// Cedar's words in ours. `help`: what Cedar advises, which is about any schema and not about this one.
pub(crate) fn retell(message: &str, help: Option<&str>) -> String {
    // The policy's id stands before the message already.
    let message = match message.strip_prefix("for policy `").and_then(|rest| rest.split_once("`, ")) {
        Some((_, told)) => told,
        None => message,
    };
    let told = if let Some(action) = unknown_action(message) {
        action
    } else if message == "unexpected end of input" {
        format!("{message}: a policy ends with `;`")
    } else {
        let owner = if message.ends_with("on entity type `Workload`") { "`principal has " } else { "`context.user has " };
        let help = help.map(|help| format!(" ({})", help.replace("`e has ", owner)));
        format!("{message}{}", help.unwrap_or_default())
    };
    told.replace(['\n', '\r'], " ")
}

/// What there is in place of an action that there is not.
fn unknown_action(message: &str) -> Option<String> {
    let named = message.strip_prefix("unrecognized action `Action::\"")?.split('"').next()?;
    let is_meant = |action: &&str| action.eq_ignore_ascii_case(named);
    let advice = match ACTIONS.iter().map(|(action, _)| *action).find(is_meant) {
        Some(action) => format!("write `Action::\"{action}\"`"),
        None => {
            let all: Vec<&str> = ACTIONS.iter().map(|(action, _)| *action).collect();
            format!("it is one of {}, or in the group `read` or `write`", all.join(", "))
        }
    };
    Some(format!("there is no action `{}`: {advice}", printable(named)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cedar_is_retold_with_what_to_write() {
        for (message, help, expected) in [
            (
                "for policy `a/b/c`, attribute `x` not found",
                Some("did you mean `y`?"),
                "attribute `x` not found (did you mean `y`?)",
            ),
            ("unexpected\ntoken", None, "unexpected token"),
            (
                "for policy `a/b/c`, unable to guarantee safety of access to optional attribute `limit` on entity type `User`",
                Some("try testing for the attribute's presence with `e has limit && ..`"),
                "unable to guarantee safety of access to optional attribute `limit` on entity type `User` \
                 (try testing for the attribute's presence with `context.user has limit && ..`)",
            ),
            ("unexpected end of input", None, "unexpected end of input: a policy ends with `;`"),
            (
                "for policy `a/b/c`, unrecognized action `Action::\"post\"`",
                Some("did you mean `Action::\"PUT\"`?"),
                "there is no action `post`: write `Action::\"POST\"`",
            ),
            (
                "for policy `a/b/c`, unrecognized action `Action::\"transfer\"`",
                Some("did you mean `Action::\"read\"`?"),
                "there is no action `transfer`: it is one of GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE, connect, \
                 or in the group `read` or `write`",
            ),
        ] {
            assert_eq!(retell(message, help), expected);
        }
    }
}
