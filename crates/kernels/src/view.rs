//! Weights as the kernels read them: borrowed, in their stored format, from any alignment.

mod rows;

use crate::Format;
use std::ops::Range;

pub(crate) use rows::{AheadOfRow, AheadOfRows, RowsBytes};

/// Scales of the blocks of an FP8 matrix, in place in the checkpoint.
///
/// The value of element `[r, c]` is its byte's value times
/// `grid[(first_row + r) / block_rows, c / block_cols]`.
#[derive(Clone, Copy, Debug)]
pub struct BlockScales<'a> {
    /// The grid: f32, little-endian, row-major, of any alignment.
    pub bytes: &'a [u8],
    /// Rows of the matrix that share a scale (128 in DeepSeek's checkpoints).
    pub block_rows: usize,
    /// Columns of the matrix that share a scale.
    pub block_cols: usize,
    /// Scales in a row of the grid.
    pub grid_cols: usize,
    /// The row of the whole matrix that row 0 of the view is. Blocks are counted from the whole matrix.
    pub first_row: usize,
}

/// A borrowed weight matrix `[rows, cols]`, row-major with a stride between rows, read in place: the bytes may be
/// a part of a mapped file and need no alignment.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    /// Elements from the start of a row to the start of the next.
    row_stride: usize,
    /// Holds `(rows - 1) * row_stride + cols` elements at least, or any number when there is no row.
    bytes: &'a [u8],
    /// Present exactly for FP8; covers every element of the view.
    scales: Option<BlockScales<'a>>,
    /// Whether it is known that the scales are moderate.
    moderate: bool,
    /// What is read after it, where that is not what lies behind it.
    next: Option<&'a [u8]>,
}

/// Magnitudes of moderate scales are below it, 2^68: 2^60 times any of them is finite.
const SCALE_LIMIT: f32 = f32::from_bits((127 + 68) << 23);

