//! Turns at checking tokens that were not checked before.

use crate::workers;
use tokio::sync::{Semaphore, SemaphorePermit};

/// One turn for each worker. A signature check holds a worker up for as long as some requests with a known token take together; where many
/// unknown tokens come at once, what else is ready at the worker goes on between any two checks, and does not wait for all of them.
///
/// As many wait as requests are under way (limit `requestsUnderWay`), in the order in which they came; each for those before it, some 50 us
/// apiece, and what else is ready in between.
#[derive(Debug)]
pub struct Turns(Box<[Semaphore]>);

/// The turn, given on when it is dropped.
#[derive(Debug)]
pub struct Turn<'a>(Option<SemaphorePermit<'a>>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..workers::count_max()).map(|_| Semaphore::new(1)).collect())
    }
}

impl Turns {
    /// Waits for the calling worker's turn.
    pub async fn take(&self) -> Turn<'_> {
        let turns = self.0.get(workers::index()).or(self.0.first());
        Turn(match turns {
            // Never closed.
            Some(turns) => turns.acquire().await.ok(),
            None => None,
        })
    }
}

impl Turn<'_> {
    /// Lets everything else that is ready at this worker go first, then gives the turn on.
    pub async fn give_on(self) {
        tokio::task::yield_now().await;
        drop(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[tokio::test]
    async fn what_else_is_ready_goes_on_between_any_two_checks() {
        let (turns, seen) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let (turns, seen) = (Arc::clone(&turns), Arc::clone(&seen));
            tasks.spawn(async move {
                let turn = turns.take().await;
                seen.lock().push("check");
                turn.give_on().await;
            });
        }
        // A call with a known token, again and again: it never waits for a turn.
        let calls = Arc::clone(&seen);
        tasks.spawn(async move {
            for _ in 0..20 {
                calls.lock().push("call");
                tokio::task::yield_now().await;
            }
        });
        tasks.join_all().await;
        let seen = seen.lock();
        assert_eq!(seen.iter().filter(|each| **each == "check").count(), 5);
        assert!(!seen.windows(2).any(|pair| pair == ["check", "check"]), "{seen:?}");
    }

    #[tokio::test]
    async fn whoever_goes_away_while_it_waits_or_checks_gives_its_turn_on() {
        let turns = Turns::default();
        let first = turns.take().await;
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), turns.take()).await.is_err());
        drop(first);
        drop(turns.take().await);
    }
}
