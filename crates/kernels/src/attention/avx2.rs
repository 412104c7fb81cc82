//! Scores and weighted sums in tiles of six keys or columns by sixteen lanes.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::{AttentionState, KeyValues, Queries};
use crate::activation::avx2::exp8;
use crate::avx2::LANES as VECTOR;
use crate::avx2::with_count;
use crate::lanes::avx2::{Pair, TILE, Tiles, evenly, load, products, store, transpose};
use crate::{KeyRows, LANES, Lanes, MatrixMut};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

/// Keys whose scores are held at once.
const KEYS: usize = 128;

/// Keys to a request of memory ahead.
const AHEAD_KEYS: usize = 4;

/// The steps of this file, for values that begin `APART` bytes apart.
const fn steps<const APART: usize>() -> Steps {
    Steps {
        tiles: Tiles::of::<APART>(),
        softmax,
        columns: TILE,
        add_columns: columns_tile::<APART>,
        ahead_keys: AHEAD_KEYS,
    }
}

/// Takes in a block of keys and values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn attend(block: &KeyValues<'_>, queries: &Queries<'_>, state: AttentionState<'_>) {
    let steps = match block.keys.shares_halves() {
        true => steps::<2>(),
        false => steps::<4>(),
    };
    // SAFETY: this function has the features of the steps, which read values as far apart as they lie.
    unsafe { attend_in(&steps, block, queries, state) }
}

/// What an instruction set does of attention in its own way.
///
/// SAFETY of calling: the processor has its features, and values lie as far apart as they are read.
pub(super) struct Steps {
    pub(super) tiles: Tiles,
    /// Turns scores into `exp(score - max)` and adds them to the sum; gives what sums so far must be multiplied by.
    pub(super) softmax: unsafe fn(&mut [Lanes], &mut Lanes, &mut Lanes) -> Lanes,
    /// Columns of values that are summed at a time, at most.
    pub(super) columns: usize,
    /// `sums[c] = sums[c] * shrink + sum over k of values[k, c] * weights[k]` for these columns of the values.
    pub(super) add_columns: AddColumns,
    /// For how many keys `add_columns` asks memory once.
    pub(super) ahead_keys: usize,
}

/// Values and columns of them; weights and what sums are multiplied by; the sums.
type AddColumns = unsafe fn((KeyRows<'_>, Range<usize>), (&[Lanes], &Lanes), &mut [Lanes], Ahead);

/// As [`attend`].
///
/// # Safety
/// The steps may be called.
pub(super) unsafe fn attend_in(
    steps: &Steps,
    block: &KeyValues<'_>,
    queries: &Queries<'_>,
    state: AttentionState<'_>,
) {
    let AttentionState { max, sum, sums } = state;
    let mut scores = [Lanes::ZERO; KEYS];
    let keys = block.keys.rows();
    let mut ahead = Ahead::new(block.ahead, keys / steps.ahead_keys * sums.len().div_ceil(steps.columns));
    for first in (0..keys).step_by(KEYS) {
        let part = first..keys.min(first + KEYS);
        let scores = &mut scores[..part.len()];
        // SAFETY: what the caller promises.
        unsafe { products(steps.tiles, block.keys.row_range(part.clone()), queries.features, scores) };
        let visible = queries.visible.map(|visible| visible.saturating_sub(first));
        if visible.iter().any(|&visible| visible < scores.len()) {
            mask(scores, visible);
        }
        // SAFETY: as above.
        let shrink = unsafe { (steps.softmax)(scores, max, sum) };
        let values = block.values.row_range(part);
        assert_eq!(values.cols(), sums.len(), "a sum for each value");
        for columns in evenly(values.cols(), steps.columns) {
            let sums = &mut sums[columns.clone()];
            // SAFETY: as above.
            unsafe { (steps.add_columns)((values, columns), (scores, &shrink), sums, ahead) };
            ahead.next += scores.len() / steps.ahead_keys;
        }
    }
}

/// Takes what another state of the same queries has seen into `state`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn merge_attention(state: &mut AttentionState<'_>, other: &AttentionState<'_>) {
    let maxima = [load(state.max), load(other.max)];
    let max: Pair = from_fn(|half| _mm256_max_ps(maxima[0][half], maxima[1][half]));
    let [mine, others]: [Pair; 2] =
        maxima.map(|maximum| from_fn(|half| exp8(_mm256_sub_ps(maximum[half], max[half]))));
    store(state.max, max);
    let merge = |into: &mut Lanes, from: &Lanes| {
        let (a, b) = (load(into), load(from));
        store(
            into,
            from_fn(|half| _mm256_fmadd_ps(b[half], others[half], _mm256_mul_ps(a[half], mine[half]))),
        );
    };
    merge(state.sum, other.sum);
    for (sums, other) in state.sums.iter_mut().zip(&*other.sums) {
        merge(sums, other);
    }
}

/// `out[lane, c] = sums[c][lane] / sum[lane]`, for as many lanes as out has rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn finish_attention(state: &AttentionState<'_>, mut out: MatrixMut<'_>) {
    let factors = state.sum.0.map(|sum| 1.0 / sum);
    let (blocks, rest) = state.sums.as_chunks::<VECTOR>();
    for (block, sums) in blocks.iter().enumerate() {
        for half in 0..2 {
            let columns: [__m256; VECTOR] = from_fn(|c| load(&sums[c])[half]);
            let lanes = half * VECTOR..out.rows().min((half + 1) * VECTOR);
            for (lane, values) in lanes.zip(transpose(columns)) {
                let out = &mut out.row_mut(lane)[block * VECTOR..][..VECTOR];
                let values = _mm256_mul_ps(values, _mm256_set1_ps(factors[lane]));
                // SAFETY: a slice of eight floats; the store needs no alignment.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
            }
        }
    }
    for lane in 0..out.rows() {
        let out = &mut out.row_mut(lane)[blocks.len() * VECTOR..];
        for (out, sums) in out.iter_mut().zip(rest) {
            *out = sums.0[lane] * factors[lane];
        }
    }
}

