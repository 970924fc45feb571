//! Whether the policies of every workload compile, as its sidecar will compile them: all of them the first time, later those that changed.

use crate::build::Errors;
use crate::error::ConfigError;
use crate::mesh::{Mesh, Workload};
use model::snapshot::{AuthorizationPolicy, TokenIssuer};
use model::token::TokenUse;
use policy::{Known, PolicyError};
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// LIMIT: threads that compile side by side.
const THREADS_MAX: usize = 8;

/// Which sets of policies are known to be sound, so that a configuration of many costs little to read again when one of them changes.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Two keyed hashes, so that nobody can write two sets that are taken for each other.
    keys: [RandomState; 2],
    sound: HashSet<[u64; 2]>,
}

/// What one service's sidecars compile.
struct Set {
    live: Vec<AuthorizationPolicy>,
    shadow: Vec<AuthorizationPolicy>,
    issuers: Vec<TokenIssuer>,
    token: TokenUse,
    name: [u64; 2],
}

/// Every service's policies compile together, as its sidecars will compile them. What is tried is told of like what is enforced: here
/// alone somebody is there to mend it.
pub(crate) fn policies_compile(mesh: &Mesh, checked: &mut Checked, errors: &mut Errors) {
    let kind = |workload: &'_ Workload| {
        // Instances of a service may use tokens in different ways.
        let TokenUse { header, claims, .. } = workload.token.clone();
        (workload.service.clone(), workload.issuers.clone(), header, claims)
    };
    let services: BTreeMap<_, &Workload> = mesh.workloads.iter().map(|workload| (kind(workload), workload)).collect();
    let sets: Vec<Set> = services.into_values().map(|workload| checked.set(mesh, workload)).collect();
    let (known, new): (Vec<_>, Vec<_>) = sets.iter().partition(|set| checked.sound.contains(&set.name));
    // Only what is in force now is remembered: what was edited away costs no memory.
    let mut sound: HashSet<[u64; 2]> = known.iter().map(|set| set.name).collect();
    for (set, outcome) in new.iter().zip(side_by_side(mesh, &new)) {
        match outcome {
            Ok(()) => {
                sound.insert(set.name);
            }
            Err(found) => errors.all(found.into_iter().map(told)),
        }
    }
    checked.sound = sound;
}

fn told(error: PolicyError) -> ConfigError {
    let code = error.flaw.code();
    let what = error.policy.map_or_else(String::new, |policy| format!("policy `{policy}`: "));
    let message = format!("{what}{}", error.message);
    ConfigError { file: error.file, line: error.line, column: error.column, message, code }
}

/// Compiles sets on all cores; what came of each, in their order.
fn side_by_side(mesh: &Mesh, sets: &[&Set]) -> Vec<Result<(), Vec<PolicyError>>> {
    let (next, known) = (AtomicUsize::new(0), Known::default());
    let outcomes: Vec<Mutex<Result<(), Vec<PolicyError>>>> = sets.iter().map(|_| Mutex::new(Ok(()))).collect();
    let work = || {
        while let Some((set, place)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            sets.get(at).zip(outcomes.get(at))
        } {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = set.compiles(mesh, &known);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(sets.len());
    std::thread::scope(|scope| {
        // This thread works too.
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        work();
        for other in others {
            if let Err(panic) = other.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    outcomes.into_iter().map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

impl Set {
    fn compiles(&self, mesh: &Mesh, known: &Known) -> Result<(), Vec<PolicyError>> {
        policy::check(&self.live, &self.shadow, &self.issuers, &mesh.settings.roles, &self.token, known)
    }
}

impl Checked {
    /// How many sets are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sound.len()
    }

    /// How many sets both know.
    #[cfg(test)]
    pub(crate) fn both(&self, other: &Self) -> usize {
        self.sound.intersection(&other.sound).count()
    }

    fn set(&self, mesh: &Mesh, workload: &Workload) -> Set {
        let (live, shadow, issuers) = (mesh.policies_of(workload), mesh.shadow_of(workload), mesh.issuers_of(workload));
        let name = self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            [&live, &shadow].into_iter().for_each(|policies| hash(policies, &mut hasher));
            // Whatever else compiling sees, whole.
            format!("{issuers:?} {:?} {:?}", mesh.settings.roles, workload.token).hash(&mut hasher);
            hasher.finish()
        });
        Set { live, shadow, issuers, token: workload.token.clone(), name }
    }
}

fn hash(policies: &[AuthorizationPolicy], hasher: &mut impl Hasher) {
    policies.len().hash(hasher);
    for AuthorizationPolicy { name, file, line, text, body } in policies {
        (name, file, line, text, body).hash(hasher);
    }
}
