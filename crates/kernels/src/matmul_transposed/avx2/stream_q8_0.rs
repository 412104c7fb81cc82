//! Few tokens and weights in blocks of `q8_0`: four rows at a time, turned to f32 in registers, are added to the output, which
//! stays in the first cache.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{LANES, broadcast_half, load, prefetch, store, widen_int8};
use crate::quantized::{BlockQ8_0, Q8_0_COLS, blocks};
use crate::view::RowsBytes;
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::take;

/// Outputs of a block of weights.
type Block = [f32; Q8_0_COLS];

/// Vectors of f32 of a block.
const VECTORS: usize = Q8_0_COLS / LANES;

/// `out[t, c] += sum over r of x[t, r] * w[r, c]` for `T` tokens, `R` rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_transposed_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let x: [&[f32]; T] = from_fn(|token| x.row(token));
    let rows = w.rows_bytes(0..w.cols());
    let whole = w.rows() - w.rows() % R;
    for row in (0..whole).step_by(R) {
        rows_add::<R, T>(rows, row, x, &mut out);
    }
    for row in whole..w.rows() {
        rows_add::<1, T>(rows, row, x, &mut out);
    }
}

/// Rows `row..row + R`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<const R: usize, const T: usize>(
    rows: RowsBytes<'_>,
    row: usize,
    x: [&[f32]; T],
    out: &mut MatrixMut<'_>,
) {
    let ahead = R * rows.stride(); // the same columns of the next rows
    let count = out.cols() / Q8_0_COLS;
    let weights: [&[BlockQ8_0]; R] = from_fn(|r| &blocks(rows.row(row + r))[..count]);
    let mut outs: [&mut [Block]; T] = out.rows_mut().map(|out| out.as_chunks_mut().0);
    for t in 0..T {
        outs[t] = &mut take(&mut outs[t])[..count];
    }
    for block in 0..count {
        let mut factors = [[_mm256_setzero_ps(); R]; T];
        for r in 0..R {
            prefetch((&raw const weights[r][block]).cast::<u8>().wrapping_add(ahead));
            let scale = broadcast_half(weights[r][block].d);
            for t in 0..T {
                factors[t][r] = _mm256_mul_ps(scale, _mm256_set1_ps(x[t][row + r]));
            }
        }
        for i in 0..VECTORS {
            let mut sums = [_mm256_setzero_ps(); T];
            for t in 0..T {
                sums[t] = load(&outs[t][block].as_chunks().0[i]);
            }
            for r in 0..R {
                let values = widen_int8(&weights[r][block].values.as_chunks().0[i]);
                for t in 0..T {
                    sums[t] = _mm256_fmadd_ps(values, factors[t][r], sums[t]);
                }
            }
            for t in 0..T {
                store(&mut outs[t][block].as_chunks_mut().0[i], sums[t]);
            }
        }
    }
}
