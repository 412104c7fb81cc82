//! Tokens lie side by side in lanes of four columns each, which one instruction multiplies with four weights and adds up
//! exactly (`tile`). Of `q4_K`, few tokens read each weight once and use it from the register (`stream_q4k`).

mod fill;
mod stream_fp8;
mod stream_q4k;
mod tile;

use super::Few;
use crate::avx2::with_count;
use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order};

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;
/// Of q8_0 lanes cost the same however few are filled: as much as passes of four and of one in f32 (measured on Emerald Rapids).
pub(crate) const FEW: Few = Few { q8_0: 4, fp8: 2 };

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    let is_few = match order {
        Order::Fastest => x.rows() <= STREAMED,
        Order::Few => true,
        Order::Many => false,
    };
    match w.format() {
        Format::Q4K | Format::Fp8 if is_few => few(w, x, out),
        Format::Q4K => tile::matmul::<true, 1, { tile::ROWS }>(w, x, out),
        Format::Q8_0 => tile::matmul::<false, 1, { tile::ROWS }>(w, x, out),
        Format::Fp8 => tile::matmul::<false, { tile::FP8_SPAN }, { tile::FP8_ROWS }>(w, x, out),
        Format::F32 | Format::Bf16 => unreachable!("{} has no integer product", w.format()),
    }
}

/// Some tokens at a time, of q4_K or FP8.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
fn few(w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
    for first in (0..x.rows()).step_by(STREAMED) {
        let x = x.row_range(first..x.rows().min(first + STREAMED));
        let (some, rest) = out.split_rows_at(x.rows());
        with_count!(x.rows(), T of [1 2 3 4], match w.format() {
            Format::Q4K => stream_q4k::matmul::<T>(w, x, some),
            _ => stream_fp8::matmul_add::<T>(w, x, some),
        });
        out = rest;
    }
}
