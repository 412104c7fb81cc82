//! Many tokens: the work is to multiply. Sixteen tokens lie side by side in lanes, and rows of weights, turned to f32 as
//! they are stored in a buffer that stays in the first cache, are broadcast to them.

use crate::avx2::LANES as VECTOR;
use crate::lanes::avx2::{RowsAhead, STEP, TILE, add_to_rows, load, pack, store, tile, zeros};
use crate::{LANES, Lanes, MatrixMut, MatrixRef, MatrixView, dequantize};
use std::arch::x86_64::*;
use std::{array::from_fn, mem::MaybeUninit};

/// Rows of a panel of weights: two tiles for sixteen tokens, one for eight.
const ROWS: usize = 2 * TILE;
/// Columns of a panel of weights.
const COLUMNS: usize = 512;
/// From a row of a panel to the next one: a line more than it has columns, so that rows lie in different sets of a cache.
const PITCH: usize = COLUMNS + LANES;
/// Tokens that use a panel before the next panel: their columns (256 kB) stay in the second cache.
const TOKENS: usize = GROUPS * LANES;
/// Lanes of tokens.
const GROUPS: usize = 8;
/// Rows whose sums are kept in lanes until all columns have gone by, 132 kB.
const SUMS: usize = 22 * ROWS;

/// A panel of weights as f32, 25 kB.
#[repr(align(64))]
struct Panel([[f32; PITCH]; ROWS]);

/// `out[t, r] += sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let mut columns_memory = [const { [const { MaybeUninit::uninit() }; COLUMNS] }; GROUPS];
    let mut sums_memory = [const { [const { MaybeUninit::uninit() }; SUMS] }; GROUPS];
    for token in (0..x.rows()).step_by(TOKENS) {
        let x = x.row_range(token..x.rows().min(token + TOKENS));
        let (mut block, rest) = out.split_rows_at(x.rows());
        for row in (0..w.rows()).step_by(SUMS) {
            let w = w.row_range(row..w.rows().min(row + SUMS));
            let (now, after) = block.split_columns_at(w.rows());
            block_add(&w, x, now, &mut columns_memory, &mut sums_memory);
            block = after;
        }
        out = rest;
    }
}

/// As [`matmul_add`], of at most [`SUMS`] rows and [`TOKENS`] tokens; with memory for the tokens' columns and the sums.
#[target_feature(enable = "avx2,fma,f16c")]
fn block_add(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
    columns_memory: &mut [[MaybeUninit<Lanes>; COLUMNS]; GROUPS],
    sums_memory: &mut [[MaybeUninit<Lanes>; SUMS]; GROUPS],
) {
    let mut panel = Panel([[0.0; PITCH]; ROWS]);
    let groups = x.rows().div_ceil(LANES);
    let group_rows = |group: usize| group * LANES..x.rows().min((group + 1) * LANES);
    let mut sums: [&mut [Lanes]; GROUPS] = Default::default();
    for (sums, memory) in sums.iter_mut().zip(sums_memory).take(groups) {
        *sums = zeros(&mut memory[..w.rows()]);
    }
    for first in (0..w.cols()).step_by(COLUMNS) {
        let columns = first..w.cols().min(first + COLUMNS);
        let mut tokens: [&[Lanes]; GROUPS] = [&[]; _];
        for (group, memory) in columns_memory[..groups].iter_mut().enumerate() {
            let x = x.row_range(group_rows(group)).column_range(columns.clone());
            tokens[group] = pack(x, 1.0, &mut memory[..columns.len()]);
        }
        for row in (0..w.rows()).step_by(ROWS) {
            let rows = row..w.rows().min(row + ROWS);
            let panel = &mut panel.0[..rows.len()];
            dequantize::avx2::dequantize_rows(w, row, columns.clone(), panel);
            for (group, tokens) in tokens[..groups].iter().enumerate() {
                // The first group asks for the next panel.
                let next = (group == 0).then(|| next_panel(w, row, first));
                let sums = &mut sums[group][rows.clone()];
                match group_rows(group).len() <= VECTOR {
                    true => add_group::<1>(panel, tokens, next, sums),
                    false => add_group::<2>(panel, tokens, next, sums),
                }
            }
        }
    }
    for (group, sums) in sums[..groups].iter().enumerate() {
        let (mut now, rest) = out.split_rows_at(group_rows(group).len());
        add_to_rows(sums, &mut now);
        out = rest;
    }
}

/// The panel after that at `row` and `first`: the rows below, or the next columns from the top. The matrix may end before.
fn next_panel(w: &MatrixView<'_>, row: usize, first: usize) -> RowsAhead {
    let (row, first) = if row + ROWS < w.rows() { (row + ROWS, first) } else { (0, first + COLUMNS) };
    RowsAhead::new(w, row, first, w.format().bytes(COLUMNS) / (COLUMNS / STEP))
}

/// Adds the products of a panel with a group of tokens, of which `V` vectors hold any.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_group<const V: usize>(
    panel: &[[f32; PITCH]],
    group: &[Lanes],
    next: Option<RowsAhead>,
    sums: &mut [Lanes],
) {
    if V == 1 && panel.len() == ROWS {
        // One vector of tokens and as many rows again keep as many sums.
        return add_rows::<ROWS, V>(panel, 0, group, next, sums);
    }
    let tiles = panel.len().div_ceil(TILE);
    for number in 0..tiles {
        let (first, end) = (panel.len() * number / tiles, panel.len() * (number + 1) / tiles);
        match end - first {
            1 => add_rows::<1, V>(panel, first, group, next, sums),
            2 => add_rows::<2, V>(panel, first, group, next, sums),
            3 => add_rows::<3, V>(panel, first, group, next, sums),
            4 => add_rows::<4, V>(panel, first, group, next, sums),
            5 => add_rows::<5, V>(panel, first, group, next, sums),
            _ => add_rows::<TILE, V>(panel, first, group, next, sums),
        }
    }
}

/// As [`add_group`], of `R` rows from `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_rows<const R: usize, const V: usize>(
    panel: &[[f32; PITCH]],
    first: usize,
    group: &[Lanes],
    next: Option<RowsAhead>,
    sums: &mut [Lanes],
) {
    let rows: [&[f32]; R] = from_fn(|r| &panel[first + r][..]);
    let products = tile::<R, V>(rows, group, next.map(|next| next.below(first)));
    for (sums, products) in sums[first..first + R].iter_mut().zip(products) {
        let before = load(sums);
        store(sums, from_fn(|v| if v < V { _mm256_add_ps(before[v], products[v]) } else { before[v] }));
    }
}
