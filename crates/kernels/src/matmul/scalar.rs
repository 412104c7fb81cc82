//! The specification: piece by piece, a row of weights as f32 times every token.

use crate::{MatrixMut, MatrixRef, MatrixView, Order, dequantize, reduce};

/// Columns turned to f32 at a time, on the stack.
const COLUMNS: usize = 512;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
pub(crate) fn matmul(_: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
    let mut weights = [0.0; COLUMNS];
    for row in 0..w.rows() {
        for first in (0..w.cols()).step_by(COLUMNS) {
            let weights = &mut weights[..COLUMNS.min(w.cols() - first)];
            dequantize::scalar::dequantize_part(w, row, first, weights);
            for token in 0..x.rows() {
                let x = &x.row(token)[first..first + weights.len()];
                out.row_mut(token)[row] += reduce::scalar::dot(x, weights);
            }
        }
    }
}
