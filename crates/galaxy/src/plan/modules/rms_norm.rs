//! Norms: of rows that a device has whole (the attention's latents), and of rows whose parts are on the columns.

use crate::{
    hardware::TILE,
    plan::{
        operators::{
            AllGatherAsyncConfig, FromWeightConfig, RMSNormConfig, RMSNormPostAllGatherConfig,
            RMSNormPreAllGatherConfig,
        },
        request::Dimensions,
        rules::{collectives, grids::Rectangle, kernels, norms, placement},
    },
    types::{DataType, MemoryConfig},
};
use dsv3_deepseek::hf::LORA_NORM_EPS;
use serde::{Deserialize, Serialize};

/// Operators of a norm of rows whose parts are on the columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributedRMSNormConfig {
    /// Sums of squares of a device's parts.
    pub rms_norm_pre_all_gather: RMSNormPreAllGatherConfig,
    /// Those of all columns.
    pub all_gather: AllGatherAsyncConfig,
    /// The norm.
    pub rms_norm_post_all_gather: RMSNormPostAllGatherConfig,
}

/// Of decode: over the cores of the residual stream.
pub fn distributed_decode(dimensions: &Dimensions) -> DistributedRMSNormConfig {
    let width = dimensions.local_hidden;
    let program = norms::sharded(width, placement::residual_cores(width));
    // A tile of sums from each column, on the core on which the norm reads them.
    let sums = placement::on_one_core(TILE * dimensions.columns);
    DistributedRMSNormConfig {
        rms_norm_pre_all_gather: RMSNormPreAllGatherConfig {
            dtype: DataType::Bfloat16,
            program_config: Some(program.clone()),
            compute_kernel_config: kernels::NORM,
        },
        all_gather: collectives::all_gather(dimensions, 3, collectives::COLUMNS, sums),
        rms_norm_post_all_gather: RMSNormPostAllGatherConfig {
            epsilon: dimensions.epsilon,
            weight: FromWeightConfig::norm(dimensions, width),
            dtype: DataType::Bfloat16,
            memory_config: placement::residual(width),
            program_config: Some(program),
            compute_kernel_config: kernels::NORM,
        },
    }
}

/// Of prefill: over as many cores as TT-NN finds rows for.
pub fn distributed_prefill(dimensions: &Dimensions) -> DistributedRMSNormConfig {
    DistributedRMSNormConfig {
        rms_norm_pre_all_gather: RMSNormPreAllGatherConfig {
            dtype: DataType::Bfloat16,
            program_config: None,
            compute_kernel_config: kernels::NORM,
        },
        all_gather: collectives::all_gather(dimensions, 3, collectives::COLUMNS, MemoryConfig::DRAM),
        rms_norm_post_all_gather: RMSNormPostAllGatherConfig {
            epsilon: dimensions.epsilon,
            weight: FromWeightConfig::norm(dimensions, dimensions.local_hidden),
            dtype: DataType::Bfloat16,
            memory_config: MemoryConfig::DRAM,
            program_config: None,
            compute_kernel_config: kernels::NORM,
        },
    }
}

/// Of a latent in decode, on these cores.
pub fn decode_model_config(dimensions: &Dimensions, width: u32, cores: Rectangle) -> RMSNormConfig {
    RMSNormConfig {
        epsilon: LORA_NORM_EPS,
        weight: FromWeightConfig::norm(dimensions, width),
        memory_config: placement::by_columns(width, cores),
        program_config: Some(norms::sharded(width, cores)),
        compute_kernel_config: kernels::NORM,
    }
}

/// Of a latent in prefill.
pub fn prefill_model_config(dimensions: &Dimensions, width: u32) -> RMSNormConfig {
    RMSNormConfig {
        epsilon: LORA_NORM_EPS,
        weight: FromWeightConfig::norm(dimensions, width),
        memory_config: MemoryConfig::DRAM,
        program_config: None,
        compute_kernel_config: kernels::NORM,
    }
}
