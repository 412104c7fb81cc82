//! The specification.

use super::{AttentionState, KeyValues, Queries};
use crate::lanes::scalar::lane_sums;
use crate::{LANES, MatrixMut};

/// Takes in a block of keys and values.
pub(crate) fn attend(block: &KeyValues<'_>, queries: &Queries<'_>, state: AttentionState<'_>) {
    let AttentionState { max, sum, sums } = state;
    for key in 0..block.keys.rows() {
        let scores = lane_sums(block.keys.values(key), queries.features);
        for lane in (0..LANES).filter(|&lane| key < queries.visible[lane]) {
            let score = scores.0[lane];
            if score > max.0[lane] {
                let shrink = (max.0[lane] - score).exp();
                max.0[lane] = score;
                sum.0[lane] *= shrink;
                sums.iter_mut().for_each(|sums| sums.0[lane] *= shrink);
            }
            let weight = (score - max.0[lane]).exp();
            sum.0[lane] += weight;
            for (sums, value) in sums.iter_mut().zip(block.values.values(key)) {
                sums.0[lane] += weight * value;
            }
        }
    }
}

/// Takes what another state of the same queries has seen into `state`.
pub(crate) fn merge_attention(state: &mut AttentionState<'_>, other: &AttentionState<'_>) {
    for lane in 0..LANES {
        let max = state.max.0[lane].max(other.max.0[lane]);
        let (mine, others) = ((state.max.0[lane] - max).exp(), (other.max.0[lane] - max).exp());
        state.max.0[lane] = max;
        state.sum.0[lane] = state.sum.0[lane] * mine + other.sum.0[lane] * others;
        for (sums, other) in state.sums.iter_mut().zip(&*other.sums) {
            sums.0[lane] = sums.0[lane] * mine + other.0[lane] * others;
        }
    }
}

/// `out[lane, c] = sums[c][lane] / sum[lane]`, for as many lanes as out has rows.
pub(crate) fn finish_attention(state: &AttentionState<'_>, mut out: MatrixMut<'_>) {
    for lane in 0..out.rows() {
        let factor = 1.0 / state.sum.0[lane];
        for (out, sums) in out.row_mut(lane).iter_mut().zip(&*state.sums) {
            *out = sums.0[lane] * factor;
        }
    }
}
