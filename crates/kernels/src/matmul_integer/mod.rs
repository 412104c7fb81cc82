//! A linear layer in integers: activations of blocks of 32 times weights whose scales change at those blocks' ends.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;

use crate::integers::BLOCK;
use crate::{Format, IntegerWidth, MatrixView};

/// Tokens up to which q8_0 and FP8 are multiplied in f32: taken from the cache for four tokens each time, they are as fast as
/// in lanes of which a quarter is empty (measured on Zen 2, with weights from memory, at twelve tokens: FP8 half of the peak
/// either way).
pub(crate) const FEW: usize = 12;

/// What an FP8 weight is multiplied by before it is rounded to an integer: exact from 0.5 on (the largest value in a
/// block is 448), and the largest, 7168, leaves 2^31 for 32 products with 8191.
const FP8_STEPS: f32 = 16.0;

/// The integers that a product with `w` takes; none where it has no integer product, or none that pays.
///
/// q4_K's 4 bits go with 8, at any number of tokens. q8_0 and FP8 go with 16, which on AVX2 are as fast as 8 against
/// signed bytes, and 64 times as fine.
pub(crate) fn width(w: &MatrixView<'_>, tokens: usize) -> Option<IntegerWidth> {
    match w.format() {
        Format::F32 | Format::Bf16 => None,
        Format::Q4K => Some(IntegerWidth::Int8),
        Format::Q8_0 => (tokens > FEW).then_some(IntegerWidth::Int16),
        // A block of 32 columns has one scale.
        Format::Fp8 => (tokens > FEW && w.scale_ends_at(BLOCK)).then_some(IntegerWidth::Int16),
    }
}
