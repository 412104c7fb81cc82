//! Tiles of twelve rows by sixteen lanes: a vector of sums each hides the latency of FMA, at thirteen loads for twelve FMAs.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::Lanes;
use super::avx2::{RowsAhead, STEP, Tiles, matmul_lanes_by};
use crate::avx2::with_count;
use crate::avx512::{load, store};
use crate::{KeyRows, LANES, MatrixMut, MatrixRef};
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a tile, at most.
pub(crate) const TILE: usize = 12;

/// The tiles of this file, for values that begin `APART` bytes apart.
pub(crate) const fn tiles<const APART: usize>() -> Tiles {
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
        let out = out.as_chunks_mut::<1>().0.try_into().expect("a line for each row");
        assert!(column + w.len() <= x.cols(), "a value for each line");
        let rows = Strided { start: x.row_range(rows).start::<APART>(column), stride: x.stride() };
        // SAFETY: rows of x begin so far apart, and have these columns.
        unsafe { add_products::<APART, R, 1, 1>(rows, [w], None, out) }
    });
}

/// Rows that lie as far apart as each other: a register for each four of them, not for each, for there are not as many.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    /// The first row.
    pub(crate) start: *const u8,
    /// Bytes from a row to the next.
    pub(crate) stride: usize,
}

/// Rows whose addresses are told from one of them, by steps of one, two and three strides.
const FOUR: usize = 4;

/// `out[r][v][lane] += sum over c of rows[r][c] * w[v][c][lane]`, of values that begin `APART` bytes apart. With each [`STEP`]
/// lines it asks for a step of as many rows `ahead`.
///
/// # Safety
/// There are `R` rows, each with a readable value for each line.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) unsafe fn add_products<const APART: usize, const R: usize, const V: usize, const G: usize>(
    rows: Strided,
    w: [&[Lanes]; V],
    ahead: Option<RowsAhead>,
    out: &mut [[Lanes; G]; R],
) {
    let count = w[0].len();
    assert!(w.iter().all(|w| w.len() == count), "as many lines of each");
    let steps = [0, rows.stride, 2 * rows.stride, 3 * rows.stride];
    let mut fours = [rows.start; TILE / FOUR];
    for (number, start) in fours.iter_mut().enumerate() {
        *start = start.wrapping_add(number * FOUR * rows.stride);
    }
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    for (step, first) in (0..count).step_by(STEP).enumerate() {
        if let Some(ahead) = ahead {
            ahead.request::<_MM_HINT_T1, R>(step);
        }
        for c in first..count.min(first + STEP) {
            let mut lines = [_mm512_setzero_ps(); V];
            for v in 0..V {
                // SAFETY: `c < count`, the length of each.
                lines[v] = load(unsafe { w[v].get_unchecked(c) });
            }
            for r in 0..R {
                // SAFETY: `start` of a four has gone `c` values on, and row `r` has that value; the load needs no alignment.
                let value = unsafe { fours[r / FOUR].add(steps[r % FOUR]).cast::<f32>().read_unaligned() };
                let value = _mm512_set1_ps(value);
                for v in 0..V {
                    sums[r][v] = _mm512_fmadd_ps(value, lines[v], sums[r][v]);
                }
            }
            for start in &mut fours[..R.div_ceil(FOUR)] {
                *start = opaque(start.wrapping_add(APART));
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sums) in out.iter_mut().zip(sums) {
            let total = _mm512_add_ps(load(out), sums);
            store(out, total);
        }
    }
}

/// `pointer`, of which the compiler knows no more than that it is in a register: it would make a pointer of each sum that it is
/// part of, and there are not enough registers for those.
#[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written")]
#[inline(always)]
fn opaque(mut pointer: *const u8) -> *const u8 {
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
    }
    pointer
}

const _: () = assert!(LANES == 16, "a line is a vector");
