//! Two ways, as on AVX2: few tokens use each weight from the register (`stream_fp8`, `stream_q8_0`; bf16 and f32 as on AVX2,
//! which keeps up with memory), more tokens share weights turned to f32 in a buffer (`tile`).

#![allow(clippy::needless_range_loop, reason = "a stream or a token is an index into several arrays")]

mod stream_fp8;
mod stream_q8_0;
mod tile;

use super::avx2;
use crate::avx2::{sum_each, with_count};
use crate::avx512::{NEAR, fold, fp8};
use crate::matmul_integer::avx512::FEW;
use crate::view::RowsBytes;
use crate::{Format, MatrixMut, MatrixRef, MatrixView, Order};
use std::arch::x86_64::*;
use std::{ops::Range, ptr};

/// Tokens that one pass over the weights takes at most, from the register.
const STREAMED: usize = 4;
const _: () = assert!(STREAMED == FEW.q8_0 && STREAMED == FEW.fp8, "from there on both take integers");

/// Rows that are read side by side, each in a part of its own: the processor foresees each of these streams, as long as they
/// lie on different pages, and they share inputs.
const STREAMS: usize = 4;

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

/// A row of each stream.
struct Group<'a> {
    rows: [&'a [u8]; STREAMS],
    /// What to ask memory for while they are read; it need not be mapped.
    ahead: [*const u8; STREAMS],
}

/// `out[t, r] += row_sums(group)[t][r]`, whose lanes are added up, for rows `rows` of `w`, of which `weights` are read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
fn add_rows<const T: usize>(
    w: &MatrixView<'_>,
    weights: RowsBytes<'_>,
    rows: Range<usize>,
    out: &mut MatrixMut<'_>,
    row_sums: impl Fn(&Group<'_>) -> [[__m512; STREAMS]; T],
) {
    let length = rows.len() / STREAMS;
    let rows_near = NEAR.div_ceil(weights.stride().max(1));
    for place in 0..length + rows.len() % STREAMS {
        // Of rows that are left over each fills a group: too few for a loop of their own.
        let (first, apart, count) = match place < length {
            true => (rows.start + place, length, STREAMS),
            false => (rows.start + length * (STREAMS - 1) + place, 0, 1),
        };
        let mut group = Group { rows: [&[]; STREAMS], ahead: [ptr::null(); STREAMS] };
        for stream in 0..STREAMS {
            let row = first + stream * apart;
            group.rows[stream] = weights.row(row);
            // Behind its last row a stream goes on in the next rows, which are read in as many streams. The last bytes of that
            // row, which follow on what was asked for, are left to the processor.
            group.ahead[stream] = match place + rows_near < length {
                true => w.start_of_row(row).wrapping_add(NEAR),
                false => w.start_of_row(rows.end + stream * length + (place + rows_near - length)),
            };
        }
        for (t, [a, b, c, d]) in row_sums(&group).into_iter().enumerate() {
            let mut sums = [0.0; STREAMS];
            let totals = sum_each([fold(a), fold(b), fold(c), fold(d)]);
            // SAFETY: four floats; the store needs no alignment.
            unsafe { _mm_storeu_ps(sums.as_mut_ptr(), totals) };
            let out = out.row_mut(t);
            for stream in 0..count {
                out[first + stream * apart] += sums[stream];
            }
        }
    }
}
