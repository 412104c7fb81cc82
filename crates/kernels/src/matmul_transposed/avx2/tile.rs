//! Many tokens: panels of weights are turned to f32 in a buffer and multiplied tile by tile. Those of AVX2, six tokens by
//! sixteen columns, keep twelve vectors of sums in registers, enough to hide the latency of FMA, at eight loads for twelve FMAs.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{Ahead, LANES, store, with_count};
use crate::lanes::avx2::evenly;
use crate::{MatrixMut, MatrixRef, MatrixView, dequantize};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Rows of a panel of weights.
const ROWS: usize = 64;
/// Columns of a panel of weights.
const COLUMNS: usize = 256;
/// Values from a row of a panel to the next: an odd number of cache lines, so that a strip of one line a row spreads
/// over all sets of the first cache.
pub(crate) const PITCH: usize = COLUMNS + 16;
/// Columns of a tile, at most.
pub(crate) const MOST_COLUMNS: usize = 32;
/// Tokens of a tile, at most.
const MOST_TOKENS: usize = 8;

/// How a panel is filled in and multiplied, a tile at a time.
pub(crate) struct Tiles {
    /// Columns of a tile.
    pub(crate) columns: usize,
    /// Tokens of a tile, at most.
    pub(crate) tokens: usize,
    /// Columns of some rows, from a row on, as f32.
    ///
    /// SAFETY of calling: the processor has its features.
    pub(crate) dequantize: unsafe fn(&MatrixView<'_>, usize, Range<usize>, &mut [[f32; PITCH]]),
    /// The sums of a strip's rows for as many tokens as there are sums.
    ///
    /// SAFETY of calling: as above.
    pub(crate) sums: unsafe fn(&Strip<'_>, MatrixRef<'_>, &mut [Sums]),
}

impl Tiles {
    /// Those of this file.
    pub(super) const AVX2: Self = Self {
        columns: 2 * LANES,
        tokens: 6,
        dequantize: dequantize::avx2::dequantize_rows,
        sums: strip_sums,
    };
}

/// The sums of a token, by column of a strip.
pub(crate) type Sums = [f32; MOST_COLUMNS];

/// A panel of weights as f32, 68 kB: it stays in the second cache, and the strip in use (4 or 8 kB) in the first.
#[repr(align(64))]
struct Panel([[f32; PITCH]; ROWS]);

/// `out[t, c] += sum over r of x[t, r] * w[r, c]`.
///
/// # Safety
/// The processor has the features of `tiles`.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn matmul_transposed_add(
    tiles: &Tiles,
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let mut panel = Panel([[0.0; PITCH]; ROWS]);
    let mut sums = [[0.0; MOST_COLUMNS]; MOST_TOKENS];
    for row in (0..w.rows()).step_by(ROWS) {
        let rows = row..w.rows().min(row + ROWS);
        let x = x.column_range(rows.clone());
        let panel = &mut panel.0[..rows.len()];
        for first in (0..w.cols()).step_by(COLUMNS) {
            let columns = first..w.cols().min(first + COLUMNS);
            // SAFETY: what the caller promises, here and below.
            unsafe { (tiles.dequantize)(w, row, columns.clone(), panel) };
            for column in columns.clone().step_by(tiles.columns) {
                let ahead = below_or_right(w, row, first, column - first);
                let mut strip = Strip { panel, column: column - first, ahead };
                let columns = column..columns.end.min(column + tiles.columns);
                for tokens in evenly(x.rows(), tiles.tokens) {
                    let sums = &mut sums[..tokens.len()];
                    // SAFETY: as above.
                    unsafe { (tiles.sums)(&strip, x.row_range(tokens.clone()), sums) };
                    for (token, sums) in tokens.zip(sums) {
                        let out = &mut out.row_mut(token)[columns.clone()];
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
                    }
                    strip.ahead = Ahead::nothing(panel);
                }
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

/// The columns of a tile, of a panel. Columns past the end of the matrix hold anything; sums of different columns do not mix,
/// and theirs are dropped.
pub(crate) struct Strip<'a> {
    pub(crate) panel: &'a [[f32; PITCH]],
    pub(crate) column: usize,
    /// The rows of the strip that comes next at these columns of the panel.
    pub(crate) ahead: Ahead,
}

/// [`Tiles::sums`].
#[target_feature(enable = "avx2,fma,f16c")]
fn strip_sums(strip: &Strip<'_>, x: MatrixRef<'_>, out: &mut [Sums]) {
    with_count!(out.len(), T of [1 2 3 4 5 6], {
        for (sums, out) in tile(strip, from_fn::<_, T, _>(|t| x.row(t))).iter().zip(out) {
            for (sums, out) in sums.iter().zip(out.as_chunks_mut::<LANES>().0) {
                store(out, *sums);
            }
        }
    });
}

/// The sums over the rows of a strip for `T` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn tile<const T: usize>(strip: &Strip<'_>, x: [&[f32]; T]) -> [[__m256; 2]; T] {
    let rows = strip.panel.len();
    assert!(x.iter().all(|x| x.len() == rows), "a value of x for each row");
    assert!(strip.column + 2 * LANES <= PITCH, "columns of a panel");
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    for (r, row) in strip.panel.iter().enumerate() {
        strip.ahead.request(r);
        let start = row[strip.column..].as_ptr();
        // SAFETY: a row of a panel has two vectors from `column` on.
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
