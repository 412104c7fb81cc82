//! The config of each operator: upstream's dataclasses, with its names. What no rule sets is left out, and then is the
//! operator's own default.
//!
//! Operators for which upstream has no class take their arguments from the code that calls them there; here they are data
//! too, under the operator's own argument names.

mod attention;
mod ccl;
mod compute;
mod data;
mod moe;

use super::request::Dimensions;
use crate::{
    hardware::TILE,
    types::{CoreGrid, DataType, Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

pub use attention::{
    ChunkedFlashMLAPrefillConfig, FlashMLADecodeConfig, FlashMLAPrefillConfig, PagedFillCacheConfig,
    PagedUpdateCacheConfig, RotaryConfig,
};
pub use ccl::{
    AllGatherAsyncConfig, AllReduceConfig, AllToAllAsyncGenericConfig, AllToAllCombineConfig,
    AllToAllDispatchConfig, MeshPartitionConfig, ReduceScatterAsyncMinimalConfig,
};
pub use compute::{
    AddConfig, EmbeddingConfig, FastReduceNCConfig, LinearConfig, MulConfig, RMSNormConfig,
    RMSNormPostAllGatherConfig, RMSNormPreAllGatherConfig, ScaleConfig, SumConfig,
};
pub use data::{
    ConcatConfig, LayoutConfig, PermuteConfig, RepeatConfig, ReshardConfig, SliceConfig, TilizeConfig,
    TransposeConfig, TypecastConfig, UntilizeConfig,
};
pub use moe::{
    AllToAllDispatchMetadataConfig, DeepseekMoEFastReduceNCConfig, DeepseekMoEGateConfig,
    DeepseekMoEPostCombineTilizeConfig, DeepseekMoEReduceScatterConfig, MoEComputeConfig,
};

/// An operator's config: its fields are the operator's arguments, but for the weights and `mesh_device`, which are found
/// when the model is loaded.
pub trait Operator: Serialize {
    /// The operator, as operation lists name it.
    const OPERATION: &'static str;

    /// Its weights, in the order in which it takes them.
    fn weights(&self) -> Vec<&FromWeightConfig> {
        Vec::new()
    }
}

/// A mesh that is opened when the model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshDeviceStub {
    /// Rows and columns.
    pub mesh_shape: [u32; 2],
}

impl MeshDeviceStub {
    /// The mesh of a plan.
    pub fn of(dimensions: &Dimensions) -> Self {
        Self { mesh_shape: [dimensions.rows, dimensions.columns] }
    }
}

/// A weight that stage 1 makes and that is found when the model is loaded, and what it must be on each device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FromWeightConfig {
    /// The mesh.
    pub mesh_device: MeshDeviceStub,
    /// Its shape on a device.
    pub shape: Vec<u32>,
    /// Its type.
    pub dtype: DataType,
    /// Its layout.
    pub layout: Layout,
    /// Where it lies.
    pub memory_config: MemoryConfig<CoreGrid>,
}

impl FromWeightConfig {
    /// A weight in tiles.
    pub fn tiles(
        dimensions: &Dimensions,
        shape: &[u32],
        dtype: DataType,
        memory_config: MemoryConfig,
    ) -> Self {
        Self {
            mesh_device: MeshDeviceStub::of(dimensions),
            shape: shape.to_vec(),
            dtype,
            layout: Layout::Tile,
            memory_config: memory_config.with_core_grid(),
        }
    }

    /// A bfloat16 weight in rows, interleaved.
    pub fn rows(dimensions: &Dimensions, shape: &[u32]) -> Self {
        let layout = Layout::RowMajor;
        Self { layout, ..Self::tiles(dimensions, shape, DataType::Bfloat16, MemoryConfig::DRAM) }
    }

    /// A norm's weight: rows of a tile's width (upstream's "sticks").
    pub fn norm(dimensions: &Dimensions, width: u32) -> Self {
        Self::rows(dimensions, &[1, 1, width / TILE, TILE])
    }
}
