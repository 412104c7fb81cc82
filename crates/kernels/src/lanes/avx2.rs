//! Tiles of six rows by sixteen lanes: twelve vectors of sums hide the latency of FMA, at eight loads for twelve FMAs.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

pub(crate) mod panels;

use super::Lanes;
use crate::avx2::{LANES as VECTOR, LINE, load as load_vector, with_count};
use crate::{KeyRows, MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of a tile, at most.
pub(crate) const TILE: usize = 6;
/// Features that are used together: 20 kB of lanes stay in the first cache while all rows go by.
const FEATURES: usize = 320;
/// Rows whose sums are held at once.
const ROWS: usize = 128;
/// Columns that are packed together: a line of the cache of each row.
const COLUMNS: usize = 2 * VECTOR;
/// Vectors of a lane that are written together.
const RUN: usize = 8;
/// Lines of a tile between two requests to memory.
pub(crate) const STEP: usize = 64;

/// A vector of lanes twice.
pub(crate) type Pair = [__m256; 2];

/// `out[c][lane] = x[lane, c] * factor`; zero in lanes that x has no row for.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn pack_lanes(x: MatrixRef<'_>, factor: f32, out: &mut [Lanes]) {
    let lines = out.len();
    // SAFETY: the same lines as memory for lines; `pack` only writes lines there.
    let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<MaybeUninit<Lanes>>(), lines) };
    pack(x, Some(factor), out);
}

/// As [`pack_lanes`], into memory that holds nothing yet; gives it back filled. Without a factor the bits of `x` stay as
/// they are, and need not mean f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn pack<'a>(
    x: MatrixRef<'_>,
    factor: Option<f32>,
    out: &'a mut [MaybeUninit<Lanes>],
) -> &'a [Lanes] {
    assert_eq!(x.cols(), out.len(), "columns of x and lines of out");
    let (blocks, rest) = out.as_chunks_mut::<COLUMNS>();
    let whole = blocks.len() * COLUMNS;
    for (block, out) in blocks.iter_mut().enumerate() {
        for half in 0..2 {
            // A line of the cache of each row, for rows may lie so that the cache keeps few of them.
            let mut columns = [[_mm256_setzero_ps(); VECTOR]; 2];
            for r in 0..VECTOR.min(x.rows().saturating_sub(half * VECTOR)) {
                let (values, _) = x.row(half * VECTOR + r)[block * COLUMNS..][..COLUMNS].as_chunks();
                for part in 0..2 {
                    columns[part][r] = load_vector(&values[part]);
                    if let Some(factor) = factor {
                        columns[part][r] = _mm256_mul_ps(columns[part][r], _mm256_set1_ps(factor));
                    }
                }
            }
            for (columns, out) in columns.into_iter().zip(out.as_chunks_mut::<VECTOR>().0) {
                for (column, out) in transpose(columns).into_iter().zip(out) {
                    // SAFETY: a line holds two vectors, aligned to 64 bytes.
                    unsafe { _mm256_store_ps(out.as_mut_ptr().cast::<f32>().add(half * VECTOR), column) };
                }
            }
        }
    }
    let rest = zeros(rest);
    for lane in 0..x.rows() {
        for (out, value) in rest.iter_mut().zip(&x.row(lane)[whole..]) {
            out.0[lane] = factor.map_or(*value, |factor| value * factor);
        }
    }
    // SAFETY: both halves of every line of a whole block, and every line after them, have been written.
    unsafe { out.assume_init_ref() }
}

/// Element `j` of vector `i` becomes element `i` of vector `j`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn transpose(r: [__m256; VECTOR]) -> [__m256; VECTOR] {
    let low: [__m256; 4] = from_fn(|i| _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]));
    let high: [__m256; 4] = from_fn(|i| _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    // Columns 0 to 3 of rows 0 to 3 in `top`, of rows 4 to 7 in `bottom`; columns 4 to 7 in the upper halves.
    let fours = |i: usize| {
        [
            _mm256_shuffle_ps::<0x44>(low[i], low[i + 1]),
            _mm256_shuffle_ps::<0xee>(low[i], low[i + 1]),
            _mm256_shuffle_ps::<0x44>(high[i], high[i + 1]),
            _mm256_shuffle_ps::<0xee>(high[i], high[i + 1]),
        ]
    };
    let (top, bottom) = (fours(0), fours(2));
    from_fn(|column| match column {
        0..4 => _mm256_permute2f128_ps::<0x20>(top[column], bottom[column]),
        _ => _mm256_permute2f128_ps::<0x31>(top[column - 4], bottom[column - 4]),
    })
}

