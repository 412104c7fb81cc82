//! The mixture of experts: tokens go along their column to the rows whose devices have their experts, and back. What the
//! columns' experts gave is summed by the caller.

use super::{
    experts::{self, ExpertsConfig},
    moe_gate::{self, MoeGateConfig},
};
use crate::{
    plan::{
        PlanError,
        operators::{
            AllToAllCombineConfig, AllToAllDispatchConfig, ConcatConfig, LayoutConfig, MulConfig,
            PermuteConfig, RepeatConfig, SliceConfig, SumConfig,
        },
        request::{Dimensions, LocalExperts},
        rules::{LINKS, chunks::DISPATCH_TOKENS, collectives, placement::Placement},
        tensor::TensorSpec,
    },
    types::{DataType, Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// Operators of the experts and of the ways to and from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// The router.
    pub moe_gate: MoeGateConfig,
    /// Tokens of a device that are sent at a time; what is left in the end may be fewer.
    pub dispatch_tokens: u32,
    /// A part of more tokens.
    pub slice: SliceConfig,
    /// Which device has which expert.
    pub expert_mapping_tensors: TensorSpec,
    /// Tokens as rows.
    pub to_rows: LayoutConfig,
    /// To the devices.
    pub all_to_all_dispatch: AllToAllDispatchConfig,
    /// A copy for each of a device's experts.
    pub activations_repeat: RepeatConfig,
    /// In tiles.
    pub to_tiles: LayoutConfig,
    /// The experts.
    pub moe_experts: ExpertsConfig,
    /// Back.
    pub all_to_all_combine: AllToAllCombineConfig,
    /// The weights of the chosen experts, by choice.
    pub weights_permute: PermuteConfig,
    /// Times the weights.
    pub mul_experts_output_with_weights: MulConfig,
    /// The sum over the chosen experts.
    pub sum_experts: SumConfig,
    /// Parts of more tokens after one another.
    pub concat: ConcatConfig,
}

/// Of decode.
///
/// # Errors
/// A product that does not fit L1.
pub fn decode_model_config(dimensions: &Dimensions, experts: &LocalExperts) -> Result<MoeConfig, PlanError> {
    let gate = moe_gate::decode_model_config(dimensions, experts)?;
    Ok(config(dimensions, experts, gate, dimensions.tokens, &MemoryConfig::L1))
}

/// Of prefill.
///
/// # Errors
/// A product that does not fit L1.
pub fn prefill_model_config(dimensions: &Dimensions, experts: &LocalExperts) -> Result<MoeConfig, PlanError> {
    let gate = moe_gate::prefill_model_config(dimensions, experts)?;
    let tokens = dimensions.tokens.min(DISPATCH_TOKENS);
    Ok(config(dimensions, experts, gate, tokens, &MemoryConfig::DRAM))
}

fn config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
    moe_gate: MoeGateConfig,
    dispatch_tokens: u32,
    place: &Placement,
) -> MoeConfig {
    let topology = collectives::topology(dimensions);
    let layout = |layout| LayoutConfig { layout, memory_config: place.clone() };
    MoeConfig {
        moe_gate,
        dispatch_tokens,
        slice: SliceConfig { memory_config: place.clone() },
        expert_mapping_tensors: mapping(dimensions, experts),
        to_rows: layout(Layout::RowMajor),
        all_to_all_dispatch: AllToAllDispatchConfig {
            cluster_axis: collectives::ROWS,
            topology,
            num_links: LINKS,
            memory_config: place.clone(),
        },
        activations_repeat: RepeatConfig { repeat_dims: vec![1, experts.local, 1, 1] },
        to_tiles: layout(Layout::Tile),
        moe_experts: experts::model_config(dimensions, experts, place),
        all_to_all_combine: AllToAllCombineConfig {
            cluster_axis: collectives::ROWS,
            topology,
            num_links: LINKS,
            memory_config: place.clone(),
        },
        weights_permute: PermuteConfig { dims: vec![3, 1, 2, 0], memory_config: place.clone() },
        mul_experts_output_with_weights: MulConfig {
            memory_config: place.clone(),
            input_tensor_a_activations: Vec::new(),
        },
        sum_experts: SumConfig { dim: 0, keepdim: true, memory_config: place.clone() },
        concat: ConcatConfig { dim: 2, memory_config: place.clone() },
    }
}

/// For each expert a one at its device: expert e is on device `e / (experts of a device)`, devices row by row.
pub fn mapping(dimensions: &Dimensions, experts: &LocalExperts) -> TensorSpec {
    TensorSpec::rows(&[1, 1, experts.routed, dimensions.devices()], DataType::Uint16)
}
