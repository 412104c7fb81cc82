//! For processors that compute a vector's halves one after the other (AMD's Zen 1): few tokens in vectors of 128 bits, of which
//! none is spent on joining and parting halves.

mod q4k;
mod stream_q8_0;

use super::stream_q4k;
use crate::avx2::with_count;
use crate::matmul_integer::{self, Few};
use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order};
use std::arch::x86_64::*;

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;
/// Tokens up to which such passes are faster than lanes that are not all filled (measured on Zen 1): of 7 of q8_0 they take
/// less by 7 %, of 8 more by 6 %; of 5 of q4_K less by 8 %, of 6 more by 3 %.
const FEW_Q8_0: usize = 7;
const FEW_Q4K: usize = 5;

/// Measured on Zen 1: q8_0 in integers takes half of the time that it takes in f32, for each half of an FMA keeps two of four
/// units busy.
pub(crate) const FEW: Few = Few { q8_0: 0, ..matmul_integer::FEW };

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    let most = match w.format() {
        Format::Q4K => FEW_Q4K,
        Format::Q8_0 => FEW_Q8_0,
        _ => return super::matmul_integer(order, w, x, out),
    };
    match order.is_few(x.rows(), most) {
        true => few(w, x, out),
        false => super::matmul_integer(Order::Many, w, x, out),
    }
}

/// Some tokens at a time, of q4_K or q8_0.
#[target_feature(enable = "avx2,fma,f16c")]
fn few(w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    for first in (0..x.rows()).step_by(STREAMED) {
        let x = x.row_range(first..x.rows().min(first + STREAMED));
        let (some, rest) = out.split_rows_at(x.rows());
        with_count!(x.rows(), T of [1 2 3 4], match w.format() {
            Format::Q4K => stream_q4k::matmul::<q4k::Halves, T>(w, x, some),
            _ => stream_q8_0::matmul::<T>(w, x, some),
        });
        out = rest;
    }
}

/// Sixteen integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load16_int8(values: &[i8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}