/// `out[t, lane] = sum over c of x[t, c] * w[c][lane]`, for as many lanes as out has columns.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn matmul_lanes(x: MatrixRef<'_>, w: &[Lanes], out: MatrixMut<'_>) {
    // SAFETY: this function has the features that `rows_tile` needs.
    unsafe { matmul_lanes_by(Tiles::of::<4>(), x, w, out) }
}

/// As [`matmul_lanes`].
///
/// # Safety
/// The processor has the features of `tiles`.
pub(crate) unsafe fn matmul_lanes_by(tiles: Tiles, x: MatrixRef<'_>, w: &[Lanes], mut out: MatrixMut<'_>) {
    let mut sums = [Lanes::ZERO; ROWS];
    for first in (0..x.rows()).step_by(ROWS) {
        let rows = ROWS.min(x.rows() - first);
        // SAFETY: what the caller promises.
        unsafe { products(tiles, KeyRows::f32(x.row_range(first..first + rows)), w, &mut sums[..rows]) };
        for (row, sums) in sums[..rows].iter().enumerate() {
            let out = out.row_mut(first + row);
            match out.first_chunk_mut() {
                Some(out) => *out = sums.0,
                None => out.copy_from_slice(&sums.0[..out.len()]),
            }
        }
    }
}

/// How a few rows are multiplied at a time.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    /// Rows of a tile, at most.
    pub(crate) rows: usize,
    /// Adds the products of these rows, columns from the number on as many as there are lines, to a line for each row.
    ///
    /// SAFETY of calling: the processor has its features.
    pub(crate) add: unsafe fn(KeyRows<'_>, Range<usize>, usize, &[Lanes], &mut [Lanes]),
}

impl Tiles {
    /// Those of AVX2, for values that begin `APART` bytes apart.
    pub(crate) const fn of<const APART: usize>() -> Self {
        Self { rows: TILE, add: rows_tile::<APART> }
    }
}

/// `out[t][lane] = sum over c of x[t, c] * w[c][lane]`.
///
/// # Safety
/// The processor has the features of `tiles`.
pub(crate) unsafe fn products(tiles: Tiles, x: KeyRows<'_>, w: &[Lanes], out: &mut [Lanes]) {
    assert_eq!(
        (x.rows(), x.cols()),
        (out.len(), w.len()),
        "a line of w for each feature, one of out for each row"
    );
    out.fill(Lanes::ZERO);
    let parts = w.len().div_ceil(FEATURES);
    for part in 0..parts {
        let features = w.len() * part / parts..w.len() * (part + 1) / parts;
        let w = &w[features.clone()];
        for rows in evenly(x.rows(), tiles.rows) {
            let out = &mut out[rows.clone()];
            // SAFETY: what the caller promises.
            unsafe { (tiles.add)(x, rows, features.start, w, out) };
        }
    }
}

/// Cuts `count` into as few ranges of at most `most` as there can be, of lengths that differ by one at most.
pub(crate) fn evenly(count: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = count.div_ceil(most);
    (0..parts).map(move |part| count * part / parts..count * (part + 1) / parts)
}

/// Adds the products of some rows of x, columns `column..column + w.len()`, to `out`.
#[target_feature(enable = "avx2,fma,f16c")]
fn rows_tile<const APART: usize>(
    x: KeyRows<'_>,
    rows: Range<usize>,
    column: usize,
    w: &[Lanes],
    out: &mut [Lanes],
) {
    with_count!(rows.len(), R of [1 2 3 4 5 6], {
        add_tile::<APART, R, 2>(from_fn(|r| x.row(rows.start + r, column)), w, None, out);
    });
}

/// Rows that are read later, whose parts are asked for from memory a little at a time. They need not be mapped: a prefetch
/// never faults and reads nothing that the program can see.
#[derive(Clone, Copy)]
pub(crate) struct RowsAhead {
    /// The start of the first row.
    start: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
    /// Bytes of a row in a step.
    step_bytes: usize,
}

impl RowsAhead {
    /// So many columns from a row and a column on, in one step. The matrix may end before.
    pub(crate) fn at(w: &MatrixView<'_>, (row, first): (usize, usize), columns: usize) -> Self {
        let start = w.start_of_row(row).wrapping_add(w.format().bytes(first));
        Self { start, stride: w.format().bytes(w.row_stride()), step_bytes: w.format().bytes(columns) }
    }

    /// The same in so many steps.
    pub(crate) fn in_steps(self, steps: usize) -> Self {
        Self { step_bytes: self.step_bytes / steps, ..self }
    }

    /// One row of each `step`.
    pub(crate) fn every(self, step: usize) -> Self {
        Self { stride: self.stride * step, ..self }
    }

