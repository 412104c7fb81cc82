//! Root-mean-square norms, whole and distributed over the mesh.

use crate::{Device, Tensor, Weight, device::rows_per_task};
use serde::{Deserialize, Serialize};

/// Config of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RmsNormConfig {
    /// Added to the mean square.
    pub epsilon: f32,
    /// Features that the mean is taken over, on all devices together.
    pub features: usize,
}

/// The sum of squares of each row's part on this device: what the devices add up before they normalise.
///
/// # Shapes
/// `x` `[tokens, features of this device]`; gives `[tokens, 1]`.
pub fn rms_norm_pre_all_gather(x: &Tensor, device: &Device) -> Tensor {
    let mut squares = Tensor::anything(x.rows(), 1);
    let rows = rows_per_task(x.cols());
    device.for_each_chunk(squares.values_mut(), rows, |number, squares| {
        for (row, square) in (number * rows..).zip(squares) {
            *square = device.kernels().sum_of_squares(x.row(row));
        }
    });
    squares
}

/// Normalises with the sums of squares of whole rows.
///
/// # Shapes
/// `x` `[tokens, features of this device]`, `squares` `[tokens, 1]`, `weight` `[features of this device]`.
pub fn rms_norm_post_all_gather(
    x: &Tensor,
    squares: &Tensor,
    weight: &Weight,
    config: &RmsNormConfig,
    device: &Device,
) -> Tensor {
    let kernels = device.kernels();
    let width = x.cols();
    let mut out = Tensor::anything(x.rows(), width);
    device.for_each_row_chunk(out.values_mut(), width, |first, chunk| {
        for (row, out) in (first..).zip(chunk.chunks_exact_mut(width)) {
            let mean = squares.row(row)[0] / config.features as f32;
            kernels.scale_mul(x.row(row), 1.0 / (mean + config.epsilon).sqrt(), weight.vector(), out);
        }
    });
    out
}

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the first `features` columns, in place, where one device holds whole
/// rows. Columns beyond them stay as they are.
///
/// # Shapes
/// `x` `[tokens, features or more]`, `weight` `[features]`.
pub fn rms_norm(x: &mut Tensor, weight: &Weight, config: &RmsNormConfig, device: &Device) {
    let kernels = device.kernels();
    let width = x.cols();
    let mut out = Tensor::anything(x.rows(), width);
    device.for_each_row_chunk(out.values_mut(), width, |first, chunk| {
        for (row, out) in (first..).zip(chunk.chunks_exact_mut(width)) {
            let (values, others) = x.row(row).split_at(config.features);
            let (normed, kept) = out.split_at_mut(config.features);
            let mean = kernels.sum_of_squares(values) / config.features as f32;
            kernels.scale_mul(values, 1.0 / (mean + config.epsilon).sqrt(), weight.vector(), normed);
            kept.copy_from_slice(others);
        }
    });
    *x = out;
}
