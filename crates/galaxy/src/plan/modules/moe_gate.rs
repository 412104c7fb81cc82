//! The router: which experts a token visits, and with what weights.

use super::linear::TransposedWeight;
use crate::{
    hardware::TILE,
    plan::{
        PlanError,
        operators::{DeepseekMoEGateConfig, FromWeightConfig, LinearConfig, ReshardConfig, SliceConfig},
        request::{Dimensions, LocalExperts},
        rules::{grids::CORES, kernels, largest_divisor, placement},
        tensor::TensorSpec,
    },
    types::{DataType, Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// Operators of the router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeGateConfig {
    /// The logits.
    pub gate_proj: LinearConfig,
    /// Tokens that are chosen for at a time: one on each core.
    pub tokens: u32,
    /// A square of logits for each token, on its core.
    pub gate_reshard: ReshardConfig,
    /// The choice.
    pub gate: DeepseekMoEGateConfig,
    /// The correction of the logits for the choice: a tile with the square for each core that there is.
    pub add_score_correction_bias: ScoreCorrectionConfig,
    /// As many of them as there are tokens.
    pub bias_slice: SliceConfig,
    /// The numbers of the experts.
    pub input_indices: TensorSpec,
    /// Where the weights go.
    pub output: TensorSpec,
    /// Where the numbers of the chosen experts go.
    pub output_indices: TensorSpec,
    /// From there.
    pub output_reshard: ReshardConfig,
    /// The first row of a token's square: what was chosen.
    pub output_slice: SliceConfig,
}

/// The correction, which the fused gate adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreCorrectionConfig {
    /// The weight.
    pub input_tensor_b: FromWeightConfig,
}

/// The side of a token's square of logits.
pub const SIDE: u32 = 16;

/// Of decode: all users of a row at once.
///
/// # Errors
/// A product that does not fit L1.
pub fn decode_model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
) -> Result<MoeGateConfig, PlanError> {
    let gate_proj = weight(dimensions, experts).few_rows(dimensions, MemoryConfig::L1)?;
    Ok(config(dimensions, experts, gate_proj, dimensions.tokens))
}

/// Of prefill: as many tokens at a time as there are cores and divide what there is.
///
/// # Errors
/// A product that does not fit L1.
pub fn prefill_model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
) -> Result<MoeGateConfig, PlanError> {
    let gate_proj = weight(dimensions, experts).many_rows(dimensions, dimensions.tokens)?;
    Ok(config(dimensions, experts, gate_proj, largest_divisor(dimensions.tokens, CORES)))
}

fn weight(dimensions: &Dimensions, experts: &LocalExperts) -> TransposedWeight<'static> {
    TransposedWeight {
        what: "gate_proj",
        inner: dimensions.hidden,
        columns: experts.routed,
        dtype: DataType::Bfloat16,
        compute: kernels::PRODUCT,
    }
}

fn config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
    gate_proj: LinearConfig,
    tokens: u32,
) -> MoeGateConfig {
    let per_token = placement::by_token(tokens, TILE, TILE);
    let square = [tokens, SIDE, SIDE];
    let output = |dtype| TensorSpec {
        layout: Layout::RowMajor,
        ..TensorSpec::tiles(&[tokens, TILE, TILE], per_token.clone()).with_dtype(dtype)
    };
    MoeGateConfig {
        gate_proj,
        tokens,
        gate_reshard: ReshardConfig { memory_config: per_token.clone() },
        gate: DeepseekMoEGateConfig { eps: 1e-20, scaling_factor: experts.scale, enable_sigmoid: true },
        add_score_correction_bias: ScoreCorrectionConfig { input_tensor_b: bias(dimensions) },
        bias_slice: SliceConfig { memory_config: per_token.clone() },
        input_indices: TensorSpec::tiles(&square, per_token.clone()).with_dtype(DataType::Uint16),
        output: output(DataType::Bfloat16),
        output_indices: output(DataType::Uint16),
        output_reshard: ReshardConfig { memory_config: MemoryConfig::L1 },
        output_slice: SliceConfig { memory_config: MemoryConfig::L1 },
    }
}

/// A copy of the correction on each core.
fn bias(dimensions: &Dimensions) -> FromWeightConfig {
    FromWeightConfig {
        memory_config: placement::on_all_cores(),
        ..FromWeightConfig::tiles(dimensions, &[CORES, TILE, TILE], DataType::Bfloat16, MemoryConfig::DRAM)
    }
}
