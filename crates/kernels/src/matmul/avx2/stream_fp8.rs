//! Few tokens and FP8: weights become f32 in registers. The inputs are laid out in the order of weights taken apart once a
//! call, times the scale of their block, which all rows of a block share.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::fp8::{HALF_UNIT, PARTS, UNIT, by_part, saw_nan, take_apart, watch_nan};
use crate::avx2::{self, LANES, LINE, padded, prefetch_range, sum_each, whole};
use crate::view::{AheadOfRow, AheadOfRows, RowsBytes};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::{mem::MaybeUninit, ops::Range};

/// Columns whose inputs lie ready, 72 kB a token, so that the longest rows of the 671B model, of 18432, are read in one run:
/// inputs from the second cache cost less than a jump in memory.
pub(super) const COLUMNS: usize = 18432;
/// Rows whose sums across vectors are taken together.
const GROUP: usize = 4;
/// How many bytes ahead memory is asked for weights that come into the first cache: about as much as a core can wait for at
/// a time, for the inputs of rows of 7168, 28 kB, are to stay there.
const AHEAD: usize = 1536;
/// Columns between two requests to memory, in whole cache lines: to find an address takes a tenth of the time in which one line
/// is multiplied with one token. The sums of more tokens leave no registers for more vectors on their way.
const fn columns_per_request(tokens: usize) -> usize {
    if tokens == 1 { 2 * LINE } else { LINE }
}

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens, of a matrix that [`fits`](crate::avx2::fp8::fits); row by
/// row, for memory gives one stream faster than several. Each sum is kept in `C` parts, so that one need not wait for the
/// other.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) fn matmul_add<const C: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let mut inputs = Inputs([const { [const { MaybeUninit::uninit() }; COLUMNS / UNIT] }; T]);
    for rows in w.row_blocks() {
        for first in (0..w.cols()).step_by(COLUMNS) {
            let columns = first..w.cols().min(first + COLUMNS);
            for t in 0..T {
                lay_out(w, rows.start, &columns, x.row(t), &mut inputs.0[t]);
            }
            let (weights, ahead) = (w.rows_bytes(columns.clone()), ahead(w, &columns));
            for row in rows.clone().step_by(GROUP) {
                let group = row..rows.end.min(row + GROUP);
                // SAFETY: the inputs of all these columns are laid out.
                unsafe { group_add::<C, T>(weights, ahead, group, &inputs, &mut out) };
            }
        }
    }
}

/// Adds a few rows' products with the tokens, whose sums across vectors are taken together.
///
/// # Safety
/// The inputs of all columns of `weights` are laid out.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn group_add<const C: usize, const T: usize>(
    weights: RowsBytes<'_>,
    ahead: AheadOfRows<'_>,
    rows: Range<usize>,
    inputs: &Inputs<T>,
    out: &mut MatrixMut<'_>,
) {
    let mut vectors = [[_mm256_setzero_ps(); GROUP]; T];
    let mut nan = [false; GROUP];
    for (place, row) in rows.clone().enumerate() {
        // SAFETY: what the caller promises.
        let (sums, seen) = unsafe { row_sums::<C, T>(weights.row(row), ahead.row(row), inputs) };
        nan[place] = saw_nan(seen);
        for t in 0..T {
            vectors[t][place] = sums[t];
        }
    }
    for t in 0..T {
        let mut sums = [0.0; GROUP];
        // SAFETY: four floats; the store needs no alignment.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), sum_each(vectors[t])) };
        for (place, out) in out.row_mut(t)[rows.clone()].iter_mut().enumerate() {
            *out += if nan[place] { f32::NAN } else { sums[place] * HALF_UNIT };
        }
    }
}

/// The tokens' inputs times their blocks' scales and 2^60, unit by unit: first those of the lowest bytes of all double
/// words.
#[repr(align(64))]
struct Inputs<const T: usize>([[MaybeUninit<[f32; UNIT]>; COLUMNS / UNIT]; T]);

/// Writes one token's inputs for the rows of a block, with zeros to the end of the last unit.
#[target_feature(enable = "avx2,fma,f16c")]
fn lay_out(
    w: &MatrixView<'_>,
    row: usize,
    columns: &Range<usize>,
    x: &[f32],
    inputs: &mut [MaybeUninit<[f32; UNIT]>],
) {
    let scales = w.row_scales(row);
    for block in w.column_blocks(columns.clone()) {
        let factor = scales.of(block) * HALF_UNIT;
        let (units, rest) = x[block.start..block.end].as_chunks::<UNIT>();
        let inputs = &mut inputs[(block.start - columns.start) / UNIT..];
        for (x, inputs) in units.iter().zip(&mut *inputs) {
            lay_out_unit(x, factor, inputs);
        }
        if !rest.is_empty() {
            lay_out_unit(&padded(rest), factor, &mut inputs[units.len()]);
        }
    }
}

