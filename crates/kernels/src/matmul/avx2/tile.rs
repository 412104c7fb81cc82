//! Many tokens: the work is to multiply. Rows of weights, turned to f32 as they are stored, are broadcast to tokens in
//! lanes.

use crate::lanes::avx2::panels::{self, GroupMemory, LINES, ROWS};
use crate::lanes::avx2::{RowsAhead, STEP, add_tile, pack};
use crate::{LANES, Lanes, MatrixMut, MatrixRef, MatrixView, dequantize};
use std::{array::from_fn, ops::Range};

/// Columns of a panel: a line of tokens each.
const COLUMNS: usize = LINES;
/// From a row of a panel to the next one: a line more than it has columns, so that rows lie in different sets of a cache.
const PITCH: usize = COLUMNS + LANES;

/// A panel of weights as f32, 25 kB.
#[repr(align(64))]
struct Panel([[f32; PITCH]; ROWS]);

/// `out[t, r] += sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    panels::matmul_add::<_, Panel>(w, x, out);
}

impl panels::Panel<MatrixRef<'_>> for Panel {
    const COLUMNS: usize = COLUMNS;
    const STEP: usize = STEP;

    fn new() -> Self {
        Self([[0.0; PITCH]; ROWS])
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(&mut self, w: &MatrixView<'_>, rows: Range<usize>, columns: Range<usize>) {
        dequantize::avx2::dequantize_rows(w, rows.start, columns, &mut self.0[..rows.len()]);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: MatrixRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut GroupMemory,
    ) -> &'m [Lanes] {
        let lines = &mut memory[..columns.len()];
        pack(x.row_range(tokens).column_range(columns), None, lines)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_rows<const R: usize, const V: usize>(
        &self,
        first: usize,
        group: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [Lanes; R],
    ) {
        add_tile::<R, V>(from_fn(|r| &self.0[first + r][..]), group, ahead, sums);
    }
}
