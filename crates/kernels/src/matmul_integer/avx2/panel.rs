//! Many tokens times `q4_K`: blocks of tokens, columns and rows so that a panel of weights stays in the first cache and the
//! tokens' part of it in the second.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::panel_q4k::{Panel, ROWS};
use crate::avx2::{load, prefetch, store};
use crate::quantized::Q4K_COLS;
use crate::{IntegerRef, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens that use a panel before the next panel: their part of `x` (32 kB) stays in the second cache.
const TOKENS: usize = 128;
/// Bytes of a cache line.
const LINE: usize = 64;

/// `out[t, r] += sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add(w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    let mut panels = [Panel::new(), Panel::new()];
    for token in (0..x.rows()).step_by(TOKENS) {
        let x = x.row_range(token..x.rows().min(token + TOKENS));
        let (mut block, rest) = out.split_rows_at(x.rows());
        for first in (0..w.cols()).step_by(Q4K_COLS) {
            let columns = first..first + Q4K_COLS;
            for row in (0..w.rows()).step_by(2 * ROWS) {
                let rows = ROWS * 2.min((w.rows() - row).div_ceil(ROWS));
                for (number, panel) in panels[..rows / ROWS].iter_mut().enumerate() {
                    panel.pack(w, row + number * ROWS, columns.clone());
                }
                let ahead = Upcoming::after(w, row + rows, columns.clone());
                let place = Place { row, columns: columns.clone() };
                match &panels {
                    [panel, _] if rows == ROWS => {
                        tokens_add(std::array::from_ref(panel), &place, x, ahead, &mut block);
                    }
                    both => tokens_add(both, &place, x, ahead, &mut block),
                }
            }
        }
        out = rest;
    }
}

/// Where panels lie in the matrix.
struct Place {
    /// The first row.
    row: usize,
    columns: Range<usize>,
}

/// The cache lines of the panels that come next.
struct Upcoming {
    /// The first line of the row whose turn it is.
    start: *const u8,
    /// Bytes from a row to the next.
    row_stride: usize,
    lines_in_row: usize,
    /// The line of the row to ask for next.
    line: usize,
}

impl Upcoming {
    /// Two panels at `row`, or, if there is none, at row 0 of the columns after `columns`. The matrix may end before.
    fn after(w: &MatrixView<'_>, row: usize, columns: Range<usize>) -> Self {
        let (row, first) = if row < w.rows() { (row, columns.start) } else { (0, columns.end) };
        let row_stride = w.format().bytes(w.row_stride());
        let offset = row * row_stride + w.format().bytes(first);
        Self {
            start: w.row_bytes(0, 0..0).as_ptr().wrapping_add(offset),
            row_stride,
            lines_in_row: w.format().bytes(columns.len()).div_ceil(LINE),
            line: 0,
        }
    }

    fn lines(&self) -> usize {
        2 * ROWS * self.lines_in_row
    }

    /// Asks for the next `count` lines.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn request(&mut self, count: usize) {
        for _ in 0..count {
            prefetch(self.start.wrapping_add(self.line * LINE));
            self.line += 1;
            if self.line == self.lines_in_row {
                self.start = self.start.wrapping_add(self.row_stride);
                self.line = 0;
            }
        }
    }
}

/// Adds the products of `V` panels with all tokens.
#[target_feature(enable = "avx2,fma,f16c")]
fn tokens_add<const V: usize>(
    panels: &[Panel; V],
    at: &Place,
    x: IntegerRef<'_>,
    mut ahead: Upcoming,
    out: &mut MatrixMut<'_>,
) {
    const MOST: usize = 3;
    let tiles = x.rows().div_ceil(MOST);
    let requests = ahead.lines().div_ceil(tiles);
    let mut token = 0;
    for tile in 0..tiles {
        ahead.request(requests);
        // As even as can be.
        let tokens = (x.rows() - token).div_ceil(tiles - tile);
        match tokens {
            1 => tile_add::<V, 1>(panels, at, x, token, out),
            2 => tile_add::<V, 2>(panels, at, x, token, out),
            _ => tile_add::<V, MOST>(panels, at, x, token, out),
        }
        token += tokens;
    }
}

/// Adds the products of `V` panels with tokens `token..token + T`.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile_add<const V: usize, const T: usize>(
    panels: &[Panel; V],
    at: &Place,
    x: IntegerRef<'_>,
    token: usize,
    out: &mut MatrixMut<'_>,
) {
    let sums = Panel::multiply::<V, T>(panels, at.columns.clone(), x, token);
    for t in 0..T {
        let out = &mut out.row_mut(token + t)[at.row..];
        for v in 0..V {
            let (_, out) = out.split_at_mut(v * ROWS);
            if let Some(out) = out.first_chunk_mut::<ROWS>() {
                store(out, _mm256_add_ps(load(out), sums[v][t]));
            } else {
                let mut all = [0.0; ROWS];
                store(&mut all, sums[v][t]);
                out.iter_mut().zip(all).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}
