//! Few tokens and weights in blocks of `q8_0`: a few rows side by side, turned to f32 in registers.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{LANES, broadcast_half, load, load8, prefetch, sum};
use crate::quantized::{BlockQ8_0, Q8_0_COLS, blocks};
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
    let weights: [&[BlockQ8_0]; R] = from_fn(|r| &blocks(w.row_bytes(row + r, 0..w.cols()))[..count]);
    let x: [&[Inputs]; T] = from_fn(|t| &x[t][..count]);
    let ahead = R * w.format().bytes(w.row_stride()); // the same columns of the next rows
    let mut totals = [[_mm256_setzero_ps(); R]; T];
    for block in 0..count {
        for r in 0..R {
            let weights = &weights[r][block];
            prefetch(weights.values.as_ptr().wrapping_add(ahead));
            let values = widen(weights);
            let scale = broadcast_half(weights.d);
            for t in 0..T {
                let (x, _) = x[t][block].as_chunks::<LANES>();
                let mut sum = _mm256_mul_ps(values[0], load(&x[0]));
                for i in 1..values.len() {
                    sum = _mm256_fmadd_ps(values[i], load(&x[i]), sum);
                }
                totals[t][r] = _mm256_fmadd_ps(sum, scale, totals[t][r]);
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

/// The values of a block, before their scale.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen(block: &BlockQ8_0) -> [__m256; 4] {
    let (bytes, _) = block.values.as_chunks::<LANES>();
    from_fn(|i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(&bytes[i]))))
}
