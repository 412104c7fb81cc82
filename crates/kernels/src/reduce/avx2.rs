//! Four vectors of partial results: the latency of an addition is hidden behind three others.

use crate::avx2::{LANES, load, padded, sum};
use std::arch::x86_64::*;

/// `sum of a[i] * b[i]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_vectors, a_rest) = a.as_chunks::<LANES>();
    let (b_vectors, b_rest) = b.as_chunks::<LANES>();
    let (a_fours, a_few) = a_vectors.as_chunks::<4>();
    let (b_fours, b_few) = b_vectors.as_chunks::<4>();
    let mut sums = [_mm256_setzero_ps(); 4];
    for (a, b) in a_fours.iter().zip(b_fours) {
        for i in 0..4 {
            sums[i] = _mm256_fmadd_ps(load(&a[i]), load(&b[i]), sums[i]);
        }
    }
    for (a, b) in a_few.iter().zip(b_few) {
        sums[0] = _mm256_fmadd_ps(load(a), load(b), sums[0]);
    }
    sums[1] = _mm256_fmadd_ps(load(&padded(a_rest)), load(&padded(b_rest)), sums[1]);
    sum(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])))
}

/// `sum of x[i]^2`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    dot(x, x)
}
