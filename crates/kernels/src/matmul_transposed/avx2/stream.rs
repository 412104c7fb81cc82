//! Few tokens: four rows of weights at a time are added to the output, which stays in the first cache.
//!
//! The scale of a block multiplies the token's value, once for all columns of the block.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{Encoding, LANES, load16_with_nan, padded, prefetch};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Rows of weights read side by side.
const ROWS: usize = 4;
/// Columns added at a time.
const STEP: usize = 2 * LANES;
/// Bytes of a cache line.
const LINE: usize = 64;

/// `out[t, c] += sum over r of x[t, r] * w[r, c]` for `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_transposed_add<E: Encoding, const T: usize>(
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
    for block in w.column_blocks(0..w.cols()) {
        let mut factors = [[_mm256_setzero_ps(); R]; T];
        for t in 0..T {
            for r in 0..R {
                // Two products, because a scale times UNIT may overflow where the result does not.
                factors[t][r] = _mm256_set1_ps(x[t][row + r] * scales[r].of(block) * E::UNIT);
            }
        }
        let mut column = block.start;
        while column + STEP <= block.end {
            let weights = weights.map(|weights| weights[column * E::BYTES..].as_ptr());
            if (column * E::BYTES).is_multiple_of(LINE) {
                for weights in weights {
                    prefetch(weights.wrapping_add(ahead));
                }
            }
            for t in 0..T {
                let out = out.row_mut(t)[column..].first_chunk_mut().expect("a column of out for each of w");
                // SAFETY: the rows have `STEP` columns from `column` on.
                unsafe { add_step::<E, R>(weights, factors[t], out) };
            }
            column += STEP;
        }
        if column < block.end {
            let weights = weights.map(|weights| &weights[column * E::BYTES..block.end * E::BYTES]);
            for t in 0..T {
                add_rest::<E, R>(weights, factors[t], &mut out.row_mut(t)[column..block.end]);
            }
        }
    }
}

/// Adds fewer columns than `STEP`: from copies with zeros behind them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_rest<E: Encoding, const R: usize>(weights: [&[u8]; R], factors: [__m256; R], out: &mut [f32]) {
    let mut all_weights = [[0; STEP * size_of::<f32>()]; R];
    for (all, weights) in all_weights.iter_mut().zip(weights) {
        *all = padded(weights);
    }
    let mut all = padded(out);
    // SAFETY: the copies hold `STEP` elements of the widest format.
    unsafe { add_step::<E, R>(from_fn(|r| all_weights[r].as_ptr()), factors, &mut all) };
    out.copy_from_slice(&all[..out.len()]);
}

/// Adds `STEP` columns of `R` rows, each times its factor.
///
/// # Safety
/// Each pointer points to `STEP` readable elements.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_step<E: Encoding, const R: usize>(
    weights: [*const u8; R],
    factors: [__m256; R],
    out: &mut [f32; STEP],
) {
    // SAFETY: `out` is two vectors; the loads need no alignment.
    let mut sums = unsafe { [_mm256_loadu_ps(out.as_ptr()), _mm256_loadu_ps(out.as_ptr().add(LANES))] };
    for r in 0..R {
        // SAFETY: what the caller promises is what `load16_with_nan` asks for.
        let weights = unsafe { load16_with_nan::<E>(weights[r]) };
        sums = [
            _mm256_fmadd_ps(weights[0], factors[r], sums[0]),
            _mm256_fmadd_ps(weights[1], factors[r], sums[1]),
        ];
    }
    // SAFETY: as for the loads.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(out.as_mut_ptr().add(LANES), sums[1]);
    }
}
