//! Few tokens and FP8: weights are brought into steps in registers, and multiplied with tokens whose columns lie in lanes. The
//! inputs are laid out once for all rows of a block, with the scale that these share.

#![allow(clippy::needless_range_loop, reason = "a stream or a token is an index into several arrays")]

use super::fill::{GROUP_VECTORS, GROUPS, VECTOR, VECTORS, fp8_in_steps};
use super::tile::{BLOCKS, minus_sums};
use crate::avx2::whole;
use crate::avx512::streams::{Group, STREAMS, add_rows};
use crate::avx512::{load_integers, store_integers};
use crate::integers::BLOCK;
use crate::matmul_integer::{FP8_SPAN, group_scales};
use crate::{IntegerRef, Lanes, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::{mem::MaybeUninit, ops::Range};

/// Columns of a row that are brought into steps together.
const COLUMNS: usize = BLOCKS * BLOCK;
/// Parts of so many columns whose inputs lie ready, 30 kB a token: the longest rows of the 671B model, of 18432, are read in one
/// run.
const PARTS: usize = 36;

/// A token's inputs for some columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Part {
    values: [Lanes; VECTORS],
    /// What weights that are 128 too large make of the products, negated.
    offsets: [Lanes; GROUPS],
    /// The weights' scale of each group times the token's.
    scales: [f32; GROUPS],
}

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens. A token's sum does not depend on how many there are.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
#[inline(never)]
pub(super) fn matmul_add<const T: usize>(w: &MatrixView<'_>, x: IntegerRef<'_>, mut out: MatrixMut<'_>) {
    let mut inputs = [const { [const { MaybeUninit::uninit() }; PARTS] }; T];
    for rows in w.row_blocks() {
        for first in (0..w.cols()).step_by(PARTS * COLUMNS) {
            let columns = first..w.cols().min(first + PARTS * COLUMNS);
            let scales = group_scales(w, rows.start, &columns);
            let mut parts: [&[Part]; T] = [&[]; T];
            for (t, (parts, memory)) in parts.iter_mut().zip(&mut inputs).enumerate() {
                *parts = lay_out(x, t, &columns, &scales, memory);
            }
            let weights = w.rows_bytes(columns);
            add_rows(w, weights, rows.clone(), &mut out, |group| row_sums::<T>(group, parts));
        }
    }
}

/// One token's inputs for the rows of a block, with zeros to the end of the last part.
#[target_feature(enable = "avx512f,avx512vnni")]
fn lay_out<'a>(
    x: IntegerRef<'_>,
    token: usize,
    columns: &Range<usize>,
    scales: &[f32; PARTS * GROUPS],
    memory: &'a mut [MaybeUninit<Part>; PARTS],
) -> &'a [Part] {
    let blocks = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
    let (values, x_scales) = (&x.blocks(token)[blocks.clone()], &x.scales(token)[blocks]);
    let parts = values.chunks(BLOCKS).zip(x_scales.chunks(BLOCKS)).zip(scales.as_chunks::<GROUPS>().0);
    let memory = &mut memory[..values.len().div_ceil(BLOCKS)];
    for (((values, x_scales), scales), part) in parts.zip(&mut *memory) {
        let part = part.write(Part {
            values: [Lanes::ZERO; VECTORS],
            offsets: [Lanes::ZERO; GROUPS],
            scales: [0.0; GROUPS],
        });
        Lanes::int8_mut(&mut part.values)[..values.len()].copy_from_slice(values);
        for (values, offset) in part.values.chunks_exact(GROUP_VECTORS).zip(&mut part.offsets) {
            store_integers(offset, minus_sums(values));
        }
        let x_scales = x_scales.iter().step_by(FP8_SPAN);
        for (to, (scale, x_scale)) in part.scales.iter_mut().zip(scales.iter().zip(x_scales)) {
            *to = scale * x_scale;
        }
    }
    // SAFETY: all of these have been written.
    unsafe { memory.assume_init_ref() }
}

/// The products of some columns of rows with all tokens, a part of each in every lane.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
#[inline]
fn row_sums<const T: usize>(group: &Group<'_>, mut inputs: [&[Part]; T]) -> [[__m512; STREAMS]; T] {
    let count = group.rows[0].len().div_ceil(COLUMNS);
    for t in 0..T {
        inputs[t] = &inputs[t][..count];
    }
    let mut sums = [[_mm512_setzero_ps(); STREAMS]; T];
    for number in 0..count {
        let mut parts = [&inputs[0][number]; T];
        for t in 1..T {
            parts[t] = &inputs[t][number];
        }
        for stream in 0..STREAMS {
            let ahead = group.ahead[stream].wrapping_add(number * COLUMNS);
            let mut end = None;
            let bytes = &group.rows[stream][number * COLUMNS..];
            let bytes = whole(&bytes[..bytes.len().min(COLUMNS)], &mut end);
            add_part(bytes, ahead, &parts, stream, &mut sums);
        }
    }
    sums
}

/// Adds the products of a part of a stream's row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi,avx512vnni")]
#[inline]
fn add_part<const T: usize>(
    bytes: &[u8; COLUMNS],
    ahead: *const u8,
    inputs: &[&Part; T],
    stream: usize,
    sums: &mut [[__m512; STREAMS]; T],
) {
    let (weights, steps) = fp8_in_steps(bytes);
    let mut factors = [_mm512_setzero_ps(); T];
    for t in 0..T {
        // SAFETY: a reference to four f32; the load needs no alignment.
        let scales = unsafe { _mm_loadu_ps(inputs[t].scales.as_ptr()) };
        factors[t] = _mm512_castps128_ps512(_mm_mul_ps(steps, scales));
    }
    for number in 0..GROUPS {
        let vectors = GROUP_VECTORS * number..GROUP_VECTORS * (number + 1);
        for vector in vectors.clone() {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(vector * VECTOR).cast());
        }
        for t in 0..T {
            let mut products = load_integers(&inputs[t].offsets[number]);
            for vector in vectors.clone() {
                products =
                    _mm512_dpbusd_epi32(products, weights[vector], load_integers(&inputs[t].values[vector]));
            }
            let factor = _mm512_permutexvar_ps(_mm512_set1_epi32(number as i32), factors[t]);
            sums[t][stream] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, sums[t][stream]);
        }
    }
}
