//! Operators of the experts that TT-NN has for this model alone.

use super::Operator;
use crate::{
    plan::rules::placement::Placement,
    types::{CoreCoord, CoreGrid, Topology},
};
use serde::{Deserialize, Serialize};

/// The choice of experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepseekMoEGateConfig {
    /// Added to the sum of the weights.
    pub eps: f32,
    /// Factor on the weights.
    pub scaling_factor: f32,
    /// Whether logits are what comes in.
    pub enable_sigmoid: bool,
}

impl Operator for DeepseekMoEGateConfig {
    const OPERATION: &'static str = "deepseek_moe_gate";
}

/// Tokens to the devices of their experts, with their experts and weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllToAllDispatchMetadataConfig {
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// Links to each neighbour.
    pub num_links: u32,
    /// How the cores that send are chosen.
    pub worker_mode: String,
    /// By which ways tokens go.
    pub dispatch_algorithm: String,
    /// The core that gets experts and weights.
    pub drain_sync_tilizer_core: CoreCoord,
}

impl Operator for AllToAllDispatchMetadataConfig {
    const OPERATION: &'static str = "all_to_all_dispatch_metadata";
}

/// All of an expert, and the way back, in one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoEComputeConfig {
    /// Which of the layers in the packed weights.
    pub layer_id: u32,
    /// Rows of cores that share a token's result.
    pub output_height_shard_dim: u32,
    /// Width of an expert.
    pub intermediate_size: u32,
    /// Whether its products have biases.
    pub has_bias: bool,
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Cores between the others and the links.
    pub mux_core_range_set: CoreGrid,
}

impl Operator for MoEComputeConfig {
    const OPERATION: &'static str = "moe_compute";
}

/// Rows that came back, to tiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepseekMoEPostCombineTilizeConfig {
    /// Where they lie.
    pub output_memory_config: Placement,
}

impl Operator for DeepseekMoEPostCombineTilizeConfig {
    const OPERATION: &'static str = "deepseek_moe_post_combine_tilize";
}

/// Sums over the chosen experts, a part for each column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepseekMoEFastReduceNCConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Width of a part.
    pub split_size: u32,
    /// Where the parts lie.
    pub output_memory_config: Placement,
}

impl Operator for DeepseekMoEFastReduceNCConfig {
    const OPERATION: &'static str = "deepseek_moe_fast_reduce_nc";
}

/// The sum of a part over the columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepseekMoEReduceScatterConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Where it lies.
    pub output_memory_config: Placement,
}

impl Operator for DeepseekMoEReduceScatterConfig {
    const OPERATION: &'static str = "deepseek_moe_reduce_scatter";
}
