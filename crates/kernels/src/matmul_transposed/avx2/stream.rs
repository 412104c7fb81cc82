//! Few tokens: four rows of weights at a time are added to the output, which stays in the first cache.
//!
//! The scale of an FP8 block multiplies the token's value, once for all columns of the block. Their product must stay
//! below 2^120; the scales of a checkpoint are far below 1.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{Encoding, LANES, LINE, load16_with_nan, padded, prefetch};
use crate::view::{RowScales, RowsBytes};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Columns added at a time.
const STEP: usize = 2 * LANES;

/// `out[t, c] += sum over r of x[t, r] * w[r, c]` for `T` tokens, `R` rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_transposed_add<E: Encoding, const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let x: [&[f32]; T] = from_fn(|token| x.row(token));
    let bytes = w.rows_bytes(0..w.cols());
    let whole = w.rows() - w.rows() % R;
    for row in (0..whole).step_by(R) {
        rows_add::<E, R, T>(w, bytes, row, x, &mut out);
    }
    for row in whole..w.rows() {
        rows_add::<E, 1, T>(w, bytes, row, x, &mut out);
    }
}

/// Rows `row..row + R` of `w`, which has these bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<E: Encoding, const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    bytes: RowsBytes<'_>,
    row: usize,
    x: [&[f32]; T],
    out: &mut MatrixMut<'_>,
) {
    let weights: [&[u8]; R] = from_fn(|r| bytes.row(row + r));
    assert_eq!(weights[0].len(), w.cols() * E::BYTES, "bytes of a row");
    let scales: [RowScales<'_>; R] = from_fn(|r| w.row_scales(row + r));
    let ahead = R * bytes.stride(); // the same columns of the next rows
    let mut rows = Rows { weights, factors: [[_mm256_setzero_ps(); R]; T] };
    for block in w.column_blocks(0..w.cols()) {
        let outs = from_fn(|t| out.row_mut(t).as_mut_ptr());
        for r in 0..R {
            let scale = scales[r].of(block);
            for t in 0..T {
                rows.factors[t][r] = _mm256_set1_ps(x[t][row + r] * scale * E::UNIT);
            }
        }
        let mut column = block.start;
        while column + STEP <= block.end {
            if (column * E::BYTES).is_multiple_of(LINE) {
                for weights in rows.weights {
                    prefetch(weights.as_ptr().wrapping_add(column * E::BYTES + ahead));
                }
            }
            // SAFETY: a block ends within the rows of weights and of the output, and those of the output are
            // distinct and borrowed exclusively.
            unsafe { rows.add_step::<E>(column, outs) };
            column += STEP;
        }
        if column < block.end {
            rows.add_rest::<E>(column..block.end, out);
        }
    }
}

/// `R` rows of weights and what multiplies them.
struct Rows<'a, const R: usize, const T: usize> {
    weights: [&'a [u8]; R],
    /// By token and row, the same in every lane.
    factors: [[__m256; R]; T],
}

impl<const R: usize, const T: usize> Rows<'_, R, T> {
    /// Adds columns `column..column + STEP` to the outputs that start (at column 0) at `outs`.
    ///
    /// # Safety
    /// The rows have `column + STEP` columns at least; so have the outputs, to read and to write.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_step<E: Encoding>(&self, column: usize, outs: [*mut f32; T]) {
        let mut sums = [[_mm256_setzero_ps(); 2]; T];
        for t in 0..T {
            // SAFETY: columns up to `column + STEP`, two vectors, are readable; the loads need no alignment.
            sums[t] = unsafe {
                let out = outs[t].add(column);
                [_mm256_loadu_ps(out), _mm256_loadu_ps(out.add(LANES))]
            };
        }
        for r in 0..R {
            // SAFETY: columns up to `column + STEP` are readable.
            let weights = unsafe { load16_with_nan::<E>(self.weights[r].as_ptr().add(column * E::BYTES)) };
            for t in 0..T {
                for half in 0..2 {
                    sums[t][half] = _mm256_fmadd_ps(weights[half], self.factors[t][r], sums[t][half]);
                }
            }
        }
        for t in 0..T {
            // SAFETY: as for the loads; the caller lets them be written.
            unsafe {
                let out = outs[t].add(column);
                _mm256_storeu_ps(out, sums[t][0]);
                _mm256_storeu_ps(out.add(LANES), sums[t][1]);
            }
        }
    }

    /// Adds a few columns, less than `STEP`: from and to copies with zeros behind them.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add_rest<E: Encoding>(&self, columns: Range<usize>, out: &mut MatrixMut<'_>) {
        let mut weights = [[0; STEP * size_of::<f32>()]; R];
        for r in 0..R {
            weights[r] = padded(&self.weights[r][columns.start * E::BYTES..columns.end * E::BYTES]);
        }
        let mut copies = [[0.0; STEP]; T];
        for t in 0..T {
            copies[t] = padded(&out.row(t)[columns.clone()]);
        }
        let copy = Rows { weights: from_fn(|r| &weights[r][..]), factors: self.factors };
        let mut outs = [std::ptr::null_mut(); T];
        for t in 0..T {
            outs[t] = copies[t].as_mut_ptr();
        }
        // SAFETY: the copies hold `STEP` elements, those of weights in the widest format.
        unsafe { copy.add_step::<E>(0, outs) };
        for t in 0..T {
            out.row_mut(t)[columns.clone()].copy_from_slice(&copies[t][..columns.len()]);
        }
    }
}
