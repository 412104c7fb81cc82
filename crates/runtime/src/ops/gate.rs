//! The choice of experts: sigmoid scores, grouped top-k (`noaux_tc`).

use crate::{Device, Tensor, Weight, buffer::Buffer, device::rows_per_task};
use dsv3_kernels::{Chunks, Cuts, LANES, Lanes, Queue};
use serde::{Deserialize, Serialize};

/// Config of [`grouped_top_k`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// Routed experts.
    pub experts: usize,
    /// Experts chosen for a token.
    pub experts_per_token: usize,
    /// Groups that the experts lie in, of equal size and in order.
    pub groups: usize,
    /// Groups that a token's experts may come from.
    pub topk_groups: usize,
    /// Whether a token's weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub routed_scaling_factor: f32,
}

/// Which experts each token goes to, and with which weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    experts: usize,
    experts_per_token: usize,
    /// `[tokens, experts per token]`: expert and weight, in ascending order of expert.
    choices: Buffer<(usize, f32)>,
}

impl Routing {
    /// The experts and weights of one token, in ascending order of expert.
    pub fn token(&self, token: usize) -> &[(usize, f32)] {
        &self.choices[token * self.experts_per_token..][..self.experts_per_token]
    }

    /// How many experts there are to choose from.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.choices.len() / self.experts_per_token
    }
}

/// Chooses each token's experts.
///
/// The bias takes part in the choice only. A group's score is the sum of its two best biased scores; experts of other
/// than the best groups are out, also where biased scores are negative. Of equal scores the lower index wins. The
/// weights are the sigmoids without bias (DeepSeek-V3 paper, equations 12 to 16; `DeepseekV3TopkRouter`).
///
/// # Shapes
/// `logits` `[tokens, experts]`, `bias` `[experts]`.
pub fn grouped_top_k(mut logits: Tensor, bias: &Weight, config: &GateConfig, device: &Device) -> Routing {
    assert_eq!(logits.cols(), config.experts, "one logit for each expert");
    let each = config.experts_per_token;
    let mut choices = Buffer::filled(logits.rows() * each, (0, 0.0));
    let rows = rows_per_task(config.experts);
    device.for_each_row_chunk(logits.values_mut(), config.experts, |_, scores| {
        device.kernels().sigmoid(scores);
    });
    let chunks = Queue::new(Chunks::new(&mut choices, Cuts::Every(rows * each)));
    // Biased scores of the experts, and scores of their groups.
    let lines = (config.experts + config.groups).div_ceil(LANES);
    device.for_each_with(&chunks, lines, |(number, choices), memory| {
        let (biased, of_groups) = Lanes::flatten_mut(memory).split_at_mut(config.experts);
        for (token, choices) in (number * rows..).zip(choices.chunks_exact_mut(each)) {
            let scores = logits.row(token);
            biased.copy_from_slice(scores);
            device.kernels().add(biased, bias.vector());
            keep_best_groups(biased, &mut of_groups[..config.groups], config);
            top_k(biased, choices);
            weigh(scores, config, choices);
        }
    });
    Routing { experts: config.experts, experts_per_token: each, choices }
}

/// Brings the chosen experts into ascending order, and writes their weights.
fn weigh(scores: &[f32], config: &GateConfig, choices: &mut [(usize, f32)]) {
    choices.sort_unstable_by_key(|&(expert, _)| expert);
    let sum: f32 = choices.iter().map(|&(expert, _)| scores[expert]).sum();
    let norm = if config.norm_topk_prob { 1.0 / (sum + 1e-20) } else { 1.0 };
    for (expert, weight) in choices {
        *weight = scores[*expert] * norm * config.routed_scaling_factor;
    }
}

