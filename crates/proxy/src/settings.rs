//! What the process is told at its start. Everything else comes from the control plane.

use crate::probe::Probe;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use model::WorkloadName;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

const TOOLS: &str = "Also:
  rondel-proxy capture apply|remove|check   lead this network namespace's traffic through the sidecar, or no longer
  rondel-proxy wait                         wait until the sidecar is ready: before the application starts";

/// The sidecar of a Rondel mesh: holds a workload's identity, speaks mutual TLS for it, and decides every inbound call.
#[derive(Clone, Debug, Parser)]
#[command(name = "rondel-proxy", version, after_help = TOOLS)]
pub struct Settings {
    /// The workload beside which this sidecar stands, `namespace/name`
    #[arg(long, value_parser = parse_workload, env = "RONDEL_WORKLOAD")]
    pub workload: WorkloadName,
    /// Address of the control plane
    #[arg(long, env = "RONDEL_CONTROL")]
    pub control: SocketAddr,
    /// File with the join token of this workload: single use, lives minutes
    #[arg(long, env = "RONDEL_JOIN_TOKEN_FILE", required_unless_present_any = ["identity_socket", "endpoint_socket"])]
    pub join_token_file: Option<PathBuf>,
    /// Unix socket of a SPIFFE Workload API (that of SPIRE's agent, say) from which the workload's SVID is taken, in place of a join
    /// token: `PATH` or `unix:PATH`. Its keys must be P-256
    #[arg(long, env = "RONDEL_IDENTITY_SOCKET", value_parser = parse_socket)]
    pub identity_socket: Option<PathBuf>,
    /// What counts as `--identity-socket` where neither that nor a join token is given: a URI, `unix:PATH`
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", hide = true)]
    pub endpoint_socket: Option<String>,
    /// Unix socket at which the SPIFFE Workload API is served to the application: `PATH` or `unix:PATH`. It gets mode 0660: who may ask
    /// is said by its group (a directory with the set-group-ID bit hands its own on) and by who may enter its directory
    #[arg(long, env = "RONDEL_WORKLOAD_API", value_parser = parse_socket)]
    pub workload_api: Option<PathBuf>,
    /// PEM file with the trust bundle that the first call to the control plane is checked against
    #[arg(long, env = "RONDEL_TRUST_BUNDLE")]
    pub trust_bundle: PathBuf,
    /// Directory for the last good snapshot; made owner-only
    #[arg(long, env = "RONDEL_STATE")]
    pub state: PathBuf,
    /// Address of /metrics, /ready, /live and /config; keep it on loopback or a scrape network
    #[arg(long, env = "RONDEL_ADMIN", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// The sidecar stands in the workload's network namespace, and its traffic is redirected to it: see `rondel-proxy capture`
    #[arg(long, env = "RONDEL_CAPTURE", default_value_t = false)]
    pub capture: bool,
    /// Port to which inbound connections are redirected
    #[arg(long, env = "RONDEL_CAPTURE_INBOUND", default_value_t = 15006)]
    pub capture_inbound: u16,
    /// Port to which outbound connections are redirected
    #[arg(long, env = "RONDEL_CAPTURE_OUTBOUND", default_value_t = 15001)]
    pub capture_outbound: u16,
    /// Process of the application: the sidecar ends when it has ended, and after SIGTERM serves it until then
    #[arg(long, env = "RONDEL_APPLICATION_PID")]
    pub application_pid: Option<u32>,
    /// A health probe of the application that is answered without mutual TLS: `http://:8080/healthz` at `/probe/8080/healthz`,
    /// `grpc://:8080` at `/probe/8080/grpc`, `tcp://:8080` at `/probe/8080`; may be repeated
    #[arg(long = "probe", env = "RONDEL_PROBES", value_delimiter = ',', value_parser = Probe::parse)]
    pub probes: Vec<Probe>,
    /// Where probes are answered
    #[arg(long, env = "RONDEL_PROBE_LISTEN", default_value = "0.0.0.0:15021")]
    pub probe_listen: SocketAddr,
    /// Worker threads; 0 means one per core
    #[arg(long, env = "RONDEL_WORKERS", default_value_t = 0)]
    pub workers: usize,
    /// Whether one JSON line per request and connection goes to standard output
    #[arg(long, env = "RONDEL_ACCESS_LOG", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
    /// Log filter, in tracing's syntax; logs go to standard error
    #[arg(long, env = "RONDEL_LOG", default_value = "info")]
    pub log: String,
}

