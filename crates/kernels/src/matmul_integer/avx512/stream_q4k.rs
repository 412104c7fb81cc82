//! Few tokens and weights in blocks of `q4_K`, multiplied as they come from memory: two groups in a vector.

#![allow(clippy::needless_range_loop, reason = "a token is an index into several arrays")]

use crate::avx2::{LINE, load as load_eight, load32, prefetch_range};
use crate::avx512::NEAR;
use crate::matmul_integer::avx2::q4k::factors_and_offsets;
use crate::matmul_integer::avx2::stream_q4k::{Inputs, matmul_by};
use crate::quantized::BlockQ4K;
use crate::view::AheadOfRow;
use crate::{IntegerRef, MatrixMut, MatrixView};
use std::arch::x86_64::*;

/// How many bytes ahead of the stream the second cache asks memory.
const AHEAD: usize = 8 << 10;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]` for `T` tokens. A token's sum does not depend on how many there are.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
pub(super) fn matmul<const T: usize>(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    matmul_by::<T>(|weights, ahead, x| row_totals(weights, ahead, x), AHEAD, w, x, out);
}

/// A row's products, a part of each in every lane; asks memory for what is ahead.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
#[inline]
fn row_totals<const T: usize>(
    weights: &[BlockQ4K],
    ahead: AheadOfRow,
    mut inputs: [Inputs<'_>; T],
) -> [__m256; T] {
    for t in 0..T {
        inputs[t] = inputs[t].first(weights.len());
    }
    let mut totals = [_mm512_setzero_ps(); T];
    for (block, weights) in weights.iter().enumerate() {
        let start: *const i8 = (&raw const *weights).cast();
        prefetch_range(ahead.of(block * size_of::<BlockQ4K>()), size_of::<BlockQ4K>());
        for line in (0..size_of::<BlockQ4K>()).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(NEAR + line));
        }
        add_block(weights, block, &inputs, &mut totals);
    }
    totals.map(|total| fold(total))
}

/// Both halves of a vector added up.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn fold(vector: __m512) -> __m256 {
    _mm256_add_ps(_mm512_castps512_ps256(vector), _mm512_extractf32x8_ps::<1>(vector))
}

/// Adds the products of block `block`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
#[inline]
fn add_block<const T: usize>(
    weights: &BlockQ4K,
    block: usize,
    inputs: &[Inputs<'_>; T],
    totals: &mut [__m512; T],
) {
    let [scales, offsets] = factors_and_offsets(weights);
    let mut factors = [_mm512_setzero_ps(); T];
    for t in 0..T {
        let own = _mm256_mul_ps(scales, load_eight(&inputs[t].scales[block]));
        factors[t] = _mm512_castps256_ps512(own);
        let offset = _mm256_mul_ps(offsets, load_eight(&inputs[t].sums[block]));
        totals[t] = _mm512_sub_ps(totals[t], _mm512_zextps256_ps512(offset));
    }
    // A group lies in the lower halves of bytes, the next in the upper ones.
    let shifts = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi32(4));
    for (pair, bytes) in weights.values.as_chunks().0.iter().enumerate() {
        let both = _mm512_srlv_epi32(_mm512_broadcast_i64x4(load32(bytes)), shifts);
        let bits = _mm512_and_si512(both, _mm512_set1_epi8(15));
        // The factor of the first group in the lower half, of the second in the upper one.
        let first = _mm512_set1_epi32(2 * pair as i32);
        let places = _mm512_mask_add_epi32(first, 0xff00, first, _mm512_set1_epi32(1));
        for t in 0..T {
            let x = inputs[t].values[block].as_chunks::<2>().0[pair].as_flattened();
            // SAFETY: the 64 integers of two groups; the load needs no alignment.
            let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
            let products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), bits, x));
            totals[t] = _mm512_fmadd_ps(products, _mm512_permutexvar_ps(places, factors[t]), totals[t]);
        }
    }
}
