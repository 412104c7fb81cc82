//! Few tokens and FP8: weights become f32 in registers, at two instructions for eight of them.
//!
//! The bits of an FP8 number, moved to the right place, are those of an f32 that is 2^120 times smaller, subnormals
//! included. A vector of 32 bytes is taken apart into four of f32, one for each byte of its double words: two shifts
//! bring a byte's bits to the top of the double word, an `and` cuts them out. The inputs are laid out in that order
//! once a call, times the scale of their block, which all rows of a block share, and times 2^60, so that products stay
//! far from the ends of f32's range; the sums are multiplied by the other 2^60.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{AHEAD, LANES, load, padded, prefetch, saw_nan, store, sum, watch_nan};
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Columns that are taken apart at a time: a vector of bytes.
const UNIT: usize = 32;
/// Vectors of f32 of a unit: bytes of a double word.
const PARTS: usize = UNIT / LANES;
/// Sums of a row and token, so that one need not wait for the other.
const CHAINS: usize = 4;
/// Columns whose inputs lie ready: they and the rows that are read take half of the first cache.
const COLUMNS: usize = 2048;
/// Columns between two requests to memory: a cache line.
const STEP: usize = 2 * UNIT;
/// 2^60: the inputs' factor, and the sums'.
const HALF_UNIT: f32 = f32::from_bits((127 + 60) << 23);
/// Sign, exponent and mantissa of an FP8 number at the top of a double word.
const FIELDS: i32 = 0x87f0_0000_u32.cast_signed();

/// Whether the matrix is cut into blocks only where units end, or not at all, and no scale is beyond all reason.
pub(super) fn fits(w: &MatrixView<'_>) -> bool {
    let mut blocks = w.column_blocks(0..w.cols());
    let aligned = blocks.next().is_some_and(|block| block.end.is_multiple_of(UNIT) || block.end == w.cols());
    aligned
        && w.row_blocks().all(|rows| {
            let scales = w.row_scales(rows.start);
            w.column_blocks(0..w.cols()).all(|block| (scales.of(block) * HALF_UNIT).is_finite())
        })
}

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens, `R` rows at a time, of a matrix that [`fits`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let mut inputs = Inputs([[[0.0; UNIT]; COLUMNS / UNIT]; T]);
    for rows in w.row_blocks() {
        for first in (0..w.cols()).step_by(COLUMNS) {
            let columns = first..w.cols().min(first + COLUMNS);
            for t in 0..T {
                lay_out(w, rows.start, &columns, x.row(t), &mut inputs.0[t]);
            }
            let whole = rows.end - rows.len() % R;
            for row in (rows.start..whole).step_by(R) {
                rows_add::<R, T>(w, row, &columns, &inputs, &mut out);
            }
            for row in whole..rows.end {
                rows_add::<1, T>(w, row, &columns, &inputs, &mut out);
            }
        }
    }
}

/// The tokens' inputs times their blocks' scales and 2^60, unit by unit: first those of the lowest bytes of all double
/// words.
#[repr(align(64))]
struct Inputs<const T: usize>([[[f32; UNIT]; COLUMNS / UNIT]; T]);

/// Writes one token's inputs for the rows of a block, with zeros to the end of the last unit.
#[target_feature(enable = "avx2,fma,f16c")]
fn lay_out(w: &MatrixView<'_>, row: usize, columns: &Range<usize>, x: &[f32], inputs: &mut [[f32; UNIT]]) {
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

/// Input `PARTS * i + k` goes to place `LANES * k + i`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lay_out_unit(x: &[f32; UNIT], factor: f32, inputs: &mut [f32; UNIT]) {
    let (x, inputs) = (x.as_chunks::<LANES>().0, inputs.as_chunks_mut::<LANES>().0);
    // Two 4 x 4 transpositions side by side: inputs 0-15 in the lower halves, 16-31 in the upper ones.
    let (low, high) = ([load(&x[0]), load(&x[1])], [load(&x[2]), load(&x[3])]);
    let a = _mm256_permute2f128_ps::<0x20>(low[0], high[0]);
    let b = _mm256_permute2f128_ps::<0x31>(low[0], high[0]);
    let c = _mm256_permute2f128_ps::<0x20>(low[1], high[1]);
    let d = _mm256_permute2f128_ps::<0x31>(low[1], high[1]);
    let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let factor = _mm256_set1_ps(factor);
    store(&mut inputs[0], _mm256_mul_ps(factor, _mm256_shuffle_ps::<0x44>(ab, cd)));
    store(&mut inputs[1], _mm256_mul_ps(factor, _mm256_shuffle_ps::<0xee>(ab, cd)));
    store(&mut inputs[2], _mm256_mul_ps(factor, _mm256_shuffle_ps::<0x44>(ab_high, cd_high)));
    store(&mut inputs[3], _mm256_mul_ps(factor, _mm256_shuffle_ps::<0xee>(ab_high, cd_high)));
}

