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

    /// The values from row 0 on, and how many lie from the start of a row to the start of the next.
    pub(crate) fn values(&self) -> (&'a [f32], usize) {
        (self.values, self.row_stride)
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

    /// Some of the columns, of every row.
    ///
    /// # Panics
    /// If the range ends past the last column.
    pub(crate) fn column_range(&self, range: Range<usize>) -> MatrixRef<'a> {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let values = if self.rows == 0 { &[] } else { &self.values[range.start..] };
        MatrixRef { values, cols: range.len(), ..*self }
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

    /// All rows to write at once, of a matrix of `N`.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub(crate) fn rows_mut<const N: usize>(&mut self) -> [&mut [f32]; N] {
        assert_eq!(self.rows, N, "rows of a matrix");
        // SAFETY: each of these rows exists, as for `row_mut`; rows do not overlap, and the results borrow `self`
        // exclusively.
        std::array::from_fn(|row| unsafe {
            std::slice::from_raw_parts_mut(self.first.add(row * self.row_stride), self.cols)
        })
    }

    /// Some rows of some columns, to be written while others write the rest.
    ///
    /// # Safety
    /// For `'a`, nothing else reaches its elements.
    ///
    /// # Panics
    /// If a range ends past the last row or column.
    pub(crate) unsafe fn part(&self, rows: Range<usize>, cols: Range<usize>) -> MatrixMut<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        // As for the splits below, the pointer of a part without elements may lie anywhere and is never read.
        let first = self.first.wrapping_add(rows.start * self.row_stride + cols.start);
        MatrixMut { first, rows: rows.len(), cols: cols.len(), ..*self }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f32) {
        for row in 0..self.rows {
            self.row_mut(row).fill(value);
        }
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

    /// Ranges of `most` rows, but for the last, and the part that each is.
    pub(crate) fn row_chunks(self, most: usize) -> impl Iterator<Item = (Range<usize>, MatrixMut<'a>)> {
        (0..self.rows).step_by(most).map(move |start| {
            let rows = start..self.rows.min(start + most);
            // As above: no two have a row in common.
            let first = self.first.wrapping_add(start.wrapping_mul(self.row_stride));
            (rows.clone(), MatrixMut { first, rows: rows.len(), ..self })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Splits again and again, as `cuts` say (by columns or rows, and where), and writes into every part the number
    /// of the part.
    fn write_parts(matrix: MatrixMut<'_>, cuts: &[(bool, usize)], number: &mut f32) {
        let Some(((columns, at), cuts)) = cuts.split_first() else {
            let mut matrix = matrix;
            *number += 1.0;
            for row in 0..matrix.rows() {
                matrix.row_mut(row).fill(*number);
            }
            return;
        };
        let (one, other) = if *columns {
            let at = at % (matrix.cols() + 1);
            matrix.split_columns_at(at)
        } else {
            let at = at % (matrix.rows() + 1);
            matrix.split_rows_at(at)
        };
        write_parts(one, cuts, number);
        write_parts(other, cuts, number);
    }

    /// The same on a plain grid of numbers.
    fn number_parts(
        grid: &mut [Vec<f32>],
        rows: Range<usize>,
        cols: Range<usize>,
        cuts: &[(bool, usize)],
        n: &mut f32,
    ) {
        let Some(((columns, at), cuts)) = cuts.split_first() else {
            *n += 1.0;
            grid[rows].iter_mut().for_each(|row| row[cols.clone()].fill(*n));
            return;
        };
        let at =
            if *columns { cols.start + at % (cols.len() + 1) } else { rows.start + at % (rows.len() + 1) };
        if *columns {
            number_parts(grid, rows.clone(), cols.start..at, cuts, n);
            number_parts(grid, rows, at..cols.end, cuts, n);
        } else {
            number_parts(grid, rows.start..at, cols.clone(), cuts, n);
            number_parts(grid, at..rows.end, cols, cuts, n);
        }
    }

    proptest! {
        #[test]
        fn parts_are_disjoint_and_cover_the_matrix(
            rows in 0..9_usize, cols in 0..9_usize, gap in 0..3_usize,
            cuts in prop::collection::vec(any::<(bool, usize)>(), 0..5),
        ) {
            let stride = cols + gap;
            let mut values = vec![-1.0; rows * stride];
            write_parts(MatrixMut::strided(&mut values, rows, cols, stride), &cuts, &mut 0.0);
            let mut grid = vec![vec![-1.0; stride]; rows];
            number_parts(&mut grid, 0..rows, 0..cols, &cuts, &mut 0.0);
            prop_assert_eq!(values, grid.concat());
        }

        #[test]
        fn a_range_of_rows_has_the_rows_of_the_whole(
            rows in 0..9_usize, cols in 0..9_usize, gap in 0..3_usize, a: usize, b: usize,
        ) {
            let values: Vec<f32> = (0..rows * (cols + gap)).map(|i| i as f32).collect();
            let whole = MatrixRef::strided(&values, rows, cols, cols + gap);
            let (a, b) = (a % (rows + 1), b % (rows + 1));
            let part = whole.row_range(a.min(b)..a.max(b));
            prop_assert_eq!((part.rows(), part.cols()), (a.abs_diff(b), cols));
            for row in 0..part.rows() {
                prop_assert_eq!(part.row(row), whole.row(a.min(b) + row));
            }
        }
    }

    #[test]
    fn threads_write_column_ranges_of_one_matrix() {
        let mut values = vec![0.0; 6 * 10];
        let (left, right) = MatrixMut::new(&mut values, 6, 10).split_columns_at(4);
        std::thread::scope(|scope| {
            for (mut part, value) in [(left, 1.0), (right, 2.0)] {
                scope.spawn(move || (0..part.rows()).for_each(|row| part.row_mut(row).fill(value)));
            }
        });
        assert!(values.chunks(10).all(|row| row == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]));
    }

    #[test]
    fn a_reborrow_ends_before_the_matrix() {
        let mut values = [0.0; 4];
        let mut matrix = MatrixMut::new(&mut values, 2, 2);
        matrix.reborrow().row_mut(0).fill(1.0);
        matrix.row_mut(1).fill(2.0);
        assert_eq!((matrix.row(0), matrix.row(1)), (&[1.0; 2][..], &[2.0; 2][..]));
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_past_the_last_is_refused() {
        MatrixMut::new(&mut [0.0; 4], 2, 2).row_mut(2);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn rows_that_overlap_are_refused() {
        MatrixMut::strided(&mut [0.0; 9], 3, 3, 2);
    }

    #[test]
    #[should_panic(expected = "takes 8, got 7")]
    fn a_last_row_past_the_end_is_refused() {
        MatrixMut::strided(&mut [0.0; 7], 2, 3, 5);
    }
}
