//! The last good snapshot on disk: owner-only, signed by the control plane, without a private key (decision 0003).

use crate::anchor::Anchor;
use crate::state::Shared;
use crate::sync::{self, Applier};
use anyhow::Context;
use identity::signed::{self, SignedRefusal};
use model::{Limit, Snapshot};
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a control plane's signature under a snapshot's digest is made for; it is good for nothing else.
pub const SIGNATURE_PURPOSE: &str = "rondel snapshot 1";
/// First bytes of the file; another version is refused.
const MAGIC: &[u8] = b"rondel-snapshot-1\n";
const FILE: &str = "snapshot";

/// Why the snapshot on disk is not used.
#[derive(Debug, thiserror::Error)]
pub enum DiskFailure {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not a file of this version, or larger than `configMessageBytes` allows.
    #[error("it is not a snapshot of this version, or too large")]
    Format,
    /// It is not signed by this mesh's control plane.
    #[error("its signature: {0}")]
    Signature(#[from] SignedRefusal),
    /// The signature is that of another snapshot.
    #[error("its signature belongs to another snapshot")]
    Digest,
    /// Its content cannot be read.
    #[error("its content: {0}")]
    Content(#[from] wire::ConvertError),
}

/// Makes the state directory, owner-only.
///
/// # Errors
/// - the operating system's.
pub fn prepare(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("make the state directory `{}`", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(failed)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).with_context(failed)
}

/// Checks that the control plane signed exactly this snapshot.
///
/// # Errors
/// - [`DiskFailure::Signature`] or [`DiskFailure::Digest`].
pub fn check(snapshot: &Snapshot, signature: &[u8], anchor: &Anchor) -> Result<(), DiskFailure> {
    let digest = signed::verify(signature, &anchor.bundles(), &anchor.control_plane, SIGNATURE_PURPOSE)?;
    let own = identity::sha256(&wire::encode_snapshot(snapshot));
    if digest == own { Ok(()) } else { Err(DiskFailure::Digest) }
}

/// Writes the snapshot in force, whole or not at all.
///
/// # Errors
/// - [`DiskFailure::Io`].
pub fn save(dir: &Path, snapshot: &Snapshot, signature: &[u8]) -> Result<(), DiskFailure> {
    let length = u32::try_from(signature.len()).map_err(|_| DiskFailure::Format)?;
    write(&dir.join(FILE), &[MAGIC, &length.to_be_bytes(), signature, &wire::encode_snapshot(snapshot)])
}

/// Writes a file that only its owner reads, whole or not at all.
///
/// # Errors
/// - [`DiskFailure::Io`].
pub fn write(path: &Path, parts: &[&[u8]]) -> Result<(), DiskFailure> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    Ok(std::fs::rename(fresh, path)?)
}

/// Puts the last good snapshot in force, if there is one that is ours. Whatever is wrong with it is logged and it is not used.
pub fn boot(applier: &mut Applier, shared: &Arc<Shared>, anchor: &Anchor) {
    let path = shared.settings.state.join(FILE);
    match load(&path, anchor) {
        Ok(None) => {}
        Ok(Some(snapshot)) => {
            let revision = snapshot.revision;
            match sync::compile(&snapshot, None).and_then(|policies| applier.apply(snapshot, policies)) {
                Ok(()) => tracing::info!(%revision, "began with the last good configuration"),
                Err(failure) => {
                    tracing::warn!(%revision, %failure, "the last good configuration cannot be applied; waiting for the control plane")
                }
            }
        }
        Err(failure) => {
            tracing::warn!(path = %path.display(), %failure, "the configuration on disk is not used; waiting for the control plane");
        }
    }
}

fn load(path: &PathBuf, anchor: &Anchor) -> Result<Option<Snapshot>, DiskFailure> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // The signature takes a few KiB beside the message that the snapshot once came in.
    let bytes_max = Limit::ConfigMessageBytes.range().1 + 64 * 1024;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(DiskFailure::Format);
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(DiskFailure::Format)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(DiskFailure::Format)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| DiskFailure::Format)?;
    let (signature, content) = rest.split_at_checked(length).ok_or(DiskFailure::Format)?;
    let snapshot = wire::decode_snapshot(content)?;
    check(&snapshot, signature, anchor)?;
    Ok(Some(snapshot))
}
