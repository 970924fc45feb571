//! What the process tells of itself: access log, metrics, decision records.

pub mod access_log;
pub mod decisions;
mod json;
pub mod metrics;
pub mod recent;
pub mod requests;
