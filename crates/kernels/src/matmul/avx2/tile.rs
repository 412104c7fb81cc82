//! Many tokens: the work is to multiply. Panels of eight rows of weights are turned to f32 in a buffer that stays in
//! the first cache; tiles of three tokens by four rows keep twelve vectors of partial sums in registers, enough to
//! hide the latency of FMA, at seven loads for twelve FMAs. The tokens' columns are copied together before: where rows
//! lie a power of two apart, as activations do, few sets of a cache would hold them all.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{Ahead, LANES, first_lanes, sum, sum_each};
use crate::{MatrixMut, MatrixRef, MatrixView, dequantize};
use std::arch::x86_64::*;
use std::{array::from_fn, mem::MaybeUninit};

/// Rows of a panel of weights.
const ROWS: usize = 8;
/// Columns of a panel of weights.
const COLUMNS: usize = 512;
/// Tokens that use a panel before the next panel, whole tiles: their columns (260 kB) stay in the second cache.
const TOKENS: usize = 126;
/// From a token's columns to the next one's: a line more than there are, so that tokens lie in different sets of a cache.
const PITCH: usize = COLUMNS + 16;
/// Rows of a tile.
const TILE_ROWS: usize = 4;
/// Tokens of a tile, at most.
const TILE_TOKENS: usize = 3;

/// A panel of weights as f32, 16 kB.
#[repr(align(64))]
struct Panel([[f32; COLUMNS]; ROWS]);

/// `out[t, r] += sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let mut panel = Panel([[0.0; COLUMNS]; ROWS]);
    let mut memory = [const { [const { MaybeUninit::uninit() }; PITCH] }; TOKENS];
    for token in (0..x.rows()).step_by(TOKENS) {
        let x = x.row_range(token..x.rows().min(token + TOKENS));
        let (mut block, rest) = out.split_rows_at(x.rows());
        for first in (0..w.cols()).step_by(COLUMNS) {
            let length = COLUMNS.min(w.cols() - first);
            let mut tokens: [&[f32]; TOKENS] = [&[]; TOKENS];
            for (t, memory) in memory[..x.rows()].iter_mut().enumerate() {
                tokens[t] = memory[..length].write_copy_of_slice(&x.row(t)[first..first + length]);
            }
            for row in (0..w.rows()).step_by(ROWS) {
                let rows = ROWS.min(w.rows() - row);
                for (r, weights) in panel.0[..rows].iter_mut().enumerate() {
                    dequantize::avx2::dequantize(w, row + r, first, &mut weights[..length]);
                }
                let at = Place { row, next: next_panel(w, row, first) };
                panel_add(&panel.0[..rows], at, &tokens[..x.rows()], &mut block);
            }
        }
        out = rest;
    }
}

/// Where a panel lies in the matrix.
#[derive(Clone, Copy)]
struct Place {
    /// Its first row.
    row: usize,
    /// The rows of the panel that comes next.
    next: [Ahead; ROWS],
}

/// The panel after that at `row` and `first`, a row an element: the rows below, or the next columns from the top. The
/// matrix may end before.
fn next_panel(w: &MatrixView<'_>, row: usize, first: usize) -> [Ahead; ROWS] {
    let (row, first) = if row + ROWS < w.rows() { (row + ROWS, first) } else { (0, first + COLUMNS) };
    let origin = w.row_bytes(0, 0..0).as_ptr();
    // A panel takes `COLUMNS / LANES` requests.
    let step = w.format().bytes(COLUMNS) / (COLUMNS / LANES);
    from_fn(|r| {
        let offset = (row + r) * w.format().bytes(w.row_stride()) + w.format().bytes(first);
        Ahead { start: origin.wrapping_add(offset), step }
    })
}

