//! A mesh that runs.

use super::LayoutArgs;
use clap::Args;
use dsv3_mesh::DEFAULT_TIMEOUT;
use std::time::Duration;

/// A mesh that runs.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Mesh")]
pub(crate) struct MeshArgs {
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// Seconds that a device waits for the others in a step before it gives up, and with it the whole run
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..),
        default_value_t = DEFAULT_TIMEOUT.as_secs())]
    pub(crate) mesh_timeout: u64,
    /// Seconds that devices wait for each other until all have their weights
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), default_value_t = 3600)]
    pub(crate) start_timeout: u64,
}

impl MeshArgs {
    /// The longest wait in a step.
    pub(crate) fn timeout(self) -> Duration {
        Duration::from_secs(self.mesh_timeout)
    }

    /// The longest wait for the first step.
    pub(crate) fn start_timeout(self) -> Duration {
        Duration::from_secs(self.start_timeout)
    }
}
