//! Few tokens read each weight of `q4_K` once and use it from the register (`stream_q4k`); more lie side by side in lanes
//! (`tile_q4k`). Weights of 8 bits are multiplied with tokens in lanes, as magnitudes, their signs being the tokens'
//! (`tile_signed`). Processors that compute vectors in halves have their own ways for few tokens (`halves`).

pub(crate) mod halves;
pub(super) mod q4k;
pub(super) mod signed;
pub(super) mod stream_q4k;
mod tile_q4k;
mod tile_signed;

use crate::avx2::with_count;
use crate::integers::BLOCK;
use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order};
use std::arch::x86_64::*;
use stream_q4k::{Sums, Whole};

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    match w.format() {
        Format::Q4K if order.is_few(x.rows(), STREAMED) => few_q4k::<Whole>(w, x, out),
        Format::Q4K => tile_q4k::matmul(w, x, out),
        Format::Q8_0 | Format::Fp8 => tile_signed::matmul(w, x, out),
        Format::F32 | Format::Bf16 => unreachable!("{} has no integer product", w.format()),
    }
}

/// Some tokens at a time, of q4_K.
#[target_feature(enable = "avx2,fma,f16c")]
fn few_q4k<S: Sums>(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    for (tokens, some) in out.row_chunks(STREAMED) {
        let x = x.row_range(tokens);
        with_count!(x.rows(), T of [1 2 3 4], stream_q4k::matmul::<S, T>(w, x, some));
    }
}

/// 32 integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_int8(values: &[i8; BLOCK]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}