impl<'a> MatrixView<'a> {
    /// Rows that follow one another without gaps.
    ///
    /// # Panics
    /// If `values` is not `rows * cols` long.
    pub fn f32(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(cols), "a matrix of {rows} x {cols}");
        Self::f32_strided(values, rows, cols, cols)
    }

    /// Rows whose starts lie `row_stride` values apart: one head's keys inside `[tokens, heads * width]`.
    ///
    /// # Panics
    /// If rows overlap or the last row ends past the end of `values`.
    pub fn f32_strided(values: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = strided_len(rows, cols, row_stride);
        assert!(
            needed <= values.len(),
            "{rows} x {cols} by {row_stride} takes {needed}, got {}",
            values.len()
        );
        let bytes = f32_bytes(values);
        Self { format: Format::F32, rows, cols, row_stride, bytes, scales: None, moderate: true, next: None }
    }

    /// Rows that follow one another without gaps, in any format.
    ///
    /// # Panics
    /// If `bytes` is not `rows * cols` elements long, if a row is no whole number of the format's blocks, if scales are missing for FP8 or given for another format,
    /// or if the grid of scales does not cover the view. Who reads a file checks before.
    pub fn from_bytes(
        format: Format,
        bytes: &'a [u8],
        rows: usize,
        cols: usize,
        scales: Option<BlockScales<'a>>,
    ) -> Self {
        assert_eq!(
            Some(bytes.len()),
            format.matrix_bytes(rows, cols),
            "bytes of a matrix of {rows} x {cols} in {format:?}"
        );
        assert_eq!(scales.is_some(), format == Format::Fp8, "scales belong to FP8, and to nothing else");
        if let Some(scales) = &scales {
            assert!(scales.block_rows > 0 && scales.block_cols > 0, "a block has at least one element");
            let grid_cols = cols.div_ceil(scales.block_cols);
            assert_eq!(scales.grid_cols, grid_cols, "scales in a row of the grid for {cols} columns");
            let end = scales.first_row.checked_add(rows).expect("the row after the last is a usize");
            let needed = end.div_ceil(scales.block_rows).checked_mul(grid_cols * size_of::<f32>());
            let covered = needed.is_some_and(|needed| needed <= scales.bytes.len());
            assert!(rows == 0 || covered, "{} bytes of scales for {end} rows", scales.bytes.len());
        }
        Self { format, rows, cols, row_stride: cols, bytes, scales, moderate: scales.is_none(), next: None }
    }

    /// How many rows: outputs of [`matmul`](crate::Kernels::matmul).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns: inputs of [`matmul`](crate::Kernels::matmul).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How elements are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Elements from the start of a row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Some of the rows. Scales stay right: blocks are counted from the whole matrix. Only the last rows are followed by what
    /// follows the matrix.
    ///
    /// # Panics
    /// If the range ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> MatrixView<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let scales =
            self.scales.map(|scales| BlockScales { first_row: scales.first_row + range.start, ..scales });
        let bytes = self.element_range(range.start, 0, range.len(), self.cols);
        let next = self.next.filter(|_| range.end == self.rows);
        MatrixView { rows: range.len(), bytes, scales, next, ..*self }
    }

    /// One row of each `step`, from row `first` on.
    ///
    /// # Panics
    /// If there is no such row, or a block of scales is no whole number of steps.
    pub(crate) fn every(&self, first: usize, step: usize) -> MatrixView<'a> {
        assert!(first < self.rows, "row {first} of {}", self.rows);
        let rows = (self.rows - first).div_ceil(step);
        let scales = self.scales.map(|scales| {
            assert!(scales.block_rows.is_multiple_of(step), "{} rows with one scale", scales.block_rows);
            // A block is a whole number of steps, of each of which one row is left.
            let first_row = (scales.first_row + first) / step;
            BlockScales { block_rows: scales.block_rows / step, first_row, ..scales }
        });
        let bytes = self.element_range(first, 0, (rows - 1) * step + 1, self.cols);
        MatrixView { rows, row_stride: self.row_stride * step, bytes, scales, next: None, ..*self }
    }

    /// The largest power of two that [`every`](Self::every) takes as a step.
    pub(crate) fn largest_step(&self) -> usize {
        1 << self.scales.map_or(usize::BITS - 1, |scales| scales.block_rows.trailing_zeros())
    }

    /// Some of the columns, of every row.
    ///
    /// # Panics
    /// If the range ends past the last column, starts within a block of an FP8 matrix, or cuts one of ggml's blocks.
    pub fn column_range(&self, range: Range<usize>) -> MatrixView<'a> {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let scales = self.scales.map(|scales| {
            assert!(range.start.is_multiple_of(scales.block_cols), "columns {range:?} start within a block");
            let skipped = (range.start / scales.block_cols) * size_of::<f32>();
            // Nothing is left of an empty grid, and nothing is read of it.
            BlockScales { bytes: scales.bytes.get(skipped..).unwrap_or(&[]), ..scales }
        });
        let bytes = self.element_range(0, range.start, self.rows, range.len());
        MatrixView { cols: range.len(), bytes, scales, next: None, ..*self }
    }

    /// The bytes from element `[row, col]` to the end of a submatrix of `rows x cols` that starts there.
    #[inline(always)]
    fn element_range(&self, row: usize, col: usize, rows: usize, cols: usize) -> &'a [u8] {
        if rows == 0 {
            return &[];
        }
        let start = row * self.row_stride + col;
        let end = start + (rows - 1) * self.row_stride + cols;
        &self.bytes[self.format.bytes(start)..self.format.bytes(end)]
    }

    /// The stored bytes of columns `columns` of row `row`.
    pub(crate) fn row_bytes(&self, row: usize, columns: Range<usize>) -> &'a [u8] {
        debug_assert!(row < self.rows && columns.end <= self.cols);
        self.rows_bytes(columns).row(row)
    }

    /// The stored bytes of columns `columns` of every row: for a loop over rows, which has no time to look at the format in
    /// each.
    pub(crate) fn rows_bytes(&self, columns: Range<usize>) -> RowsBytes<'a> {
        RowsBytes {
            bytes: self.element_range(0, columns.start, self.rows, columns.len()),
            stride: self.format.bytes(self.row_stride),
            length: self.format.bytes(columns.len()),
        }
    }

    /// Cuts `columns` where the scale changes: in any row, all elements of a piece have one scale. One piece, unless
    /// the format is FP8.
    pub(crate) fn column_blocks(&self, columns: Range<usize>) -> ColumnBlocks {
        let size = self.scales.map_or(usize::MAX, |scales| scales.block_cols);
        let index = columns.start / size;
        ColumnBlocks { size, next: ColumnBlock { index, start: columns.start, end: 0 }, end: columns.end }
    }

    /// Cuts the rows where the scales change. One piece, unless the format is FP8.
    pub(crate) fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (size, skipped) = self
            .scales
            .map_or((usize::MAX, 0), |scales| (scales.block_rows, scales.first_row % scales.block_rows));
        let (mut next, rows) = (0, self.rows);
        std::iter::from_fn(move || {
            let start = next;
            next = rows.min((start + skipped) / size * size + size - skipped);
            (start < rows).then_some(start..next)
        })
    }

    /// Whether all scales are finite and below 2^68 in magnitude, which all of a trained model are; without it some
    /// products take a slower way. Looks at each of them, unless it is known.
    pub fn has_moderate_scales(&self) -> bool {
        self.moderate
            || self.row_blocks().all(|rows| {
                let scales = self.row_scales(rows.start);
                self.column_blocks(0..self.cols).all(|block| scales.of(block).abs() < SCALE_LIMIT)
            })
    }

    /// The same, for a matrix that is known to have [moderate scales](Self::has_moderate_scales): kernels do not look at
    /// them in each call. Where that is not so, FP8 products may be infinite or NaN.
    pub fn with_moderate_scales(self) -> Self {
        Self { moderate: true, ..self }
    }

    /// The same, with a word of what will be read when this is: kernels ask memory for its start before they end. Without
    /// it they ask for what lies behind.
    pub fn followed_by(self, next: &MatrixView<'a>) -> Self {
        Self { next: Some(next.bytes), ..self }
    }

    /// The same, without a word of what will be read next.
    pub(crate) fn alone(self) -> Self {
        Self { next: None, ..self }
    }

    /// Where a row begins, to ask memory for it. Rows past the end are taken to be of what is read after the matrix, and as far
    /// apart as its own; they need not be mapped.
    #[inline]
    pub(crate) fn start_of_row(&self, row: usize) -> *const u8 {
        let stride = self.format.bytes(self.row_stride);
        match self.next {
            Some(next) if row >= self.rows => next.as_ptr().wrapping_add((row - self.rows) * stride),
            _ => self.bytes.as_ptr().wrapping_add(row * stride),
        }
    }

    /// What is read `ahead` bytes after each byte of the rows.
    pub(crate) fn ahead_of_rows(&self, ahead: usize) -> AheadOfRows<'a> {
        AheadOfRows {
            bytes: self.bytes,
            stride: self.format.bytes(self.row_stride),
            rows: self.rows,
            ahead,
            next: self.next,
        }
    }

    /// Whether a row's scale changes only at multiples of `columns`.
    pub(crate) fn scale_ends_at(&self, columns: usize) -> bool {
        self.scales
            .is_none_or(|scales| scales.block_cols.is_multiple_of(columns) || scales.block_cols >= self.cols)
    }

    /// The scales of a row; looked up once a row, because finding the blocks takes a division.
    pub(crate) fn row_scales(&self, row: usize) -> RowScales<'a> {
        RowScales(self.scales.map(|scales| {
            let block_row = (scales.first_row + row) / scales.block_rows;
            &scales.bytes[block_row * scales.grid_cols * size_of::<f32>()..]
        }))
    }
}

