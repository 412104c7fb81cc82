//! The scalar bodies, compiled again: with AVX2 allowed the compiler turns them into vectors of eight.

use super::scalar;

/// `out[i] = x[i] * scale * weight[i]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn scale_mul(x: &[f32], scale: f32, weight: &[f32], out: &mut [f32]) {
    scalar::scale_mul(x, scale, weight, out);
}

/// `x[i] += y[i]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    scalar::add(x, y);
}

/// `x[i] += scale * y[i]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn add_scaled(x: &mut [f32], scale: f32, y: &[f32]) {
    scalar::add_scaled(x, scale, y);
}
