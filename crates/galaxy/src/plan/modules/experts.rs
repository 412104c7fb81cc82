//! The routed experts of a device: each of them on all tokens that arrive.

use crate::{
    plan::{
        operators::{FromWeightConfig, LinearConfig, MulConfig},
        request::{Dimensions, LocalExperts},
        rules::{kernels, placement::Placement},
    },
    types::{ComputeKernelConfig, DataType, MemoryConfig},
};
use serde::{Deserialize, Serialize};

use super::mlp::silu;

/// Operators of the experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsConfig {
    /// The gates.
    pub w1_experts: LinearConfig,
    /// Up.
    pub w3_experts: LinearConfig,
    /// The gates' activation, and its product with what went up.
    pub mul_experts: MulConfig,
    /// Down.
    pub w2_experts: LinearConfig,
}

/// Of both modes: in decode everything stays in L1. How the batch of products is laid over cores is left to TT-NN, which
/// knows no program config for interleaved weights of a batch that sends less.
pub fn model_config(dimensions: &Dimensions, experts: &LocalExperts, place: &Placement) -> ExpertsConfig {
    let product = |[columns, inner]: [u32; 2], dtype, compute: ComputeKernelConfig| LinearConfig {
        input_tensor_b: FromWeightConfig::tiles(
            dimensions,
            &[1, experts.local, columns, inner],
            dtype,
            MemoryConfig::DRAM,
        ),
        transpose_b: true,
        memory_config: place.clone(),
        compute_kernel_config: compute,
        program_config: None,
    };
    let (up, down) = ([experts.width, dimensions.hidden], [dimensions.hidden, experts.width]);
    ExpertsConfig {
        w1_experts: product(up, DataType::Bfloat4B, kernels::LOFI),
        w3_experts: product(up, DataType::Bfloat4B, kernels::LOFI),
        mul_experts: silu(place.clone()),
        // Answers were wrong with 4 bits here (PR #39794).
        w2_experts: product(down, DataType::Bfloat8B, kernels::PRODUCT),
    }
}
