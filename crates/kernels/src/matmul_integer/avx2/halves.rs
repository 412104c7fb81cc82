//! For processors that compute a vector's halves one after the other (AMD's Zen 1): few tokens in vectors of 128 bits, of which
//! none is spent on joining and parting halves.

mod q4k;
mod stream_q8_0;

use super::{STREAMED, few_q4k};
use crate::avx2::with_count;
use crate::matmul_integer::{self, Few};
use crate::{Format, IntegerRef, MatrixMut, MatrixView, Order};
use q4k::Halves;
use std::arch::x86_64::*;

/// Tokens of q8_0 up to which passes from the register are faster than lanes that are not all filled (measured on Zen 1): seven
/// take 7 % less time, eight 6 % more.
const MOST_STREAMED_Q8_0: usize = 7;
/// The same of q4_K: five take 8 % less, six 3 % more.
const MOST_STREAMED_Q4K: usize = 5;

/// Measured on Zen 1: q8_0 in integers takes half of the time that it takes in f32, for each half of an FMA keeps two of four
/// units busy.
pub(crate) const FEW: Few = Few { q8_0: 0, ..matmul_integer::FEW };

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_integer(order: Order, w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    match w.format() {
        Format::Q4K if order.is_few(x.rows(), MOST_STREAMED_Q4K) => few_q4k::<Halves>(w, x, out),
        Format::Q8_0 if order.is_few(x.rows(), MOST_STREAMED_Q8_0) => few_q8_0(w, x, out),
        // In lanes, however few tokens there are.
        _ => super::matmul_integer(Order::Many, w, x, out),
    }
}

/// Some tokens at a time, of q8_0.
#[target_feature(enable = "avx2,fma,f16c")]
fn few_q8_0(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    for (tokens, some) in out.row_chunks(STREAMED) {
        let x = x.row_range(tokens);
        with_count!(x.rows(), T of [1 2 3 4], stream_q8_0::matmul::<T>(w, x, some));
    }
}

/// Sixteen integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load16_int8(values: &[i8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}
