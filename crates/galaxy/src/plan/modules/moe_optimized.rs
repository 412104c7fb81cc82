//! The mixture of experts where rows and columns are rings: tokens take their experts' numbers and weights along, one fused
//! operator does all of the experts and the way back, another the sums.

use super::moe_gate::{self, MoeGateConfig};
use crate::{
    hardware::TILE,
    plan::{
        PlanError,
        operators::{
            AllToAllDispatchMetadataConfig, ConcatConfig, DeepseekMoEFastReduceNCConfig,
            DeepseekMoEPostCombineTilizeConfig, DeepseekMoEReduceScatterConfig, FromWeightConfig,
            LayoutConfig, MoEComputeConfig, MulConfig, PermuteConfig, ReshardConfig,
        },
        request::{Dimensions, Fabric, LocalExperts, Mode},
        rules::{
            LINKS, collectives,
            placement::{self, Placement},
        },
        tensor::TensorSpec,
    },
    ring::RingPacking,
    types::{
        BufferType, CoreCoord, CoreGrid, CoreRange, CoreRangeSet, DataType, Layout, MemoryConfig,
        NdShardSpec, ShardDistributionStrategy, ShardOrientation, Topology,
    },
};
use dsv3_mesh::{Axis, MeshShape};
use serde::{Deserialize, Serialize};

/// Operators of the fused experts, and of the sums after them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeOptimizedConfig {
    /// The router.
    pub moe_gate: MoeGateConfig,
    /// Which device has which expert.
    pub expert_mapping_tensors: TensorSpec,
    /// Tokens as rows.
    pub to_rows: LayoutConfig,
    /// Experts and weights by token.
    pub choice_permute: PermuteConfig,
    /// Each token's on a core.
    pub choice_reshard: ReshardConfig,
    /// The weights by choice.
    pub weights_permute: PermuteConfig,
    /// In tiles.
    pub weights_to_tiles: LayoutConfig,
    /// To the devices.
    pub all_to_all_dispatch_metadata: AllToAllDispatchMetadataConfig,
    /// The experts and the way back.
    pub moe_compute: MoEComputeConfig,
    /// The experts' weights, packed for it.
    pub moe_experts: RingExpertsConfig,
    /// Where it leaves what came back.
    pub combined: TensorSpec,
    /// In tiles.
    pub deepseek_moe_post_combine_tilize: DeepseekMoEPostCombineTilizeConfig,
    /// Times the weights.
    pub mul_experts_output_with_weights: MulConfig,
    /// The shared expert's beside them.
    pub concat: ConcatConfig,
    /// The sum of all, a part for each column.
    pub deepseek_moe_fast_reduce_nc: DeepseekMoEFastReduceNCConfig,
    /// The sum of a part over the columns.
    pub deepseek_moe_reduce_scatter: DeepseekMoEReduceScatterConfig,
}

/// Experts' weights in the packing of the fused operators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingExpertsConfig {
    /// Gates and ups.
    pub quad_ring_w0_w1_experts: RingWeightConfig,
    /// Downs.
    pub quad_ring_w2_experts: RingWeightConfig,
}

/// A packed weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingWeightConfig {
    /// It.
    pub input_tensor_b: FromWeightConfig,
}

// The fused operator has the cores of a 8x9 grid laid out for its roles. These are TT-NN's own choices, which it wants to
// be told again: the core that receives the metadata (`get_moe_tilize_drain_core`), and cores for the multiplexers beside
// which it finds place for the others.
const DRAIN_CORE: [u32; 2] = [7, 8];
const MULTIPLEXERS: [[u32; 2]; 2] = [[2, 0], [3, 7]];
/// Cores that make tiles of what came back, and the width of a part; cores of the first step of the reduction, and theirs.
/// Both operators are made for these.
const TILIZE: ([u32; 2], u32) = ([7, 8], 1024);
const REDUCE: ([u32; 2], u32) = ([7, 1], 128);
/// Rows of cores that share a token's result.
const OUTPUT_HEIGHT_SHARDS: u32 = 4;
/// What the fused operators are made for: hidden width, an expert's width, rows and columns of the mesh.
const MADE_FOR: [usize; 4] = [7168, 2048, 16, 8];

/// Whether the fused operators can be taken: four Galaxies in rings, and a tile of users.
pub fn is_possible(dimensions: &Dimensions, experts: &LocalExperts) -> bool {
    let request = &dimensions.request;
    request.mode == Mode::Decode
        && request.fabric == Fabric::Ring
        && request.users_per_row == TILE
        && is_made_for(dimensions.hidden as usize, experts.width as usize, request.mesh)
}

