//! Many tokens: the work is to multiply. Rows of weights, turned to f32 as they are stored, are broadcast to tokens in
//! lanes, 32 at a time.

use crate::dequantize::avx512::dequantize_rows;
use crate::lanes::avx2::{RowsAhead, STEP, pack, panels};
use crate::lanes::avx512::{Strided, add_products};
use crate::{LANES, Lanes, MatrixMut, MatrixRef, MatrixView};
use std::mem::MaybeUninit;
use std::{array::from_fn, ops::Range};

/// Columns of a panel: a line of each sixteen tokens for each of them, 32 kB.
const COLUMNS: usize = 256;
/// From a row of a panel to the next one: a line more than it has columns, so that rows lie in different sets of a cache.
const PITCH: usize = COLUMNS + LANES;
/// Groups of sixteen tokens in a batch: a vector each.
const GROUPS: usize = 2;
/// Rows of a panel, 26 kB, which stays in the first cache with a part of a batch: more were slower by up to a third, for lines
/// of twelve rows at a time come from the second cache too late.
const ROWS: usize = 24;

/// A row of weights as f32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Row([f32; PITCH]);

impl AsMut<[f32]> for Row {
    fn as_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn matmul(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    // SAFETY: this function has the features of `Row`'s.
    unsafe { panels::matmul::<_, Row, GROUPS, ROWS>(w, x, out) }
}

impl panels::Row<MatrixRef<'_>, GROUPS> for Row {
    const COLUMNS: usize = COLUMNS;
    const LINES: usize = COLUMNS;
    const STEP: usize = STEP;
    const EMPTY: Self = Self([0.0; PITCH]);

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, _: RowsAhead, out: &mut [Self]) {
        dequantize_rows(w, 0, columns, out);
    }

    /// Group by group.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: MatrixRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut [MaybeUninit<Lanes>],
    ) -> &'m [Lanes] {
        let lines = &mut memory[..tokens.len().div_ceil(LANES) * columns.len()];
        for (first, lines) in tokens.clone().step_by(LANES).zip(lines.chunks_exact_mut(columns.len())) {
            let tokens = first..tokens.end.min(first + LANES);
            pack(x.row_range(tokens).column_range(columns.clone()), None, lines);
        }
        // SAFETY: the lines of each group have been written.
        unsafe { lines.assume_init_ref() }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [[Lanes; GROUPS]; R],
    ) {
        let columns = batch.len() / V;
        let tokens = from_fn(|v| &batch[v * columns..][..columns]);
        assert!(columns <= COLUMNS, "a weight for each line");
        let rows = Strided { start: rows.as_ptr().cast(), stride: size_of::<Self>() };
        // SAFETY: a row is as many f32 and nothing before them.
        unsafe { add_products::<4, R, V, GROUPS>(rows, tokens, ahead, sums) }
    }
}
