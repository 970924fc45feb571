//! Random meshes and requests, and what the compiled policies and Cedar's own evaluator say of them.

pub(crate) mod asked;
pub(crate) mod dice;
pub(crate) mod written;

use dice::Dice;
use model::decision::Decision;
use model::ids::{DecisionId, Revision};
use model::reason::Reason;
use policy::{Denied, Permit, Policies};
use std::collections::BTreeMap;
use written::Written;

/// What was met.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) meshes: usize,
    pub(crate) policies: usize,
    pub(crate) interpreted: usize,
    pub(crate) cases: usize,
    /// By reason; `None`: allowed.
    pub(crate) outcomes: BTreeMap<Option<Reason>, usize>,
}

/// Makes one mesh and asks it `requests` questions. Policies that the validator refuses are left out.
///
/// # Panics
/// If the two differ.
pub(crate) fn compare(dice: &mut Dice<'_>, requests: usize, tally: &mut Tally) {
    let mut mesh = Written::by(dice);
    let policies = loop {
        match policy::compile(&mesh.resources, std::slice::from_ref(&mesh.issuer), &mesh.roles) {
            Ok(policies) => break policies,
            Err(errors) => assert!(leave_out(&mut mesh, &errors), "nothing to leave out: {errors:#?}"),
        }
    };
    tally.meshes += 1;
    tally.policies += policies.len();
    tally.interpreted += policies.interpreted().count();
    for _ in 0..requests {
        let request = asked::request(dice, &mesh);
        let (question, id) = (request.as_question(), DecisionId::from_random([7; 16]));
        let compiled = told(policy::decide(&policies, &question, id, Revision(3)));
        let reference = told(policy::decide_by_reference(&policies, &question, id, Revision(3)));
        let texts: Vec<&str> = mesh.resources.iter().map(|resource| resource.text.as_str()).collect();
        assert_eq!(compiled, reference, "{}\n{:#?}\n{request:#?}", texts.join("// b\n"), mesh.issuer.attributes);
        tally.cases += 1;
        *tally.outcomes.entry(compiled.0.reason).or_default() += 1;
        explain(&policies, &request, &compiled.0);
    }
}

/// The same, where bytes make the choices: what the fuzz target does with each input.
pub(crate) fn of_bytes(input: &[u8]) {
    compare(&mut Dice::of(input), 8, &mut Tally::default());
}

/// The decision, whether a user could be allowed, and the number of policies that failed.
fn told(outcome: Result<Permit, Denied>) -> (Decision, bool, usize) {
    match outcome {
        Ok(permit) => (permit.decision().clone(), false, 0),
        Err(denied) => (denied.decision, denied.user_could_be_allowed, denied.errors.len()),
    }
}

/// Removes the policies that the errors point to, each of which stands on a line of its own; whether there was one.
fn leave_out(mesh: &mut Written, errors: &[policy::PolicyError]) -> bool {
    let mut removed = false;
    for resource in &mut mesh.resources {
        let is_wrong = |line: usize| {
            errors.iter().any(|error| error.file == resource.file && usize::try_from(error.line).is_ok_and(|at| at == line + 1))
        };
        let kept = resource.text.lines().enumerate().filter(|(line, _)| !is_wrong(*line));
        let text: String = kept.map(|(_, line)| format!("{line}\n")).collect();
        removed |= text != resource.text;
        resource.text = text;
    }
    removed
}

/// Once in a while: an explanation must fit whatever was decided, and never panic.
fn explain(policies: &Policies, request: &model::AuthzRequest, decision: &Decision) {
    if decision.reason == Some(Reason::PolicyError) {
        let explanation = policy::explain(policies, request, decision);
        assert!(explanation.nearest_miss.is_some(), "{request:#?}");
    }
}
