//! Two ways, as on AVX2: few tokens use each weight from the register (`stream_fp8`, `stream_q8_0`; bf16 and f32 as on AVX2,
//! which keeps up with memory), more tokens share weights turned to f32 in a buffer (`tile`).

mod stream_fp8;
mod stream_q8_0;
mod tile;

use super::avx2;
use crate::avx2::{sum_each, with_count};
use crate::avx512::fp8;
use crate::matmul_integer::avx512::FEW;
use crate::{Format, MatrixMut, MatrixRef, MatrixView, Order};
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;
const _: () = assert!(STREAMED == FEW.q8_0 && STREAMED == FEW.fp8, "from there on both take integers");

/// Rows whose sums across vectors are taken together.
const GROUP: usize = 4;

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
        Format::Q8_0 => few(w, x, out),
        Format::Fp8 if fp8::fits(w) => few(w, x, out),
        _ => avx2::matmul(order, w, x, out),
    }
}

/// Some tokens at a time, of FP8 that fits or q8_0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
fn few(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    out.fill(0.0);
    for first in (0..x.rows()).step_by(STREAMED) {
        let x = x.row_range(first..x.rows().min(first + STREAMED));
        let (some, rest) = out.split_rows_at(x.rows());
        with_count!(x.rows(), T of [1 2 3 4], match w.format() {
            Format::Q8_0 => stream_q8_0::matmul_add::<T>(w, x, some),
            _ => stream_fp8::matmul_add::<T>(w, x, some),
        });
        out = rest;
    }
}

/// `out[t, r] += row_sums(r)[t]`, whose lanes are added up.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
fn add_rows<const T: usize>(
    rows: Range<usize>,
    out: &mut MatrixMut<'_>,
    row_sums: impl Fn(usize) -> [__m256; T],
) {
    for first in rows.clone().step_by(GROUP) {
        let mut vectors = [[_mm256_setzero_ps(); GROUP]; T];
        let group = first..rows.end.min(first + GROUP);
        for (place, row) in group.clone().enumerate() {
            for (vectors, sums) in vectors.iter_mut().zip(row_sums(row)) {
                vectors[place] = sums;
            }
        }
        for (t, vectors) in vectors.into_iter().enumerate() {
            let mut sums = [0.0; GROUP];
            // SAFETY: four floats; the store needs no alignment.
            unsafe { _mm_storeu_ps(sums.as_mut_ptr(), sum_each(vectors)) };
            for (out, sum) in out.row_mut(t)[group.clone()].iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }
}
