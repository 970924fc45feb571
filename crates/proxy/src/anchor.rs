//! What the control plane is checked against: the trust bundle that the operator gave, and what came after it.
//!
//! The authorities of a mesh change. A sidecar hears of a new one in a snapshot that the old one's control plane signed, and
//! keeps the bundle on disk, so that it still knows the control plane after a restart. A file that the operator replaces since
//! then counts more: it is the way back for a sidecar that was away while the authorities changed.

use crate::disk::{self, DiskFailure};
use identity::TrustBundles;
use identity::bundle::BundleError;
use model::SpiffeId;
use model::snapshot::TrustBundle;
use parking_lot::RwLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First bytes of the kept file; after them, in hexadecimal, the digest of the operator's file that it came after.
const MAGIC: &str = "rondel-trust-bundle-1 ";
const FILE: &str = "trust-bundle";
/// LIMIT: bytes of a file with a trust bundle.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no bundle to check the control plane against. The operator must mend the file.
#[derive(Debug, thiserror::Error)]
pub enum AnchorFailure {
    /// The file cannot be read.
    #[error("read the trust bundle `{path}`: {error}")]
    Read {
        /// Which file.
        path: String,
        /// The operating system's word.
        error: std::io::Error,
    },
    /// It is no bundle.
    #[error("trust bundle `{path}`: {error}")]
    Bundle {
        /// Which file.
        path: String,
        /// What is wrong with it.
        error: BundleError,
    },
    /// It is the bundle of more than the mesh.
    #[error("trust bundle `{path}` holds {count} trust domains; it must hold that of the mesh alone")]
    Several {
        /// Which file.
        path: String,
        /// How many.
        count: usize,
    },
    /// It is the bundle of another mesh than at the start.
    #[error("trust bundle `{path}` is that of `{got}`; this sidecar was started in `{wanted}`")]
    Foreign {
        /// Which file.
        path: String,
        /// Its trust domain.
        got: String,
        /// The mesh's.
        wanted: String,
    },
}

/// The bundle in force for the control plane, shared by all that connect to it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// The control plane of the trust domain: nobody else is believed.
    pub control_plane: SpiffeId,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    given: PathBuf,
    kept: PathBuf,
    now: RwLock<Now>,
}

#[derive(Debug)]
struct Now {
    bundles: Arc<TrustBundles>,
    /// Of the operator's file that was read last.
    digest: String,
}

impl Anchor {
    /// Reads the operator's file, and prefers what was kept since if it came after that very file.
    ///
    /// # Errors
    /// - [`AnchorFailure`] if the operator's file is not the bundle of one trust domain.
    pub fn open(given: &Path, state: &Path) -> Result<Self, AnchorFailure> {
        let (text, bundle) = read(given)?;
        let digest = digest(&text);
        let control_plane = bundle.trust_domain.control_plane();
        let kept = state.join(FILE);
        let known =
            later(&kept, &digest).filter(|later| later.to_model().iter().all(|each| each.trust_domain == bundle.trust_domain));
        let bundles = match known {
            Some(later) => later,
            None => parse(given, &text)?,
        };
        let now = RwLock::new(Now { bundles: Arc::new(bundles), digest });
        Ok(Self { control_plane, inner: Arc::new(Inner { given: given.to_owned(), kept, now }) })
    }

    /// What the control plane is checked against at this moment.
    pub fn bundles(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.inner.now.read().bundles)
    }

    /// Reads the operator's file again, and believes it if it was replaced.
    ///
    /// # Errors
    /// - [`AnchorFailure`]; what was believed before stays.
    pub fn reread(&self) -> Result<(), AnchorFailure> {
        let (text, bundle) = read(&self.inner.given)?;
        let digest = digest(&text);
        if self.inner.now.read().digest == digest {
            return Ok(());
        }
        let wanted = self.control_plane.trust_domain();
        if bundle.trust_domain != *wanted {
            let path = self.inner.given.display().to_string();
            return Err(AnchorFailure::Foreign { path, got: bundle.trust_domain.to_string(), wanted: wanted.to_string() });
        }
        let bundles = Arc::new(parse(&self.inner.given, &text)?);
        *self.inner.now.write() = Now { bundles, digest };
        tracing::info!("the trust bundle was replaced");
        Ok(())
    }

    /// Believes the own trust domain's bundle of a snapshot that the control plane signed, from now on and after a restart.
    ///
    /// # Errors
    /// - [`DiskFailure`] if it cannot be kept on disk; it is believed all the same.
    pub fn learn(&self, bundles: &[TrustBundle]) -> Result<(), DiskFailure> {
        let own = bundles.iter().find(|bundle| bundle.trust_domain == *self.control_plane.trust_domain());
        let Some(Ok(bundles)) = own.map(|own| TrustBundles::from_model(std::slice::from_ref(own))) else { return Ok(()) };
        if *self.inner.now.read().bundles == bundles {
            return Ok(());
        }
        let text = {
            let mut now = self.inner.now.write();
            let text = format!("{MAGIC}{}\n{}", now.digest, bundles.to_pem());
            now.bundles = Arc::new(bundles);
            text
        };
        disk::write(&self.inner.kept, &[text.as_bytes()])
    }
}