/// Columns that share a scale in any given row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ColumnBlock {
    /// The number of the block, as [`RowScales::of`] takes it.
    pub(crate) index: usize,
    /// The first column.
    pub(crate) start: usize,
    /// The column after the last.
    pub(crate) end: usize,
}

/// The pieces that [`MatrixView::column_blocks`] cuts, in order.
#[derive(Clone, Debug)]
pub(crate) struct ColumnBlocks {
    size: usize,
    /// The piece to give next; its end is not set yet.
    next: ColumnBlock,
    end: usize,
}

impl Iterator for ColumnBlocks {
    type Item = ColumnBlock;

    fn next(&mut self) -> Option<ColumnBlock> {
        let ColumnBlock { index, start, .. } = self.next;
        if start >= self.end {
            return None;
        }
        let end = self.end.min((index + 1).saturating_mul(self.size));
        self.next = ColumnBlock { index: index + 1, start: end, end: 0 };
        Some(ColumnBlock { index, start, end })
    }
}

/// The scales of one row of a matrix, and of the rows in its block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowScales<'a>(Option<&'a [u8]>);

impl RowScales<'_> {
    /// The scale of a block of columns; 1 unless the format is FP8.
    pub(crate) fn of(self, block: ColumnBlock) -> f32 {
        let Some(bytes) = self.0 else { return 1.0 };
        let scale = bytes[block.index * size_of::<f32>()..].first_chunk();
        f32::from_le_bytes(*scale.expect("the grid of scales covers the view"))
    }
}

