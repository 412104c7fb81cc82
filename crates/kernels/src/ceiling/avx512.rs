//! A chain in a vector.

use super::{FMA_CHAINS, INT8_CHAINS};
use std::{arch::x86_64::*, hint::black_box};

/// `a = a * x + y` in every lane of every chain, `rounds` times, from 0 with `x = y = 1`; the sum of all lanes.
#[target_feature(enable = "avx512f")]
pub(crate) fn fma_rounds(rounds: usize) -> f32 {
    let (x, y) = black_box((1.0, 1.0));
    let (x, y) = (_mm512_set1_ps(x), _mm512_set1_ps(y));
    let mut chains = [_mm512_setzero_ps(); FMA_CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_fmadd_ps(*chain, x, y);
        }
    }
    chains.into_iter().map(|chain| _mm512_reduce_add_ps(chain)).sum()
}

/// In every lane of every chain, `rounds` times from 1: to the 32-bit lane the products of its four bytes, unsigned,
/// with 1 are added. The sum of all lanes, wrapping.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn int8_rounds(rounds: usize) -> u32 {
    let weights = _mm512_set1_epi8(black_box(1));
    let mut chains = [_mm512_set1_epi32(1); INT8_CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_dpbusd_epi32(*chain, *chain, weights);
        }
    }
    let sum = chains.into_iter().fold(_mm512_setzero_si512(), |sum, chain| _mm512_add_epi32(sum, chain));
    _mm512_reduce_add_epi32(sum).cast_unsigned()
}
