//! As many tokens as fill lanes, in the order in which one alone adds up. What a single token keeps in the lanes of its
//! vectors of sums are chains of columns that lie a fixed distance apart: here each chain goes by itself, for sixteen tokens
//! in lanes and six rows of weights, and then the chains are added as the lanes of one token are.

#![allow(clippy::needless_range_loop, reason = "a row or a chain is an index into several arrays")]

use super::stream_fp8;
use crate::avx2::{Fp8, LANES as VECTOR, fp8, with_count};
use crate::lanes::avx2::{Pair, RowsAhead, TILE, load, pack, store, write_rows, zeros};
use crate::view::ColumnBlock;
use crate::{LANES, Lanes, MatrixMut, MatrixRef, MatrixView, dequantize};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Columns of a panel of weights, at most: six rows of which a chain uses every other line stay in the first cache.
const COLUMNS: usize = 2048;
/// From a row of a panel to the next one.
const PITCH: usize = COLUMNS + LANES;
/// Chains of a format, at most.
const CHAINS: usize = 32;
/// Lines of sums, by row and chain: 256 kB.
const SUMS: usize = 128 * CHAINS;
/// Columns of tokens that are packed together.
const PACKED: usize = 128;

/// How one token is multiplied with weights of a format.
///
/// # Safety
/// The columns from one multiple of `CHAINS` to the next have different chains, below `CHAINS`.
pub(super) unsafe trait Chained {
    /// Sums that a token keeps apart.
    const CHAINS: usize;
    /// Columns of a panel.
    const COLUMNS: usize;
    /// Columns whose sum is added to the output before the next ones are.
    const RUN: usize = usize::MAX;

    /// The chain of a column.
    fn chain(column: usize) -> usize {
        column % Self::CHAINS
    }

    /// What inputs are multiplied by before.
    fn factor(_: &MatrixView<'_>, _: usize, _: ColumnBlock) -> f32 {
        1.0
    }

    /// Weights of rows from `row` on as inputs take them: the column of each chain, then the next of each, with zeros to
    /// the end. Marks rows of which it took a NaN for a number.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn fill(
        w: &MatrixView<'_>,
        row: usize,
        columns: Range<usize>,
        panel: &mut [[f32; PITCH]],
        is_nan: &mut [bool],
    );

    /// The sum of all chains.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn total(chains: &[Lanes]) -> Pair;
}

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for at most [`LANES`] tokens.
// Its memory is not to lie in the frame of a caller, which touches each page of it whatever comes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) fn matmul_add<C: Chained>(w: &MatrixView<'_>, x: MatrixRef<'_>, mut out: MatrixMut<'_>) {
    let mut memory = Memory {
        panel: [[0.0; PITCH]; TILE],
        tokens: [const { MaybeUninit::uninit() }; COLUMNS + CHAINS],
        sums: [const { MaybeUninit::uninit() }; SUMS],
    };
    for scaled in w.row_blocks() {
        for row in scaled.clone().step_by(SUMS / C::CHAINS) {
            let w = w.row_range(row..scaled.end.min(row + SUMS / C::CHAINS));
            let (mut now, rest) = out.split_columns_at(w.rows());
            for first in (0..w.cols()).step_by(C::RUN) {
                let run = first..w.cols().min(first.saturating_add(C::RUN));
                run_add::<C>(&w, run, x, &mut now, &mut memory);
            }
            out = rest;
        }
    }
}

/// Memory that is filled before it is read.
#[repr(align(64))]
struct Memory {
    /// Rows of weights.
    panel: [[f32; PITCH]; TILE],
    /// By chain, the tokens' columns.
    tokens: [MaybeUninit<Lanes>; COLUMNS + CHAINS],
    /// By row, its chains' sums.
    sums: [MaybeUninit<Lanes>; SUMS],
}

/// Adds the products of a run of columns; all rows have the same scales.
#[target_feature(enable = "avx2,fma,f16c")]
fn run_add<C: Chained>(
    w: &MatrixView<'_>,
    run: Range<usize>,
    x: MatrixRef<'_>,
    out: &mut MatrixMut<'_>,
    memory: &mut Memory,
) {
    let mut is_nan = [false; SUMS / VECTOR];
    let sums = zeros(&mut memory.sums[..w.rows() * C::CHAINS]);
    for first in run.clone().step_by(C::COLUMNS) {
        let columns = first..run.end.min(first + C::COLUMNS);
        let tokens = by_chain::<C>(w, columns.clone(), x, &mut memory.tokens);
        for row in (0..w.rows()).step_by(TILE) {
            let rows = row..w.rows().min(row + TILE);
            let panel = &mut memory.panel[..rows.len()];
            // SAFETY: this function has the features that are asked for.
            unsafe { C::fill(w, row, columns.clone(), panel, &mut is_nan[rows.clone()]) }
            let sums = &mut sums[rows.start * C::CHAINS..rows.end * C::CHAINS];
            // The rows below, or the next columns from the top.
            let next = if row + TILE < w.rows() { (row + TILE, first) } else { (0, first + C::COLUMNS) };
            let next = RowsAhead::at(w, next, C::COLUMNS).in_steps(C::CHAINS);
            with_count!(panel.len(), R of [1 2 3 4 5 6], panel_add::<C, R>(panel, tokens, sums, next));
        }
    }
    // The sum of a row's chains takes the place of the first chains of rows before it.
    for row in 0..w.rows() {
        // SAFETY: this function has the features that are asked for.
        let total = unsafe { C::total(&sums[row * C::CHAINS..][..C::CHAINS]) };
        store(&mut sums[row], if is_nan[row] { [_mm256_set1_ps(f32::NAN); 2] } else { total });
    }
    let sums = &sums[..w.rows()];
    write_rows::<true>(|row| &sums[row], out);
}

