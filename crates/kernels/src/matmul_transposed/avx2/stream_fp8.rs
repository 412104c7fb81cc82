//! Few tokens and FP8: weights become f32 in registers, a few rows at a time, and are added to sums that lie in the order of
//! weights taken apart.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::fp8::{HALF_UNIT, PARTS, UNIT, by_column, saw_nan, take_apart, watch_nan};
use crate::avx2::{LANES, load, load32, padded, prefetch, store};
use crate::view::RowsBytes;
use crate::{MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Columns whose sums are held at once: all of a latent.
const COLUMNS: usize = 512;

/// A token's sums of a unit divided by [`HALF_UNIT`].
type Sums = [[f32; LANES]; PARTS];

/// `out[t, c] += sum over r of x[t, r] * w[r, c]` for `T` tokens, `R` rows at a time, of a matrix that
/// [`fits`](crate::avx2::fp8::fits).
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) fn matmul_transposed_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    mut out: MatrixMut<'_>,
) {
    for first in (0..w.cols()).step_by(COLUMNS) {
        let mut part = Part::<T>::new(w, first..w.cols().min(first + COLUMNS), x);
        let mut sums = [[[[0.0; LANES]; PARTS]; T]; COLUMNS / UNIT];
        let mut nan = _mm256_setzero_si256();
        for rows in w.row_blocks() {
            part.take_scales(rows.start);
            let whole = rows.end - rows.len() % R;
            for row in (rows.start..whole).step_by(R) {
                nan = part.add_rows::<R>(row, &mut sums, nan);
            }
            for row in whole..rows.end {
                nan = part.add_rows::<1>(row, &mut sums, nan);
            }
        }
        for t in 0..T {
            let out = &mut out.row_mut(t)[part.columns.clone()];
            for (out, sums) in out.chunks_mut(UNIT).zip(&sums) {
                add_columns(&sums[t], out);
            }
        }
        if saw_nan(nan) {
            part.spread_nan(&mut out);
        }
    }
}

/// Some columns of a matrix, and the tokens.
struct Part<'a, const T: usize> {
    w: &'a MatrixView<'a>,
    columns: Range<usize>,
    weights: RowsBytes<'a>,
    /// Each unit's scale times [`HALF_UNIT`].
    scales: [f32; COLUMNS / UNIT],
    x: [&'a [f32]; T],
}

impl<'a, const T: usize> Part<'a, T> {
    fn new(w: &'a MatrixView<'_>, columns: Range<usize>, x: MatrixRef<'a>) -> Self {
        let weights = w.rows_bytes(columns.clone());
        Self { w, columns, weights, scales: [0.0; COLUMNS / UNIT], x: from_fn(|t| x.row(t)) }
    }

    /// From now on scales are those of a row.
    fn take_scales(&mut self, row: usize) {
        let scales = self.w.row_scales(row);
        for block in self.w.column_blocks(self.columns.clone()) {
            let units = block.start - self.columns.start..block.end - self.columns.start;
            self.scales[units.start / UNIT..units.end.div_ceil(UNIT)].fill(scales.of(block) * HALF_UNIT);
        }
    }

    /// Adds rows `row..row + R`; gives `nan` with what was met of NaN added.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn add_rows<const R: usize>(
        &self,
        row: usize,
        sums: &mut [[Sums; T]; COLUMNS / UNIT],
        mut nan: __m256i,
    ) -> __m256i {
        let rows: [&[u8]; R] = from_fn(|r| self.weights.row(row + r));
        // The next rows: in the order in which they lie where nothing lies between them, for memory gives short rows that are
        // read side by side slowly.
        let (next, stride) =
            (rows[0].as_ptr().wrapping_add(R * self.weights.stride()), self.weights.stride());
        let (unit_step, row_step) =
            if stride == self.columns.len() { (R * UNIT, UNIT) } else { (UNIT, stride) };
        let mut x = [[_mm256_setzero_ps(); R]; T];
        for t in 0..T {
            for r in 0..R {
                x[t][r] = _mm256_set1_ps(self.x[t][row + r]);
            }
        }
        let count = self.columns.len() / UNIT;
        let units: [&[[u8; UNIT]]; R] = from_fn(|r| &rows[r].as_chunks().0[..count]);
        for (unit, (sums, scale)) in sums.iter_mut().zip(&self.scales).enumerate().take(count) {
            let mut bytes = [_mm256_setzero_si256(); R];
            for r in 0..R {
                prefetch(next.wrapping_add(unit * unit_step + r * row_step));
                bytes[r] = load32(&units[r][unit]);
            }
            nan = add_unit(bytes, &x, *scale, sums, nan);
        }
        if !self.columns.len().is_multiple_of(UNIT) {
            let mut bytes = [_mm256_setzero_si256(); R];
            for r in 0..R {
                bytes[r] = load32(&padded(rows[r].as_chunks::<UNIT>().1));
            }
            nan = add_unit(bytes, &x, self.scales[count], &mut sums[count], nan);
        }
        nan
    }

    /// Makes NaN of the outputs of columns that have one, which was taken for a number.
    fn spread_nan(&self, out: &mut MatrixMut<'_>) {
        for row in 0..self.w.rows() {
            for (column, byte) in self.columns.clone().zip(self.weights.row(row)) {
                if byte & 0x7f == 0x7f {
                    for token in 0..out.rows() {
                        out.row_mut(token)[column] = f32::NAN;
                    }
                }
            }
        }
    }
}

/// Adds a unit of `R` rows to all tokens' sums, `x` times as much; gives `nan` with what was met of NaN added.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_unit<const R: usize, const T: usize>(
    bytes: [__m256i; R],
    x: &[[__m256; R]; T],
    scale: f32,
    sums: &mut [Sums; T],
    mut nan: __m256i,
) -> __m256i {
    let mut totals = [[_mm256_setzero_ps(); PARTS]; T];
    for t in 0..T {
        for part in 0..PARTS {
            totals[t][part] = load(&sums[t][part]);
        }
    }
    for r in 0..R {
        nan = watch_nan(nan, bytes[r]);
        let weights = take_apart(bytes[r]);
        for t in 0..T {
            let factor = _mm256_mul_ps(x[t][r], _mm256_set1_ps(scale));
            for part in 0..PARTS {
                totals[t][part] = _mm256_fmadd_ps(weights[part], factor, totals[t][part]);
            }
        }
    }
    for t in 0..T {
        for part in 0..PARTS {
            store(&mut sums[t][part], totals[t][part]);
        }
    }
    nan
}

/// Adds the sums of a unit to at most as many outputs.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_columns(sums: &Sums, out: &mut [f32]) {
    let mut parts = [_mm256_setzero_ps(); PARTS];
    for part in 0..PARTS {
        parts[part] = load(&sums[part]);
    }
    let mut columns = [[0.0; LANES]; PARTS];
    for (column, sums) in columns.iter_mut().zip(by_column(parts)) {
        store(column, sums);
    }
    for (out, sum) in out.iter_mut().zip(columns.as_flattened()) {
        *out += sum * HALF_UNIT;
    }
}
