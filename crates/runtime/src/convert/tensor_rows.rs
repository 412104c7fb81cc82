//! The values of a tensor, for targets that lay weights out in ways of their own.

use super::rows::{Rows, Window};
use crate::{Checkpoint, Error, WeightSpec};
use dsv3_kernels::Kernels;
use std::ops::Range;

/// A tensor of a checkpoint that can be read as f32, whatever it is stored as, a part at a time. A vector is a matrix of
/// one row.
pub struct TensorRows {
    rows: Rows,
    shape: [usize; 2],
}

impl TensorRows {
    /// The tensor of a spec. Reads headers, and the block scales of an FP8 tensor, which are checked.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of an unsupported type, or scales that are not numbers.
    pub fn find(spec: &WeightSpec, checkpoint: &Checkpoint) -> Result<Self, Error> {
        let shape = match spec.shape[..] {
            [length] => [1, length],
            [rows, cols] => [rows, cols],
            ref shape => {
                return Err(spec.error(format!("expected a vector or a matrix, got shape {shape:?}")));
            }
        };
        Ok(Self { rows: Rows::find(spec, checkpoint)?, shape })
    }

    /// Bytes in the checkpoint, block scales included.
    pub fn bytes(&self) -> u64 {
        self.rows.bytes()
    }

    /// Asks the system to read the tensor soon, and does not wait.
    pub fn will_need(&self) {
        self.rows.will_need();
    }

    /// The values of some columns of some rows, row by row. FP8 elements are multiplied with their scales, in f32.
    ///
    /// # Panics
    /// If the part does not lie within the tensor, or `out` is not as long as it.
    pub fn read(&self, rows: Range<usize>, cols: Range<usize>, kernels: &Kernels, out: &mut [f32]) {
        let [all_rows, all_cols] = self.shape;
        assert!(rows.end <= all_rows && cols.end <= all_cols, "{rows:?}, {cols:?} of {:?}", self.shape);
        assert_eq!(out.len(), rows.len() * cols.len(), "values of {rows:?}, {cols:?}");
        let mut rest = out;
        for piece in self.rows.pieces(rows.clone(), rows.len()) {
            let (part, after) = rest.split_at_mut(piece.len() * cols.len());
            rest = after;
            self.rows.read(&Window { rows: piece, cols: cols.clone() }, kernels, part);
        }
    }
}