/// Adds the products of a panel with all tokens.
#[target_feature(enable = "avx2,fma,f16c")]
fn panel_add(panel: &[[f32; COLUMNS]], at: Place, x: &[&[f32]], out: &mut MatrixMut<'_>) {
    let mut token = 0;
    while token < x.len() {
        // Four are two and two, because a single token keeps too few sums to be fast.
        let tokens = match x.len() - token {
            4 => 2,
            left => left.min(TILE_TOKENS),
        };
        match tokens {
            1 => tokens_add::<1>(panel, at, token, x, out),
            2 => tokens_add::<2>(panel, at, token, x, out),
            _ => tokens_add::<TILE_TOKENS>(panel, at, token, x, out),
        }
        token += tokens;
    }
}

/// Adds the products of a panel with tokens `token..token + T`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tokens_add<const T: usize>(
    panel: &[[f32; COLUMNS]],
    at: Place,
    token: usize,
    x: &[&[f32]],
    out: &mut MatrixMut<'_>,
) {
    let x: [&[f32]; T] = from_fn(|t| x[token + t]);
    let (tiles, rest) = panel.as_chunks::<TILE_ROWS>();
    for (number, weights) in tiles.iter().enumerate() {
        // The first two groups of tokens ask for the next panel, two rows a tile.
        let group = token.div_ceil(TILE_TOKENS);
        let first = number * TILE_ROWS + 2 * group;
        let sums = match group {
            0 | 1 => tile::<T, TILE_ROWS, 2>(weights, x, [at.next[first], at.next[first + 1]]),
            _ => tile::<T, TILE_ROWS, 0>(weights, x, []),
        };
        for (t, sums) in sums.into_iter().enumerate() {
            let row = at.row + number * TILE_ROWS;
            let out =
                out.row_mut(token + t)[row..].first_chunk_mut::<TILE_ROWS>().expect("a row of the tile");
            // SAFETY: `out` is four floats, borrowed exclusively; load and store need no alignment.
            unsafe {
                let old = _mm_loadu_ps(out.as_ptr());
                _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(old, sum_each(sums)));
            }
        }
    }
    for (r, weights) in rest.as_chunks::<1>().0.iter().enumerate() {
        let sums = tile::<T, 1, 0>(weights, x, []);
        for (t, sums) in sums.into_iter().enumerate() {
            out.row_mut(token + t)[at.row + panel.len() - rest.len() + r] += sum(sums[0]);
        }
    }
}

/// The partial sums of `R` rows of weights with `T` tokens, over as many columns as tokens have here. Asks memory for what
/// `A` rows have next.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile<const T: usize, const R: usize, const A: usize>(
    weights: &[[f32; COLUMNS]; R],
    x: [&[f32]; T],
    ahead: [Ahead; A],
) -> [[__m256; R]; T] {
    let length = x[0].len();
    assert!(length <= COLUMNS && x.iter().all(|x| x.len() == length), "tokens of one length");
    let mut sums = [[_mm256_setzero_ps(); R]; T];
    let whole = length - length % LANES;
    for column in (0..whole).step_by(LANES) {
        for ahead in ahead {
            ahead.request(column / LANES);
        }
        let mut inputs = [_mm256_setzero_ps(); T];
        for t in 0..T {
            // SAFETY: `column + LANES <= length`, which all tokens have and rows of a panel exceed or equal.
            inputs[t] = unsafe { _mm256_loadu_ps(x[t].as_ptr().add(column)) };
        }
        for r in 0..R {
            // SAFETY: as above.
            let weights = unsafe { _mm256_loadu_ps(weights[r].as_ptr().add(column)) };
            for t in 0..T {
                sums[t][r] = _mm256_fmadd_ps(inputs[t], weights, sums[t][r]);
            }
        }
    }
    if whole < length {
        let mask = first_lanes(length - whole);
        for t in 0..T {
            // SAFETY: a masked load touches only the lanes of the mask: `whole..length`.
            let input = unsafe { _mm256_maskload_ps(x[t].as_ptr().add(whole), mask) };
            for r in 0..R {
                // SAFETY: as above.
                let weights = unsafe { _mm256_maskload_ps(weights[r].as_ptr().add(whole), mask) };
                sums[t][r] = _mm256_fmadd_ps(input, weights, sums[t][r]);
            }
        }
    }
    sums
}
