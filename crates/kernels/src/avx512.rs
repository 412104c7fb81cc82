//! What the AVX-512 files share. A vector is a line of sixteen lanes.
//!
//! Functions are compiled for all that [`Isa::Avx512`](crate::Isa) stands for, or as much of it as they need, and inlined into
//! kernels that are, too.

pub(crate) mod fp8;
pub(crate) mod streams;

use crate::Lanes;
use std::arch::x86_64::*;

/// How many bytes ahead of a stream the first cache asks.
pub(crate) const NEAR: usize = 1 << 10;

/// Values in a vector.
pub(crate) const VECTOR: usize = 16;

/// Sixteen values.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn load_values(values: &[f32; VECTOR]) -> __m512 {
    // SAFETY: a reference to sixteen floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Writes sixteen values.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn store_values(values: &mut [f32; VECTOR], vector: __m512) {
    // SAFETY: an exclusive reference to sixteen floats; the store needs no alignment.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), vector) }
}

/// A line.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn load(line: &Lanes) -> __m512 {
    // SAFETY: a line is sixteen floats, aligned to 64 bytes.
    unsafe { _mm512_load_ps(line.0.as_ptr()) }
}

/// Writes a line.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn store(line: &mut Lanes, vector: __m512) {
    // SAFETY: a line is sixteen floats, aligned to 64 bytes.
    unsafe { _mm512_store_ps(line.0.as_mut_ptr(), vector) }
}

/// A line whose bits are integers.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn load_integers(line: &Lanes) -> __m512i {
    _mm512_castps_si512(load(line))
}

/// Writes integers as a line.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn store_integers(line: &mut Lanes, vector: __m512i) {
    store(line, _mm512_castsi512_ps(vector));
}

/// 64 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn load64(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: a reference to 64 bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Writes 64 bytes.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn store64(bytes: &mut [u8; 64], vector: __m512i) {
    // SAFETY: an exclusive reference to 64 bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
}

/// The sums of the lanes of four vectors, in their order. Not by `vhaddps`, which can name sixteen registers only: the compiler
/// would keep the vectors in those throughout the loop that makes them.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn sum_each([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let twos = |one, other| _mm512_add_ps(_mm512_unpacklo_ps(one, other), _mm512_unpackhi_ps(one, other));
    let (ab, cd) = (twos(a, b), twos(c, d));
    let quarters =
        _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
    let halves = _mm512_add_ps(quarters, _mm512_shuffle_f32x4::<0b01_00_11_10>(quarters, quarters));
    let all = _mm512_add_ps(halves, _mm512_shuffle_f32x4::<0b10_11_00_01>(halves, halves));
    let mut sums = [0.0; 4];
    // SAFETY: four floats; the store needs no alignment.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(all)) };
    sums
}

/// `vector`, which must be in a register here, before what comes later in the program passes through this function. Where a loop
/// over integer sums is unrolled the compiler orders them one row after the other, each waiting for the one before.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn in_order(mut vector: __m512i) -> __m512i {
    // SAFETY: no instruction at all. It is not `pure`, so that several keep their order.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) vector, options(nomem, nostack, preserves_flags)) };
    vector
}
