//! Where an authority comes from: it signs itself, an operator's authority in files signs it, or a program does.

use config::UpstreamAuthority;
use identity::authority::{Authority, AuthorityError, UpstreamKey};
use identity::bundle::BundleError;
use identity::csr::{self, CsrRefusal};
use identity::key::{KeyFailure, PrivateKey};
use model::{Timestamp, TrustDomain};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// For a program to sign a request.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// LIMIT: bytes that a program may answer, or a file may hold.
const PEM_BYTES_MAX: u64 = 256 * 1024;
/// LIMIT: bytes of a program's complaint that are told.
const COMPLAINT_BYTES_MAX: usize = 512;
/// How often it is looked whether the program has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why nobody signs the authority. The operator must mend what `certificates.upstream` names.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamFailure {
    /// A file cannot be read.
    #[error("read `{path}`: {error}")]
    File {
        /// Which one.
        path: PathBuf,
        /// The operating system's word.
        error: io::Error,
    },
    /// Everybody on the machine can read the key that signs authorities.
    #[error(
        "the key `{path}` can be read by everybody (mode {mode:o}): `chmod 600` it, or `defaultMode: 0400` where it is a Kubernetes secret"
    )]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The files do not sign.
    #[error("`{certificate}` and `{key}`: {error}")]
    Files {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        error: AuthorityError,
    },
    /// The program cannot be run.
    #[error("run `{program}`: {error}")]
    Run {
        /// Its name.
        program: String,
        /// The operating system's word.
        error: io::Error,
    },
    /// The program takes too long.
    #[error("`{program}` did not end within {} s and was stopped", within.as_secs())]
    Slow {
        /// Its name.
        program: String,
        /// The time that it had.
        within: Duration,
    },
    /// The program says no.
    #[error("`{program}` ended with {status}: {complaint}")]
    Refused {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error.
        complaint: String,
    },
    /// What came back is no chain up to a root.
    #[error("the chain that `{from}` gave: {problem}")]
    Chain {
        /// File or program.
        from: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It cannot be signed, or what was signed cannot be used.
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    /// Our own request is not good. We are at fault.
    #[error("{0}")]
    Csr(#[from] CsrRefusal),
    /// No key.
    #[error("{0}")]
    Key(#[from] KeyFailure),
    /// It is no certificate authority.
    #[error("{0}")]
    Bundle(#[from] BundleError),
}

/// A new authority and where it came from.
pub(crate) struct Obtained {
    pub(crate) authority: Authority,
    /// The issuing certificate first, without the root, DER. Empty for a root that signs by itself.
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) source: &'static str,
}

/// Makes a key and has its certificate signed. Blocks for as long as the signer takes, at most half a minute.
pub(crate) fn obtain(
    from: &UpstreamAuthority,
    domain: &TrustDomain,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Obtained, UpstreamFailure> {
    match from {
        UpstreamAuthority::SelfSigned => {
            let authority = Authority::generate(domain, now, lifetime)?;
            let roots = vec![authority.certificate_der().to_vec()];
            Ok(Obtained { authority, chain: Vec::new(), roots, source: "self-signed" })
        }
        UpstreamAuthority::Files { certificate, key } => files(certificate, key, domain, lifetime, now),
        UpstreamAuthority::Command(command) => program(command, domain, lifetime, now),
    }
}

fn files(
    certificate: &Path,
    key: &Path,
    domain: &TrustDomain,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Obtained, UpstreamFailure> {
    let above = read(certificate)?.0;
    let (text, mode) = read(key)?;
    // Its group may: so are secrets mounted into a pod.
    if mode & 0o007 != 0 {
        return Err(UpstreamFailure::Exposed { path: key.to_owned(), mode });
    }
    let signer = UpstreamKey::from_pem(&above, &text).map_err(|error| UpstreamFailure::Files {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        error,
    })?;
    let own = PrivateKey::generate()?;
    let request = csr::prove(&Authority::signing_request(&own, domain)?)?;
    let signed = signer.sign_intermediate(&request, domain, lifetime, now)?;
    let mut whole = vec![signed];
    whole.extend(certificates(&above, &certificate.display().to_string())?);
    built(whole, own, domain, now, &certificate.display().to_string(), "files")
}

/// The program gets the request as PEM on its standard input, and the trust domain and the wanted lifetime in its environment. It
/// answers on standard output with PEM: the signed certificate, what stands above it, and the root last.
fn program(command: &[String], domain: &TrustDomain, lifetime: Duration, now: Timestamp) -> Result<Obtained, UpstreamFailure> {
    let own = PrivateKey::generate()?;
    let request = pem("CERTIFICATE REQUEST", &Authority::signing_request(&own, domain)?);
    let name = command.first().cloned().unwrap_or_default();
    let answer = run(command, &name, &request, domain, lifetime, COMMAND_DEADLINE)?;
    built(certificates(&answer, &name)?, own, domain, now, &name, "command")
}

fn built(
    mut whole: Vec<Vec<u8>>,
    key: PrivateKey,
    domain: &TrustDomain,
    now: Timestamp,
    from: &str,
    source: &'static str,
) -> Result<Obtained, UpstreamFailure> {
    if whole.len() < 2 {
        let problem = format!("{} certificates; it needs the signed one, what stands above it, and the root last", whole.len());
        return Err(UpstreamFailure::Chain { from: from.to_owned(), problem });
    }
    let roots: Vec<Vec<u8>> = whole.pop().into_iter().collect();
    let authority = Authority::load_chain(whole.clone(), key, &roots, domain, now)?;
    // One that has ended is still loaded, for its operator; one that begins so would sign nothing that anybody believes.
    if authority.not_after() <= now {
        let problem = format!("it ended at {}, it is {now}", authority.not_after());
        return Err(UpstreamFailure::Chain { from: from.to_owned(), problem });
    }
    Ok(Obtained { authority, chain: whole, roots, source })
}

fn run(
    command: &[String],
    name: &str,
    request: &str,
    domain: &TrustDomain,
    lifetime: Duration,
    within: Duration,
) -> Result<Zeroizing<String>, UpstreamFailure> {
    let failed = |error| UpstreamFailure::Run { program: name.to_owned(), error };
    let mut child = Command::new(name)
        .args(command.iter().skip(1))
        .env("RONDEL_TRUST_DOMAIN", domain.as_str())
        .env("RONDEL_LIFETIME_SECONDS", lifetime.as_secs().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + within;
    // Each in a thread, so that a program that reads or writes nothing cannot hold this one.
    if let Some(mut input) = child.stdin.take() {
        let request = request.to_owned();
        // A program that does not read its request says so by how it ends.
        thread::spawn(move || input.write_all(request.as_bytes()).ok());
    }
    let answer = child.stdout.take().map(gathered);
    let complaint = child.stderr.take().map(gathered);
    let status = match ended(&mut child, deadline).map_err(failed)? {
        Some(status) => status,
        None => {
            // With whatever it has started; all of it may have ended in this very moment.
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ended = kill_process_group(group, Signal::KILL);
            }
            let _reaped = child.wait();
            return Err(UpstreamFailure::Slow { program: name.to_owned(), within });
        }
    };
    // A child of the program may hold the pipe open; what came by the deadline counts.
    let text = |gathered: Option<mpsc::Receiver<Vec<u8>>>| {
        let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        gathered.and_then(|bytes| bytes.recv_timeout(left).ok()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let (answer, complaint) = (text(answer).unwrap_or_default(), text(complaint).unwrap_or_default());
    if !status.success() {
        let mut begin = complaint.len().saturating_sub(COMPLAINT_BYTES_MAX);
        while !complaint.is_char_boundary(begin) {
            begin += 1;
        }
        let complaint = complaint.get(begin..).unwrap_or_default().trim().to_owned();
        return Err(UpstreamFailure::Refused { program: name.to_owned(), status, complaint });
    }
    Ok(Zeroizing::new(answer))
}

#[expect(clippy::disallowed_methods, reason = "on a blocking thread; the library has no wait with a deadline")]
fn ended(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(None)
}

fn gathered(from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (done, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read counts.
        let _read = from.take(PEM_BYTES_MAX).read_to_end(&mut bytes);
        done.send(bytes).ok()
    });
    receiver
}

/// A file's text and mode.
fn read(path: &Path) -> Result<(Zeroizing<String>, u32), UpstreamFailure> {
    let failed = |error| UpstreamFailure::File { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.len() > PEM_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, format!("more than {PEM_BYTES_MAX} bytes"))));
    }
    // Of the right size from the start, so that no copy is left behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(found.len()).unwrap_or(0) + 1));
    Read::by_ref(&mut file).take(PEM_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok((text, found.permissions().mode() & 0o777))
}

fn certificates(text: &str, from: &str) -> Result<Vec<Vec<u8>>, UpstreamFailure> {
    identity::bundle::certificates_from_pem(text)
        .map_err(|error| UpstreamFailure::Chain { from: from.to_owned(), problem: error.to_string() })
}

/// RFC 7468.
fn pem(kind: &str, der: &[u8]) -> String {
    identity::bundle::pem_section(kind, der)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

    #[test]
    fn a_signer_that_is_stopped_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; sleep 600", file.display());
        let command = ["sh", "-c", &script].map(str::to_owned);
        let domain = TrustDomain::parse("a.example").expect("domain");
        let stopped = run(&command, "sh", "", &domain, Duration::from_secs(1), Duration::from_secs(1));
        assert!(matches!(stopped, Err(UpstreamFailure::Slow { .. })), "{stopped:?}");
        let pid = std::fs::read_to_string(file).expect("it had started");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            // Nobody may have reaped it yet.
            if stat.is_empty() || stat.contains(") Z ") {
                break;
            }
            assert!(Instant::now() < deadline, "{stat}");
            thread::yield_now();
        }
    }

    #[test]
    fn a_chain_that_has_ended_begins_no_authority() {
        let domain = TrustDomain::parse("a.example").expect("domain");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("root").der().to_vec();
        let signer = UpstreamKey::from_pem(&pem("CERTIFICATE", &root), &key.serialize_pem()).expect("signer");
        let (begin, hour) = (Timestamp::from_seconds(1_800_000_000), Duration::from_secs(3600));
        for (name, now, is_good) in [("alive", begin, true), ("ended", begin.plus(hour), false)] {
            let own = PrivateKey::generate().expect("key");
            let request = Authority::signing_request(&own, &domain).expect("request");
            let signed = signer.sign_intermediate(&csr::prove(&request).expect("proven"), &domain, hour, begin).expect("signed");
            let built = built(vec![signed, root.clone()], own, &domain, now, "sign-csr", "command");
            assert_eq!(built.is_ok(), is_good, "{name}");
            let ended = |failure: &UpstreamFailure| failure.to_string().contains("`sign-csr` gave: it ended at 2027");
            assert!(built.err().as_ref().is_none_or(ended), "{name}");
        }
    }

    #[test]
    fn a_signing_key_that_everybody_can_read_signs_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let (certificate, path) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("root").der().to_vec();
        std::fs::write(&certificate, pem("CERTIFICATE", &root)).expect("write");
        std::fs::write(&path, key.serialize_pem()).expect("write");
        let from = UpstreamAuthority::Files { certificate, key: path.clone() };
        let domain = TrustDomain::parse("a.example").expect("domain");
        let now = Timestamp::from_seconds(1_800_000_000);
        for (mode, may) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o604, false), (0o666, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            match obtain(&from, &domain, Duration::from_secs(3600), now) {
                Ok(_) => assert!(may, "{mode:o}"),
                Err(refused) => {
                    assert!(!may && refused.to_string().contains("can be read by everybody (mode 6"), "{mode:o}: {refused}");
                }
            }
        }
    }
}
