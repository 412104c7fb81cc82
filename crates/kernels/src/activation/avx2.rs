//! The exponential of eight values at once, and what is made of it.

use crate::avx2::{LANES, load, padded, store};
use std::arch::x86_64::*;

/// `gate[i] = silu(gate[i]) * up[i]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (ups, up_rest) = up.as_chunks::<LANES>();
    for (gate, up) in gates.iter_mut().zip(ups) {
        store(gate, silu_mul8(load(gate), load(up)));
    }
    let results = silu_mul8(load(&padded(gate_rest)), load(&padded(up_rest)));
    let mut all = [0.0; LANES];
    store(&mut all, results);
    gate_rest.copy_from_slice(&all[..gate_rest.len()]);
}

/// `x[i] = 1 / (1 + exp(-x[i]))`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sigmoid(x: &mut [f32]) {
    let (vectors, rest) = x.as_chunks_mut::<LANES>();
    for x in vectors {
        store(x, sigmoid8(load(x)));
    }
    let results = sigmoid8(load(&padded(rest)));
    let mut all = [0.0; LANES];
    store(&mut all, results);
    rest.copy_from_slice(&all[..rest.len()]);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn silu_mul8(gate: __m256, up: __m256) -> __m256 {
    _mm256_mul_ps(_mm256_div_ps(gate, one_plus_exp_of_minus(gate)), up)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sigmoid8(x: __m256) -> __m256 {
    _mm256_div_ps(_mm256_set1_ps(1.0), one_plus_exp_of_minus(x))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn one_plus_exp_of_minus(x: __m256) -> __m256 {
    let minus = _mm256_xor_ps(x, _mm256_set1_ps(-0.0));
    _mm256_add_ps(_mm256_set1_ps(1.0), exp8(minus))
}

/// The constants of [`exp8`].
pub(crate) mod exponential {
    /// From here on the result is infinity; n is 128 still.
    pub(crate) const LARGEST: f32 = 89.0;
    /// From here down the result is 0: less than half of the smallest subnormal.
    pub(crate) const SMALLEST: f32 = -104.0;
    /// ln 2 in two parts. The first has 9 bits, so that its product with n is exact; the second is the rest.
    pub(crate) const LN_2_HIGH: f32 = 0.693_359_4;
    pub(crate) const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// From r^7 down to r^2.
    pub(crate) const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
}

/// `exp(x)` to 2 units in the last place, subnormal results included; NaN stays NaN.
///
/// `x = n ln 2 + r` with an integer n and |r| <= ln 2 / 2, so `exp(x) = 2^n exp(r)`. The polynomial for exp(r) is
/// that of Cephes' `expf`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn exp8(x: __m256) -> __m256 {
    use exponential::{COEFFICIENTS, LARGEST, LN_2_HIGH, LN_2_LOW, SMALLEST};

    // Where either operand is NaN, min and max give the second: x.
    let x = _mm256_min_ps(_mm256_set1_ps(LARGEST), _mm256_max_ps(_mm256_set1_ps(SMALLEST), x));
    let n = _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2_LOW), r);
    let mut tail = _mm256_set1_ps(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        tail = _mm256_fmadd_ps(tail, r, _mm256_set1_ps(*coefficient));
    }
    let exp_r = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), tail, r), _mm256_set1_ps(1.0));

    // 2^n may lie outside of the normal numbers where the result does not: two factors that do not.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let first = _mm256_mul_ps(exp_r, power_of_two(half));
    _mm256_mul_ps(first, power_of_two(_mm256_sub_epi32(n, half)))
}

/// `2^n` for n of normal numbers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn power_of_two(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}
