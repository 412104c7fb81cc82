//! Two ways, as for matmul: few tokens add up rows of weights where they are read (`stream`, of q8_0 `stream_q8_0`, of FP8
//! `stream_fp8` where units of 32 columns have one moderate scale); more tokens share weights turned to f32 in a buffer
//! (`tile`).

mod stream;
mod stream_fp8;
mod stream_q8_0;
pub(super) mod tile;

use crate::avx2::{Bf16, Encoding, F32, Fp8, fp8};
use crate::{Format, MatrixMut, MatrixRef, MatrixView, Order};
use tile::Tiles;

/// Tokens up to which rows of weights are added where they are read.
const STREAMED: usize = 4;

/// `out[t, c] = sum over r of x[t, r] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_transposed(order: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    // SAFETY: this function has the features of these.
    unsafe { matmul_transposed_by(&Tiles::AVX2, order, w, x, out) }
}

/// As [`matmul_transposed`], many tokens by `tiles`.
///
/// # Safety
/// The processor has the features of `tiles`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn matmul_transposed_by(
    tiles: &Tiles,
    order: Order,
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    out.fill(0.0);
    if !order.is_few(x.rows(), STREAMED) || w.format() == Format::Q4K {
        // SAFETY: what the caller promises.
        return unsafe { tile::matmul_transposed_add(tiles, w, x, out) };
    }
    for (tokens, some) in out.row_chunks(STREAMED) {
        let x = x.row_range(tokens);
        few_add(w, x, some);
    }
}

/// At most `STREAMED` tokens, not of q4_K.
#[target_feature(enable = "avx2,fma,f16c")]
fn few_add(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match w.format() {
        Format::F32 => stream_add::<F32>(w, x, out),
        Format::Bf16 => stream_add::<Bf16>(w, x, out),
        Format::Fp8 if fp8::fits(w) => stream_fp8_add(w, x, out),
        Format::Fp8 => stream_add::<Fp8>(w, x, out),
        Format::Q8_0 => stream_q8_0_add(w, x, out),
        Format::Q4K => unreachable!("q4_K goes through `tile`"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn stream_add<E: Encoding>(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match x.rows() {
        0 => (),
        1 => stream::matmul_transposed_add::<E, 4, 1>(w, x, out),
        2 => stream::matmul_transposed_add::<E, 4, 2>(w, x, out),
        3 => stream::matmul_transposed_add::<E, 4, 3>(w, x, out),
        STREAMED => stream::matmul_transposed_add::<E, 4, STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile`"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn stream_q8_0_add(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match x.rows() {
        0 => (),
        1 => stream_q8_0::matmul_transposed_add::<4, 1>(w, x, out),
        2 => stream_q8_0::matmul_transposed_add::<4, 2>(w, x, out),
        3 => stream_q8_0::matmul_transposed_add::<4, 3>(w, x, out),
        STREAMED => stream_q8_0::matmul_transposed_add::<4, STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile`"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn stream_fp8_add(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match x.rows() {
        0 => (),
        1 => stream_fp8::matmul_transposed_add::<4, 1>(w, x, out),
        2 => stream_fp8::matmul_transposed_add::<4, 2>(w, x, out),
        3 => stream_fp8::matmul_transposed_add::<4, 3>(w, x, out),
        STREAMED => stream_fp8::matmul_transposed_add::<4, STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile`"),
    }
}
