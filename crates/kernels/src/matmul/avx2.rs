//! Three ways: few tokens use each weight from the register (`stream`, bound by memory); more tokens share weights turned to
//! f32 in a buffer (`tile`, bound by arithmetic), or do so in the order of few (`chains`).

mod chains;
mod stream;
mod stream_fp8;
mod stream_q8_0;
mod tile;

use crate::avx2::{Bf16, Encoding, F32, Fp8, fp8};
use crate::{Format, LANES, MatrixMut, MatrixRef, MatrixView, Order};

/// A product of this file; the processor has AVX2, FMA and F16C.
type MatmulAdd = unsafe fn(&MatrixView<'_>, MatrixRef<'_>, MatrixMut<'_>);

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;
/// Tokens up to which several such passes are made of FP8 and q8_0 (measured on Zen 2).
const CHEAPLY_STREAMED: usize = 3 * STREAMED;

/// Tokens from which on sixteen in lanes, filled or not, are as fast as a few at a time (measured on Zen 2).
const FILLED: usize = 12;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul(order: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match order {
        Order::Fastest => fastest(w, x, out),
        Order::Few => few(w, x, out),
        Order::Many => tile::matmul(w, x, out),
    }
}

/// Some tokens at a time, as many as sum in the same order as one alone: sixteen in lanes where most are filled, or a few, of
/// FP8 two (each sum is kept in four parts).
#[target_feature(enable = "avx2,fma,f16c")]
fn few(w: &MatrixView<'_>, mut x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let (most, in_lanes): (usize, Option<MatmulAdd>) = match w.format() {
        Format::F32 | Format::Bf16 => (STREAMED, Some(chains::matmul_add::<chains::Floats>)),
        Format::Fp8 if fp8::fits(w) => (2, Some(chains::matmul_add::<Fp8>)),
        Format::Fp8 | Format::Q8_0 => (STREAMED, None),
        Format::Q4K => return tile::matmul(w, x, out),
    };
    while let Some(matmul_add) = in_lanes
        && x.rows() >= FILLED
    {
        let tokens = x.rows().min(LANES);
        let (mut some, rest) = out.split_rows_at(tokens);
        some.fill(0.0);
        // SAFETY: this function has the features of the others.
        unsafe { matmul_add(w, x.row_range(0..tokens), some) };
        (x, out) = (x.row_range(tokens..x.rows()), rest);
    }
    for (tokens, some) in out.row_chunks(most) {
        stream_few(w, x.row_range(tokens), some);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fastest(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    if w.format() == Format::Q4K {
        return tile::matmul(w, x, out);
    }
    let is_cheap = || w.format() == Format::Q8_0 || w.format() == Format::Fp8 && fp8::fits(w);
    // To turn these to f32 is cheap: reading them a few times is faster than lanes that are half empty.
    if x.rows() > CHEAPLY_STREAMED || x.rows() > STREAMED && !is_cheap() {
        return tile::matmul(w, x, out);
    }
    let (tokens, parts) = (x.rows(), x.rows().div_ceil(STREAMED));
    for part in 0..parts {
        let x = x.row_range(tokens * part / parts..tokens * (part + 1) / parts);
        let (some, rest) = out.split_rows_at(x.rows());
        stream_few(w, x, some);
        out = rest;
    }
}

/// At most `STREAMED` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
fn stream_few(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
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
    // As many rows side by side (the first number) as their sums with every token (the second) fit into registers.
    match x.rows() {
        0 => (),
        1 => stream::matmul_add::<E, 4, 1>(w, x, out),
        2 => stream::matmul_add::<E, 4, 2>(w, x, out),
        3 => stream::matmul_add::<E, 2, 3>(w, x, out),
        STREAMED => stream::matmul_add::<E, 2, STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile`"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn stream_fp8_add(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match x.rows() {
        0 => (),
        1 => stream_fp8::matmul_add::<4, 1>(w, x, out),
        2 => stream_fp8::matmul_add::<4, 2>(w, x, out),
        3 => stream_fp8::matmul_add::<2, 3>(w, x, out),
        STREAMED => stream_fp8::matmul_add::<2, STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile`"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn stream_q8_0_add(w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    match x.rows() {
        0 => (),
        1 => stream_q8_0::matmul_add::<1, 1>(w, x, out),
        // Not four: from memory more streams are half as fast.
        2 => stream_q8_0::matmul_add::<2, 2>(w, x, out),
        3 => stream_q8_0::matmul_add::<2, 3>(w, x, out),
        STREAMED => stream_q8_0::matmul_add::<2, STREAMED>(w, x, out),
        more => unreachable!("{more} tokens are for `tile`"),
    }
}
