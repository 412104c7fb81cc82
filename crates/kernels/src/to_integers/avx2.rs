//! A block in four vectors. Bit for bit what the scalar code gives.

use super::SMALLEST;
use crate::avx2::{LANES, load, padded};
use crate::integers::{BLOCK, LIMIT};
use crate::{IntegerMut, MatrixRef};
use std::arch::x86_64::*;

/// Every group of `x`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quantize(x: MatrixRef<'_>, mut out: IntegerMut<'_>) {
    let group = out.group();
    for row in 0..x.rows() {
        let out = out.row_mut(row);
        let places = out.scales.chunks_mut(group / BLOCK).zip(out.sums.chunks_mut(group / BLOCK));
        let places = out.blocks.chunks_mut(group / BLOCK).zip(places);
        for (x, (blocks, (scales, sums))) in x.row(row).chunks(group).zip(places) {
            let (whole, rest) = x.as_chunks::<BLOCK>();
            let rest = (!rest.is_empty()).then(|| padded(rest));
            let x = whole.iter().chain(&rest);
            let mut most = 0;
            for x in x.clone() {
                most = most.max(largest(x));
            }
            let (factor, scale) = factor_and_scale(most);
            scales.fill(scale);
            for (x, (to, sum)) in x.zip(blocks.iter_mut().zip(sums)) {
                *sum = quantize_block(x, factor, to) as f32 * scale;
            }
        }
    }
}

/// What makes integers of a group, and what makes it of them again. None where it has nothing, or not only finite values.
fn factor_and_scale(most: u32) -> (Option<f32>, f32) {
    let limit = f32::from(LIMIT);
    match f32::from_bits(most) {
        _ if most >= f32::INFINITY.to_bits() => (None, f32::NAN),
        most if most < SMALLEST => (None, 0.0),
        most => (Some(limit / most), most / limit),
    }
}

/// Gives the sum of the integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn quantize_block(x: &[f32; BLOCK], factor: Option<f32>, to: &mut [i8; BLOCK]) -> i32 {
    let mut values = [_mm256_setzero_si256(); 4];
    if let Some(factor) = factor {
        for (value, x) in values.iter_mut().zip(x.as_chunks::<LANES>().0) {
            *value = _mm256_cvtps_epi32(_mm256_mul_ps(load(x), _mm256_set1_ps(factor)));
        }
    }
    store(to, values);
    sum(values)
}

/// The bits of the largest magnitude, which compare as magnitudes do, infinity and NaN above all numbers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest(x: &[f32; BLOCK]) -> u32 {
    let mut vectors = [_mm256_setzero_si256(); 4];
    for (vector, x) in vectors.iter_mut().zip(x.as_chunks::<LANES>().0) {
        *vector = _mm256_and_si256(_mm256_castps_si256(load(x)), _mm256_set1_epi32(i32::MAX));
    }
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
