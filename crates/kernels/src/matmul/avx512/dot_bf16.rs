//! Five tokens and more of bf16: weights become f32 in registers, the even and the odd columns of a row, and are multiplied with
//! a few tokens at a time, whose columns stay in the first cache while rows go by.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use crate::avx2::{padded, with_count};
use crate::avx512::streams::SideBySide;
use crate::avx512::{VECTOR, load, load64, sum_each};
use crate::lanes::avx2::evenly;
use crate::view::RowsBytes;
use crate::{Lanes, MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::{mem::MaybeUninit, ops::Range, ptr};

/// Tokens at most: more are faster as lanes of a panel.
pub(super) const MOST: usize = 24;
/// Tokens of a pass: three rows have as many sums with them as fit into registers.
const FEW: usize = 8;
/// Passes of all tokens.
const PASSES: usize = MOST / FEW;
/// Rows side by side.
const ROWS: usize = 3;
/// Columns that all rows are multiplied with before the next ones: 32 kB of inputs of a pass.
const COLUMNS: usize = 1024;
/// Groups of rows that all tokens use before the next ones: 48 kB, which stay in the second cache.
const GROUPS: usize = 8;
/// Columns that one load of weights takes.
const UNIT: usize = 2 * VECTOR;
/// Bytes of a unit of weights.
const UNIT_BYTES: usize = 2 * UNIT;
/// Lines of inputs of a pass.
const LINES: usize = FEW * COLUMNS / VECTOR;

/// `T` tokens' inputs of a unit: the even columns, then the odd ones.
type Inputs<const T: usize> = [[Lanes; T]; 2];

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`, of 5 to [`MOST`] tokens.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx512f")]
#[inline(never)]
pub(super) fn matmul(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let mut memory = [const { [const { MaybeUninit::uninit() }; LINES] }; PASSES];
    out.fill(0.0);
    let passes = x.rows().div_ceil(FEW);
    for first in (0..w.cols()).step_by(COLUMNS) {
        let columns = first..w.cols().min(first + COLUMNS);
        let mut inputs: [&[Lanes]; PASSES] = [&[]; PASSES];
        for ((tokens, memory), inputs) in evenly(x.rows(), FEW).zip(&mut memory).zip(&mut inputs) {
            *inputs = lay_out(x.row_range(tokens).column_range(columns.clone()), memory);
        }
        let part =
            Part { w, weights: w.rows_bytes(columns.clone()), columns, rows: SideBySide::of(0..w.rows()) };
        let count = part.rows.groups();
        for group in (0..count).step_by(GROUPS) {
            let groups = group..count.min(group + GROUPS);
            for (pass, (tokens, inputs)) in evenly(x.rows(), FEW).zip(inputs).enumerate() {
                let (_, mut out) = out.reborrow().split_rows_at(tokens.start);
                with_count!(tokens.len(), T of [4 5 6 7 8], {
                    let inputs = inputs.as_chunks::<T>().0.as_chunks().0;
                    part.add_groups::<T>(groups.clone(), inputs, (pass, passes), &mut out);
                });
            }
        }
    }
}

/// The inputs of a pass's tokens unit by unit, with zeros to the end of the last one.
#[target_feature(enable = "avx512f")]
fn lay_out<'m>(x: MatrixRef<'_>, memory: &'m mut [MaybeUninit<Lanes>; LINES]) -> &'m [Lanes] {
    let tokens = x.rows();
    let lines = &mut memory[..x.cols().div_ceil(UNIT) * 2 * tokens];
    for token in 0..tokens {
        let (units, rest) = x.row(token).as_chunks::<UNIT>();
        let end = padded(rest);
        for (x, lines) in units.iter().chain([&end]).zip(lines.chunks_exact_mut(2 * tokens)) {
            let [even, odd] = even_and_odd(x);
            lines[token].write(even);
            lines[tokens + token].write(odd);
        }
    }
    // SAFETY: both lines of each token have been written in each unit.
    unsafe { lines.assume_init_ref() }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn even_and_odd(x: &[f32; UNIT]) -> [Lanes; 2] {
    let mut out = [Lanes::ZERO; 2];
    for column in 0..UNIT {
        out[column % 2].0[column / 2] = x[column];
    }
    out
}

/// Some columns of a matrix.
struct Part<'a> {
    w: &'a MatrixView<'a>,
    columns: Range<usize>,
    weights: RowsBytes<'a>,
    rows: SideBySide<ROWS>,
}

impl Part<'_> {
    /// Adds the products of some groups with `T` tokens, those of `pass` of so many.
    #[target_feature(enable = "avx512f")]
    fn add_groups<const T: usize>(
        &self,
        groups: Range<usize>,
        inputs: &[Inputs<T>],
        (pass, passes): (usize, usize),
        out: &mut MatrixMut<'_>,
    ) {
        for group in groups {
            let (first, apart, count) = self.rows.group(group);
            let mut rows: [&[u8]; ROWS] = [&[]; ROWS];
            let mut requests = Requests { rows: [ptr::null(); ROWS], each: passes };
            let next = self.ahead(group).wrapping_add(inputs.len() * pass / passes * UNIT_BYTES);
            for r in 0..ROWS {
                rows[r] = self.weights.row(first + r * apart);
                requests.rows[r] = next.wrapping_add(r * self.rows.length * self.weights.stride());
            }
            let sums = row_sums(rows, inputs, requests);
            for (r, sums) in sums.iter().enumerate().take(count) {
                for t in 0..T {
                    out.row_mut(t)[first + r * apart] += sums[t];
                }
            }
        }
    }

    /// Where the group begins that comes after the groups which go by together with this one.
    fn ahead(&self, group: usize) -> *const u8 {
        let (group, length) = (group + GROUPS, self.rows.length);
        let (row, column) = match group < length {
            true => (group, self.columns.start),
            false if self.columns.end < self.w.cols() => (group - length, self.columns.end),
            false => (self.w.rows() + group - length, 0),
        };
        self.w.start_of_row(row).wrapping_add(self.w.format().bytes(column))
    }
}

/// What a pass asks memory for, its share of what all of them do; it need not be mapped.
struct Requests {
    rows: [*const u8; ROWS],
    /// Units that are multiplied from one request to the next, of a line of each row.
    each: usize,
}

/// The products of some columns of rows with `T` tokens.
#[target_feature(enable = "avx512f")]
#[inline]
fn row_sums<const T: usize>(
    rows: [&[u8]; ROWS],
    inputs: &[Inputs<T>],
    mut requests: Requests,
) -> [[f32; FEW]; ROWS] {
    let whole = rows[0].len() / UNIT_BYTES;
    let mut sums = [[_mm512_setzero_ps(); FEW]; ROWS];
    let mut units: [&[[u8; UNIT_BYTES]]; ROWS] = [&[]; ROWS];
    for r in 0..ROWS {
        units[r] = &rows[r].as_chunks().0[..whole];
    }
    // The end first: to copy it is a call, over which no sums stay in registers.
    if let Some(inputs) = inputs.get(whole) {
        let mut weights = [_mm512_setzero_si512(); ROWS];
        for r in 0..ROWS {
            weights[r] = load64(&padded(rows[r].as_chunks::<UNIT_BYTES>().1));
        }
        add_unit(weights, inputs, &mut sums);
    }
    let mut wait = 0;
    for (number, inputs) in inputs[..whole].iter().enumerate() {
        if wait == 0 {
            wait = requests.each;
            for row in &mut requests.rows {
                _mm_prefetch::<_MM_HINT_T1>(row.cast());
                *row = row.wrapping_add(UNIT_BYTES);
            }
        }
        wait -= 1;
        let mut weights = [_mm512_setzero_si512(); ROWS];
        for r in 0..ROWS {
            weights[r] = load64(&units[r][number]);
        }
        add_unit(weights, inputs, &mut sums);
    }
    let mut totals = [[0.0; FEW]; ROWS];
    for r in 0..ROWS {
        for (totals, sums) in totals[r].as_chunks_mut().0.iter_mut().zip(sums[r].as_chunks::<4>().0) {
            *totals = sum_each(*sums);
        }
    }
    totals
}

/// Adds the products of a unit.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_unit<const T: usize>(weights: [__m512i; ROWS], inputs: &Inputs<T>, sums: &mut [[__m512; FEW]; ROWS]) {
    for (odd, inputs) in inputs.iter().enumerate() {
        let mut values = [_mm512_setzero_ps(); ROWS];
        for r in 0..ROWS {
            values[r] = _mm512_castsi512_ps(match odd {
                0 => _mm512_slli_epi32::<16>(weights[r]),
                _ => _mm512_and_si512(weights[r], _mm512_set1_epi32(-1 << 16)),
            });
        }
        for t in 0..T {
            let x = load(&inputs[t]);
            for r in 0..ROWS {
                sums[r][t] = _mm512_fmadd_ps(values[r], x, sums[r][t]);
            }
        }
    }
}
