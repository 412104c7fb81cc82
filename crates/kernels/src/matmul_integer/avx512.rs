//! Tokens lie side by side in lanes of four columns each, which one instruction multiplies with four weights and adds up
//! exactly (`tile`). Of `q4_K` and FP8, few tokens read each weight once and use it from the register (`stream_q4k`,
//! `stream_fp8`).

mod fill;
mod stream_fp8;
mod stream_q4k;
mod tile;

use super::{FP8_SPAN, Few};
use crate::avx2::with_count;
use crate::{Format, IntegerRef, LANES, MatrixMut, MatrixView, Order};

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;
/// Up to so many tokens weights become f32 as fast as memory gives them (measured on Emerald Rapids). Of q8_0, which has no way
/// from the register in integers, three fill too little of a vector.
pub(crate) const FEW: Few = Few { q8_0: 3, fp8: 2 };

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    // Sums of tokens that share a vector are not added up as those of one that has it alone.
    let beside = match order {
        Order::Fastest => (LANES / x.rows().max(1)).clamp(1, tile::MOST_BESIDE),
        Order::Few | Order::Many => 1,
    };
    match (w.format(), beside) {
        (Format::Q4K | Format::Fp8, _) if order.is_few(x.rows(), STREAMED) => few(w, x, out),
        (Format::Q4K, 2..) => tile::matmul::<true, 1, 2, { tile::ROWS }>(w, x, out),
        (Format::Q4K, _) => tile::matmul::<true, 1, 1, { tile::ROWS }>(w, x, out),
        (Format::Q8_0, 4..) => tile::matmul::<false, 1, 4, { tile::ROWS }>(w, x, out),
        (Format::Q8_0, 2..) => tile::matmul::<false, 1, 2, { tile::ROWS }>(w, x, out),
        (Format::Q8_0, _) => tile::matmul::<false, 1, 1, { tile::ROWS }>(w, x, out),
        (Format::Fp8, 2..) => tile::matmul::<false, { FP8_SPAN }, 2, { tile::FP8_ROWS }>(w, x, out),
        (Format::Fp8, _) => tile::matmul::<false, { FP8_SPAN }, 1, { tile::FP8_ROWS }>(w, x, out),
        (Format::F32 | Format::Bf16, _) => unreachable!("{} has no integer product", w.format()),
    }
}

/// Some tokens at a time, of q4_K or FP8.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
fn few(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    for (tokens, mut some) in out.row_chunks(STREAMED) {
        let x = x.row_range(tokens);
        with_count!(x.rows(), T of [1 2 3 4], match w.format() {
            Format::Q4K => stream_q4k::matmul::<T>(w, x, some),
            _ => {
                some.fill(0.0);
                stream_fp8::matmul_add::<T>(w, x, some);
            }
        });
    }
}
