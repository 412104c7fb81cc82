//! A matrix times many tokens, sixteen of them side by side in lanes: blocks of tokens, columns and rows so that a panel of
//! weights stays in the first cache, and the tokens' part of it and the sums in the second.

use super::{RowsAhead, TILE, VECTOR, add_to_rows, zeros};
use crate::{LANES, Lanes, MatrixMut, MatrixView};
use std::{mem::MaybeUninit, ops::Range};

/// Rows of a panel: two tiles for sixteen tokens, one for eight.
pub(crate) const ROWS: usize = 2 * TILE;
/// Lines that the columns of a panel take of sixteen tokens, at most.
pub(crate) const LINES: usize = 512;
/// Tokens that use a panel before the next panel: their columns (256 kB at most) stay in the second cache.
const TOKENS: usize = GROUPS * LANES;
/// Lanes of tokens.
const GROUPS: usize = 8;
/// Rows whose sums are kept in lanes until all columns have gone by, 132 kB.
const SUMS: usize = 22 * ROWS;

/// Memory for the columns of a group of tokens.
pub(crate) type GroupMemory = [MaybeUninit<Lanes>; LINES];

/// Some columns of at most [`ROWS`] rows of weights, as they are multiplied with tokens of type `X`.
pub(crate) trait Panel<X: Copy> {
    /// Columns at most, whole blocks of every format.
    const COLUMNS: usize;
    /// Columns that a tile goes through between two requests to memory.
    const STEP: usize;

    /// One without weights.
    fn new() -> Self;

    /// Fills in columns `columns` of rows `rows`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn fill(&mut self, w: &MatrixView<'_>, rows: Range<usize>, columns: Range<usize>);

    /// Columns `columns` of at most sixteen tokens, `tokens`, side by side in lanes; zero in lanes without a token.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn pack(x: X, tokens: Range<usize>, columns: Range<usize>, memory: &mut GroupMemory) -> &[Lanes];

    /// Adds the products of `R` rows from `first` on with a group of tokens, of which `V` vectors hold any, to the sums of
    /// as many rows. With each [`STEP`](Self::STEP) columns it asks for a step of as many rows `ahead`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn add_rows<const R: usize, const V: usize>(
        &self,
        first: usize,
        group: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [Lanes; R],
    );
}

/// `out[t, r] += sum over c of x[t, c] * w[r, c]`. A token's sums are taken in the same order wherever it lies.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_add<X: Copy, P: Panel<X>>(w: &MatrixView<'_>, x: X, mut out: MatrixMut<'_>) {
    let mut columns_memory = [const { [const { MaybeUninit::uninit() }; LINES] }; GROUPS];
    let mut sums_memory = [const { [const { MaybeUninit::uninit() }; SUMS] }; GROUPS];
    let tokens = out.rows();
    for token in (0..tokens).step_by(TOKENS) {
        let tokens = token..tokens.min(token + TOKENS);
        let (mut block, rest) = out.split_rows_at(tokens.len());
        for row in (0..w.rows()).step_by(SUMS) {
            let w = w.row_range(row..w.rows().min(row + SUMS));
            let (now, after) = block.split_columns_at(w.rows());
            block_add::<X, P>(&w, (x, tokens.clone()), now, &mut columns_memory, &mut sums_memory);
            block = after;
        }
        out = rest;
    }
}

/// As [`matmul_add`], of at most [`SUMS`] rows and [`TOKENS`] tokens; with memory for the tokens' columns and the sums.
#[target_feature(enable = "avx2,fma,f16c")]
fn block_add<X: Copy, P: Panel<X>>(
    w: &MatrixView<'_>,
    (x, tokens): (X, Range<usize>),
    mut out: MatrixMut<'_>,
    columns_memory: &mut [GroupMemory; GROUPS],
    sums_memory: &mut [[MaybeUninit<Lanes>; SUMS]; GROUPS],
) {
    let mut panel = P::new();
    let groups = tokens.len().div_ceil(LANES);
    let group_tokens = |group: usize| {
        let first = tokens.start + group * LANES;
        first..tokens.end.min(first + LANES)
    };
    let mut sums: [&mut [Lanes]; GROUPS] = Default::default();
    for (sums, memory) in sums.iter_mut().zip(sums_memory).take(groups) {
        *sums = zeros(&mut memory[..w.rows()]);
    }
    for first in (0..w.cols()).step_by(P::COLUMNS) {
        let columns = first..w.cols().min(first + P::COLUMNS);
        let mut packed: [&[Lanes]; GROUPS] = [&[]; _];
        for (group, memory) in columns_memory[..groups].iter_mut().enumerate() {
            // SAFETY: this function has the features that are asked for, here and below.
            packed[group] = unsafe { P::pack(x, group_tokens(group), columns.clone(), memory) };
        }
        for row in (0..w.rows()).step_by(ROWS) {
            let rows = row..w.rows().min(row + ROWS);
            // SAFETY: as above.
            unsafe { panel.fill(w, rows.clone(), columns.clone()) };
            for (group, packed) in packed[..groups].iter().enumerate() {
                // The first group asks for the next panel.
                let next = (group == 0).then(|| {
                    RowsAhead::after(w, row..row + ROWS, first..first + P::COLUMNS, P::COLUMNS / P::STEP)
                });
                let sums = &mut sums[group][rows.clone()];
                match group_tokens(group).len() <= VECTOR {
                    true => add_group::<X, P, 1>(&panel, packed, next, sums),
                    false => add_group::<X, P, 2>(&panel, packed, next, sums),
                }
            }
        }
    }
    for (group, sums) in sums[..groups].iter().enumerate() {
        let (mut now, rest) = out.split_rows_at(group_tokens(group).len());
        add_to_rows(sums, &mut now);
        out = rest;
    }
}

/// Adds the products of a panel with a group of tokens, of which `V` vectors hold any.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_group<X: Copy, P: Panel<X>, const V: usize>(
    panel: &P,
    group: &[Lanes],
    next: Option<RowsAhead>,
    sums: &mut [Lanes],
) {
    if V == 1
        && let Ok(sums) = sums.try_into()
    {
        // One vector of tokens and as many rows again keep as many sums.
        // SAFETY: this function has the features that are asked for, here and below.
        return unsafe { panel.add_rows::<ROWS, 1>(0, group, next, sums) };
    }
    let tiles = sums.len().div_ceil(TILE);
    for tile in 0..tiles {
        let (first, end) = (sums.len() * tile / tiles, sums.len() * (tile + 1) / tiles);
        let next = next.map(|next| next.below(first));
        let sums = &mut sums[first..end];
        // SAFETY: as above.
        unsafe {
            match end - first {
                1 => panel.add_rows::<1, V>(first, group, next, some(sums)),
                2 => panel.add_rows::<2, V>(first, group, next, some(sums)),
                3 => panel.add_rows::<3, V>(first, group, next, some(sums)),
                4 => panel.add_rows::<4, V>(first, group, next, some(sums)),
                5 => panel.add_rows::<5, V>(first, group, next, some(sums)),
                _ => panel.add_rows::<TILE, V>(first, group, next, some(sums)),
            }
        }
    }
}

/// All of `R` lines.
fn some<const R: usize>(lines: &mut [Lanes]) -> &mut [Lanes; R] {
    lines.try_into().expect("as many lines as rows of the tile")
}
