//! Four pairs at a time.

use super::scalar;
use crate::avx2::{LANES, load, store};
use std::arch::x86_64::*;

/// Rotates the pairs `(x[2i], x[2i + 1])`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (vectors, rest) = x.as_chunks_mut::<LANES>();
    let (cos_vectors, cos_rest) = cos.as_chunks::<{ LANES / 2 }>();
    let (sin_vectors, sin_rest) = sin.as_chunks::<{ LANES / 2 }>();
    for ((x, cos), sin) in vectors.iter_mut().zip(cos_vectors).zip(sin_vectors) {
        let values = load(x);
        let swapped = _mm256_permute_ps::<0b10_11_00_01>(values);
        let products = _mm256_mul_ps(swapped, twice_each(sin));
        // Even lanes subtract, odd lanes add.
        store(x, _mm256_fmaddsub_ps(values, twice_each(cos), products));
    }
    scalar::rope_interleaved(rest, cos_rest, sin_rest);
}

/// `a a b b c c d d`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn twice_each(values: &[f32; LANES / 2]) -> __m256 {
    // SAFETY: a reference to four floats; the load needs no alignment.
    let four = unsafe { _mm_loadu_ps(values.as_ptr()) };
    _mm256_set_m128(_mm_unpackhi_ps(four, four), _mm_unpacklo_ps(four, four))
}
