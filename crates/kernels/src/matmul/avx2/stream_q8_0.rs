//! Few tokens and weights in blocks of `q8_0`: a few rows side by side, turned to f32 in registers.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{AHEAD, LANES, broadcast_half, load, load8, prefetch, sum};
use crate::quantized::{BlockQ8_0, Q8_0_COLS, blocks};
use crate::view::AheadOfRow;
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
    let whole = w.rows() - w.rows() % R;
    for row in (0..whole).step_by(R) {
        rows_add::<R, T>(w, row, x, &mut out);
    }
    for row in whole..w.rows() {
        rows_add::<1, T>(w, row, x, &mut out);
    }
}

/// Rows `row..row + R` of `w`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    row: usize,
    x: [&[Inputs]; T],
    out: &mut MatrixMut<'_>,
) {
    let count = w.cols() / Q8_0_COLS;
    let mut weights: [&[BlockQ8_0]; R] = [&[]; R];
    let ahead: [AheadOfRow; R] = from_fn(|r| w.ahead_of_row(row + r, AHEAD));
    for r in 0..R {
        weights[r] = &blocks(w.row_bytes(row + r, 0..w.cols()))[..count];
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
                let values = widen(&weights[r][block].values.as_chunks().0[i]);
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

/// Signed bytes as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen(bytes: &[u8; LANES]) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(bytes)))
}
