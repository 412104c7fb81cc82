//! Scores and weighted sums in tiles of twelve keys or columns by sixteen lanes.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::avx2::{Ahead, Steps, attend_in};
use super::{AttentionState, KeyValues, Queries};
use crate::activation::avx512::exp16;
use crate::avx2::with_count;
use crate::avx512::{load, store};
use crate::lanes::avx512::{TILE, tiles};
use crate::{KeyRows, Lanes};
use std::arch::x86_64::*;
use std::ops::Range;

/// The steps of this file, for values that begin `APART` bytes apart.
const fn steps<const APART: usize>() -> Steps {
    Steps {
        tiles: tiles::<APART>(),
        softmax,
        columns: TILE,
        add_columns: columns_tile::<APART>,
        ahead_keys: 1,
    }
}

/// Takes in a block of keys and values.
#[target_feature(enable = "avx512f")]
pub(crate) fn attend(block: &KeyValues<'_>, queries: &Queries<'_>, state: AttentionState<'_>) {
    let steps = match block.keys.shares_halves() {
        true => steps::<2>(),
        false => steps::<4>(),
    };
    // SAFETY: this function has the features of the steps, which read values as far apart as they lie.
    unsafe { attend_in(&steps, block, queries, state) }
}

/// `out[c][lane] = out[c][lane] * shrink[lane] + sum over k of values[k, c] * weights[k][lane]`.
#[target_feature(enable = "avx512f")]
fn columns_tile<const APART: usize>(
    values: (KeyRows<'_>, Range<usize>),
    (weights, shrink): (&[Lanes], &Lanes),
    out: &mut [Lanes],
    ahead: Ahead,
) {
    with_count!(
        out.len(),
        R of [1 2 3 4 5 6 7 8 9 10 11 12],
        columns_sums::<APART, R>(values, weights, shrink, out, ahead)
    );
}

/// As [`columns_tile`], of `R` columns.
#[target_feature(enable = "avx512f")]
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
    let mut sums = [_mm512_setzero_ps(); R];
    for (k, line) in weights.iter().enumerate() {
        ahead.request(k);
        let weights = load(line);
        for r in 0..R {
            // SAFETY: `start` gave the first of rows that are whole and whose values begin `APART` bytes apart; there is a row
            // `k`, and a column `r` of these, as asserted above. The load needs no alignment.
            let value = unsafe { values.add(k * stride + r * APART).cast::<f32>().read_unaligned() };
            sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(value), weights, sums[r]);
        }
    }
    let shrink = load(shrink);
    for (out, sums) in out.iter_mut().zip(sums) {
        let total = _mm512_fmadd_ps(load(out), shrink, sums);
        store(out, total);
    }
}

/// Turns scores into `exp(score - max)` and adds them to the sum; gives what sums so far must be multiplied by.
#[target_feature(enable = "avx512f")]
fn softmax(scores: &mut [Lanes], max: &mut Lanes, sum: &mut Lanes) -> Lanes {
    let before = load(max);
    let mut largest = before;
    for scores in &*scores {
        // Where either operand is NaN the instruction gives the second: never a NaN of the scores.
        largest = _mm512_max_ps(load(scores), largest);
    }
    let shrink = exp16(_mm512_sub_ps(before, largest));
    let mut total = _mm512_setzero_ps();
    for scores in scores {
        let weights = exp16(_mm512_sub_ps(load(scores), largest));
        store(scores, weights);
        total = _mm512_add_ps(total, weights);
    }
    let all = _mm512_fmadd_ps(load(sum), shrink, total);
    store(sum, all);
    store(max, largest);
    let mut factors = Lanes::ZERO;
    store(&mut factors, shrink);
    factors
}