/// Sets the scores of all groups but the best to minus infinity. `of_groups` `[groups]` is memory for the groups' scores.
fn keep_best_groups(scores: &mut [f32], of_groups: &mut [f32], config: &GateConfig) {
    if config.groups == 1 {
        return;
    }
    let size = config.experts / config.groups;
    for (group, score) in scores.chunks_exact(size).zip(&mut *of_groups) {
        let mut best = [(0, 0.0); 2];
        let best = &mut best[..size.min(2)];
        top_k(group, best);
        *score = best.iter().map(|&(_, score)| score).sum();
    }
    for (index, group) in scores.chunks_exact_mut(size).enumerate() {
        let beats = |(other, score): (usize, &f32)| {
            *score > of_groups[index] || (*score == of_groups[index] && other < index)
        };
        if of_groups.iter().enumerate().filter(|&other| beats(other)).count() >= config.topk_groups {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The largest values with their indices, as many as `best` holds, the largest first; of equal ones the lower index
/// first.
fn top_k(values: &[f32], best: &mut [(usize, f32)]) {
    assert!(best.len() <= values.len(), "{} of {} values", best.len(), values.len());
    for (index, &value) in values.iter().enumerate() {
        let found = index.min(best.len());
        let place = best[..found].partition_point(|&(_, other)| other >= value);
        if place < best.len() {
            let end = best.len().min(found + 1);
            best[place..end].rotate_right(1);
            best[place] = (index, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn top_k_is_a_stable_descending_sort(values in prop::collection::vec(-3_i8..3, 1..40), k in 1_usize..10) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let mut sorted: Vec<usize> = (0..values.len()).collect();
            sorted.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            sorted.truncate(k);
            let mut best = vec![(0, 0.0); sorted.len()];
            top_k(&values, &mut best);
            let expected: Vec<_> = sorted.into_iter().map(|index| (index, values[index])).collect();
            prop_assert_eq!(best, expected);
        }
    }

    fn config() -> GateConfig {
        GateConfig {
            experts: 6,
            experts_per_token: 2,
            groups: 3,
            topk_groups: 1,
            norm_topk_prob: false,
            routed_scaling_factor: 1.0,
        }
    }

    fn route(scores: [f32; 6], bias: [f32; 6], config: &GateConfig) -> Vec<(usize, f32)> {
        let logits = scores.map(|score| (score / (1.0 - score)).ln()).to_vec();
        let bias = Weight::Vector(bias.as_slice().into());
        let routing =
            grouped_top_k(Tensor::from_vec(1, 6, logits), &bias, config, &Device::single(1).unwrap());
        routing.token(0).to_vec()
    }

    /// Compares weights to within the error of going through the logit and back.
    fn assert_routes(got: &[(usize, f32)], expected: &[(usize, f32)]) {
        for (got, expected) in got.iter().zip(expected) {
            assert_eq!(got.0, expected.0, "{got:?} is not {expected:?}");
            assert!(
                (got.1 - expected.1).abs() <= 8.0 * f32::EPSILON * expected.1,
                "{got:?} is not {expected:?}"
            );
        }
        assert_eq!(got.len(), expected.len());
    }

    #[test]
    fn the_bias_chooses_and_does_not_weigh() {
        let got = route([0.5, 0.5, 0.9, 0.9, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0, 2.0, 2.0], &config());
        assert_routes(&got, &[(4, 0.2), (5, 0.1)]);
    }

    #[test]
    fn experts_of_other_groups_stay_out_where_biased_scores_are_negative() {
        let got = route([0.3, 0.2, 0.1, 0.1, 0.1, 0.1], [-3.0, -3.0, -4.0, -4.0, -4.0, -4.0], &config());
        assert_routes(&got, &[(0, 0.3), (1, 0.2)]);
    }

    #[test]
    fn of_equal_scores_the_lower_index_wins() {
        assert_routes(&route([0.5; 6], [0.0; 6], &config()), &[(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn weights_are_normalised_then_scaled_where_the_model_says_so() {
        let config = GateConfig { norm_topk_prob: true, routed_scaling_factor: 2.5, ..config() };
        let got = route([0.1, 0.1, 0.6, 0.2, 0.1, 0.1], [0.0; 6], &config);
        assert_routes(&got, &[(2, 2.5 * 0.75), (3, 2.5 * 0.25)]);
    }
}