    /// The rows from `row` on.
    pub(crate) fn below(self, row: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.stride), ..self }
    }

    /// Asks for a step of `R` rows into the cache that `HINT` names, a line of each in turn; for the lines that begin in the
    /// step.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(crate) fn request<const HINT: i32, const R: usize>(self, step: usize) {
        // Not `next_multiple_of`, of which two become vector instructions.
        let line_from = |byte: usize| (byte + LINE - 1) & !(LINE - 1);
        for line in (line_from(step * self.step_bytes)..line_from((step + 1) * self.step_bytes)).step_by(LINE)
        {
            let mut row = self.start.wrapping_add(line);
            for _ in 0..R {
                _mm_prefetch::<HINT>(row.cast());
                row = row.wrapping_add(self.stride);
            }
        }
    }
}

/// `out[r][lane] += sum over c of rows[r][c] * w[c][lane]` for the first `V` vectors of lanes, of values that begin `APART`
/// bytes apart. With each [`STEP`] lines it asks for a step of as many rows `ahead`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn add_tile<const APART: usize, const R: usize, const V: usize>(
    rows: [&[u8]; R],
    w: &[Lanes],
    ahead: Option<RowsAhead>,
    out: &mut [Lanes],
) {
    for r in 0..R {
        assert!(rows[r].len() + APART >= w.len() * APART + size_of::<f32>(), "a value for each line");
    }
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    for (step, lines) in w.chunks(STEP).enumerate() {
        if let Some(ahead) = ahead {
            ahead.request::<_MM_HINT_T1, R>(step);
        }
        for (c, line) in lines.iter().enumerate() {
            let line = load(line);
            for r in 0..R {
                // SAFETY: a line is one of `w`, and each row has a value for each, as asserted above; the load needs no alignment.
                let value =
                    unsafe { rows[r].as_ptr().add((step * STEP + c) * APART).cast::<f32>().read_unaligned() };
                let value = _mm256_set1_ps(value);
                for v in 0..V {
                    sums[r][v] = _mm256_fmadd_ps(value, line[v], sums[r][v]);
                }
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut totals = load(out);
        for v in 0..V {
            totals[v] = _mm256_add_ps(totals[v], sums[v]);
        }
        store(out, totals);
    }
}

/// `out[lane, r] = sums(r)[lane]`, or `+=` if it is to `ADD`, for as many lanes as out has rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn write_rows<'s, const ADD: bool>(sums: impl Fn(usize) -> &'s Lanes, out: &mut MatrixMut<'_>) {
    let whole = out.cols() / VECTOR * VECTOR;
    // A run of each lane at a time: their rows lie on different pages, of which a processor knows few that it writes to.
    for run in (0..whole).step_by(RUN * VECTOR) {
        for first in (0..out.rows()).step_by(VECTOR) {
            for row in (run..whole.min(run + RUN * VECTOR)).step_by(VECTOR) {
                let columns: [__m256; VECTOR] = from_fn(|c| load(sums(row + c))[first / VECTOR]);
                for (lane, values) in (first..out.rows()).zip(transpose(columns)) {
                    let out = &mut out.row_mut(lane)[row..][..VECTOR];
                    // SAFETY: a slice of eight floats; load and store need no alignment.
                    unsafe {
                        let values = match ADD {
                            true => _mm256_add_ps(_mm256_loadu_ps(out.as_ptr()), values),
                            false => values,
                        };
                        _mm256_storeu_ps(out.as_mut_ptr(), values);
                    }
                }
            }
        }
    }
    for lane in 0..out.rows() {
        for (row, out) in out.row_mut(lane).iter_mut().enumerate().skip(whole) {
            let sum = sums(row).0[lane];
            *out = if ADD { *out + sum } else { sum };
        }
    }
}

/// Lines of zeros.
pub(crate) fn zeros(memory: &mut [MaybeUninit<Lanes>]) -> &mut [Lanes] {
    for line in &mut *memory {
        line.write(Lanes::ZERO);
    }
    // SAFETY: every line has been written.
    unsafe { memory.assume_init_mut() }
}

/// The lanes of a line.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn load(lanes: &Lanes) -> Pair {
    let start = lanes.0.as_ptr();
    // SAFETY: a line is sixteen floats, aligned to 64 bytes.
    unsafe { [_mm256_load_ps(start), _mm256_load_ps(start.add(VECTOR))] }
}

/// Writes the lanes of a line.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn store(lanes: &mut Lanes, vectors: Pair) {
    let start = lanes.0.as_mut_ptr();
    // SAFETY: a line is sixteen floats, aligned to 64 bytes.
    unsafe {
        _mm256_store_ps(start, vectors[0]);
        _mm256_store_ps(start.add(VECTOR), vectors[1]);
    }
}
