//! Many tokens: the work is to multiply. Rows of weights, turned to f32 as they are stored, are broadcast to tokens in
//! lanes.

use crate::lanes::avx2::panels;
use crate::lanes::avx2::{RowsAhead, STEP, add_tile, pack};
use crate::view::f32_bytes;
use crate::{LANES, Lanes, MatrixMut, MatrixRef, MatrixView, dequantize};
use std::mem::MaybeUninit;
use std::{array::from_fn, ops::Range};

/// Columns of a panel: a line of tokens each.
const COLUMNS: usize = 512;
/// From a row of a panel to the next one: a line more than it has columns, so that rows lie in different sets of a cache.
const PITCH: usize = COLUMNS + LANES;

/// A row of weights as f32.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Row([f32; PITCH]);

impl AsMut<[f32]> for Row {
    fn as_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    // SAFETY: this function has the features of `Row`'s.
    unsafe { panels::matmul::<_, Row, 1, { panels::FEW_ROWS }>(w, x, out) }
}

impl panels::Row<MatrixRef<'_>, 1> for Row {
    const COLUMNS: usize = COLUMNS;
    const LINES: usize = COLUMNS;
    const STEP: usize = STEP;
    const EMPTY: Self = Self([0.0; PITCH]);

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, _: RowsAhead, out: &mut [Self]) {
        dequantize::avx2::dequantize_rows(w, 0, columns, out);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: MatrixRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut [MaybeUninit<Lanes>],
    ) -> &'m [Lanes] {
        let lines = &mut memory[..columns.len()];
        pack(x.row_range(tokens).column_range(columns), None, lines)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [[Lanes; 1]; R],
    ) {
        add_tile::<4, R, V>(from_fn(|r| f32_bytes(&rows[r].0)), batch, ahead, sums.as_flattened_mut());
    }
}
