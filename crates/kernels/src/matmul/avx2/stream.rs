//! Few tokens: the work is to read the weights. Four rows of them at a time, turned to f32 in registers.
//!
//! The scale of a block multiplies the block's sum, not each element: the same value with fewer roundings.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{Encoding, LANES, load16, padded, prefetch, saw_nan, sum, watch_nan};
use crate::{Format, MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Rows of weights read side by side.
const ROWS: usize = 4;
/// Columns between two requests to memory.
const STEP: usize = 64;
/// Columns that one load takes.
const UNIT: usize = 2 * LANES;
/// Bytes of a cache line.
const LINE: usize = 64;

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add<E: Encoding, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let x: [&[f32]; T] = from_fn(|token| x.row(token));
    let whole = w.rows() - w.rows() % ROWS;
    for row in (0..whole).step_by(ROWS) {
        rows_add::<E, ROWS, T>(w, row, x, &mut out);
    }
    for row in whole..w.rows() {
        rows_add::<E, 1, T>(w, row, x, &mut out);
    }
}

/// Partial sums of `R` rows and `T` tokens.
struct Sums<const R: usize, const T: usize> {
    /// By token and row.
    sums: [[__m256; R]; T],
    /// By row, whether an FP8 NaN was met, as `watch_nan` keeps it.
    nan: [__m256i; R],
}

/// Rows `row..row + R` of `w`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<E: Encoding, const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    row: usize,
    x: [&[f32]; T],
    out: &mut MatrixMut<'_>,
) {
    let weights: [&[u8]; R] = from_fn(|r| w.row_bytes(row + r, 0..w.cols()));
    let scales = from_fn::<_, R, _>(|r| w.row_scales(row + r));
    let ahead = R * w.row_stride() * E::BYTES; // the same columns of the next rows
    let mut totals = [[_mm256_setzero_ps(); R]; T];
    let mut state = Sums { sums: totals, nan: [_mm256_setzero_si256(); R] };
    for block in w.column_blocks(0..w.cols()) {
        state.sums = [[_mm256_setzero_ps(); R]; T];
        let length = block.end - block.start;
        let weights: [&[u8]; R] = from_fn(|r| &weights[r][block.start * E::BYTES..block.end * E::BYTES]);
        let x: [&[f32]; T] = from_fn(|t| &x[t][block.start..block.end]);
        for column in (0..length - length % STEP).step_by(STEP) {
            let weights = weights.map(|weights| weights[column * E::BYTES..].as_ptr());
            for weights in weights {
                for line in (0..STEP * E::BYTES).step_by(LINE) {
                    prefetch(weights.wrapping_add(ahead + line));
                }
            }
            // SAFETY: the block has `STEP` columns from `column` on, in every row and every token.
            unsafe { state.add_step::<E>(weights, from_fn(|t| x[t][column..].as_ptr())) };
        }
        state.add_rest::<E>(weights, x, length - length % STEP);
        for r in 0..R {
            let scale = _mm256_set1_ps(scales[r].of(block));
            for t in 0..T {
                let sum = _mm256_mul_ps(state.sums[t][r], _mm256_set1_ps(E::UNIT));
                totals[t][r] = _mm256_fmadd_ps(sum, scale, totals[t][r]);
            }
        }
    }
    for (t, totals) in totals.into_iter().enumerate() {
        let out = &mut out.row_mut(t)[row..row + R];
        for r in 0..R {
            out[r] += if saw_nan(state.nan[r]) { f32::NAN } else { sum(totals[r]) };
        }
    }
}

impl<const R: usize, const T: usize> Sums<R, T> {
    /// Adds `STEP` columns.
    ///
    /// # Safety
    /// Each pointer points to `STEP` readable elements.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_step<E: Encoding>(&mut self, weights: [*const u8; R], x: [*const f32; T]) {
        for unit in (0..STEP).step_by(UNIT) {
            // SAFETY: `unit + UNIT <= STEP`.
            unsafe { self.add_unit::<E>(weights, x, unit) };
        }
        if E::FORMAT == Format::Fp8 {
            for r in 0..R {
                for half in (0..STEP).step_by(32) {
                    // SAFETY: `STEP` elements of one byte are two loads of 32; they need no alignment.
                    let bytes = unsafe { _mm256_loadu_si256(weights[r].add(half).cast()) };
                    self.nan[r] = watch_nan(self.nan[r], bytes);
                }
            }
        }
    }

    /// Adds columns `first..`, fewer than `STEP`: from a copy with zeros behind them.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn add_rest<E: Encoding>(&mut self, weights: [&[u8]; R], x: [&[f32]; T], first: usize) {
        let length = x[0].len() - first;
        if length == 0 {
            return;
        }
        let mut all_weights = [[0; STEP * size_of::<f32>()]; R];
        for (all, weights) in all_weights.iter_mut().zip(weights) {
            *all = padded(&weights[first * E::BYTES..]);
        }
        let mut all_x = [[0.0; STEP]; T];
        for (all, x) in all_x.iter_mut().zip(x) {
            *all = padded(&x[first..]);
        }
        // SAFETY: the copies hold `STEP` elements, those of weights in the widest format.
        unsafe { self.add_step::<E>(from_fn(|r| all_weights[r].as_ptr()), from_fn(|t| all_x[t].as_ptr())) };
    }

    /// Adds columns `column..column + UNIT` of what the pointers point to.
    ///
    /// # Safety
    /// Each pointer points to `column + UNIT` readable elements.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_unit<E: Encoding>(&mut self, weights: [*const u8; R], x: [*const f32; T], column: usize) {
        let mut inputs = [[_mm256_setzero_ps(); 2]; T];
        for t in 0..T {
            // SAFETY: columns up to `column + UNIT` are readable.
            inputs[t] =
                unsafe { [_mm256_loadu_ps(x[t].add(column)), _mm256_loadu_ps(x[t].add(column + LANES))] };
        }
        for r in 0..R {
            // SAFETY: columns up to `column + UNIT` are readable.
            let weights = unsafe { load16::<E>(weights[r].add(column * E::BYTES)) };
            for t in 0..T {
                let sums = _mm256_fmadd_ps(weights[0], inputs[t][0], self.sums[t][r]);
                self.sums[t][r] = _mm256_fmadd_ps(weights[1], inputs[t][1], sums);
            }
        }
    }
}
