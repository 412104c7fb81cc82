//! The MLP of dense layers, and of shared experts, which is the same without the collectives.

use super::linear::DramWeight;
use crate::{
    plan::{
        PlanError,
        operators::{AllGatherAsyncConfig, LinearConfig, MulConfig, ReduceScatterAsyncMinimalConfig},
        request::Dimensions,
        rules::{
            chunks::{PRODUCT_ROWS, evenly},
            collectives, kernels,
            placement::{self, Placement},
        },
    },
    types::{MemoryConfig, UnaryWithParam},
};
use serde::{Deserialize, Serialize};

/// Operators of an MLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// The whole rows on each column; absent where the caller has them already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_gather: Option<AllGatherAsyncConfig>,
    /// Rows that are multiplied at a time.
    pub max_rows: u32,
    /// Where the input lies.
    pub input_memory_config: Placement,
    /// The gate.
    pub w1: LinearConfig,
    /// Up.
    pub w3: LinearConfig,
    /// The gate's activation, and its product with what went up.
    pub mul: MulConfig,
    /// Down: each column has a part of the sum.
    pub w2: LinearConfig,
    /// The sum over the columns; absent where the caller does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_scatter: Option<ReduceScatterAsyncMinimalConfig>,
}

/// Whether the columns' parts are put together and summed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collectives {
    /// Here (dense layers).
    Here,
    /// By the caller (shared experts).
    ByCaller,
}

/// Of decode, with `width` columns of the gate on each device.
///
/// # Errors
/// A product that does not fit L1.
pub fn decode_model_config(
    dimensions: &Dimensions,
    width: u32,
    by: Collectives,
) -> Result<MlpConfig, PlanError> {
    let hidden = dimensions.hidden;
    let input = placement::factor(hidden);
    let sums = placement::residual(dimensions.local_hidden);
    let (wide, narrow) = (placement::factor_cores(hidden).cores(), placement::factor_cores(width).cores());
    let is_here = by == Collectives::Here;
    Ok(MlpConfig {
        all_gather: is_here
            .then(|| collectives::all_gather(dimensions, -1, collectives::COLUMNS, input.clone())),
        max_rows: dimensions.tokens,
        input_memory_config: input,
        w1: weight("w1", hidden, width).decode(dimensions, wide)?,
        w3: weight("w3", hidden, width).decode(dimensions, wide)?,
        mul: silu(placement::COLUMNS),
        w2: weight("w2", width, hidden).decode(dimensions, narrow)?,
        reduce_scatter: is_here
            .then(|| collectives::reduce_scatter(dimensions, 3, collectives::COLUMNS, sums)),
    })
}

/// Of prefill, with `width` columns of the gate on each device.
///
/// # Errors
/// A product that does not fit L1.
pub fn prefill_model_config(
    dimensions: &Dimensions,
    width: u32,
    by: Collectives,
) -> Result<MlpConfig, PlanError> {
    let hidden = dimensions.hidden;
    let max_rows = product_rows(dimensions.tokens);
    let is_here = by == Collectives::Here;
    let gather = || collectives::all_gather(dimensions, -1, collectives::COLUMNS, MemoryConfig::DRAM);
    let scatter = || collectives::reduce_scatter(dimensions, 3, collectives::COLUMNS, MemoryConfig::DRAM);
    Ok(MlpConfig {
        all_gather: is_here.then(gather),
        max_rows,
        input_memory_config: MemoryConfig::DRAM,
        w1: weight("w1", hidden, width).prefill(dimensions, max_rows, None)?,
        w3: weight("w3", hidden, width).prefill(dimensions, max_rows, None)?,
        mul: silu(MemoryConfig::DRAM),
        w2: weight("w2", width, hidden).prefill(dimensions, max_rows, None)?,
        reduce_scatter: is_here.then(scatter),
    })
}

/// Rows that are multiplied at a time: equal parts of what there is, the last one filled up to whole tiles.
pub fn product_rows(tokens: u32) -> u32 {
    evenly(tokens, PRODUCT_ROWS)
}

fn weight(what: &str, inner: u32, columns: u32) -> DramWeight<'_> {
    DramWeight { what, inner, columns, compute: kernels::PRODUCT }
}

/// A product of elements, the first factor's activation before it.
pub fn silu(memory_config: Placement) -> MulConfig {
    MulConfig { memory_config, input_tensor_a_activations: vec![UnaryWithParam::Plain("SILU".to_owned())] }
}
