//! Every table against f64: strips of every filling, blocks of lengths around those of the tiles and of the scores
//! that are held at once, features and values of awkward counts, gaps between rows.

use super::{AttentionState, KeyValues, Queries};
use crate::testing::{GAP, Random, sum_error, tables};
use crate::{Kernels, KeyRows, LANES, Lanes, MatrixMut, halves_bytes, store_halves};

/// A case of attention: blocks of keys one after another.
struct Case {
    blocks: Vec<usize>,
    features: usize,
    v: usize,
    /// Values are the first features of the keys, as in absorbed attention.
    within: bool,
}

/// A block's keys or values.
enum Rows {
    /// With gaps between rows.
    Whole(crate::testing::Rows),
    /// In rows of so many.
    Halves(Vec<u8>, usize),
}

impl Rows {
    fn random(halves: bool, rows: usize, cols: usize, random: &mut Random) -> Self {
        if !halves {
            return Self::Whole(crate::testing::Rows::random(rows, cols, random));
        }
        let mut bytes = vec![0; rows * halves_bytes(cols)];
        for row in bytes.chunks_mut(halves_bytes(cols)) {
            store_halves(&random.values(cols), row);
        }
        Self::Halves(bytes, cols)
    }

    fn view(&self) -> KeyRows<'_> {
        match self {
            Self::Whole(rows) => KeyRows::f32(rows.view()),
            Self::Halves(bytes, cols) => KeyRows::halves(bytes, *cols),
        }
    }
}

#[test]
fn attention_agrees_with_f64() {
    let mut random = Random(3);
    let cases = [
        Case { blocks: vec![1], features: 1, v: 1, within: false },
        Case { blocks: vec![5, 1, 9], features: 24, v: 5, within: false },
        Case { blocks: vec![64, 64, 3], features: 40, v: 32, within: true },
        Case { blocks: vec![129], features: 9, v: 7, within: false },
        Case { blocks: vec![300, 7], features: 333, v: 13, within: true },
    ];
    for case in &cases {
        for halves in [false, true] {
            check_case(case, halves, &mut random);
        }
    }
}

fn check_case(case: &Case, halves: bool, random: &mut Random) {
    let of_blocks = |cols: usize, random: &mut Random| -> Vec<Rows> {
        case.blocks.iter().map(|&keys| Rows::random(halves, keys, cols, random)).collect()
    };
    let (keys, others) = (of_blocks(case.features, random), of_blocks(case.v, random));
    let queries: Vec<Lanes> =
        (0..case.features).map(|_| Lanes(std::array::from_fn(|_| random.value()))).collect();
    let total: usize = case.blocks.iter().sum();
    // One lane sees one key, the others more and more, the last all.
    let visible: [usize; LANES] = std::array::from_fn(|lane| 1 + (total - 1) * lane / (LANES - 1));
    let values: Vec<KeyRows<'_>> = keys
        .iter()
        .zip(&others)
        .map(|(keys, others)| if case.within { keys.view().first_columns(case.v) } else { others.view() })
        .collect();
    let keys: Vec<KeyRows<'_>> = keys.iter().map(Rows::view).collect();
    let expected = |lane: usize| exact(&keys, &values, &queries, lane, visible[lane]);
    for kernels in tables() {
        let attend = |block: usize, first: usize, lines: &mut [Lanes]| {
            let visible = visible.map(|visible| visible.saturating_sub(first));
            let block = KeyValues { keys: keys[block], values: values[block], ahead: &[1, 2, 3] };
            kernels.attend(&block, &Queries { features: &queries, visible }, AttentionState::of(lines));
        };
        let mut lines = vec![Lanes([f32::NAN; LANES]); AttentionState::lines(case.v)];
        AttentionState::of(&mut lines).clear();
        let mut first = 0;
        for (block, keys) in case.blocks.iter().enumerate() {
            attend(block, first, &mut lines);
            first += keys;
        }
        check(kernels, &mut lines, case, expected);
        // Each block by itself, and then merged; lanes see nothing of some.
        AttentionState::of(&mut lines).clear();
        let mut first = 0;
        for (block, keys) in case.blocks.iter().enumerate() {
            let mut own = vec![Lanes::ZERO; lines.len()];
            AttentionState::of(&mut own).clear();
            attend(block, first, &mut own);
            kernels.merge_attention(&mut AttentionState::of(&mut lines), &AttentionState::of(&mut own));
            first += keys;
        }
        check(kernels, &mut lines, case, expected);
    }
}

/// Compares what a state gives with what `expected` says of each lane.
fn check(kernels: &Kernels, lines: &mut [Lanes], case: &Case, expected: impl Fn(usize) -> (Vec<f64>, f64)) {
    for rows in [LANES, 5] {
        let mut out = vec![f32::NAN; rows * (case.v + GAP)];
        let target = MatrixMut::strided(&mut out, rows, case.v, case.v + GAP);
        kernels.finish_attention(&AttentionState::of(lines), target);
        for (lane, out) in out.chunks(case.v + GAP).enumerate() {
            let (expected, bound) = expected(lane);
            for (got, expected) in out.iter().zip(&expected) {
                let error = (f64::from(*got) - expected).abs();
                assert!(error <= bound, "{kernels:?} {:?} lane {lane}: {error} > {bound}", case.blocks);
            }
        }
    }
}

/// The attention of one lane in f64, and the error that f32 may make: values are at most 1, so an error of the
/// weights by a relative e changes the average by at most 2 e. The weights have the absolute error of their scores
/// (in exp, thus relative), 4 roundings of exp and its argument, one shrink a block, and the sums' own.
fn exact(
    keys: &[KeyRows<'_>],
    values: &[KeyRows<'_>],
    queries: &[Lanes],
    lane: usize,
    visible: usize,
) -> (Vec<f64>, f64) {
    let mut scores = Vec::new();
    let mut score_error: f64 = 0.0;
    for block in keys {
        for key in 0..block.rows() {
            let products =
                || block.values(key).zip(queries).map(|(k, q)| f64::from(k) * f64::from(q.0[lane]));
            scores.push(products().sum::<f64>());
            score_error = score_error.max(sum_error(queries.len(), products().map(f64::abs).sum()));
        }
    }
    scores.truncate(visible);
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let spread = max - scores.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; values[0].cols()];
    let rows = values.iter().flat_map(|values| (0..values.rows()).map(|row| values.values(row)));
    for (weight, row) in weights.iter().zip(rows) {
        for (out, value) in out.iter_mut().zip(row) {
            *out += weight * f64::from(value) / sum;
        }
    }
    // The argument of exp is rounded once: relative to the spread of the scores.
    let roundings = sum_error(visible + 6 + 4 * keys.len(), 1.0) + sum_error(1, spread);
    (out, 2.0 * (2.0 * score_error + roundings))
}
