//! The way to the control plane's operator socket.

use anyhow::Context;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::operator::OperatorClient;

/// For one question to the control plane.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Which mesh is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Where {
    /// State directory of the mesh: what `rondel up` calls `--state`
    #[arg(long, env = "RONDEL_STATE", default_value = ".rondel")]
    pub(crate) state: PathBuf,
}

impl Where {
    /// The control plane's operator socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.state.join("control").join("operator.sock")
    }

    /// Connects to it.
    pub(crate) async fn connect(&self) -> anyhow::Result<OperatorClient> {
        let socket = self.socket();
        OperatorClient::connect(&socket, DEADLINE).await.with_context(|| {
            format!(
                "no control plane answers at `{}`; is the mesh up, and is --state (or RONDEL_STATE) its state directory?",
                socket.display()
            )
        })
    }
}

/// The wall clock, for times left.
#[expect(clippy::disallowed_methods, reason = "this is the program's clock")]
pub(crate) fn now() -> model::Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    model::Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
