//! How a model is laid over devices, and how these run it together.

use clap::Args;
use dsv3_mesh::{DEFAULT_TIMEOUT, ExpertSharding, Layout, MeshShape};
use std::time::Duration;

/// The devices, and how they share the model.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Mesh")]
pub(crate) struct LayoutArgs {
    /// Rows and columns of devices
    #[arg(long, value_name = "RxC", default_value_t = MeshShape::SINGLE)]
    pub(crate) mesh: MeshShape,
    /// How devices share the routed experts: each split over the columns, or each whole on one device
    ///
    /// `tensor` keeps all devices of a row equally busy, also with a single sequence; rows hold copies. `expert` keeps
    /// each expert in one place of the whole mesh, and sends tokens there.
    #[arg(long, value_name = "tensor|expert", default_value_t = ExpertSharding::Tensor)]
    pub(crate) experts: ExpertSharding,
}

impl LayoutArgs {
    /// As the stages take it.
    pub(crate) fn layout(self) -> Layout {
        Layout { mesh: self.mesh, experts: self.experts }
    }
}

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
