//! Operators that compute: products, norms, sums, elements.

use super::{FromWeightConfig, Operator};
use crate::{
    plan::rules::placement::Placement,
    types::{ComputeKernelConfig, DataType, Layout, ProgramConfig, UnaryWithParam},
};
use serde::{Deserialize, Serialize};

/// A product with a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// The weight.
    pub input_tensor_b: FromWeightConfig,
    /// Whether the weight lies as `[out, in]`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transpose_b: bool,
    /// Where the result lies.
    pub memory_config: Placement,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
    /// How it is laid over cores; left to TT-NN where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_config: Option<ProgramConfig>,
}

impl Operator for LinearConfig {
    const OPERATION: &'static str = "linear";

    fn weights(&self) -> Vec<&FromWeightConfig> {
        vec![&self.input_tensor_b]
    }
}

/// A look-up of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// Its weight.
    pub weight: FromWeightConfig,
    /// Layout of the result.
    pub layout: Layout,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for EmbeddingConfig {
    const OPERATION: &'static str = "embedding";

    fn weights(&self) -> Vec<&FromWeightConfig> {
        vec![&self.weight]
    }
}

/// A product of elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MulConfig {
    /// Where the result lies.
    pub memory_config: Placement,
    /// What is done to the first factor before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input_tensor_a_activations: Vec<UnaryWithParam>,
}

impl Operator for MulConfig {
    const OPERATION: &'static str = "mul";
}

/// A product with a number (`BinaryOpConfig`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleConfig {
    /// The number.
    pub input_tensor_b: f32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for ScaleConfig {
    const OPERATION: &'static str = "mul";
}

/// A sum of elements (`BinaryOpConfig`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddConfig {
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for AddConfig {
    const OPERATION: &'static str = "add";
}

/// A norm of rows that a device has whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RMSNormConfig {
    /// Added to the mean of squares.
    pub epsilon: f32,
    /// Its weight.
    pub weight: FromWeightConfig,
    /// Where the result lies.
    pub memory_config: Placement,
    /// How it is laid over cores; left to TT-NN where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_config: Option<ProgramConfig>,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
}

impl Operator for RMSNormConfig {
    const OPERATION: &'static str = "rms_norm";

    fn weights(&self) -> Vec<&FromWeightConfig> {
        vec![&self.weight]
    }
}

/// Sums of squares of the parts of rows that a device has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RMSNormPreAllGatherConfig {
    /// Type of the result.
    pub dtype: DataType,
    /// How it is laid over cores; left to TT-NN where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_config: Option<ProgramConfig>,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
}

impl Operator for RMSNormPreAllGatherConfig {
    const OPERATION: &'static str = "rms_norm_pre_all_gather";
}

/// The norm of those parts, with the sums of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RMSNormPostAllGatherConfig {
    /// Added to the mean of squares.
    pub epsilon: f32,
    /// Its weight.
    pub weight: FromWeightConfig,
    /// Type of the result.
    pub dtype: DataType,
    /// Where the result lies.
    pub memory_config: Placement,
    /// How it is laid over cores; left to TT-NN where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_config: Option<ProgramConfig>,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
}

impl Operator for RMSNormPostAllGatherConfig {
    const OPERATION: &'static str = "rms_norm_post_all_gather";

    fn weights(&self) -> Vec<&FromWeightConfig> {
        vec![&self.weight]
    }
}

/// A sum over a dimension of what was gathered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastReduceNCConfig {
    /// The dimensions.
    pub dims: Vec<u32>,
    /// Where the result lies.
    pub memory_config: Placement,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
}

impl Operator for FastReduceNCConfig {
    const OPERATION: &'static str = "fast_reduce_nc";
}

/// A sum over a dimension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Whether the dimension stays, with one element.
    pub keepdim: bool,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for SumConfig {
    const OPERATION: &'static str = "sum";
}
