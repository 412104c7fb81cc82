//! A linear layer in integers of 8 bits: activations in groups of one scale times weights whose scales change at ends of blocks
//! of 32 columns, or, of FP8, of those groups.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;

use crate::integers::BLOCK;
use crate::{Format, MatrixView};
use std::ops::Range;

/// Columns of a group of FP8: they are rounded to the same steps.
const FP8_GROUP: usize = Format::Fp8.group_cols();
/// Blocks of such a group.
const FP8_SPAN: usize = FP8_GROUP / BLOCK;

/// Tokens up to which a format is multiplied in f32, because that is as fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Few {
    pub(crate) q8_0: usize,
    pub(crate) fp8: usize,
}

/// With AVX2, measured on Emerald Rapids, with weights from the cache and from memory: five tokens of q8_0 take as long in
/// integers as in f32, six four fifths as long. FP8 takes longer to become integers: up to twelve tokens take about as long,
/// thirteen four fifths. On Zen 1 FP8 is the same.
pub(crate) const FEW: Few = Few { q8_0: 5, fp8: 12 };

impl Few {
    /// Whether a product of `tokens` rows with `w` takes integers: there is one, and it pays.
    pub(crate) fn takes_integers(self, w: &MatrixView<'_>, tokens: usize) -> bool {
        match w.format() {
            Format::F32 | Format::Bf16 => false,
            Format::Q4K => true,
            Format::Q8_0 => tokens > self.q8_0,
            // A group has one scale.
            Format::Fp8 => tokens > self.fp8 && w.scale_ends_at(FP8_GROUP),
        }
    }
}

/// Bits that a product of two neighbouring columns may lose of `q8_0` and FP8 on AVX2 where tokens lie side by side in lanes,
/// rounded downwards and upwards in turn.
pub(crate) const LOST_BITS: i32 = 4;

/// The exponent field of FP8 that a group's largest one is taken for at least: where values are less than 2 of 448, steps
/// stay a 32nd of the scale. A scale is made for a largest magnitude of 448 in its block, beside which that is small.
const LEAST_EXPONENT: u8 = 8;

/// What one is worth where a group of FP8 is rounded to integers, in units of its scale: the largest magnitude, from 2 on,
/// becomes 64 to 120, so that what FP8 holds of it, and of magnitudes of 8 steps on, is exact. None if there is a NaN.
///
/// A magnitude is `(8 + mantissa) * 2^(exponent - 10)`.
fn fp8_step(bytes: &[u8]) -> Option<f32> {
    let largest = bytes.iter().map(|byte| byte & 0x7f).max().unwrap_or(0);
    // 2^(exponent - 13).
    let bits = (u32::from(fp8_exponent(largest)) + (127 - 13)) << 23;
    (largest != 0x7f).then(|| f32::from_bits(bits))
}

/// The exponent field that the largest magnitude of a group is taken to have.
fn fp8_exponent(largest: u8) -> u8 {
    (largest >> 3).max(LEAST_EXPONENT)
}

/// The scales of FP8 of each group of some columns of a row; zero behind them.
fn group_scales<const N: usize>(w: &MatrixView<'_>, row: usize, columns: &Range<usize>) -> [f32; N] {
    let (mut all, scales) = ([0.0; N], w.row_scales(row));
    for scaled in w.column_blocks(columns.clone()) {
        let (start, end) = (scaled.start - columns.start, scaled.end - columns.start);
        all[start / FP8_GROUP..end.div_ceil(FP8_GROUP)].fill(scales.of(scaled));
    }
    all
}
