//! The specification: every token adds up rows of weights, piece by piece.

use crate::{MatrixMut, MatrixRef, MatrixView, Order, dequantize, elementwise};

/// Columns turned to f32 at a time, on the stack.
const COLUMNS: usize = 512;

/// `out[t, c] = sum over r of x[t, r] * w[r, c]`.
pub(crate) fn matmul_transposed(_: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
    let mut weights = [0.0; COLUMNS];
    for first in (0..w.cols()).step_by(COLUMNS) {
        let weights = &mut weights[..COLUMNS.min(w.cols() - first)];
        for row in 0..w.rows() {
            dequantize::scalar::dequantize_part(w, row, first, weights);
            for token in 0..x.rows() {
                let out = &mut out.row_mut(token)[first..first + weights.len()];
                elementwise::scalar::add_scaled(out, x.row(token)[row], weights);
            }
        }
    }
}
