//! The specification.

use super::{LANES, Lanes};
use crate::{MatrixMut, MatrixRef};

/// `out[c][lane] = x[lane, c] * factor`; zero in lanes that x has no row for.
pub(crate) fn pack_lanes(x: MatrixRef<'_>, factor: f32, out: &mut [Lanes]) {
    for (c, out) in out.iter_mut().enumerate() {
        *out = Lanes(std::array::from_fn(|lane| if lane < x.rows() { x.row(lane)[c] * factor } else { 0.0 }));
    }
}

/// `out[t, lane] = sum over c of x[t, c] * w[c][lane]`, for as many lanes as out has columns.
pub(crate) fn matmul_lanes(x: MatrixRef<'_>, w: &[Lanes], mut out: MatrixMut<'_>) {
    for t in 0..x.rows() {
        let sums = lane_sums(x.row(t).iter().copied(), w);
        let out = out.row_mut(t);
        out.copy_from_slice(&sums.0[..out.len()]);
    }
}

/// `sum over c of x[c] * w[c][lane]`.
pub(crate) fn lane_sums(x: impl Iterator<Item = f32>, w: &[Lanes]) -> Lanes {
    let mut sums = Lanes::ZERO;
    for (x, w) in x.zip(w) {
        for lane in 0..LANES {
            sums.0[lane] += x * w.0[lane];
        }
    }
    sums
}
