//! Few tokens and weights in blocks of `q8_0`: a few rows side by side, turned to f32 in registers.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{AHEAD, LANES, ahead, broadcast_half, load, prefetch, sum, widen_int8};
use crate::quantized::{BlockQ8_0, Q8_0_COLS, blocks};
use crate::view::{AheadOfRow, AheadOfRows, RowsBytes};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Columns of a block, as they lie in a row of activations.
type Inputs = [f32; Q8_0_COLS];

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens, `R` rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let x: [&[Inputs]; T] = from_fn(|token| x.row(token).as_chunks().0);
    let (rows, ahead) = (w.rows_bytes(0..w.cols()), w.ahead_of_rows(ahead(AHEAD)));
    let whole = w.rows() - w.rows() % R;
    for row in (0..whole).step_by(R) {
        rows_add::<R, T>(rows, ahead, row, x, &mut out);
    }
    for row in whole..w.rows() {
        rows_add::<1, T>(rows, ahead, row, x, &mut out);
    }
}

/// Rows `row..row + R`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<const R: usize, const T: usize>(
    rows: RowsBytes<'_>,
    ahead: AheadOfRows<'_>,
    row: usize,
    x: [&[Inputs]; T],
    out: &mut MatrixMut<'_>,
) {
    let ahead: [AheadOfRow; R] = from_fn(|r| ahead.row(row + r));
    let mut weights: [&[BlockQ8_0]; R] = [&[]; R];
    for r in 0..R {
        weights[r] = blocks(rows.row(row + r));
    }
    let count = weights[0].len();
    for r in 0..R {
        weights[r] = &weights[r][..count];
    }
    let mut inputs: [&[Inputs]; T] = [&[]; T];
    for t in 0..T {
        inputs[t] = &x[t][..count];
    }
    let mut totals = [[_mm256_setzero_ps(); R]; T];
    for block in 0..count {
        let mut sums = [[_mm256_setzero_ps(); R]; T];
        // Rows take each step together, so that what waits for a result has the other rows' work between.
        for i in 0..Q8_0_COLS / LANES {
            for r in 0..R {
                let values = widen_int8(&weights[r][block].values.as_chunks().0[i]);
                for t in 0..T {
                    sums[t][r] = if i == 0 {
                        _mm256_mul_ps(values, load(&inputs[t][block].as_chunks().0[i]))
                    } else {
                        _mm256_fmadd_ps(values, load(&inputs[t][block].as_chunks().0[i]), sums[t][r])
                    };
                }
            }
        }
        for r in 0..R {
            prefetch(ahead[r].of(block * size_of::<BlockQ8_0>()));
            let scale = broadcast_half(weights[r][block].d);
            for t in 0..T {
                totals[t][r] = _mm256_fmadd_ps(sums[t][r], scale, totals[t][r]);
            }
        }
    }
    for t in 0..T {
        let out = &mut out.row_mut(t)[row..row + R];
        for r in 0..R {
            out[r] += sum(totals[t][r]);
        }
    }
}
