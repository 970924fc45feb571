//! Places for requests: so many at a time, the rest wait for a bounded while.

use model::{Limit, Limits};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Counts requests under way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    taken: AtomicUsize,
    freed: Notify,
}

/// One request's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place(Gate);

/// No place became free in time. The caller may try again, or the operator raise the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `requestsUnderWay` ({limit}) was reached for `queueMs` ({waited_ms} ms)")]
pub struct GateFull {
    /// The limit.
    pub limit: usize,
    /// How long the request waited, in milliseconds.
    pub waited_ms: u64,
}

impl Gate {
    /// Takes a place, waiting for one up to `queueMs`. Costs one atomic operation where there is room.
    ///
    /// # Errors
    /// - [`GateFull`] naming both limits.
    pub async fn enter(&self, limits: &Limits) -> Result<Place, GateFull> {
        let limit = limits.size(Limit::RequestsUnderWay);
        if let Some(place) = self.take(limit) {
            return Ok(place);
        }
        let waiting = async {
            loop {
                // Registered before the count is looked at again, so that no freed place is missed.
                let freed = self.0.freed.notified();
                if let Some(place) = self.take(limit) {
                    return place;
                }
                freed.await;
            }
        };
        let full = |_| GateFull { limit, waited_ms: limits.of(Limit::QueueMs) };
        Box::pin(timeout(limits.duration(Limit::QueueMs), waiting)).await.map_err(full)
    }

    fn take(&self, limit: usize) -> Option<Place> {
        let more = |taken: usize| (taken < limit).then_some(taken + 1);
        self.0.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_place_and_no_longer_than_the_limit() {
        let mut limits = Limits::default();
        limits.set(Limit::RequestsUnderWay, 1).expect("limit");
        let gate = Gate::default();
        let first = gate.enter(&limits).await.expect("free");
        assert_eq!(gate.enter(&limits).await.map(drop), Err(GateFull { limit: 1, waited_ms: 1000 }));
        let (second, ()) = tokio::join!(gate.enter(&limits), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            drop(first);
        });
        drop(second.expect("freed meanwhile"));
        gate.enter(&limits).await.expect("free again");
    }
}