impl Settings {
    /// From the command line and the environment.
    ///
    /// # Errors
    /// - [`clap::Error`], for the program's user.
    pub fn parse_from_arguments(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut settings = Self::try_parse_from(arguments)?;
        // SPIFFE Workload Endpoint §4: the environment counts where nothing was said.
        if settings.join_token_file.is_none() && settings.identity_socket.is_none() {
            let uri = settings.endpoint_socket.as_deref().unwrap_or_default();
            let wrong = |told: &str| Self::command().error(ErrorKind::ValueValidation, format!("SPIFFE_ENDPOINT_SOCKET: {told}"));
            if !uri.starts_with("unix:") {
                return Err(wrong("it is not `unix:` with an absolute path"));
            }
            settings.identity_socket = Some(parse_socket(uri).map_err(|told| wrong(&told))?);
        }
        Ok(settings)
    }

    /// The addresses at which redirected connections arrive: inbound ones first.
    pub fn capture_addresses(&self) -> Vec<(bool, SocketAddr)> {
        if !self.capture {
            return Vec::new();
        }
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let ports = [(true, self.capture_inbound), (false, self.capture_outbound)];
        ports.into_iter().flat_map(|(is_inbound, port)| any.map(|ip| (is_inbound, SocketAddr::new(ip, port)))).collect()
    }
}

fn parse_workload(text: &str) -> Result<WorkloadName, model::ids::IdError> {
    WorkloadName::parse(text)
}

/// A path, or a URI as `SPIFFE_ENDPOINT_SOCKET` has it (SPIFFE Workload Endpoint §4): scheme `unix`, no authority, an absolute path.
fn parse_socket(text: &str) -> Result<PathBuf, String> {
    let path = match text.strip_prefix("unix:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => text,
    };
    let is_uri = path.len() != text.len();
    if path.is_empty() || (is_uri && !path.starts_with('/')) || text.starts_with("tcp:") {
        return Err("it is neither a path nor `unix:` with an absolute path".to_owned());
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_endpoint_4_a_socket_is_a_path_or_a_unix_uri() {
        for (text, path) in
            [("/run/a.sock", "/run/a.sock"), ("a.sock", "a.sock"), ("unix:/run/a", "/run/a"), ("unix:///run/a", "/run/a")]
        {
            assert_eq!(parse_socket(text), Ok(PathBuf::from(path)), "{text}");
        }
        for text in ["", "unix:", "unix://host/a", "unix:a", "tcp://127.0.0.1:80"] {
            assert!(parse_socket(text).is_err(), "{text}");
        }
    }

    fn parse(more: &[&str]) -> Result<Settings, clap::Error> {
        let common = ["rondel-proxy", "--workload", "a/b", "--control", "127.0.0.1:1", "--trust-bundle", "b", "--state", "s"];
        Settings::parse_from_arguments(common.iter().chain(more).map(OsString::from))
    }

    #[test]
    fn workload_endpoint_4_where_nothing_was_said_the_environment_names_the_socket() {
        let command = Settings::command();
        let argument = command.get_arguments().find(|each| each.get_id() == "endpoint_socket").expect("argument");
        assert_eq!(argument.get_env(), Some("SPIFFE_ENDPOINT_SOCKET".as_ref()));
        let socket = |more: &[&str]| {
            parse(&[&["--endpoint-socket", "unix:///run/agent.sock"], more].concat()).expect("good").identity_socket
        };
        assert_eq!(socket(&[]), Some(PathBuf::from("/run/agent.sock")));
        assert_eq!(socket(&["--identity-socket", "/run/other.sock"]), Some(PathBuf::from("/run/other.sock")));
        assert_eq!(socket(&["--join-token-file", "t"]), None);
        for wrong in ["", "/run/agent.sock", "unix:agent.sock", "unix://host/agent.sock", "tcp://127.0.0.1:8000"] {
            let refused = parse(&["--endpoint-socket", wrong]).expect_err(wrong).to_string();
            assert!(refused.contains("SPIFFE_ENDPOINT_SOCKET"), "{refused}");
            assert!(parse(&["--endpoint-socket", wrong, "--join-token-file", "t"]).is_ok(), "nobody needs it");
        }
    }

    #[test]
    fn a_join_token_is_needed_unless_a_socket_gives_the_identity() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--join-token-file", "t"]).is_ok());
        assert!(parse(&["--identity-socket", "unix:/s"]).is_ok());
    }
}
