//! Sums of a block of `q4_K`, the same bits as in whole vectors.

#![allow(clippy::needless_range_loop, reason = "a token is an index into several arrays")]

use super::load16_int8;
use crate::avx2::load16_bytes;
use crate::integers::BLOCK;
use crate::matmul_integer::avx2::stream_q4k::{Sums, Values};
use crate::quantized::BlockQ4K;
use std::arch::x86_64::*;

/// Bytes in a vector.
const VECTOR: usize = 16;

/// Sums in vectors of 128 bits.
pub(super) enum Halves {}

impl Sums for Halves {
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn of<const N: usize>(weights: &BlockQ4K, x: [&Values; N]) -> [__m256i; N] {
        let zero = _mm_setzero_si128();
        let mut pairs = [[zero; 4]; N];
        for i in 0..4 {
            let bytes = &weights.values.as_chunks::<BLOCK>().0[i].as_chunks().0;
            let bytes = [load16_bytes(&bytes[0]), load16_bytes(&bytes[1])];
            for n in 0..N {
                let even = products(bytes, &x[n][2 * i]);
                let odd = products(
                    [_mm_srli_epi16::<4>(bytes[0]), _mm_srli_epi16::<4>(bytes[1])],
                    &x[n][2 * i + 1],
                );
                pairs[n][i] = _mm_add_epi16(_mm_unpacklo_epi32(even, odd), _mm_unpackhi_epi32(even, odd));
            }
        }
        let mut sums = [_mm256_setzero_si256(); N];
        for n in 0..N {
            let mut fours = [zero; 2];
            for i in 0..2 {
                let (one, other) = (pairs[n][2 * i], pairs[n][2 * i + 1]);
                // Of each group two neighbouring lanes, with 16 products each: at most 16 * 15 * 127 of 2^15 - 1.
                let sixteens = _mm_add_epi16(_mm_unpacklo_epi64(one, other), _mm_unpackhi_epi64(one, other));
                fours[i] = _mm_madd_epi16(sixteens, _mm_set1_epi16(1));
            }
            sums[n] = _mm256_set_m128i(fours[1], fours[0]);
        }
        sums
    }
}

/// The lower four bits of each byte times a token's values, in sums of four, at most 4 * 15 * 127.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products(bytes: [__m128i; 2], x: &[i8; BLOCK]) -> __m128i {
    let (mask, x) = (_mm_set1_epi8(15), x.as_chunks::<VECTOR>().0);
    let mut halves = [_mm_setzero_si128(); 2];
    for half in 0..2 {
        halves[half] = _mm_maddubs_epi16(_mm_and_si128(bytes[half], mask), load16_int8(&x[half]));
    }
    _mm_add_epi16(halves[0], halves[1])
}
