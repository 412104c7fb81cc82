//! When what ranks bring to a collective belongs together.

use crate::{Payload, transport::Label};

/// What must be the same for all members of a call, beside the collective, the devices, the payload and the columns.
#[derive(Clone, Copy)]
pub(super) enum Fit {
    /// Whole matrices, of as many rows or not.
    Matrices { same_rows: bool },
    /// Parts of so many bytes, of matrices of as many rows.
    Parts { bytes: usize },
    /// Any rows of matrices of any rows.
    AnyRows,
    /// Any bytes, for matrices of as many rows.
    AnyBytes,
}

impl Fit {
    pub(super) fn holds(self, ours: &Label, theirs: &Label, bytes: usize) -> bool {
        let [rows, cols] = theirs.shape;
        let same_rows = rows == ours.shape[0];
        let fits = match self {
            Self::Matrices { same_rows: demanded } => {
                let values = rows.checked_mul(cols);
                (same_rows || !demanded) && values.is_some_and(|values| theirs.payload.bytes(values) == bytes)
            }
            Self::Parts { bytes: expected } => same_rows && bytes == expected,
            // Blocks of values tell their number less exactly.
            Self::AnyRows => theirs.payload != Payload::F32 || bytes.is_multiple_of((4 * cols).max(1)),
            Self::AnyBytes => same_rows,
        };
        fits && *ours == Label { shape: [ours.shape[0], cols], ..*theirs }
    }
}
