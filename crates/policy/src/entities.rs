//! The entities that a policy names: those that no request can have are refused.

use cedar_policy::Policy;
use cedar_policy::pst::{EntityOrSlot, PrincipalConstraint};
use model::Principal;
use model::ids::{ServiceName, SpiffeId};

/// Refuses a principal that is no workload, and entities whose ids are not of the form that ours are of.
pub(crate) fn check(policy: &Policy, principal: &PrincipalConstraint) -> Result<(), String> {
    if let Some(kind @ ("User" | "Role")) = kind_of(principal).as_deref() {
        let about = if kind == "Role" { "`context has user && context.user in Role::\"…\"`" } else { "`context.user`" };
        return Err(format!("`principal` is the calling `Workload` and never a `{kind}`: for whom it calls is {about}"));
    }
    for uid in policy.entity_literals() {
        let id = uid.id().unescaped();
        let expected = match uid.type_name().basename() {
            "Workload" if id == Principal::Unauthenticated.as_str() => continue,
            "Workload" if SpiffeId::parse(id).is_err() => {
                "a workload's id is its SPIFFE ID, or `unauthenticated` for plaintext callers of permissive ports"
            }
            "Service" if ServiceName::parse(id).is_err() => "a service's id is `namespace/name`",
            "User" if !id.contains('#') => "a user's id is `ISSUER#SUBJECT`, with the name of the token issuer",
            _ => continue,
        };
        return Err(format!("`{uid}` can never be met: {expected}"));
    }
    Ok(())
}

/// The type that the principal of a policy must be of.
fn kind_of(principal: &PrincipalConstraint) -> Option<String> {
    match principal {
        PrincipalConstraint::Is(kind) | PrincipalConstraint::IsIn(kind, _) => Some(kind.0.id.to_string()),
        PrincipalConstraint::Eq(EntityOrSlot::Entity(uid)) | PrincipalConstraint::In(EntityOrSlot::Entity(uid)) => {
            Some(uid.ty.0.id.to_string())
        }
        _ => None,
    }
}
