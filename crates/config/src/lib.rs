//! What a user writes: a directory of YAML, read strictly, resolved into a mesh, planned into one snapshot per workload.
//!
//! Read [`parse`] and [`Mesh`] first. A resource that cannot be enforced exactly as written is refused here with file, line
//! and what to write instead; nothing is accepted and ignored. Alone in this workspace, this crate names the YAML parser.

mod build;
pub mod cases;
mod certificates;
mod compiles;
mod error;
mod keys;
mod mesh;
mod roles;
mod source;
#[cfg(test)]
mod tests;
mod tokens;
mod workload;
mod yaml;

pub use build::{parse, parse_again};
pub use compiles::Checked;
pub use error::{ConfigError, RESOURCE, suggestion};
pub use mesh::{BundleEndpoint, Call, Federation, Mesh, Process, SelectedPolicy, Settings, Trust, UpstreamAuthority, Workload};
pub use source::{Source, read, read_one};
/// Whether a resolved address may be fetched from.
pub use token::jwks::fetchable_address;