/// The tokens' columns by chain, from each chain to the next a line more than it has; zeros where columns have ended.
#[target_feature(enable = "avx2,fma,f16c")]
fn by_chain<'a, C: Chained>(
    w: &MatrixView<'_>,
    columns: Range<usize>,
    x: MatrixRef<'_>,
    memory: &'a mut [MaybeUninit<Lanes>],
) -> &'a [Lanes] {
    let steps = columns.len().div_ceil(C::CHAINS);
    let tokens = &mut memory[..C::CHAINS * (steps + 1)];
    let mut packed = [const { MaybeUninit::uninit() }; PACKED];
    for block in w.column_blocks(columns.clone()) {
        let factor = C::factor(w, 0, block);
        for first in (block.start..block.end).step_by(PACKED) {
            let some = first..block.end.min(first + PACKED);
            let lines = pack(x.column_range(some.clone()), Some(factor), &mut packed[..some.len()]);
            for (column, line) in (some.start - columns.start..).zip(lines) {
                tokens[C::chain(column) * (steps + 1) + column / C::CHAINS].write(*line);
            }
        }
    }
    for column in columns.len()..steps * C::CHAINS {
        tokens[C::chain(column) * (steps + 1) + column / C::CHAINS].write(Lanes::ZERO);
    }
    for chain in 0..C::CHAINS {
        tokens[chain * (steps + 1) + steps].write(Lanes::ZERO);
    }
    // SAFETY: each column of a whole number of steps has its own line, as the trait promises, and lines behind the last
    // step are written, too.
    unsafe { tokens.assume_init_ref() }
}

/// Goes on with the chains of `R` rows; with each of them it asks for a part of as many rows of the next panel.
#[target_feature(enable = "avx2,fma,f16c")]
fn panel_add<C: Chained, const R: usize>(
    panel: &[[f32; PITCH]],
    tokens: &[Lanes],
    sums: &mut [Lanes],
    next: RowsAhead,
) {
    let steps = tokens.len() / C::CHAINS - 1;
    assert!(panel.len() == R && sums.len() == R * C::CHAINS && steps * C::CHAINS <= PITCH, "rows of a tile");
    for chain in 0..C::CHAINS {
        next.request::<_MM_HINT_T1, R>(chain);
        let tokens = &tokens[chain * (steps + 1)..][..steps];
        let mut vectors = [[_mm256_setzero_ps(); 2]; R];
        for r in 0..R {
            vectors[r] = load(&sums[r * C::CHAINS + chain]);
        }
        for (step, line) in tokens.iter().enumerate() {
            let line = load(line);
            for r in 0..R {
                // SAFETY: `step < steps` and `chain < CHAINS`, so the place is below `steps * CHAINS`, which a row has.
                let weight = unsafe { *panel[r].get_unchecked(step * C::CHAINS + chain) };
                let weight = _mm256_set1_ps(weight);
                for half in 0..2 {
                    vectors[r][half] = _mm256_fmadd_ps(weight, line[half], vectors[r][half]);
                }
            }
        }
        for r in 0..R {
            store(&mut sums[r * C::CHAINS + chain], vectors[r]);
        }
    }
}

// SAFETY: a unit's columns have different places in it.
unsafe impl Chained for Fp8 {
    const CHAINS: usize = fp8::UNIT;
    const COLUMNS: usize = COLUMNS;
    const RUN: usize = stream_fp8::COLUMNS;

    fn chain(column: usize) -> usize {
        fp8::place(column % fp8::UNIT)
    }

    fn factor(w: &MatrixView<'_>, row: usize, block: ColumnBlock) -> f32 {
        w.row_scales(row).of(block) * fp8::HALF_UNIT
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(
        w: &MatrixView<'_>,
        row: usize,
        columns: Range<usize>,
        panel: &mut [[f32; PITCH]],
        is_nan: &mut [bool],
    ) {
        let bytes = w.rows_bytes(columns);
        for (r, (panel, is_nan)) in panel.iter_mut().zip(is_nan).enumerate() {
            *is_nan |= fp8::take_row_apart(bytes.row(row + r), panel);
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn total(chains: &[Lanes]) -> Pair {
        let parts = |lane: usize| {
            let part = |part: usize| load(&chains[part * VECTOR + lane]);
            add(add(add(part(0), part(1)), part(2)), part(3))
        };
        let lanes: [Pair; VECTOR] = from_fn(parts);
        let four =
            |first: usize| add(add(lanes[first], lanes[first + 1]), add(lanes[first + 2], lanes[first + 3]));
        add(four(0), four(4)).map(|sum| _mm256_mul_ps(sum, _mm256_set1_ps(fp8::HALF_UNIT)))
    }
}

/// F32 and bf16, whose weights have no scales and stay in their own order.
pub(super) enum Floats {}

// SAFETY: chains are remainders.
unsafe impl Chained for Floats {
    const CHAINS: usize = VECTOR;
    const COLUMNS: usize = COLUMNS / 2;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(
        w: &MatrixView<'_>,
        row: usize,
        columns: Range<usize>,
        panel: &mut [[f32; PITCH]],
        _: &mut [bool],
    ) {
        let end = columns.len();
        dequantize::avx2::dequantize_rows(w, row, columns, panel);
        for row in panel {
            row[end..end.next_multiple_of(VECTOR)].fill(0.0);
        }
    }

    /// As [`sum`](crate::avx2::sum) adds up the lanes of a vector.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn total(chains: &[Lanes]) -> Pair {
        let fours: [Pair; 4] = from_fn(|lane| add(load(&chains[lane]), load(&chains[lane + 4])));
        add(add(fours[0], fours[2]), add(fours[1], fours[3]))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add(a: Pair, b: Pair) -> Pair {
    [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
}
