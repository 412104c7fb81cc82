//! The choice of experts: sigmoid scores, grouped top-k (`noaux_tc`).

use crate::{Device, Tensor, Weight, buffer::Buffer, device::rows_per_task};
use serde::{Deserialize, Serialize};
use std::ops::Range;

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
    experts_per_token: usize,
    /// `[tokens, experts per token]`: expert and weight, in ascending order of expert.
    choices: Buffer<(usize, f32)>,
    /// The experts that this device holds.
    held: Range<usize>,
}

impl Routing {
    /// From each token's choices, `[tokens, experts per token]`, where every expert is at hand.
    pub(crate) fn new(experts_per_token: usize, choices: Buffer<(usize, f32)>) -> Self {
        Self { experts_per_token, choices, held: 0..usize::MAX }
    }

    /// The same, where only some of the experts are at hand.
    #[must_use]
    pub fn held_by(self, held: Range<usize>) -> Self {
        Self { held, ..self }
    }

    /// How many experts each token chose.
    pub fn experts_per_token(&self) -> usize {
        self.experts_per_token
    }

    /// Those of a token's experts that are at hand.
    pub(crate) fn held(&self, token: usize) -> impl Iterator<Item = &(usize, f32)> {
        self.token(token).iter().filter(|(expert, _)| self.held.contains(expert))
    }

    /// The experts and weights of one token, in ascending order of expert.
    pub fn token(&self, token: usize) -> &[(usize, f32)] {
        &self.choices[token * self.experts_per_token..][..self.experts_per_token]
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
    device.for_each_chunk(&mut choices, rows * each, |number, choices| {
        let mut biased = Buffer::filled(config.experts, 0.0);
        for (token, choices) in (number * rows..).zip(choices.chunks_exact_mut(each)) {
            let scores = logits.row(token);
            biased.copy_from_slice(scores);
            device.kernels().add(&mut biased, bias.vector());
            keep_best_groups(&mut biased, config);
            weigh(scores, top_k(&biased, each), config, choices);
        }
    });
    Routing::new(each, choices)
}

/// Writes the chosen experts, in ascending order, with their weights.
fn weigh(scores: &[f32], mut chosen: Buffer<usize>, config: &GateConfig, choices: &mut [(usize, f32)]) {
    chosen.sort_unstable();
    let sum: f32 = chosen.iter().map(|&expert| scores[expert]).sum();
    let norm = if config.norm_topk_prob { 1.0 / (sum + 1e-20) } else { 1.0 };
    for (choice, &expert) in choices.iter_mut().zip(chosen.iter()) {
        *choice = (expert, scores[expert] * norm * config.routed_scaling_factor);
    }
}

/// Sets the scores of all groups but the best to minus infinity.
fn keep_best_groups(scores: &mut [f32], config: &GateConfig) {
    if config.groups == 1 {
        return;
    }
    let size = config.experts / config.groups;
    let mut group_scores = Buffer::with_capacity(config.groups);
    for group in scores.chunks_exact(size) {
        group_scores.push(top_k(group, 2).iter().map(|&expert| group[expert]).sum());
    }
    let best = top_k(&group_scores, config.topk_groups);
    for (index, group) in scores.chunks_exact_mut(size).enumerate() {
        if !best.contains(&index) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The indices of the `k` largest values, the largest first; of equal ones the lower index first.
fn top_k(values: &[f32], k: usize) -> Buffer<usize> {
    let mut best = Buffer::<usize>::with_capacity(k + 1);
    for (index, value) in values.iter().enumerate() {
        let place = best.partition_point(|&other| values[other] >= *value);
        if place < k {
            best.truncate(k - 1);
            best.insert(place, index);
        }
    }
    best
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
            prop_assert_eq!(&top_k(&values, k)[..], sorted);
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
