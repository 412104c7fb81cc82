//! Few tokens and weights in blocks of `q8_0`, multiplied as they come from memory, exactly: what is signed goes from the
//! weights to the tokens, and products are added up in 32 bits.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::load16_int8;
use crate::avx2::{AHEAD, ahead, load16_bytes, padded, prefetch_range, sum_of_four};
use crate::integers::BLOCK;
use crate::quantized::{BlockQ8_0, blocks};
use crate::view::AheadOfRow;
use crate::{IntegerRef, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::slice::from_ref;

/// Blocks whose sums become one vector and take their scales together.
const TOGETHER: usize = 4;

/// Some blocks of a row of weights.
type Weights = [BlockQ8_0; TOGETHER];

/// A token's values and scales, in pieces of as many blocks.
type Pieces<'a> = (&'a [[[i8; BLOCK]; TOGETHER]], &'a [[f32; TOGETHER]]);

/// A token's part in a row: pieces, and what is left with zeros behind it.
struct Inputs<'a> {
    values: &'a [[[i8; BLOCK]; TOGETHER]],
    scales: &'a [[f32; TOGETHER]],
    rest: ([[i8; BLOCK]; TOGETHER], [f32; TOGETHER]),
}

/// `out[t, r] = sum over c of x[t, c] * w[r, c]` for `T` tokens, one row after the other.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul<const T: usize>(w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    let x: [Inputs<'_>; T] = from_fn(|token| {
        let (values, rest) = x.blocks(token).as_chunks();
        let (scales, rest_scales) = x.scales(token).as_chunks();
        Inputs { values, scales, rest: (padded(rest), padded(rest_scales)) }
    });
    let (rows, ahead) = (w.rows_bytes(0..w.cols()), w.ahead_of_rows(ahead(AHEAD)));
    for row in 0..w.rows() {
        let totals = row_totals(blocks(rows.row(row)), ahead.row(row), &x);
        for t in 0..T {
            out.row_mut(t)[row] = sum_of_four(totals[t]);
        }
    }
}

/// A row's products, a part of each in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn row_totals<const T: usize>(weights: &[BlockQ8_0], ahead: AheadOfRow, x: &[Inputs<'_>; T]) -> [__m128; T] {
    let (whole, rest) = weights.as_chunks();
    let mut inputs: [Pieces<'_>; T] = [(&[], &[]); T];
    for t in 0..T {
        inputs[t] = (&x[t].values[..whole.len()], &x[t].scales[..whole.len()]);
    }
    let mut totals = [_mm_setzero_ps(); T];
    for (piece, weights) in whole.iter().enumerate() {
        prefetch_range(ahead.of(piece * size_of::<Weights>()), size_of::<Weights>());
        add_piece(weights, piece, &inputs, &mut totals);
    }
    if !rest.is_empty() {
        for t in 0..T {
            inputs[t] = (from_ref(&x[t].rest.0), from_ref(&x[t].rest.1));
        }
        add_piece(&padded(rest), 0, &inputs, &mut totals);
    }
    totals
}

/// Adds the products of a piece of a row with all tokens.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_piece<const T: usize>(weights: &Weights, piece: usize, x: &[Pieces<'_>; T], totals: &mut [__m128; T]) {
    // By token and pair of blocks, sums of sixteen products: of the one and of the other in turn.
    let mut pairs = [[_mm_setzero_si128(); TOGETHER / 2]; T];
    for pair in 0..TOGETHER / 2 {
        let (one, other) = (&weights[2 * pair].values, &weights[2 * pair + 1].values);
        for t in 0..T {
            let x = &x[t].0[piece];
            let (one, other) = (products(one, &x[2 * pair]), products(other, &x[2 * pair + 1]));
            pairs[t][pair] = _mm_add_epi32(_mm_unpacklo_epi32(one, other), _mm_unpackhi_epi32(one, other));
        }
    }
    let scales = scales(weights);
    for t in 0..T {
        let [one, other] = pairs[t];
        let sums = _mm_add_epi32(_mm_unpacklo_epi64(one, other), _mm_unpackhi_epi64(one, other));
        let scales = _mm_mul_ps(scales, load4(&x[t].1[piece]));
        totals[t] = _mm_fmadd_ps(_mm_cvtepi32_ps(sums), scales, totals[t]);
    }
}

/// Sums of eight products each.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products(weights: &[u8; BLOCK], x: &[i8; BLOCK]) -> __m128i {
    let mut sums = _mm_setzero_si128();
    for (weights, x) in weights.as_chunks().0.iter().zip(x.as_chunks().0) {
        let weights = load16_bytes(weights);
        // At most 2 * 128 * 127 in 16 bits.
        let pairs = _mm_maddubs_epi16(_mm_abs_epi8(weights), _mm_sign_epi8(load16_int8(x), weights));
        sums = _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
    }
    sums
}

/// The blocks' scales.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scales(weights: &Weights) -> __m128 {
    let mut halves = [0; TOGETHER];
    for (half, block) in halves.iter_mut().zip(weights) {
        *half = i16::from_le_bytes(block.d);
    }
    let [a, b, c, d] = halves;
    _mm_cvtph_ps(_mm_setr_epi16(a, b, c, d, 0, 0, 0, 0))
}

/// Four values.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load4(values: &[f32; TOGETHER]) -> __m128 {
    // SAFETY: a reference to four floats; the load needs no alignment.
    unsafe { _mm_loadu_ps(values.as_ptr()) }
}
