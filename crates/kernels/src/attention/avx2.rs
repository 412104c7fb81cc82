//! Scores and weighted sums in tiles of six keys or columns by sixteen lanes.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::{AttentionState, KeyValues, Queries};
use crate::activation::avx2::exp8;
use crate::avx2::LANES as VECTOR;
use crate::lanes::avx2::{Pair, TILE, load, products, store, transpose};
use crate::{KeyRows, LANES, Lanes, MatrixMut};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Keys whose scores are held at once.
const KEYS: usize = 128;

/// Keys to a request of memory ahead.
const AHEAD_KEYS: usize = 4;

/// Takes in a block of keys and values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn attend(block: &KeyValues<'_>, queries: &Queries<'_>, state: AttentionState<'_>) {
    match block.keys.shares_halves() {
        true => attend_to::<2>(block, queries, state),
        false => attend_to::<4>(block, queries, state),
    }
}

/// As [`attend`], to values that begin `APART` bytes apart.
#[target_feature(enable = "avx2,fma,f16c")]
fn attend_to<const APART: usize>(block: &KeyValues<'_>, queries: &Queries<'_>, state: AttentionState<'_>) {
    let AttentionState { max, sum, sums } = state;
    let mut scores = [Lanes::ZERO; KEYS];
    let keys = block.keys.rows();
    let mut ahead = Ahead::new(block.ahead, keys / AHEAD_KEYS * sums.len().div_ceil(TILE));
    for first in (0..keys).step_by(KEYS) {
        let part = first..keys.min(first + KEYS);
        let scores = &mut scores[..part.len()];
        products::<APART>(block.keys.row_range(part.clone()), queries.features, scores);
        let visible = queries.visible.map(|visible| visible.saturating_sub(first));
        if visible.iter().any(|&visible| visible < scores.len()) {
            mask(scores, visible);
        }
        let shrink = softmax(scores, max, sum);
        weighted_sums::<APART>(block.values.row_range(part), scores, shrink, sums, &mut ahead);
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

/// `sums[c][lane] = sums[c][lane] * shrink[lane] + sum over k of values[k, c] * weights[k][lane]`.
#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sums<const APART: usize>(
    values: KeyRows<'_>,
    weights: &[Lanes],
    shrink: Pair,
    sums: &mut [Lanes],
    ahead: &mut Ahead,
) {
    assert_eq!(
        (values.rows(), values.cols()),
        (weights.len(), sums.len()),
        "a weight and a sum for each value"
    );
    let tiles = values.cols().div_ceil(TILE);
    for tile in 0..tiles {
        let (first, end) = (values.cols() * tile / tiles, values.cols() * (tile + 1) / tiles);
        let sums = &mut sums[first..end];
        match end - first {
            1 => columns_tile::<APART, 1>(values, first, weights, shrink, sums, *ahead),
            2 => columns_tile::<APART, 2>(values, first, weights, shrink, sums, *ahead),
            3 => columns_tile::<APART, 3>(values, first, weights, shrink, sums, *ahead),
            4 => columns_tile::<APART, 4>(values, first, weights, shrink, sums, *ahead),
            5 => columns_tile::<APART, 5>(values, first, weights, shrink, sums, *ahead),
            _ => columns_tile::<APART, TILE>(values, first, weights, shrink, sums, *ahead),
        }
        ahead.next += weights.len() / AHEAD_KEYS;
    }
}

/// As [`weighted_sums`], of `R` columns of the values from `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn columns_tile<const APART: usize, const R: usize>(
    values: KeyRows<'_>,
    first: usize,
    weights: &[Lanes],
    shrink: Pair,
    out: &mut [Lanes],
    ahead: Ahead,
) {
    assert!(weights.len() == values.rows() && first + R <= values.cols(), "columns of values");
    let (values, stride) = (values.start::<APART>(first), values.stride());
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    let mut add_key = |k: usize, weights: &Lanes| {
        let weights = load(weights);
        for r in 0..R {
            // SAFETY: `start` gave the first of rows that are whole and whose values begin `APART` bytes apart; there is a row
            // `k`, and a column `first + r`, as asserted above. The load needs no alignment.
            let value = unsafe { values.add(k * stride + r * APART).cast::<f32>().read_unaligned() };
            let value = _mm256_set1_ps(value);
            sums[r] = multiply_add(value, weights, sums[r]);
        }
    };
    let (steps, rest) = weights.as_chunks::<AHEAD_KEYS>();
    for (step, weights) in steps.iter().enumerate() {
        ahead.request(step);
        for (k, weights) in weights.iter().enumerate() {
            add_key(step * AHEAD_KEYS + k, weights);
        }
    }
    for (k, weights) in rest.iter().enumerate() {
        add_key(steps.len() * AHEAD_KEYS + k, weights);
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let before = load(out);
        store(out, from_fn(|half| _mm256_fmadd_ps(before[half], shrink[half], sums[half])));
    }
}

/// Hides keys that a query does not see.
#[target_feature(enable = "avx2,fma,f16c")]
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
fn softmax(scores: &mut [Lanes], max: &mut Lanes, sum: &mut Lanes) -> Pair {
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
    shrink
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn multiply_add(value: __m256, w: Pair, sums: Pair) -> Pair {
    [_mm256_fmadd_ps(value, w[0], sums[0]), _mm256_fmadd_ps(value, w[1], sums[1])]
}

/// Bytes that are asked for from memory a little at each step of the work that hides them.
#[derive(Clone, Copy)]
struct Ahead {
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
    fn request(self, step: usize) {
        let address = self.start.wrapping_add(((self.next + step) * self.rate) >> 16);
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
}
