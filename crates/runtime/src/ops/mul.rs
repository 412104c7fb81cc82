//! The gated activation between an MLP's projections.

use crate::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// What is applied to the first operand of [`mul`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

/// Config of [`mul`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MulConfig {
    /// Applied to the first operand before the product.
    pub input_tensor_a_activation: Activation,
}

/// `activation(a) * b`, element by element.
///
/// # Shapes
/// `a`, `b` and the result: `[tokens, features]`.
pub fn mul(mut a: Tensor, b: &Tensor, config: &MulConfig, device: &Device) -> Tensor {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()), "both operands have one shape");
    let kernels = device.kernels();
    let width = a.cols();
    device.for_each_row_chunk(a.values_mut(), width, |row, chunk| match config.input_tensor_a_activation {
        Activation::Silu => kernels.silu_mul(chunk, &b.values()[row * width..][..chunk.len()]),
    });
    a
}
