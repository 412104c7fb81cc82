//! Few tokens and FP8: weights become f32 in registers. The inputs are laid out in the order of weights taken apart, once for
//! all rows of a block, times the scale that these share.

#![allow(clippy::needless_range_loop, reason = "a stream or a token is an index into several arrays")]

use crate::avx2::padded;
use crate::avx512::fp8::{PARTS, Tables, UNIT, by_part};
use crate::avx512::streams::{Group, STREAMS, add_rows};
use crate::avx512::{VECTOR, load64};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::{mem::MaybeUninit, ops::Range};

/// Columns whose inputs lie ready, 72 kB a token: the longest rows of the 671B model, of 18432, are read in one run.
const COLUMNS: usize = 18432;
/// What inputs are multiplied by so that none whose product counts is subnormal before: 2^24.
const UNIT_UP: f32 = (1 << 24) as f32;

/// The tokens' inputs times their blocks' scales and [`UNIT_UP`], unit by unit.
#[repr(align(64))]
struct Inputs<const T: usize>([[MaybeUninit<[f32; UNIT]>; COLUMNS / UNIT]; T]);

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens, of a matrix that [`fits`](crate::avx512::fp8::fits). A
/// token's sum does not depend on how many there are.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline(never)]
pub(super) fn matmul_add<const T: usize>(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let mut inputs = Inputs([const { [const { MaybeUninit::uninit() }; COLUMNS / UNIT] }; T]);
    for rows in w.row_blocks() {
        for first in (0..w.cols()).step_by(COLUMNS) {
            let columns = first..w.cols().min(first + COLUMNS);
            for t in 0..T {
                lay_out(w, rows.start, &columns, x.row(t), &mut inputs.0[t]);
            }
            let weights = w.rows_bytes(columns.clone());
            add_rows(w, weights, rows.clone(), &mut out, |group| {
                // SAFETY: blocks begin where units do, so the inputs of all these columns are laid out.
                unsafe { row_sums::<T>(group, &inputs) }
            });
        }
    }
}

/// Writes one token's inputs for the rows of a block, with zeros to the end of the last unit.
#[target_feature(enable = "avx512f")]
fn lay_out(
    w: &MatrixView<'_>,
    row: usize,
    columns: &Range<usize>,
    x: &[f32],
    inputs: &mut [MaybeUninit<[f32; UNIT]>],
) {
    let scales = w.row_scales(row);
    for block in w.column_blocks(columns.clone()) {
        let scale = scales.of(block) * UNIT_UP;
        assert!((block.start - columns.start).is_multiple_of(UNIT), "a block begins where a unit does");
        let (units, rest) = x[block.start..block.end].as_chunks::<UNIT>();
        let inputs = &mut inputs[(block.start - columns.start) / UNIT..];
        for (x, inputs) in units.iter().zip(&mut *inputs) {
            lay_out_unit(x, scale, inputs);
        }
        if !rest.is_empty() {
            lay_out_unit(&padded(rest), scale, &mut inputs[units.len()]);
        }
    }
}

/// The inputs of a unit in the order of weights taken apart.
#[target_feature(enable = "avx512f")]
#[inline]
fn lay_out_unit(x: &[f32; UNIT], scale: f32, inputs: &mut MaybeUninit<[f32; UNIT]>) {
    let out = inputs.as_mut_ptr().cast::<f32>();
    for (part, values) in by_part(x).into_iter().enumerate() {
        let scaled = _mm512_mul_ps(_mm512_set1_ps(scale), values);
        // SAFETY: a part of the unit's floats, borrowed exclusively; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.add(part * VECTOR), scaled) };
    }
}

/// The products of some columns of rows with all tokens, a part of each in every lane.
///
/// # Safety
/// The inputs of these columns are laid out.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
unsafe fn row_sums<const T: usize>(group: &Group<'_>, inputs: &Inputs<T>) -> [[__m512; STREAMS]; T] {
    let length = group.rows[0].len();
    assert!(length <= COLUMNS, "inputs are laid out for all columns");
    let tables = Tables::load();
    let mut sums = [[_mm512_setzero_ps(); STREAMS]; T];
    let mut units: [&[[u8; UNIT]]; STREAMS] = [&[]; STREAMS];
    for stream in 0..STREAMS {
        units[stream] = &group.rows[stream].as_chunks().0[..length / UNIT];
    }
    for number in 0..length / UNIT {
        for stream in 0..STREAMS {
            _mm_prefetch::<_MM_HINT_T0>(group.ahead[stream].wrapping_add(number * UNIT).cast());
            // SAFETY: the inputs of these columns are laid out.
            unsafe { add_unit(load64(&units[stream][number]), tables, inputs, number, stream, &mut sums) };
        }
    }
    if !length.is_multiple_of(UNIT) {
        let number = length / UNIT;
        for stream in 0..STREAMS {
            let rest = padded(&group.rows[stream][number * UNIT..]);
            // SAFETY: inputs are laid out to the end of the last unit.
            unsafe { add_unit(load64(&rest), tables, inputs, number, stream, &mut sums) };
        }
    }
    for sum in sums.as_flattened_mut() {
        *sum = _mm512_mul_ps(*sum, _mm512_set1_ps(1.0 / UNIT_UP));
    }
    sums
}

/// Adds the products of unit `number` of a stream.
///
/// # Safety
/// The inputs of this unit are laid out.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
#[inline]
unsafe fn add_unit<const T: usize>(
    weights: __m512i,
    tables: Tables,
    inputs: &Inputs<T>,
    number: usize,
    stream: usize,
    sums: &mut [[__m512; STREAMS]; T],
) {
    let weights = tables.take_apart(weights);
    for t in 0..T {
        let inputs = inputs.0[t].as_ptr().cast::<f32>();
        for part in 0..PARTS {
            // SAFETY: sixteen of the unit's inputs; the load needs no alignment.
            let input = unsafe { _mm512_loadu_ps(inputs.add(number * UNIT + part * VECTOR)) };
            sums[t][stream] = _mm512_fmadd_ps(weights[part], input, sums[t][stream]);
        }
    }
}
