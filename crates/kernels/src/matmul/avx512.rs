//! Many tokens share weights turned to f32 in a buffer (`tile`); few read them as on AVX2, for they wait for memory.

mod tile;

use super::avx2;
use crate::{Format, MatrixMut, MatrixRef, MatrixView, Order};

/// Tokens up to which weights are used from the register.
const FEW: usize = 4;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) fn matmul(order: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    let in_lanes = match order {
        Order::Fastest => x.rows() > FEW,
        Order::Few => false,
        Order::Many => true,
    };
    match in_lanes || w.format() == Format::Q4K {
        true => tile::matmul(w, x, out),
        false => avx2::matmul(order, w, x, out),
    }
}
