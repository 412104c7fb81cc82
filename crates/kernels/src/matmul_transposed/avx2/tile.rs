//! Many tokens: panels of weights are turned to f32 in a buffer; tiles of six tokens by sixteen columns keep twelve
//! vectors of sums in registers, enough to hide the latency of FMA, at eight loads for twelve FMAs.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{Ahead, LANES, load, store};
use crate::{MatrixMut, MatrixRef, MatrixView, dequantize};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Rows of a panel of weights.
const ROWS: usize = 64;
/// Columns of a panel of weights.
const COLUMNS: usize = 256;
/// Values from a row of a panel to the next: an odd number of cache lines, so that a strip of one line a row spreads
/// over all sets of the first cache.
const PITCH: usize = COLUMNS + 16;
/// Columns of a tile.
const TILE_COLUMNS: usize = 2 * LANES;
/// Tokens of a tile, at most.
const TILE_TOKENS: usize = 6;

/// A panel of weights as f32, 68 kB: it stays in the second cache, and the strip in use (4 kB) in the first.
#[repr(align(64))]
struct Panel([[f32; PITCH]; ROWS]);

/// `out[t, c] += sum over r of x[t, r] * w[r, c]`.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) fn matmul_transposed_add(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let mut panel = Panel([[0.0; PITCH]; ROWS]);
    for row in (0..w.rows()).step_by(ROWS) {
        let rows = ROWS.min(w.rows() - row);
        for first in (0..w.cols()).step_by(COLUMNS) {
            let columns = COLUMNS.min(w.cols() - first);
            dequantize::avx2::dequantize_rows(w, row, first..first + columns, &mut panel.0[..rows]);
            for column in (0..columns).step_by(TILE_COLUMNS) {
                let ahead = below_or_right(w, row, first, column);
                let weights = Strip { panel: &panel.0[..rows], column, ahead };
                let at = Place { row, column: first + column, columns: TILE_COLUMNS.min(columns - column) };
                strip_add(weights, at, x, &mut out);
            }
        }
    }
}

/// The same strip of the panel after that at `row` and `first`: to the right, or at the left of the rows below.
fn below_or_right(w: &MatrixView<'_>, row: usize, first: usize, column: usize) -> Ahead {
    let (row, first) = if first + COLUMNS < w.cols() { (row, first + COLUMNS) } else { (row + ROWS, 0) };
    let step = w.format().bytes(w.row_stride());
    let offset = row * step + w.format().bytes(first) + column * w.format().bytes(COLUMNS) / COLUMNS;
    Ahead { start: w.row_bytes(0, 0..0).as_ptr().wrapping_add(offset), step }
}

/// `TILE_COLUMNS` columns of a panel. Columns past the end of the matrix hold anything; sums of different columns do
/// not mix, and theirs are dropped.
#[derive(Clone, Copy)]
struct Strip<'a> {
    panel: &'a [[f32; PITCH]],
    column: usize,
    /// The rows of the strip that comes next at these columns of the panel.
    ahead: Ahead,
}

/// Where a strip lies in the matrix.
#[derive(Clone, Copy)]
struct Place {
    /// Its first row.
    row: usize,
    /// Its first column.
    column: usize,
    /// How many of its columns the matrix has.
    columns: usize,
}

/// Adds the products of a strip with all tokens.
#[target_feature(enable = "avx2,fma,f16c")]
fn strip_add(mut weights: Strip<'_>, at: Place, x: MatrixRef<'_>, out: &mut MatrixMut<'_>) {
    let mut token = 0;
    while token < x.rows() {
        // Seven to eleven are split in halves, because a tile of few tokens keeps too few sums to be fast.
        let tokens = match x.rows() - token {
            left @ 7..12 => left.div_ceil(2),
            left => left.min(TILE_TOKENS),
        };
        match tokens {
            1 => tokens_add::<1>(weights, at, token, x, out),
            2 => tokens_add::<2>(weights, at, token, x, out),
            3 => tokens_add::<3>(weights, at, token, x, out),
            4 => tokens_add::<4>(weights, at, token, x, out),
            5 => tokens_add::<5>(weights, at, token, x, out),
            _ => tokens_add::<TILE_TOKENS>(weights, at, token, x, out),
        }
        token += tokens;
        weights.ahead = Ahead::nothing(weights.panel);
    }
}

/// Adds the products of a strip with tokens `token..token + T`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tokens_add<const T: usize>(
    weights: Strip<'_>,
    at: Place,
    token: usize,
    x: MatrixRef<'_>,
    out: &mut MatrixMut<'_>,
) {
    let x: [&[f32]; T] = from_fn(|t| &x.row(token + t)[at.row..at.row + weights.panel.len()]);
    let sums = tile(weights, x);
    for (t, sums) in sums.into_iter().enumerate() {
        let out = &mut out.row_mut(token + t)[at.column..at.column + at.columns];
        match out.as_chunks_mut::<LANES>() {
            ([first, second], []) => {
                store(first, _mm256_add_ps(load(first), sums[0]));
                store(second, _mm256_add_ps(load(second), sums[1]));
            }
            _ => add_some(out, sums),
        }
    }
}

/// Adds fewer columns than a tile has.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_some(out: &mut [f32], sums: [__m256; 2]) {
    let mut values = [[0.0; LANES]; 2];
    store(&mut values[0], sums[0]);
    store(&mut values[1], sums[1]);
    for (out, value) in out.iter_mut().zip(values.as_flattened()) {
        *out += value;
    }
}

/// The sums over the rows of a strip for `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile<const T: usize>(weights: Strip<'_>, x: [&[f32]; T]) -> [[__m256; 2]; T] {
    let rows = weights.panel.len();
    assert!(x.iter().all(|x| x.len() == rows), "a value of x for each row");
    assert!(weights.column + TILE_COLUMNS <= PITCH, "columns of a panel");
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    for (r, weights_row) in weights.panel.iter().enumerate() {
        weights.ahead.request(r);
        let start = weights_row[weights.column..].as_ptr();
        // SAFETY: a row of a panel has `TILE_COLUMNS` values from `column` on.
        let row = unsafe { [_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(LANES))] };
        for t in 0..T {
            // SAFETY: `r < rows`, the length of each token's part of x.
            let input = _mm256_set1_ps(unsafe { *x[t].get_unchecked(r) });
            sums[t][0] = _mm256_fmadd_ps(input, row[0], sums[t][0]);
            sums[t][1] = _mm256_fmadd_ps(input, row[1], sums[t][1]);
        }
    }
    sums
}
