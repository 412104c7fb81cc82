//! Tiles of twelve rows by sixteen lanes: a vector of sums each hides the latency of FMA, at thirteen loads for twelve FMAs.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::Lanes;
use super::avx2::{STEP, RowsAhead, Tiles, matmul_lanes_by};
use crate::avx2::with_count;
use crate::avx512::{load, store};
use crate::{KeyRows, LANES, MatrixMut, MatrixRef};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Rows of a tile, at most.
pub(crate) const TILE: usize = 12;

/// The tiles of this file, for values that begin `APART` bytes apart.
pub(crate) fn tiles<const APART: usize>() -> Tiles {
    Tiles { rows: TILE, add: rows_tile::<APART> }
}

/// `out[t, lane] = sum over c of x[t, c] * w[c][lane]`, for as many lanes as out has columns.
#[target_feature(enable = "avx512f")]
pub(crate) fn matmul_lanes(x: MatrixRef<'_>, w: &[Lanes], out: MatrixMut<'_>) {
    // SAFETY: this function has the features that `rows_tile` needs.
    unsafe { matmul_lanes_by(tiles::<4>(), x, w, out) }
}

/// Adds the products of some rows of x, columns `column..column + w.len()`, to `out`.
#[target_feature(enable = "avx512f")]
fn rows_tile<const APART: usize>(
    x: KeyRows<'_>,
    rows: Range<usize>,
    column: usize,
    w: &[Lanes],
    out: &mut [Lanes],
) {
    with_count!(rows.len(), R of [1 2 3 4 5 6 7 8 9 10 11 12], {
        let out: &mut [Lanes; R] = out.try_into().expect("a line for each row");
        let sums = products::<APART, R, 1>(from_fn(|r| x.row(rows.start + r, column)), [w], None);
        for (out, [sums]) in out.iter_mut().zip(sums) {
            let total = _mm512_add_ps(load(out), sums);
            store(out, total);
        }
    });
}

/// `sums[r][v][lane] = sum over c of rows[r][c] * w[v][c][lane]`, of values that begin `APART` bytes apart. With each [`STEP`]
/// lines it asks for a step of as many rows `ahead`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn products<const APART: usize, const R: usize, const V: usize>(
    rows: [&[u8]; R],
    w: [&[Lanes]; V],
    ahead: Option<RowsAhead>,
) -> [[__m512; V]; R] {
    let count = w[0].len();
    assert!(w.iter().all(|w| w.len() == count), "as many lines of each");
    for r in 0..R {
        assert!(rows[r].len() + APART >= count * APART + size_of::<f32>(), "a value for each line");
    }
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    for (step, first) in (0..count).step_by(STEP).enumerate() {
        if let Some(ahead) = ahead {
            ahead.request(R, step);
        }
        for c in first..count.min(first + STEP) {
            let mut lines = [_mm512_setzero_ps(); V];
            for v in 0..V {
                // SAFETY: `c < count`, the length of each.
                lines[v] = load(unsafe { w[v].get_unchecked(c) });
            }
            for r in 0..R {
                // SAFETY: each row has a value for each line, as asserted above; the load needs no alignment.
                let value = unsafe { rows[r].as_ptr().add(c * APART).cast::<f32>().read_unaligned() };
                let value = _mm512_set1_ps(value);
                for v in 0..V {
                    sums[r][v] = _mm512_fmadd_ps(value, lines[v], sums[r][v]);
                }
            }
        }
    }
    sums
}

const _: () = assert!(LANES == 16, "a line is a vector");