fn read(path: &Path) -> Result<(String, TrustBundle), AnchorFailure> {
    let named = || path.display().to_string();
    let failed = |error| AnchorFailure::Read { path: named(), error };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("more than {FILE_BYTES_MAX} bytes"))));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mut known = parse(path, &text)?.to_model();
    match (known.pop(), known.len()) {
        (Some(bundle), 0) => Ok((text, bundle)),
        (_, others) => Err(AnchorFailure::Several { path: named(), count: others + 1 }),
    }
}

fn parse(path: &Path, text: &str) -> Result<TrustBundles, AnchorFailure> {
    TrustBundles::from_pem(text).map_err(|error| AnchorFailure::Bundle { path: path.display().to_string(), error })
}

/// What was kept after the operator's file of this digest; `None` if nothing was, or it cannot be read.
fn later(path: &Path, digest: &str) -> Option<TrustBundles> {
    if std::fs::metadata(path).ok()?.len() > FILE_BYTES_MAX * 2 {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let (head, pem) = text.split_once('\n')?;
    (head.strip_prefix(MAGIC)? == digest).then(|| TrustBundles::from_pem(pem).ok())?
}

fn digest(text: &str) -> String {
    hex::encode(identity::sha256(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::pki::TestAuthority;

    #[test]
    fn what_was_learnt_outlives_a_restart_and_a_replaced_file_counts_more() {
        let dir = tempfile::tempdir().expect("directory");
        let (given, state) = (dir.path().join("bundle.pem"), dir.path().join("state"));
        std::fs::create_dir(&state).expect("directory");
        let (old, new, newest) =
            (TestAuthority::new("a.example"), TestAuthority::new("a.example"), TestAuthority::new("a.example"));
        let pem = |authority: &TestAuthority| authority.bundles().to_pem();
        std::fs::write(&given, pem(&old)).expect("write");

        let anchor = Anchor::open(&given, &state).expect("open");
        assert_eq!(anchor.bundles(), old.bundles());
        let foreign = TestAuthority::new("b.example");
        anchor.learn(&[foreign.bundle(), new.bundle()]).expect("kept");
        assert_eq!(anchor.bundles(), new.bundles(), "at once");
        assert_eq!(Anchor::open(&given, &state).expect("open").bundles(), new.bundles(), "after a restart");

        std::fs::write(&given, pem(&newest)).expect("write");
        assert_eq!(Anchor::open(&given, &state).expect("open").bundles(), newest.bundles(), "replaced while it was away");
        anchor.reread().expect("read");
        assert_eq!(anchor.bundles(), newest.bundles(), "replaced while it ran");

        std::fs::write(&given, pem(&foreign)).expect("write");
        assert!(matches!(anchor.reread(), Err(AnchorFailure::Foreign { .. })));
        std::fs::write(&given, "nothing").expect("write");
        assert!(matches!(anchor.reread(), Err(AnchorFailure::Bundle { .. })));
        assert_eq!(anchor.bundles(), newest.bundles(), "an unusable file changes nothing");
        std::fs::write(&given, pem(&old) + &pem(&foreign)).expect("write");
        assert!(matches!(Anchor::open(&given, &state), Err(AnchorFailure::Several { count: 2, .. })));
    }

    #[test]
    fn a_kept_file_that_is_damaged_is_passed_over() {
        let dir = tempfile::tempdir().expect("directory");
        let given = dir.path().join("bundle.pem");
        let old = TestAuthority::new("a.example");
        std::fs::write(&given, old.bundles().to_pem()).expect("write");
        for damaged in ["", "rondel-trust-bundle-1 ", "rondel-trust-bundle-1 00\nx", "x\ny"] {
            std::fs::write(dir.path().join(FILE), damaged).expect("write");
            assert_eq!(Anchor::open(&given, dir.path()).expect("open").bundles(), old.bundles(), "{damaged}");
        }
    }
}