/// The bytes of values.
pub(crate) fn f32_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: any initialised f32 is four initialised bytes, u8 has no alignment, and the length in bytes is that of the
    // same slice, borrowed for the same lifetime.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Elements from the start of the first row to the end of the last.
pub(crate) fn strided_len(rows: usize, cols: usize, row_stride: usize) -> usize {
    assert!(rows <= 1 || cols <= row_stride, "rows of {cols} overlap at a stride of {row_stride}");
    if rows == 0 {
        return 0;
    }
    let last = (rows - 1).checked_mul(row_stride).and_then(|start| start.checked_add(cols));
    last.expect("a matrix in memory has a length that is a usize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use crate::testing::{Random, Spec, Weights};
    use proptest::prelude::*;

    /// Every element, by way of `dequantize_row`.
    fn elements(view: &MatrixView<'_>) -> Vec<Vec<f32>> {
        let kernels = Kernels::for_isa(crate::Isa::Scalar).expect("the scalar table");
        (0..view.rows())
            .map(|row| {
                let mut out = vec![f32::NAN; view.cols()];
                kernels.dequantize_row(view, row, &mut out);
                out
            })
            .collect()
    }

    fn spec() -> impl Strategy<Value = Spec> {
        let format = prop_oneof![Just(Format::F32), Just(Format::Bf16), Just(Format::Fp8)];
        (format, 0..12_usize, 0..40_usize, (1..9_usize, 1..9_usize), 0..20_usize, 0..4_usize).prop_map(
            |(format, rows, cols, block, first_row, offset)| Spec {
                format,
                rows,
                cols,
                block,
                first_row,
                offset,
            },
        )
    }

    /// `a..b` of `0..=length`, from two numbers of any size.
    fn range(length: usize, (a, b): (usize, usize)) -> Range<usize> {
        let (a, b) = (a % (length + 1), b % (length + 1));
        a.min(b)..a.max(b)
    }

    proptest! {
        #[test]
        fn a_part_has_the_elements_of_the_whole(
            spec in spec(), seed: u64, rows: (usize, usize), more: (usize, usize), cols: (usize, usize),
        ) {
            let weights = Weights::random(spec, &mut Random(seed));
            let whole = weights.view();
            let rows = range(spec.rows, rows);
            let more = range(rows.len(), more);
            let mut cols = range(spec.cols, cols);
            if spec.format == Format::Fp8 {
                cols.start -= cols.start % spec.block.1;
            }
            let part = whole.row_range(rows.clone()).column_range(cols.clone()).row_range(more.clone());
            prop_assert_eq!((part.rows(), part.cols(), part.format()), (more.len(), cols.len(), spec.format));
            let all = elements(&whole);
            let expected: Vec<Vec<f32>> =
                all[rows][more].iter().map(|row| row[cols.clone()].to_vec()).collect();
            prop_assert_eq!(elements(&part), expected);
        }

        #[test]
        fn blocks_of_columns_cover_the_columns_in_order(spec in spec(), cols: (usize, usize)) {
            let weights = Weights::random(spec, &mut Random(1));
            let cols = range(spec.cols, cols);
            let mut next = cols.start;
            for block in weights.view().column_blocks(cols.clone()) {
                prop_assert_eq!(block.start, next);
                prop_assert!(block.end > block.start && block.end <= cols.end);
                if spec.format == Format::Fp8 {
                    let ends = [block.start, block.end - 1];
                    prop_assert_eq!(ends.map(|column| column / spec.block.1), [block.index; 2]);
                }
                next = block.end;
            }
            prop_assert_eq!(next, cols.end);
        }
    }

    fn fp8(bytes: &[u8], scales: &[u8], rows: usize, first_row: usize) {
        let scales = BlockScales { bytes: scales, block_rows: 2, block_cols: 2, grid_cols: 2, first_row };
        MatrixView::from_bytes(Format::Fp8, bytes, rows, 3, Some(scales));
    }

    #[test]
    fn scales_are_moderate_or_known_to_be() {
        for (scale, moderate) in
            [(1.0, true), (-2.9e20, true), (3e20, false), (f32::INFINITY, false), (f32::NAN, false)]
        {
            let bytes: Vec<u8> = [1.0, 1.0, 1.0, scale].into_iter().flat_map(f32::to_le_bytes).collect();
            let scales =
                BlockScales { bytes: &bytes, block_rows: 2, block_cols: 2, grid_cols: 2, first_row: 0 };
            let view = MatrixView::from_bytes(Format::Fp8, &[0; 12], 4, 3, Some(scales));
            assert_eq!(view.has_moderate_scales(), moderate, "{scale}");
            assert!(view.row_range(0..2).has_moderate_scales());
            assert!(view.with_moderate_scales().row_range(1..4).has_moderate_scales());
        }
    }

    #[test]
    fn a_grid_that_just_covers_is_enough() {
        fp8(&[0; 6], &[0; 8], 2, 0);
        fp8(&[0; 6], &[0; 16], 2, 1);
    }

    #[test]
    #[should_panic(expected = "bytes of scales for 3 rows")]
    fn a_grid_that_ends_early_is_refused() {
        fp8(&[0; 6], &[0; 8], 2, 1);
    }

    #[test]
    #[should_panic(expected = "bytes of a matrix")]
    fn missing_bytes_are_refused() {
        MatrixView::from_bytes(Format::Bf16, &[0; 11], 2, 3, None);
    }

    #[test]
    #[should_panic(expected = "bytes of a matrix")]
    fn sizes_that_overflow_are_refused() {
        MatrixView::from_bytes(Format::F32, &[], usize::MAX / 2, 4, None);
    }

    #[test]
    #[should_panic(expected = "scales belong to FP8")]
    fn fp8_without_scales_is_refused() {
        MatrixView::from_bytes(Format::Fp8, &[0; 6], 2, 3, None);
    }

    #[test]
    #[should_panic(expected = "start within a block")]
    fn columns_from_within_a_block_are_refused() {
        let spec = Spec { format: Format::Fp8, rows: 2, cols: 8, block: (2, 4), first_row: 0, offset: 0 };
        Weights::random(spec, &mut Random(1)).view().column_range(2..8);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn rows_that_overlap_are_refused() {
        MatrixView::f32_strided(&[0.0; 20], 3, 5, 4);
    }

    #[test]
    #[should_panic(expected = "takes 11, got 10")]
    fn a_last_row_past_the_end_is_refused() {
        MatrixView::f32_strided(&[0.0; 10], 3, 3, 4);
    }
}
