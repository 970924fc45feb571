//! A decision, and what is kept of it so that an operator can have it explained.

use crate::authz::AuthzRequest;
use crate::ids::{DecisionId, PolicyId, Revision, ServiceName, WorkloadName};
use crate::reason::Reason;
use crate::time::Timestamp;
use std::sync::Arc;

/// Whether a call may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// The outcome of evaluating the policies once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Names this decision; random.
    pub id: DecisionId,
    /// The outcome.
    pub effect: Effect,
    /// Why not, if denied.
    pub reason: Option<Reason>,
    /// The policies that determined it: the matching permits of an allow, the matching forbids of a denial, or nothing
    /// where the default denied. Sorted.
    pub determining: Arc<[PolicyId]>,
    /// The revision of the snapshot that decided.
    pub revision: Revision,
}

/// Everything that is told about one refused or allowed call, from the proxy to the operator.
///
/// Holds no token. `explanation` is `None` where the call ended before the policies were asked (a bad token, a bad head).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DecisionRecord {
    /// The decision id that the caller was told.
    pub id: DecisionId,
    /// When it was made.
    pub at: Timestamp,
    /// The workload whose sidecar decided, `namespace/name`.
    pub workload: String,
    /// The called service, `namespace/name`.
    pub resource: String,
    /// Allow or deny.
    pub effect: Effect,
    /// The reason's name (`Reason::as_str`) if denied.
    pub reason: Option<String>,
    /// Operator's text: what exactly was wrong. Never a token or a key.
    pub detail: Option<String>,
    /// The HTTP status that the caller got, 0 where the connection was closed without one.
    pub status: u16,
    /// The revision of the snapshot that decided.
    pub revision: Revision,
    /// The calling workload's SPIFFE ID, if it proved one.
    pub principal: Option<String>,
    /// The user's subject, if a token was verified.
    pub user: Option<String>,
    /// The HTTP method, `connect`, or empty where none was read.
    pub action: String,
    /// The normalised path, or empty where none was read.
    pub path: String,
    /// The evaluated policies.
    pub explanation: Option<Explanation>,
    /// What the answer would be with the policies in shadow mode, if it is another.
    pub shadow: Option<Shadowed>,
}

impl DecisionRecord {
    /// The record of a decision by policy, without its explanation.
    pub fn of(decision: &Decision, workload: &WorkloadName, request: &AuthzRequest, status: u16) -> Self {
        Self {
            id: decision.id,
            at: request.now,
            workload: workload.to_string(),
            resource: request.resource.to_string(),
            effect: decision.effect,
            reason: decision.reason.map(|reason| reason.as_str().to_owned()),
            detail: None,
            status,
            revision: decision.revision,
            principal: Some(request.principal.to_string()),
            user: request.user.as_ref().map(|user| user.subject.clone()),
            action: request.action.clone(),
            path: request.path.clone(),
            explanation: None,
            shadow: None,
        }
    }

    /// The record of a call that was refused before or after the policies were asked.
    pub fn refused(
        id: DecisionId,
        at: Timestamp,
        workload: &WorkloadName,
        resource: &ServiceName,
        reason: Reason,
        status: u16,
        revision: Revision,
    ) -> Self {
        Self {
            id,
            at,
            workload: workload.to_string(),
            resource: resource.to_string(),
            effect: Effect::Deny,
            reason: Some(reason.as_str().to_owned()),
            detail: None,
            status,
            revision,
            principal: None,
            user: None,
            action: String::new(),
            path: String::new(),
            explanation: None,
            shadow: None,
        }
    }
}

/// The answer that a call would get if the policies in shadow mode were in force, where it is another than it got.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shadowed {
    /// The other answer.
    pub would: Would,
    /// The policies in shadow mode that bring it about; empty where none can be named.
    pub policies: Vec<PolicyId>,
    /// Operator's text: why.
    pub detail: Option<String>,
}

impl Shadowed {
    /// Without the words.
    pub const fn new(would: Would, policies: Vec<PolicyId>) -> Self {
        Self { would, policies, detail: None }
    }
}

/// What policies in shadow mode would make of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Would {
    /// It is denied, and would be allowed.
    #[serde(rename = "would_allow")]
    Allow,
    /// It is allowed, and would be denied.
    #[serde(rename = "would_deny")]
    Deny,
    /// It is allowed, and would be denied because a policy in shadow mode cannot be evaluated.
    #[serde(rename = "would_fail")]
    Fail,
}

impl Would {
    /// Every answer.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Fail];

    /// The word in metrics, records and reports: `would_allow`, `would_deny`, `would_fail`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "would_allow",
            Self::Deny => "would_deny",
            Self::Fail => "would_fail",
        }
    }
}

/// How the policies came to their decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Explanation {
    /// Every enforced policy that selects the workload, in the order of the source; at most 200.
    pub policies: Vec<PolicyOutcome>,
    /// The attributes that the policies read, with their values, by path (`context.user.limit` → `1000`). Absent ones say `(absent)`.
    pub attributes: Vec<(String, String)>,
    /// The smallest change that would have turned the answer, in words: `would be allowed by bank/payments/transfer if …`, or
    /// `would be denied without …`. There is one for every denial.
    pub nearest_miss: Option<String>,
}

/// What became of one policy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PolicyOutcome {
    /// The policy.
    pub id: PolicyId,
    /// `permit` or `forbid`.
    pub kind: String,
    /// Where it stands: `policies/payments.yaml:12`.
    pub position: String,
    /// Whether it applied to the request.
    pub outcome: Outcome,
    /// The conditions that did not hold, in source text with values (`context.request.body.amount <= context.user.limit: 5000 <= 1000 is false`).
    pub failed: Vec<String>,
}

/// Whether a policy applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its scope and all its conditions held.
    Applied,
    /// Something in it did not hold.
    NotApplied,
    /// Its evaluation failed, which denies.
    Errored,
}
