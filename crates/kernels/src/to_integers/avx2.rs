//! A block in four vectors. Bit for bit what the scalar code gives.

use super::SMALLEST;
use crate::avx2::{LANES, load, padded};
use crate::integers::{BLOCK, LIMIT};
use crate::{IntegerMut, MatrixRef};
use std::arch::x86_64::*;

/// Every block of `x`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quantize(x: MatrixRef<'_>, mut out: IntegerMut<'_>) {
    for row in 0..x.rows() {
        let (whole, rest) = x.row(row).as_chunks::<BLOCK>();
        let rest = (!rest.is_empty()).then(|| padded(rest));
        let blocks = whole.iter().chain(&rest);
        let out = out.row_mut(row);
        let places = out.scales.iter_mut().zip(out.sums);
        for ((x, to), (scale, sum)) in blocks.zip(out.blocks).zip(places) {
            let values;
            (values, *scale, *sum) = quantize_block(x);
            store(to, values);
        }
    }
}

/// The integers, the scale and the sum of a block.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn quantize_block(x: &[f32; BLOCK]) -> ([__m256i; 4], f32, f32) {
    let limit = f32::from(LIMIT);
    let x: [__m256; 4] = std::array::from_fn(|i| load(&x.as_chunks::<LANES>().0[i]));
    // Magnitudes compare as their bits do, infinity and NaN above all numbers.
    let magnitudes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)));
    let most = largest(magnitudes);
    if most >= f32::INFINITY.to_bits() {
        return ([_mm256_setzero_si256(); 4], f32::NAN, f32::NAN);
    }
    let most = f32::from_bits(most);
    if most < SMALLEST {
        return ([_mm256_setzero_si256(); 4], 0.0, 0.0);
    }
    let factor = _mm256_set1_ps(limit / most);
    let values = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, factor)));
    let scale = most / limit;
    (values, scale, sum(values) as f32 * scale)
}

/// The largest of 32 lanes that are not negative.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest(vectors: [__m256i; 4]) -> u32 {
    let pairs = [_mm256_max_epi32(vectors[0], vectors[1]), _mm256_max_epi32(vectors[2], vectors[3])];
    let eight = _mm256_max_epi32(pairs[0], pairs[1]);
    let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two))).cast_unsigned()
}

/// The sum of 32 lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum(vectors: [__m256i; 4]) -> i32 {
    let pairs = [_mm256_add_epi32(vectors[0], vectors[1]), _mm256_add_epi32(vectors[2], vectors[3])];
    let eight = _mm256_add_epi32(pairs[0], pairs[1]);
    let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}

/// Narrows to 16 bits, two vectors in order.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn narrow(low: __m256i, high: __m256i) -> __m256i {
    // The pack takes four of the one and four of the other into each half.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store(to: &mut [i8; BLOCK], values: [__m256i; 4]) {
    let [low, high] = [narrow(values[0], values[1]), narrow(values[2], values[3])];
    let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(low, high));
    // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) }
}
