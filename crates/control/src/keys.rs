//! Private keys of authorities, each in a file of its own that only the owner reads.
//!
//! They are not in the store: its pages stay in memory and on disk after a row is deleted.

use identity::PrivateKey;
use identity::key::KeyFailure;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// LIMIT: bytes of a key file; one has about 140.
const KEY_BYTES_MAX: u64 = 4096;

/// Why a key cannot be had or kept. The operator must look at the state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileFailure {
    /// The file cannot be read, written or deleted.
    #[error("authority's key `{path}`: {error}")]
    Io {
        /// Which file.
        path: String,
        /// The operating system's word.
        error: io::Error,
    },
    /// It is gone.
    #[error(
        "authority's key `{path}` is gone: put it back from a backup, or move the whole state directory away to begin anew, and every workload then needs a join token and the new bundle"
    )]
    Gone {
        /// Which file.
        path: String,
    },
    /// Others can read it.
    #[error(
        "authority's key `{path}` can be read by others than its owner (mode {mode:o}): `chmod 600` it and start again; if somebody may have read it, `rondel ca rotate` then"
    )]
    Exposed {
        /// Which file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// It is no key.
    #[error("authority's key `{path}`: {failure}")]
    Key {
        /// Which file.
        path: String,
        /// What is wrong with it.
        failure: KeyFailure,
    },
}

/// The directory of the keys.
#[derive(Debug)]
pub(crate) struct Keys {
    dir: PathBuf,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Signs X.509-SVIDs.
    X509,
    /// Signs JWT-SVIDs.
    Jwt,
}

impl Use {
    const fn suffix(self) -> &'static str {
        match self {
            Self::X509 => "x509.key",
            Self::Jwt => "jwt.key",
        }
    }
}

impl Keys {
    /// Makes the directory, owner-only.
    pub(crate) fn open(state: &Path) -> Result<Self, KeyFileFailure> {
        let dir = state.join("keys");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.and_then(|()| std::fs::set_permissions(&dir, Permissions::from_mode(0o700)))
            .map_err(|error| io_failure(&dir, error))?;
        Ok(Self { dir })
    }

    /// Keeps a key, on disk before this returns.
    pub(crate) fn keep(&self, authority: &str, purpose: Use, pkcs8: &Zeroizing<Vec<u8>>) -> Result<(), KeyFileFailure> {
        let path = self.path(authority, purpose);
        let written = || {
            // What a crash left behind was never in use.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(pkcs8)?;
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        written().map_err(|error| {
            let _partial = std::fs::remove_file(&path);
            io_failure(&path, error)
        })
    }

    /// Reads a key (PKCS#8, DER).
    pub(crate) fn read(&self, authority: &str, purpose: Use) -> Result<Zeroizing<Vec<u8>>, KeyFileFailure> {
        let path = self.path(authority, purpose);
        let failed = |error| io_failure(&path, error);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KeyFileFailure::Gone { path: path.display().to_string() },
            _ => failed(error),
        })?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFileFailure::Exposed { path: path.display().to_string(), mode });
        }
        // Of the right size from the start, so that no copy is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(KEY_BYTES_MAX).unwrap_or(4096)));
        file.take(KEY_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Reads the key of an authority.
    pub(crate) fn x509(&self, authority: &str) -> Result<PrivateKey, KeyFileFailure> {
        let der = self.read(authority, Use::X509)?;
        PrivateKey::from_pkcs8_der(&der).map_err(|failure| self.refused(authority, Use::X509, failure))
    }

    /// That a file holds no usable key.
    pub(crate) fn refused(&self, authority: &str, purpose: Use, failure: KeyFailure) -> KeyFileFailure {
        KeyFileFailure::Key { path: self.path(authority, purpose).display().to_string(), failure }
    }

    /// Overwrites and deletes every key that belongs to none of these authorities.
    pub(crate) fn forget_others(&self, authorities: &BTreeSet<&str>) -> Result<(), KeyFileFailure> {
        let entries = std::fs::read_dir(&self.dir).map_err(|error| io_failure(&self.dir, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| io_failure(&self.dir, error))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|error| io_failure(&entry.path(), error))?);
            // A directory is none of ours, `lost+found` say.
            if kind.is_dir() {
                continue;
            }
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let owner = name.split_once('.').map_or("", |(owner, _)| owner);
            if !authorities.contains(owner) {
                // What a link points at is somebody else's.
                let gone = if kind.is_file() { overwrite(&path) } else { Ok(()) };
                gone.and_then(|()| std::fs::remove_file(&path)).map_err(|error| io_failure(&path, error))?;
            }
        }
        Ok(())
    }

    fn path(&self, authority: &str, purpose: Use) -> PathBuf {
        self.dir.join(format!("{authority}.{}", purpose.suffix()))
    }
}

/// Where the file system writes in place, nothing of the key is left.
fn overwrite(path: &Path) -> io::Result<()> {
    let length = std::fs::metadata(path)?.len().min(KEY_BYTES_MAX);
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(&vec![0; usize::try_from(length).unwrap_or(0)])?;
    file.sync_all()
}

fn io_failure(path: &Path, error: io::Error) -> KeyFileFailure {
    KeyFileFailure::Io { path: path.display().to_string(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_alone_and_is_gone_when_its_authority_is() {
        let dir = tempfile::tempdir().expect("directory");
        let keys = Keys::open(dir.path()).expect("open");
        let key = PrivateKey::generate().expect("key");
        for authority in ["0a", "0b"] {
            keys.keep(authority, Use::X509, &key.to_pkcs8_der()).expect("keep");
        }
        keys.keep("0a", Use::Jwt, &key.to_pkcs8_der()).expect("keep");
        keys.keep("0a", Use::X509, &key.to_pkcs8_der()).expect("a crash left one behind");
        let path = dir.path().join("keys/0a.x509.key");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!((mode(&dir.path().join("keys")), mode(&path)), (0o700, 0o600));
        assert_eq!(keys.x509("0a").expect("key").to_pkcs8_der(), key.to_pkcs8_der());

        let others = dir.path().join("others.key");
        std::fs::write(&others, "precious").expect("write");
        std::os::unix::fs::symlink(&others, dir.path().join("keys/0c.x509.key")).expect("link");
        std::fs::create_dir(dir.path().join("keys/lost+found")).expect("directory");
        keys.forget_others(&BTreeSet::from(["0a"])).expect("forget");
        assert_eq!(std::fs::read_to_string(&others).expect("read"), "precious");
        assert!(
            std::fs::symlink_metadata(dir.path().join("keys/0c.x509.key")).is_err()
                && dir.path().join("keys/lost+found").exists()
        );
        assert!(matches!(keys.x509("0b"), Err(KeyFileFailure::Gone { .. })));
        keys.x509("0a").expect("still there");

        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(keys.x509("0a"), Err(KeyFileFailure::Exposed { mode: 0o640, .. })));
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
        std::fs::write(&path, "garbage").expect("write");
        assert!(matches!(keys.x509("0a"), Err(KeyFileFailure::Key { .. })));
    }
}
