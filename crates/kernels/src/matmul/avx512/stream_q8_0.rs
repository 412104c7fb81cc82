//! Few tokens and weights in blocks of `q8_0`, turned to f32 in registers, row by row.

#![allow(clippy::needless_range_loop, reason = "a token is an index into several arrays")]

use super::add_rows;
use crate::avx2::{half, load16_bytes, prefetch};
use crate::avx512::{AHEAD, NEAR, fold, load_values};
use crate::quantized::{BlockQ8_0, Q8_0_COLS, blocks};
use crate::view::AheadOfRow;
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Columns of a block, as they lie in a row of activations.
type Inputs = [f32; Q8_0_COLS];

/// Parts of a sum, one for each second block: none waits for the one before it.
const PARTS: usize = 2;

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens. A token's sum does not depend on how many there are.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
pub(super) fn matmul_add<const T: usize>(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let x: [&[Inputs]; T] = from_fn(|token| x.row(token).as_chunks().0);
    let (weights, ahead) = (w.rows_bytes(0..w.cols()), w.ahead_of_rows(AHEAD));
    add_rows(0..w.rows(), &mut out, |row| row_sums::<T>(blocks(weights.row(row)), ahead.row(row), x));
}

/// The products of a row with all tokens, a part of each in every lane. Asks memory for what is read `ahead` of each of them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
fn row_sums<const T: usize>(weights: &[BlockQ8_0], ahead: AheadOfRow, x: [&[Inputs]; T]) -> [__m256; T] {
    let mut inputs: [&[Inputs]; T] = [&[]; T];
    for t in 0..T {
        inputs[t] = &x[t][..weights.len()];
    }
    let mut sums = [[_mm512_setzero_ps(); PARTS]; T];
    let whole = weights.len() - weights.len() % PARTS;
    for first in (0..whole).step_by(PARTS) {
        // Two blocks are four bytes longer than a line of the cache: one of seventeen lines is left to the processor.
        prefetch(ahead.of(first * size_of::<BlockQ8_0>()));
        _mm_prefetch::<_MM_HINT_T0>((&raw const weights[first]).cast::<i8>().wrapping_add(NEAR));
        for part in 0..PARTS {
            let block = first + part;
            let mut x = [&[0.0; Q8_0_COLS]; T];
            for t in 0..T {
                x[t] = &inputs[t][block];
            }
            add_block(&weights[block], x, part, &mut sums);
        }
    }
    if whole < weights.len() {
        add_block(&weights[whole], inputs.map(|inputs| &inputs[whole]), 0, &mut sums);
    }
    sums.map(|[even, odd]| fold(_mm512_add_ps(even, odd)))
}

/// Adds the products of a block to part `part` of the sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
fn add_block<const T: usize>(
    weights: &BlockQ8_0,
    x: [&Inputs; T],
    part: usize,
    sums: &mut [[__m512; PARTS]; T],
) {
    let bytes = weights.values.as_chunks().0;
    let widen = |bytes| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16_bytes(bytes)));
    let values = [widen(&bytes[0]), widen(&bytes[1])];
    let scale = _mm512_set1_ps(scale(weights));
    for t in 0..T {
        let x = x[t].as_chunks().0;
        let first = _mm512_mul_ps(values[0], load_values(&x[0]));
        let products = _mm512_fmadd_ps(values[1], load_values(&x[1]), first);
        sums[t][part] = _mm512_fmadd_ps(products, scale, sums[t][part]);
    }
}

/// The scale. The processor's conversion would need the port that takes bytes apart: of a positive normal half, which it
/// almost always is, moving its bits does as well.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scale(weights: &BlockQ8_0) -> f32 {
    /// What exponents of f32 have more than those of halves.
    const BIAS: u32 = 127 - 15;
    /// The smallest normal half, and infinity.
    const NORMAL: std::ops::Range<u16> = 0x0400..0x7c00;
    let bits = u16::from_le_bytes(weights.d);
    match NORMAL.contains(&bits) {
        true => f32::from_bits((u32::from(bits) << 13) + (BIAS << 23)),
        false => half(weights.d),
    }
}
