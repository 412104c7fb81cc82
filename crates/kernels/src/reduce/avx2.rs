//! Four vectors of partial results: the latency of an addition is hidden behind three others.

use crate::avx2::{LANES, load, padded, store, sum};
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

/// The largest value, NaN passed over; negative infinity for none.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn max(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let (fours, few) = vectors.as_chunks::<4>();
    let mut largest = [_mm256_set1_ps(f32::NEG_INFINITY); 4];
    for four in fours {
        for i in 0..4 {
            // Where either operand is NaN the instruction gives the second: never a NaN of x.
            largest[i] = _mm256_max_ps(load(&four[i]), largest[i]);
        }
    }
    for vector in few {
        largest[0] = _mm256_max_ps(load(vector), largest[0]);
    }
    let pairs = [_mm256_max_ps(largest[0], largest[1]), _mm256_max_ps(largest[2], largest[3])];
    let mut lanes = [0.0; LANES];
    store(&mut lanes, _mm256_max_ps(pairs[0], pairs[1]));
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}
