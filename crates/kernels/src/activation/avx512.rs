//! The exponential of sixteen values at once.

use std::arch::x86_64::*;

/// `exp(x)` to 2 units in the last place, subnormal results included; NaN stays NaN. As [`exp8`](super::avx2::exp8), but that
/// the processor scales by any power of two at once.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn exp16(x: __m512) -> __m512 {
    use super::avx2::exponential::{COEFFICIENTS, LARGEST, LN_2_HIGH, LN_2_LOW, SMALLEST};

    // Where either operand is NaN, min and max give the second: x.
    let x = _mm512_min_ps(_mm512_set1_ps(LARGEST), _mm512_max_ps(_mm512_set1_ps(SMALLEST), x));
    let n = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_LOW), r);
    let mut tail = _mm512_set1_ps(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        tail = _mm512_fmadd_ps(tail, r, _mm512_set1_ps(*coefficient));
    }
    let exp_r = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), tail, r), _mm512_set1_ps(1.0));
    _mm512_scalef_ps(exp_r, n)
}
