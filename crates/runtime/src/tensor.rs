//! Activations: a row-major matrix of f32. Everything that flows between operators has this form.

use crate::buffer::Buffer;
use dsv3_kernels::{MatrixMut, MatrixRef};

/// A row-major f32 matrix `[rows, cols]`: one row a token (or user), one column a feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    values: Buffer<f32>,
}

impl Tensor {
    /// A matrix of zeros `[rows, cols]`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: Buffer::filled(rows * cols, 0.0) }
    }

    /// A matrix `[rows, cols]` to write, with whatever its memory holds.
    pub(crate) fn anything(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: Buffer::anything(rows * cols) }
    }

    /// Wraps `values` as `[rows, cols]`.
    ///
    /// # Panics
    /// If the length is not `rows * cols`.
    pub fn from_vec(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "a [{rows}, {cols}] tensor holds {} values", values.len());
        Self { rows, cols, values: Buffer::from_vec(values) }
    }

    /// The number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns (features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row, `[cols]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..][..self.cols]
    }

    /// One row to write, `[cols]`.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.cols..][..self.cols]
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values to write, row after row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The values without the shape.
    pub fn into_vec(self) -> Vec<f32> {
        self.values.into_vec()
    }

    /// The whole as the kernels read it.
    pub fn as_ref(&self) -> MatrixRef<'_> {
        MatrixRef::new(&self.values, self.rows, self.cols)
    }

    /// The columns from `first` on, `[rows, width]`, as the kernels read them.
    pub fn columns(&self, first: usize, width: usize) -> MatrixRef<'_> {
        assert!(first + width <= self.cols, "columns {first}..{} of {}", first + width, self.cols);
        // An empty matrix has no first row to start in.
        let values = self.values.get(first..).unwrap_or_default();
        MatrixRef::strided(values, self.rows, width, self.cols)
    }

    /// The whole as the kernels write it.
    pub fn as_mut(&mut self) -> MatrixMut<'_> {
        MatrixMut::new(&mut self.values, self.rows, self.cols)
    }

    /// The columns from `first` on, `[rows, width]`, as the kernels write them.
    pub fn columns_mut(&mut self, first: usize, width: usize) -> MatrixMut<'_> {
        assert!(first + width <= self.cols, "columns {first}..{} of {}", first + width, self.cols);
        let values = self.values.get_mut(first..).unwrap_or_default();
        MatrixMut::strided(values, self.rows, width, self.cols)
    }

    /// The columns of `self`, then those of `other`.
    ///
    /// # Shapes
    /// `[rows, a]` and `[rows, b]` to `[rows, a + b]`.
    pub fn concat_columns(&self, other: &Self) -> Self {
        assert_eq!(self.rows, other.rows, "both have one number of rows");
        let cols = self.cols + other.cols;
        let mut values = Buffer::with_capacity(self.rows * cols);
        for row in 0..self.rows {
            values.extend_from_slice(self.row(row));
            values.extend_from_slice(other.row(row));
        }
        Self { rows: self.rows, cols, values }
    }
}
