//! Counts of requests, kept by each worker for itself and added up when they are asked for.

use crate::workers;
use model::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const DIRECTIONS: [&str; 2] = ["inbound", "outbound"];
/// By the first digit of the status; `none` for a request that got no answer.
const STATUSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// `ok`, and then every reason.
const REASONS: usize = Reason::ALL.len() + 1;
/// Upper bounds from 100 us on, each twice the one before; the last bucket has none.
const BUCKETS: usize = 19;
const FIRST_BUCKET_US: u64 = 100;

/// Labels of `rondel_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    direction: &'static str,
    status: &'static str,
    reason: &'static str,
}

/// Labels of `rondel_request_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

/// The requests of a process.
#[derive(Debug)]
pub struct Requests {
    blocks: Vec<Block>,
}

/// What one worker has counted. Nobody else writes to it, so that its cache lines stay where they are.
#[derive(Debug)]
#[repr(align(128))]
struct Block {
    counts: Vec<AtomicU64>,
    durations: [Durations; 2],
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        let block = || Block {
            counts: (0..DIRECTIONS.len() * STATUSES.len() * REASONS).map(|_| AtomicU64::new(0)).collect(),
            durations: Default::default(),
        };
        Self { blocks: (0..workers::count_max()).map(|_| block()).collect() }
    }
}

impl Requests {
    /// Counts one request that ended. `direction`: `inbound` or `outbound`.
    pub fn count(&self, is_inbound: bool, status: u16, reason: Option<Reason>, took: Duration) {
        let Some(block) = self.blocks.get(workers::index() % self.blocks.len().max(1)) else { return };
        let direction = usize::from(!is_inbound);
        let status = usize::from(status / 100).min(STATUSES.len() - 1);
        let reason = reason.map_or(0, |reason| reason as usize + 1);
        if let Some(count) = block.counts.get((direction * STATUSES.len() + status) * REASONS + reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(durations) = block.durations.get(direction) {
            if let Some(bucket) = durations.buckets.get(bucket_of(took_us)) {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
            durations.sum_us.fetch_add(took_us, Ordering::Relaxed);
        }
    }

    fn sum(&self, of: impl Fn(&Block) -> Option<&AtomicU64>) -> u64 {
        self.blocks.iter().filter_map(of).map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

fn bucket_of(took_us: u64) -> usize {
    let above = took_us.saturating_sub(1) / FIRST_BUCKET_US;
    usize::try_from(u64::BITS - above.leading_zeros()).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The metrics of [`Requests`], as a registry asks for them.
#[derive(Debug)]
pub struct RequestMetrics(pub std::sync::Arc<Requests>);

impl Collector for RequestMetrics {
    #[expect(clippy::cast_precision_loss, reason = "seconds since the start have room in the 52 bits")]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Requests by direction, status class and reason";
        let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for (at_direction, direction) in DIRECTIONS.into_iter().enumerate() {
            for (at_status, status) in STATUSES.into_iter().enumerate() {
                for (at_reason, reason) in
                    std::iter::once("ok").chain(Reason::ALL.iter().map(|reason| reason.as_str())).enumerate()
                {
                    let place = (at_direction * STATUSES.len() + at_status) * REASONS + at_reason;
                    let count = self.0.sum(|block| block.counts.get(place));
                    if count > 0 {
                        let labels = RequestLabels { direction, status, reason };
                        family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
                    }
                }
            }
        }
        let help = "From a request's head to the end of its response";
        let mut family = encoder.encode_descriptor("request_duration_seconds", help, None, MetricType::Histogram)?;
        for (at, direction) in DIRECTIONS.into_iter().enumerate() {
            let buckets: Vec<(f64, u64)> = (0..BUCKETS)
                .map(|bucket| {
                    let bound = if bucket + 1 == BUCKETS { f64::MAX } else { (FIRST_BUCKET_US << bucket) as f64 / 1e6 };
                    (bound, self.0.sum(|block| block.durations.get(at).and_then(|durations| durations.buckets.get(bucket))))
                })
                .collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = self.0.sum(|block| block.durations.get(at).map(|durations| &durations.sum_us)) as f64 / 1e6;
            if count > 0 {
                let labels = DirectionLabels { direction };
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_its_bound() {
        for (us, bucket) in [
            (0, 0),
            (1, 0),
            (100, 0),
            (101, 1),
            (200, 1),
            (201, 2),
            (400, 2),
            (401, 3),
            (100 << 17, 17),
            ((100 << 17) + 1, 18),
            (u64::MAX, 18),
        ] {
            assert_eq!(bucket_of(us), bucket, "{us}");
        }
    }
}