/// Whether the fused operators are made for these widths of rows and experts, and this mesh.
pub fn is_made_for(hidden: usize, width: usize, mesh: MeshShape) -> bool {
    [hidden, width, mesh.size(Axis::Rows), mesh.size(Axis::Columns)] == MADE_FOR
}

/// Of decode.
///
/// # Errors
/// A product that does not fit L1.
pub fn decode_model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
) -> Result<MoeOptimizedConfig, PlanError> {
    let (tokens, hidden) = (dimensions.tokens, dimensions.hidden);
    let l1 = || MemoryConfig::L1;
    let packing = RingPacking::of(hidden as usize, experts.width as usize).expect("made for its widths");
    Ok(MoeOptimizedConfig {
        moe_gate: moe_gate::decode_model_config(dimensions, experts)?,
        expert_mapping_tensors: TensorSpec::rows(&[dimensions.devices(), experts.routed], DataType::Uint16),
        to_rows: LayoutConfig { layout: Layout::RowMajor, memory_config: l1() },
        choice_permute: PermuteConfig { dims: vec![2, 0, 1, 3], memory_config: l1() },
        choice_reshard: ReshardConfig { memory_config: placement::by_token(tokens, 1, experts.per_token) },
        weights_permute: PermuteConfig { dims: vec![3, 1, 2, 0], memory_config: MemoryConfig::DRAM },
        weights_to_tiles: LayoutConfig { layout: Layout::Tile, memory_config: MemoryConfig::DRAM },
        all_to_all_dispatch_metadata: AllToAllDispatchMetadataConfig {
            cluster_axis: collectives::ROWS,
            num_links: LINKS,
            worker_mode: "DIRECT".to_owned(),
            dispatch_algorithm: "SPARSE_MCAST_SHORTEST_PATH".to_owned(),
            drain_sync_tilizer_core: core(DRAIN_CORE),
        },
        moe_compute: MoEComputeConfig {
            layer_id: 0,
            output_height_shard_dim: OUTPUT_HEIGHT_SHARDS,
            intermediate_size: experts.width,
            has_bias: false,
            cluster_axis: collectives::ROWS,
            topology: Topology::Ring,
            num_links: LINKS,
            mux_core_range_set: rectangle(MULTIPLEXERS),
        },
        moe_experts: RingExpertsConfig {
            quad_ring_w0_w1_experts: packed(dimensions, experts.local, packing.up_blocks()),
            quad_ring_w2_experts: packed(dimensions, experts.local, packing.down_blocks()),
        },
        combined: TensorSpec::rows(&[experts.per_token, tokens, hidden], DataType::Bfloat16),
        deepseek_moe_post_combine_tilize: DeepseekMoEPostCombineTilizeConfig {
            output_memory_config: blocks(TILIZE.0, &[TILE, TILIZE.1]),
        },
        mul_experts_output_with_weights: MulConfig {
            memory_config: l1(),
            input_tensor_a_activations: Vec::new(),
        },
        concat: ConcatConfig { dim: 0, memory_config: l1() },
        deepseek_moe_fast_reduce_nc: DeepseekMoEFastReduceNCConfig {
            dim: 0,
            split_size: dimensions.local_hidden,
            output_memory_config: blocks(REDUCE.0, &[1, 1, TILE, REDUCE.1]),
        },
        deepseek_moe_reduce_scatter: DeepseekMoEReduceScatterConfig {
            dim: 3,
            cluster_axis: collectives::COLUMNS,
            topology: Topology::Ring,
            num_links: LINKS,
            output_memory_config: placement::residual(dimensions.local_hidden),
        },
    })
}

fn core([x, y]: [u32; 2]) -> CoreCoord {
    CoreCoord::new(x, y)
}

fn rectangle([start, end]: [[u32; 2]; 2]) -> CoreGrid {
    CoreRangeSet(vec![CoreRange::new(core(start), core(end))]).into()
}

/// Experts' weights in blocks of so many for each, of so many rows of tiles.
fn packed(dimensions: &Dimensions, experts: u32, blocks: [usize; 2]) -> RingWeightConfig {
    let shape = RingPacking::shape(blocks, experts as usize).map(|side| side as u32);
    let memory_config = RingPacking::memory_config(shape);
    RingWeightConfig {
        input_tensor_b: FromWeightConfig::tiles(dimensions, &shape, DataType::Bfloat4B, memory_config),
    }
}

/// Blocks over the first columns and rows of cores.
fn blocks([columns, rows]: [u32; 2], shape: &[u32]) -> Placement {
    MemoryConfig::nd_sharded(
        BufferType::L1,
        NdShardSpec {
            shard_shape: shape.to_vec(),
            grid: rectangle([[0, 0], [columns - 1, rows - 1]]),
            orientation: ShardOrientation::RowMajor,
            shard_distribution_strategy: ShardDistributionStrategy::RoundRobin1d,
        },
    )
}
