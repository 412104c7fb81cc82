//! The MLP part of a block with experts: the routed ones and the shared one on the same gathered rows, and one sum over the
//! columns for both.

use super::{
    mlp::{self, Collectives, MlpConfig},
    moe::{self, MoeConfig},
    moe_optimized::{self, MoeOptimizedConfig},
};
use crate::{
    plan::{
        PlanError,
        operators::{AddConfig, AllGatherAsyncConfig, ReduceScatterAsyncMinimalConfig, ReshardConfig},
        request::{Dimensions, LocalExperts},
        rules::{collectives, placement},
    },
    types::MemoryConfig,
};
use serde::{Deserialize, Serialize};

/// Operators of the MLP part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeBlockConfig {
    /// The whole rows on each column.
    pub revert_tp: AllGatherAsyncConfig,
    /// The routed experts.
    pub moe: Routed,
    /// Where the shared expert wants the rows.
    pub shared_expert_input_reshard: ReshardConfig,
    /// The shared expert.
    pub shared_expert: MlpConfig,
    /// Its result, beside that of the others.
    pub shared_expert_reshard: ReshardConfig,
    /// Routed and shared; absent where the fused operators do the sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_shared_expert: Option<AddConfig>,
    /// Over the columns; absent where the fused operators do the sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_scatter: Option<ReduceScatterAsyncMinimalConfig>,
}

/// The routed experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Routed {
    /// By fused operators.
    Optimized(Box<MoeOptimizedConfig>),
    /// By several.
    Dispatched(Box<MoeConfig>),
}

/// Of decode.
///
/// # Errors
/// A product that does not fit L1.
pub fn decode_model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
) -> Result<MoeBlockConfig, PlanError> {
    let fused = moe_optimized::is_possible(dimensions, experts);
    let moe = if fused {
        Routed::Optimized(Box::new(moe_optimized::decode_model_config(dimensions, experts)?))
    } else {
        Routed::Dispatched(Box::new(moe::decode_model_config(dimensions, experts)?))
    };
    let residual = placement::residual(dimensions.local_hidden);
    let scatter = || collectives::reduce_scatter(dimensions, 3, collectives::COLUMNS, residual);
    let shared = mlp::decode_model_config(dimensions, experts.local_shared, Collectives::ByCaller)?;
    Ok(MoeBlockConfig {
        revert_tp: collectives::all_gather(dimensions, -1, collectives::COLUMNS, MemoryConfig::L1),
        moe,
        shared_expert_input_reshard: ReshardConfig { memory_config: shared.input_memory_config.clone() },
        shared_expert: shared,
        shared_expert_reshard: ReshardConfig { memory_config: MemoryConfig::L1 },
        add_shared_expert: (!fused).then_some(AddConfig { memory_config: MemoryConfig::L1 }),
        reduce_scatter: (!fused).then(scatter),
    })
}

/// Of prefill.
///
/// # Errors
/// A product that does not fit L1.
pub fn prefill_model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
) -> Result<MoeBlockConfig, PlanError> {
    let dram = || ReshardConfig { memory_config: MemoryConfig::DRAM };
    Ok(MoeBlockConfig {
        revert_tp: collectives::all_gather(dimensions, -1, collectives::COLUMNS, MemoryConfig::DRAM),
        moe: Routed::Dispatched(Box::new(moe::prefill_model_config(dimensions, experts)?)),
        shared_expert_input_reshard: dram(),
        shared_expert: mlp::prefill_model_config(dimensions, experts.local_shared, Collectives::ByCaller)?,
        shared_expert_reshard: dram(),
        add_shared_expert: Some(AddConfig { memory_config: MemoryConfig::DRAM }),
        reduce_scatter: Some(collectives::reduce_scatter(
            dimensions,
            3,
            collectives::COLUMNS,
            MemoryConfig::DRAM,
        )),
    })
}
