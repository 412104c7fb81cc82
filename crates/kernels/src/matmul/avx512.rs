//! Two ways, as on AVX2: few tokens use each weight from the register (of FP8 `stream_fp8`; the other formats wait for memory
//! on AVX2's way, too), more tokens share weights turned to f32 in a buffer (`tile`).

mod stream_fp8;
mod tile;

use super::avx2;
use crate::avx2::with_count;
use crate::avx512::fp8;
use crate::{Format, MatrixMut, MatrixRef, MatrixView, Order};

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
pub(crate) fn matmul(order: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    let in_lanes = match order {
        Order::Fastest => x.rows() > STREAMED,
        Order::Few => false,
        Order::Many => true,
    };
    match w.format() {
        Format::Q4K => tile::matmul(w, x, out),
        _ if in_lanes => tile::matmul(w, x, out),
        Format::Fp8 if fp8::fits(w) => few_fp8(w, x, out),
        _ => avx2::matmul(order, w, x, out),
    }
}

/// Some tokens at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
fn few_fp8(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
    for first in (0..x.rows()).step_by(STREAMED) {
        let x = x.row_range(first..x.rows().min(first + STREAMED));
        let (some, rest) = out.split_rows_at(x.rows());
        with_count!(x.rows(), T of [1 2 3 4], stream_fp8::matmul_add::<T>(w, x, some));
        out = rest;
    }
}
