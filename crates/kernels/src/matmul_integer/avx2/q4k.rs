//! What the ways to multiply `q4_K` share: its blocks taken apart.

use crate::quantized::BlockQ4K;
use std::arch::x86_64::*;

/// What each group's elements are multiplied by, and what is taken from them: its scale times the block's `d`, its minimum
/// times `dmin`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(in crate::matmul_integer) fn factors_and_offsets(block: &BlockQ4K) -> [__m256; 2] {
    let (scales, minima) = scales_and_minima(block);
    // Both are converted at once.
    let ([a, b], [c, d]) = (block.d, block.dmin);
    let both = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes([a, b, c, d])));
    let (d, dmin) = (_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both)));
    [_mm256_mul_ps(widen(scales), d), _mm256_mul_ps(widen(minima), dmin)]
}

/// Each group's scale and minimum, a byte each, the first group in the lowest one: [`BlockQ4K::groups`], four at a
/// time.
#[inline]
pub(super) fn scales_and_minima(block: &BlockQ4K) -> (u64, u64) {
    let (words, _) = block.scales.as_chunks();
    let [first, second, rest]: [u32; 3] = std::array::from_fn(|i| u32::from_le_bytes(words[i]));
    let upper_bits = |word: u32| (word >> 2) & 0x3030_3030;
    let scales = (rest & 0x0f0f_0f0f) | upper_bits(first);
    let minima = ((rest >> 4) & 0x0f0f_0f0f) | upper_bits(second);
    let join = |low: u32, high: u32| u64::from(low & 0x3f3f_3f3f) | u64::from(high) << 32;
    (join(first, scales), join(second, minima))
}

/// Eight bytes as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn widen(bytes: u64) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed())))
}

/// The lower and the upper halves of bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn nibbles(bytes: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)]
}
