//! Two ways, as on AVX2: few tokens use each weight from the register (`stream_fp8`, `stream_q8_0`; bf16 and f32 as on AVX2,
//! which keeps up with memory), more tokens share weights turned to f32 in a buffer (`tile`). Bf16, which takes an
//! instruction for a vector, is used from the register by more tokens than few, too (`dot_bf16`).

mod dot_bf16;
mod stream_fp8;
mod stream_q8_0;
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
    let many = !order.is_few(x.rows(), STREAMED);
    match w.format() {
        Format::Q4K => tile::matmul(w, x, out),
        Format::Bf16 if many && order == Order::Fastest && x.rows() <= dot_bf16::MOST => {
            dot_bf16::matmul(w, x, out);
        }
        _ if many => tile::matmul(w, x, out),
        Format::Q8_0 => few(w, x, out),
        Format::Fp8 if fp8::fits(w) => few(w, x, out),
        _ => avx2::matmul(order, w, x, out),
    }
}

/// Some tokens at a time, of FP8 that fits or q8_0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
fn few(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
    for (tokens, some) in out.row_chunks(STREAMED) {
        let x = x.row_range(tokens);
        with_count!(x.rows(), T of [1 2 3 4], match w.format() {
            Format::Q8_0 => stream_q8_0::matmul_add::<T>(w, x, some),
            _ => stream_fp8::matmul_add::<T>(w, x, some),
        });
    }
}