/// The inputs of a unit in the order of weights taken apart.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lay_out_unit(x: &[f32; UNIT], factor: f32, inputs: &mut MaybeUninit<[f32; UNIT]>) {
    let parts = by_part(x);
    let out = inputs.as_mut_ptr().cast::<f32>();
    for part in 0..PARTS {
        let scaled = _mm256_mul_ps(_mm256_set1_ps(factor), parts[part]);
        // SAFETY: a part of the unit's 32 floats, borrowed exclusively; the store needs no alignment.
        unsafe { _mm256_storeu_ps(out.add(part * LANES), scaled) };
    }
}

/// Partial sums by token.
type Sums<const C: usize, const T: usize> = [[__m256; C]; T];

/// What is read next: the row goes on in the next one, or only some columns of it do.
fn ahead<'a>(w: &MatrixView<'a>, columns: &Range<usize>) -> AheadOfRows<'a> {
    let ahead = if columns.len() == w.row_stride() { avx2::ahead(AHEAD) } else { w.row_stride() };
    // What follows the matrix is not read yet where columns are left.
    let w = if columns.end == w.cols() { *w } else { w.alone() };
    w.ahead_of_rows(columns.start + ahead)
}

/// The products of some columns of a row with all tokens, divided by [`HALF_UNIT`], a part of each in every lane; and
/// whether there is a NaN, as `watch_nan` keeps it. Asks memory for what is read `ahead` of each of them.
///
/// # Safety
/// The inputs of these columns are laid out.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn row_sums<const C: usize, const T: usize>(
    weights: &[u8],
    ahead: AheadOfRow,
    inputs: &Inputs<T>,
) -> ([__m256; T], __m256i) {
    assert!(weights.len() <= COLUMNS, "inputs are laid out for all columns");
    let mut sums = [[_mm256_setzero_ps(); C]; T];
    let mut nan = _mm256_setzero_si256();
    let step = columns_per_request(T);
    let asked = weights.len() - weights.len() % step;
    for first in (0..asked).step_by(step) {
        prefetch_range(ahead.of(first), step);
        for column in (first..first + step).step_by(UNIT) {
            // SAFETY: the row has these columns, and the inputs are laid out.
            unsafe { add_unit(weights.as_ptr().add(column), inputs, column, &mut sums, &mut nan) };
        }
    }
    for column in (asked..weights.len()).step_by(UNIT) {
        let mut end = None;
        let unit: &[u8; UNIT] = whole(&weights[column..weights.len().min(column + UNIT)], &mut end);
        // SAFETY: a reference to a unit, and inputs are laid out to the end of the last one.
        unsafe { add_unit(unit.as_ptr(), inputs, column, &mut sums, &mut nan) };
    }
    let mut totals = [_mm256_setzero_ps(); T];
    for t in 0..T {
        totals[t] = sums[t][0];
        for chain in 1..C {
            totals[t] = _mm256_add_ps(totals[t], sums[t][chain]);
        }
    }
    (totals, nan)
}

/// Adds the 32 columns from `column` on; keeps in `nan`, as `watch_nan` does, whether there is a NaN.
///
/// # Safety
/// `weights` points to 32 readable bytes, and inputs are laid out to `column + UNIT`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_unit<const C: usize, const T: usize>(
    weights: *const u8,
    inputs: &Inputs<T>,
    column: usize,
    sums: &mut Sums<C, T>,
    nan: &mut __m256i,
) {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    let bytes = unsafe { _mm256_loadu_si256(weights.cast()) };
    *nan = watch_nan(*nan, bytes);
    let weights = take_apart(bytes);
    for t in 0..T {
        let inputs = inputs.0[t].as_ptr().cast::<f32>();
        for part in 0..PARTS {
            // SAFETY: eight of the unit's 32 inputs; the load needs no alignment.
            let input = unsafe { _mm256_loadu_ps(inputs.add(column + part * LANES)) };
            sums[t][part % C] = _mm256_fmadd_ps(weights[part], input, sums[t][part % C]);
        }
    }
}
