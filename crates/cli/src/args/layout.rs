//! How a model is laid over devices.

use clap::Args;
use dsv3_mesh::{ExpertSharding, Layout, MeshShape};

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
