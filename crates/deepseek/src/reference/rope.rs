//! The rotary embedding of the reference: plain or YaRN frequencies, and the rotation of interleaved pairs.
//!
//! Everything here is computed in f32 in the order of transformers' `_compute_yarn_parameters`: one unit in the last
//! place of a frequency, times a position of 100 000, is an angle off by 0.01.

use crate::hf::{HfConfig, Yarn};
use dsv3_runtime::Tensor;
use std::f64::consts::PI;

/// The cosines and sines of a range of positions.
#[derive(Clone, Debug)]
pub struct RopeTables {
    /// `[positions, qk_rope_head_dim / 2]`, with YaRN's attention factor; column `j` rotates the elements `2j`, `2j + 1`.
    pub cos: Tensor,
    /// As `cos`.
    pub sin: Tensor,
}

/// The tables of the positions `0 .. positions`.
///
/// # Shapes
/// Two tables `[positions, qk_rope_head_dim / 2]`.
pub fn rope_tables(hf: &HfConfig, positions: usize) -> RopeTables {
    let frequencies = inverse_frequencies(hf);
    let factor = hf.rope.attention_factor();
    let table = |function: fn(f64) -> f64| {
        let mut table = Tensor::zeros(positions, frequencies.len());
        for position in 0..positions {
            for (value, frequency) in table.row_mut(position).iter_mut().zip(&frequencies) {
                let angle = position as f32 * frequency;
                *value = function(f64::from(angle)) as f32 * factor;
            }
        }
        table
    };
    RopeTables { cos: table(f64::cos), sin: table(f64::sin) }
}

/// Radians per position of each pair of features.
///
/// # Shapes
/// `[qk_rope_head_dim / 2]`
pub fn inverse_frequencies(hf: &HfConfig) -> Vec<f32> {
    let dim = hf.attention.qk_rope_head_dim;
    let wavelengths = (0..dim / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / dim as f32;
        hf.rope.theta.powf(f64::from(exponent)) as f32
    });
    let Some(yarn) = &hf.rope.scaling else {
        return wavelengths.map(|wavelength| 1.0 / wavelength).collect();
    };
    let (low, high) = correction_range(hf.rope.theta, yarn, dim);
    wavelengths
        .enumerate()
        .map(|(pair, wavelength)| {
            let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let extrapolated = 1.0 / wavelength;
            let interpolated = 1.0 / (yarn.factor as f32 * wavelength);
            let keep = 1.0 - ramp;
            interpolated * (1.0 - keep) + extrapolated * keep
        })
        .collect()
}

/// The pairs between which YaRN passes from kept to divided frequencies.
///
/// The bounds are those of the features (`dim - 1`), although they are held against pairs; floor, ceiling and the
/// 0.001 that keeps equal bounds apart are part of the definition (Kimi-K2's two betas are equal).
fn correction_range(theta: f64, yarn: &Yarn, dim: usize) -> (f64, f64) {
    let original = yarn.original_max_position_embeddings as f64;
    let pair_of = |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let low = pair_of(yarn.beta_fast).floor().max(0.0);
    let high = pair_of(yarn.beta_slow).ceil().min((dim - 1) as f64);
    if low == high { (low, high + 0.001) } else { (low, high) }
}

/// Rotates the interleaved pairs `(x0, x1), (x2, x3), ...` in place. (transformers moves all even elements to the
/// front while rotating; queries and keys alike, so that no score changes.)
///
/// # Shapes
/// `features: [2n]`, `cos` and `sin`: `[n]`
pub fn rotate(features: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(features.len() == 2 * cos.len() && cos.len() == sin.len(), "one angle for a pair of features");
    for ((pair, &cos), &sin) in features.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (even, odd) = (pair[0], pair[1]);
        pair[0] = even * cos - odd * sin;
        pair[1] = odd * cos + even * sin;
    }
}
