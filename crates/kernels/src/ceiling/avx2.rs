//! Eight values at once: the specification's chains are computed one half after the other.

use super::{FMA_CHAINS, INT8_CHAINS, LANES, scalar};
use crate::avx2::{LANES as VECTOR, store};
use std::{arch::x86_64::*, hint::black_box};

/// Parts of the chains that fit into vectors.
const PARTS: usize = LANES / VECTOR;
/// Vectors that are read between two looks at the loop's counter.
const UNROLLED: usize = 8;

/// The exclusive or of all 64-bit words, little-endian; a last part of a word is filled up with zeros.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn xor_words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<{ UNROLLED * 32 }>();
    let mut sums = [_mm256_setzero_si256(); UNROLLED];
    for block in blocks {
        for (sum, vector) in sums.iter_mut().zip(block.as_chunks::<32>().0) {
            // SAFETY: a reference to 32 bytes; the load needs no alignment.
            let vector = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
            *sum = _mm256_xor_si256(*sum, vector);
        }
    }
    let sum = sums.into_iter().fold(_mm256_setzero_si256(), |sum, vector| _mm256_xor_si256(sum, vector));
    let halves = _mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let words = [_mm_cvtsi128_si64(halves), _mm_extract_epi64::<1>(halves)].map(i64::cast_unsigned);
    words[0] ^ words[1] ^ scalar::xor_words(rest)
}

/// `a = a * x + y` in every lane of every chain, `rounds` times, from 0 with `x = y = 1`; the sum of all lanes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn fma_rounds(rounds: usize) -> f32 {
    (0..PARTS).map(|_| fma_chains(rounds)).sum()
}

/// As [`fma_rounds`], of eight lanes of each chain.
#[target_feature(enable = "avx2,fma,f16c")]
fn fma_chains(rounds: usize) -> f32 {
    let (x, y) = black_box((1.0, 1.0));
    let (x, y) = (_mm256_set1_ps(x), _mm256_set1_ps(y));
    let mut chains = [_mm256_setzero_ps(); FMA_CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm256_fmadd_ps(*chain, x, y);
        }
    }
    let mut lanes = [[0.0; VECTOR]; FMA_CHAINS];
    for (lanes, chain) in lanes.iter_mut().zip(chains) {
        store(lanes, chain);
    }
    lanes.as_flattened().iter().sum()
}

/// In every lane of every chain, `rounds` times from 1: to the 32-bit lane the products of its four bytes, unsigned,
/// with 1 are added. The sum of all lanes, wrapping.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn int8_rounds(rounds: usize) -> u32 {
    (0..PARTS).fold(0, |sum, _| sum.wrapping_add(int8_chains(rounds)))
}

/// As [`int8_rounds`], of eight lanes of each chain.
#[target_feature(enable = "avx2,fma,f16c")]
fn int8_chains(rounds: usize) -> u32 {
    let weights = _mm256_set1_epi8(black_box(1));
    let ones = _mm256_set1_epi16(black_box(1));
    let mut chains = [_mm256_set1_epi32(1); INT8_CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            let pairs = _mm256_maddubs_epi16(*chain, weights);
            *chain = _mm256_add_epi32(*chain, _mm256_madd_epi16(pairs, ones));
        }
    }
    let sum = chains.into_iter().fold(_mm256_setzero_si256(), |sum, chain| _mm256_add_epi32(sum, chain));
    let mut lanes = [0_u32; VECTOR];
    // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    lanes.iter().fold(0, |sum, &lane| sum.wrapping_add(lane))
}
