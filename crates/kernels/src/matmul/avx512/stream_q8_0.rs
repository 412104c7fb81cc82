//! Few tokens and weights in blocks of `q8_0`, turned to f32 in registers.

#![allow(clippy::needless_range_loop, reason = "a stream or a token is an index into several arrays")]

use crate::avx2::{half, load16_bytes};
use crate::avx512::load_values;
use crate::avx512::streams::{Group, STREAMS, add_rows};
use crate::quantized::{BlockQ8_0, Q8_0_COLS, blocks};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Columns of a block, as they lie in a row of activations.
type Inputs = [f32; Q8_0_COLS];

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens. A token's sum does not depend on how many there are.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
pub(super) fn matmul_add<const T: usize>(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let x: [&[Inputs]; T] = from_fn(|token| x.row(token).as_chunks().0);
    add_rows(w, w.rows_bytes(0..w.cols()), 0..w.rows(), &mut out, |group| row_sums::<T>(group, x));
}

/// The products of rows with all tokens, a part of each in every lane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
fn row_sums<const T: usize>(group: &Group<'_>, x: [&[Inputs]; T]) -> [[__m512; STREAMS]; T] {
    let count = blocks::<BlockQ8_0>(group.rows[0]).len();
    let (mut rows, mut inputs): ([&[BlockQ8_0]; STREAMS], [&[Inputs]; T]) = ([&[]; STREAMS], [&[]; T]);
    for stream in 0..STREAMS {
        rows[stream] = &blocks(group.rows[stream])[..count];
    }
    for t in 0..T {
        inputs[t] = &x[t][..count];
    }
    let mut sums = [[_mm512_setzero_ps(); STREAMS]; T];
    for block in 0..count {
        for stream in 0..STREAMS {
            // Each second block asks for a line; two are four bytes longer: one of seventeen is left to the processor.
            if block % 2 == 0 {
                let ahead = group.ahead[stream].wrapping_add(block * size_of::<BlockQ8_0>());
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            let mut x = [&[0.0; Q8_0_COLS]; T];
            for t in 0..T {
                x[t] = &inputs[t][block];
            }
            add_block(&rows[stream][block], x, stream, &mut sums);
        }
    }
    sums
}

/// Adds the products of a block of a stream.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
fn add_block<const T: usize>(
    weights: &BlockQ8_0,
    x: [&Inputs; T],
    stream: usize,
    sums: &mut [[__m512; STREAMS]; T],
) {
    let bytes = weights.values.as_chunks().0;
    let widen = |bytes| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16_bytes(bytes)));
    let values = [widen(&bytes[0]), widen(&bytes[1])];
    let scale = _mm512_set1_ps(scale(weights));
    for t in 0..T {
        let x = x[t].as_chunks().0;
        let first = _mm512_mul_ps(values[0], load_values(&x[0]));
        let products = _mm512_fmadd_ps(values[1], load_values(&x[1]), first);
        sums[t][stream] = _mm512_fmadd_ps(products, scale, sums[t][stream]);
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
