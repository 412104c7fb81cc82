//! Activations: f32 matrices with a stride between rows, to read and to write.

use crate::view::strided_len;
use std::{marker::PhantomData, ops::Range};

/// Activations `[rows, cols]` to read; usually a row is a token.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    /// Values from the start of a row to the start of the next.
    row_stride: usize,
}

impl<'a> MatrixRef<'a> {
    /// Rows that follow one another without gaps.
    ///
    /// # Panics
    /// If `values` is not `rows * cols` long.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(cols), "activations of {rows} x {cols}");
        Self { values, rows, cols, row_stride: cols }
    }

    /// Rows whose starts lie `row_stride` values apart: one head of `[tokens, heads * width]`.
    ///
    /// # Panics
    /// If rows overlap or the last row ends past the end of `values`.
    pub fn strided(values: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = strided_len(rows, cols, row_stride);
        assert!(
            needed <= values.len(),
            "{rows} x {cols} by {row_stride} takes {needed}, got {}",
            values.len()
        );
        Self { values, rows, cols, row_stride }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row, `[cols]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.values[row * self.row_stride..][..self.cols]
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If the range ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> MatrixRef<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let values = if range.is_empty() { &[] } else { &self.values[range.start * self.row_stride..] };
        MatrixRef { values, rows: range.len(), ..*self }
    }
}

/// Activations `[rows, cols]` to write. Can be split into rows or columns that threads write at the same time;
/// that is why it is not a slice: two column ranges of one matrix interleave in memory.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    /// The start of row 0. Invariant: for every `row < rows`, the `cols` values from `first + row * row_stride` lie
    /// in one borrowed slice, rows do not overlap, and for `'a` only this value reaches them.
    first: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for `&mut` references to its own elements, which no other value reaches (the invariant of
// `first`); `&mut [f32]` is Send.
unsafe impl Send for MatrixMut<'_> {}

// SAFETY: a shared MatrixMut only reads its own elements (`row`), as a shared `&mut [f32]` does, which is Sync.
unsafe impl Sync for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Rows that follow one another without gaps.
    ///
    /// # Panics
    /// If `values` is not `rows * cols` long.
    pub fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(cols), "activations of {rows} x {cols}");
        Self::strided(values, rows, cols, cols)
    }

    /// Rows whose starts lie `row_stride` values apart. Values between the rows are left alone.
    ///
    /// # Panics
    /// If rows overlap or the last row ends past the end of `values`.
    pub fn strided(values: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = strided_len(rows, cols, row_stride);
        assert!(
            needed <= values.len(),
            "{rows} x {cols} by {row_stride} takes {needed}, got {}",
            values.len()
        );
        Self { first: values.as_mut_ptr(), rows, cols, row_stride, borrowed: PhantomData }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row to read, `[cols]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row exists, so by the invariant of `first` its `cols` values lie in the borrowed slice and
        // only `self` reaches them; the result borrows `self`, so nothing writes them meanwhile.
        unsafe { std::slice::from_raw_parts(self.first.add(row * self.row_stride), self.cols) }
    }

    /// One row to write, `[cols]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row exists, so by the invariant of `first` its `cols` values lie in the borrowed slice and
        // only `self` reaches them; the result borrows `self` exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.row_stride), self.cols) }
    }

    /// The same elements, for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut { borrowed: PhantomData, ..*self }
    }

    /// Columns `..column` and columns `column..`, of every row.
    ///
    /// # Panics
    /// If there are fewer columns.
    pub fn split_columns_at(self, column: usize) -> (Self, Self) {
        assert!(column <= self.cols, "column {column} of {}", self.cols);
        // The two have no element in common, so each keeps the invariant of `first`. The wrapping sum is for a
        // matrix without rows, whose pointer may have nothing behind it and is never read.
        let right = MatrixMut { first: self.first.wrapping_add(column), cols: self.cols - column, ..self };
        (MatrixMut { cols: column, ..self }, right)
    }

    /// Rows `..row` and rows `row..`.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn split_rows_at(self, row: usize) -> (Self, Self) {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        // As above; the pointer of a lower part without rows may lie past the slice and is never read.
        let first = self.first.wrapping_add(row.wrapping_mul(self.row_stride));
        let lower = MatrixMut { first, rows: self.rows - row, ..self };
        (MatrixMut { rows: row, ..self }, lower)
    }
}