/// Partial sums by token and row.
type Sums<const R: usize, const T: usize> = [[[__m256; CHAINS]; R]; T];

/// Rows `row..row + R` of `w` at these columns.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    row: usize,
    columns: &Range<usize>,
    inputs: &Inputs<T>,
    out: &mut MatrixMut<'_>,
) {
    let mut weights: [&[u8]; R] = [&[]; R];
    for r in 0..R {
        weights[r] = w.row_bytes(row + r, columns.clone());
    }
    let mut sums = [[[_mm256_setzero_ps(); CHAINS]; R]; T];
    let mut nan = _mm256_setzero_si256();
    let mut column = 0;
    while column + STEP <= columns.len() {
        for r in 0..R {
            prefetch(weights[r].as_ptr().wrapping_add(column + AHEAD));
        }
        // SAFETY: the rows have these columns, and the inputs are laid out for all of them.
        unsafe {
            add_unit(&weights, inputs, column, &mut sums, &mut nan);
            add_unit(&weights, inputs, column + UNIT, &mut sums, &mut nan);
        }
        column += STEP;
    }
    if column < columns.len() {
        add_rest(&weights, inputs, column, &mut sums, &mut nan);
    }
    let nan = saw_nan(nan);
    for r in 0..R {
        let is_nan = nan && weights[r].iter().any(|byte| byte & 0x7f == 0x7f);
        for t in 0..T {
            let c = sums[t][r];
            let both = _mm256_add_ps(_mm256_add_ps(c[0], c[1]), _mm256_add_ps(c[2], c[3]));
            out.row_mut(t)[row + r] += if is_nan { f32::NAN } else { sum(both) * HALF_UNIT };
        }
    }
}

/// Adds columns `column..column + UNIT` of every row; keeps in `nan`, as `watch_nan` does, whether there is a NaN.
///
/// # Safety
/// The rows have these columns, and the inputs are laid out.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_unit<const R: usize, const T: usize>(
    weights: &[&[u8]; R],
    inputs: &Inputs<T>,
    column: usize,
    sums: &mut Sums<R, T>,
    nan: &mut __m256i,
) {
    for r in 0..R {
        // SAFETY: 32 bytes are readable; the load needs no alignment.
        let bytes = unsafe { _mm256_loadu_si256(weights[r].as_ptr().add(column).cast()) };
        *nan = watch_nan(*nan, bytes);
        let weights = take_apart(bytes);
        for t in 0..T {
            let inputs = inputs.0[t].as_ptr().cast::<f32>();
            for part in 0..PARTS {
                // SAFETY: eight of the unit's 32 inputs; the load needs no alignment.
                let input = unsafe { _mm256_loadu_ps(inputs.add(column + part * LANES)) };
                let sum = &mut sums[t][r][part % CHAINS];
                *sum = _mm256_fmadd_ps(weights[part], input, *sum);
            }
        }
    }
}

/// Adds the columns from `column` on, fewer than `STEP`: from copies with zeros behind them.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_rest<const R: usize, const T: usize>(
    weights: &[&[u8]; R],
    inputs: &Inputs<T>,
    column: usize,
    sums: &mut Sums<R, T>,
    nan: &mut __m256i,
) {
    let mut copies = [[0; COLUMNS]; R];
    let mut rows: [&[u8]; R] = [&[]; R];
    for (r, copy) in copies.iter_mut().enumerate() {
        let rest = &weights[r][column..];
        copy[column..column + rest.len()].copy_from_slice(rest);
        rows[r] = copy;
    }
    let last = weights[0].len();
    for column in (column..last).step_by(UNIT) {
        // SAFETY: the copies have all columns that inputs are laid out for, and these are, to the end of the unit.
        unsafe { add_unit(&rows, inputs, column, sums, nan) };
    }
}

/// The values of 32 FP8 numbers divided by 2^120, by their place in the double word, the lowest byte first. A NaN
/// comes out as 480 divided by it.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn take_apart(bytes: __m256i) -> [__m256; PARTS] {
    // A word's upper byte, its sign repeated on the left; of the lower bytes the same, moved up before. What lies
    // beside them is cut off. Whole bytes are moved by shuffles, which more ports do than shifts by bits.
    let upper = _mm256_srai_epi16::<4>(bytes);
    let lower = _mm256_srai_epi16::<4>(_mm256_bslli_epi128::<1>(bytes));
    [
        fields(_mm256_bslli_epi128::<2>(lower)),
        fields(_mm256_bslli_epi128::<2>(upper)),
        fields(lower),
        fields(upper),
    ]
}

/// What is an FP8 number at the top of each double word, as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fields(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(FIELDS)))
}