/// `out[c][lane] = out[c][lane] * shrink[lane] + sum over k of values[k, c] * weights[k][lane]`.
#[target_feature(enable = "avx2,fma,f16c")]
fn columns_tile<const APART: usize>(
    values: (KeyRows<'_>, Range<usize>),
    (weights, shrink): (&[Lanes], &Lanes),
    out: &mut [Lanes],
    ahead: Ahead,
) {
    with_count!(out.len(), R of [1 2 3 4 5 6], columns_sums::<APART, R>(values, weights, shrink, out, ahead));
}

/// As [`columns_tile`], of `R` columns.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn columns_sums<const APART: usize, const R: usize>(
    (values, columns): (KeyRows<'_>, Range<usize>),
    weights: &[Lanes],
    shrink: &Lanes,
    out: &mut [Lanes],
    ahead: Ahead,
) {
    assert!(weights.len() == values.rows() && columns.start + R <= values.cols(), "columns of values");
    let (values, stride) = (values.start::<APART>(columns.start), values.stride());
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (k, line) in weights.iter().enumerate() {
        if k % AHEAD_KEYS == 0 {
            ahead.request(k / AHEAD_KEYS);
        }
        let weights = load(line);
        for r in 0..R {
            // SAFETY: `start` gave the first of rows that are whole and whose values begin `APART` bytes apart; there is a row
            // `k`, and a column `r` of these, as asserted above. The load needs no alignment.
            let value = unsafe { values.add(k * stride + r * APART).cast::<f32>().read_unaligned() };
            let value = _mm256_set1_ps(value);
            sums[r] = multiply_add(value, weights, sums[r]);
        }
    }
    let shrink = load(shrink);
    for (out, sums) in out.iter_mut().zip(sums) {
        let before = load(out);
        store(out, from_fn(|half| _mm256_fmadd_ps(before[half], shrink[half], sums[half])));
    }
}

/// Hides keys that a query does not see.
fn mask(scores: &mut [Lanes], visible: [usize; LANES]) {
    for (key, scores) in scores.iter_mut().enumerate() {
        for lane in 0..LANES {
            if key >= visible[lane] {
                scores.0[lane] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Turns scores into `exp(score - max)` and adds them to the sum; gives what sums so far must be multiplied by.
#[target_feature(enable = "avx2,fma,f16c")]
fn softmax(scores: &mut [Lanes], max: &mut Lanes, sum: &mut Lanes) -> Lanes {
    let before = load(max);
    let mut largest = before;
    for scores in &*scores {
        let scores = load(scores);
        // Where either operand is NaN the instruction gives the second: never a NaN of the scores.
        largest = from_fn(|half| _mm256_max_ps(scores[half], largest[half]));
    }
    let shrink: Pair = from_fn(|half| exp8(_mm256_sub_ps(before[half], largest[half])));
    let mut total = [_mm256_setzero_ps(); 2];
    for scores in scores {
        let weights: Pair = {
            let scores = load(scores);
            from_fn(|half| exp8(_mm256_sub_ps(scores[half], largest[half])))
        };
        store(scores, weights);
        total = from_fn(|half| _mm256_add_ps(total[half], weights[half]));
    }
    let old = load(sum);
    store(sum, from_fn(|half| _mm256_fmadd_ps(old[half], shrink[half], total[half])));
    store(max, largest);
    let mut factors = Lanes::ZERO;
    store(&mut factors, shrink);
    factors
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn multiply_add(value: __m256, w: Pair, sums: Pair) -> Pair {
    [_mm256_fmadd_ps(value, w[0], sums[0]), _mm256_fmadd_ps(value, w[1], sums[1])]
}

/// Bytes that are asked for from memory a little at each step of the work that hides them.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    start: *const u8,
    /// Bytes a step, in units of 1 / 2^16.
    rate: usize,
    /// Steps done.
    next: usize,
}

impl Ahead {
    fn new(bytes: &[u8], steps: usize) -> Self {
        Self { start: bytes.as_ptr(), rate: (bytes.len() << 16) / steps.max(1), next: 0 }
    }

    /// Asks for what belongs to `step` from now. A prefetch never faults and reads nothing that the program can see.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(super) fn request(self, step: usize) {
        let address = self.start.wrapping_add(((self.next + step) * self.rate) >> 16);
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}
