//! Few tokens: the work is to read the weights. A few rows of them side by side, turned to f32 in registers.
//!
//! The scale of a block multiplies the block's sum, not each element: the same value with fewer roundings.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::fp8::{saw_nan, watch_nan};
use crate::avx2::{Encoding, LANES, load16, padded, prefetch_range, sum};
use crate::view::{RowScales, RowsBytes};
use crate::{Format, MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Columns between two requests to memory.
const STEP: usize = 64;
/// Columns between two looks for NaN: FP8 of one vector.
const HALF: usize = STEP / 2;
/// Columns that one load takes.
const UNIT: usize = 2 * LANES;

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens, `R` rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add<E: Encoding, const R: usize, const T: usize>(
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

/// `R` rows of weights and `T` tokens, and what they have added up to.
struct Rows<'a, const R: usize, const T: usize> {
    weights: [&'a [u8]; R],
    x: [&'a [f32]; T],
    /// Partial sums of a block of columns, by token and row.
    sums: [[__m256; R]; T],
    /// By row, whether an FP8 NaN was met, as `watch_nan` keeps it.
    nan: [__m256i; R],
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
    let zero = _mm256_setzero_ps();
    let weights: [&[u8]; R] = from_fn(|r| bytes.row(row + r));
    assert_eq!(weights[0].len(), w.cols() * E::BYTES, "bytes of a row");
    let scales: [RowScales<'_>; R] = from_fn(|r| w.row_scales(row + r));
    let ahead = R * bytes.stride(); // the same columns of the next rows
    let mut rows = Rows { weights, x, sums: [[zero; R]; T], nan: [_mm256_setzero_si256(); R] };
    let mut totals = [[zero; R]; T];
    for block in w.column_blocks(0..w.cols()) {
        rows.sums = [[zero; R]; T];
        let mut column = block.start;
        while column + STEP <= block.end {
            // SAFETY: a block ends within the row, whose bytes all of these have.
            unsafe { rows.add_step::<E>(column, ahead) };
            column += STEP;
        }
        if column < block.end {
            rows.add_rest::<E>(column..block.end);
        }
        for r in 0..R {
            let scale = _mm256_set1_ps(scales[r].of(block));
            for t in 0..T {
                let sum = _mm256_mul_ps(rows.sums[t][r], _mm256_set1_ps(E::UNIT));
                totals[t][r] = _mm256_fmadd_ps(sum, scale, totals[t][r]);
            }
        }
    }
    for t in 0..T {
        let out = &mut out.row_mut(t)[row..row + R];
        for r in 0..R {
            out[r] += if saw_nan(rows.nan[r]) { f32::NAN } else { sum(totals[t][r]) };
        }
    }
}

impl<const R: usize, const T: usize> Rows<'_, R, T> {
    /// Adds columns `column..column + STEP`, and asks for what lies `ahead` bytes after them.
    ///
    /// # Safety
    /// The rows and `x` have `column + STEP` columns at least.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_step<E: Encoding>(&mut self, column: usize, ahead: usize) {
        for r in 0..R {
            prefetch_range(self.weights[r].as_ptr().wrapping_add(column * E::BYTES + ahead), STEP * E::BYTES);
        }
        for half in (column..column + STEP).step_by(HALF) {
            // SAFETY: `half + HALF <= column + STEP`.
            unsafe {
                self.add_unit::<E>(half);
                self.add_unit::<E>(half + UNIT);
            }
            if E::FORMAT == Format::Fp8 {
                for r in 0..R {
                    // SAFETY: as above; a half of FP8 is one load of 32 bytes, which needs no alignment.
                    let bytes = unsafe { _mm256_loadu_si256(self.weights[r].as_ptr().add(half).cast()) };
                    self.nan[r] = watch_nan(self.nan[r], bytes);
                }
            }
        }
    }

    /// Adds columns `column..column + UNIT`.
    ///
    /// # Safety
    /// The rows and `x` have `column + UNIT` columns at least.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_unit<E: Encoding>(&mut self, column: usize) {
        let mut inputs = [[_mm256_setzero_ps(); 2]; T];
        for t in 0..T {
            let x = self.x[t].as_ptr();
            // SAFETY: columns up to `column + UNIT`, two vectors, are readable; the loads need no alignment.
            inputs[t] = unsafe { [_mm256_loadu_ps(x.add(column)), _mm256_loadu_ps(x.add(column + LANES))] };
        }
        for r in 0..R {
            // SAFETY: columns up to `column + UNIT` are readable.
            let weights = unsafe { load16::<E>(self.weights[r].as_ptr().add(column * E::BYTES)) };
            for t in 0..T {
                let sums = _mm256_fmadd_ps(weights[0], inputs[t][0], self.sums[t][r]);
                self.sums[t][r] = _mm256_fmadd_ps(weights[1], inputs[t][1], sums);
            }
        }
    }

    /// Adds a few columns, less than `STEP`: from a copy with zeros behind them.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add_rest<E: Encoding>(&mut self, columns: Range<usize>) {
        let mut weights = [[0; STEP * size_of::<f32>()]; R];
        for r in 0..R {
            weights[r] = padded(&self.weights[r][columns.start * E::BYTES..columns.end * E::BYTES]);
        }
        let mut x = [[0.0; STEP]; T];
        for t in 0..T {
            x[t] = padded(&self.x[t][columns.clone()]);
        }
        let (weights, x) = (from_fn(|r| &weights[r][..]), from_fn(|t| &x[t][..]));
        let mut copy = Rows { weights, x, sums: self.sums, nan: self.nan };
        // SAFETY: the copies hold `STEP` elements, those of weights in the widest format.
        unsafe { copy.add_step::<E>(0, 0) };
        (self.sums, self.nan) = (copy.sums, copy.nan);
    }
}
