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
