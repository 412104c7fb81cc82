//! The traps of the architecture one by one, with numbers small enough to follow by hand or printed by
//! transformers 5.24. Whole models are compared in `tests/golden_reference.rs`.

use super::*;
use dsv3_runtime::TokenId;
use proptest::prelude::*;
use std::{collections::BTreeMap, path::Path};

const DEEPSEEK_V3: &str = include_str!("../../../../testdata/configs/deepseek-v3-671b.json");
const KIMI_K2: &str = include_str!("../../../../testdata/configs/kimi-k2.json");
const MOONLIGHT: &str = include_str!("../../../../testdata/configs/moonlight-16b.json");

fn config(text: &str) -> HfConfig {
    HfConfig::from_json(Path::new("config.json"), text).unwrap()
}

/// Two groups of two experts, of which one group and one expert are chosen; scores not normalised, not scaled.
const MOE: MoeConfig = MoeConfig {
    routed_experts: 4,
    experts_per_token: 1,
    groups: 2,
    topk_groups: 1,
    shared_experts: 0,
    intermediate_size: 1,
    norm_topk_prob: false,
    routed_scaling_factor: 1.0,
};

/// The route of a token of one feature of value 1, so that the logits are the gate's weights.
fn route(moe: &MoeConfig, logits: &[f32], bias: &[f32]) -> Route {
    let tensors = BTreeMap::from([
        ("weight", (vec![logits.len(), 1], logits.to_vec())),
        ("e_score_correction_bias", (vec![bias.len()], bias.to_vec())),
    ]);
    let weights = |name: &str| Ok(tensors[name].clone());
    gate(moe, &Scope::root(&weights), &Tensor::from_vec(1, 1, vec![1.0])).unwrap().remove(0)
}

fn chosen(route: &Route) -> Vec<usize> {
    route.iter().map(|&(expert, _)| expert).collect()
}

/// All biased scores are negative: experts of the dropped group would win if they were set to 0.
#[test]
fn dropped_groups_lose_against_negative_scores() {
    let route = route(&MOE, &[0.0, 0.0, 1.0, 2.0], &[-3.0, -3.0, -2.0, -2.0]);
    assert_eq!(chosen(&route), [3]);
}

/// Group 0 has the best expert, group 1 the best two.
#[test]
fn a_group_is_as_good_as_its_two_best_experts() {
    let route = route(&MOE, &[2.0, -2.0, 1.0, 1.5], &[0.0; 4]);
    assert_eq!(chosen(&route), [3]);
}

/// The bias makes expert 0 win; its weight is its own score.
#[test]
fn the_bias_chooses_and_does_not_weigh() {
    let route = route(&MOE, &[0.0, 0.0, 1.0, 1.0], &[5.0, 0.0, 0.0, 0.0]);
    assert_eq!(route, [(0, 0.5)]);
}

#[test]
fn of_equal_scores_the_lower_number_wins() {
    let all = MoeConfig { experts_per_token: 2, topk_groups: 2, ..MOE };
    assert_eq!(chosen(&route(&all, &[1.0; 4], &[0.0; 4])), [0, 1]);
    assert_eq!(chosen(&route(&all, &[1.0, 2.0, 1.0, 1.0], &[0.0; 4])), [0, 1]);
    assert_eq!(chosen(&route(&MOE, &[1.0; 4], &[0.0; 4])), [0]);
    assert_eq!(model::likeliest(&[0.0, 3.0, 3.0]), TokenId(1));
}

#[test]
fn normalised_weights_sum_to_the_scaling_factor() {
    let mut moe = MoeConfig { experts_per_token: 2, topk_groups: 2, routed_scaling_factor: 2.5, ..MOE };
    let logits = [0.0, -1e4, 0.0, -1e4];
    assert_eq!(route(&moe, &logits, &[0.0; 4]), [(0, 1.25), (2, 1.25)]);
    moe.norm_topk_prob = true;
    assert_eq!(route(&moe, &logits, &[0.0; 4]), [(0, 1.25), (2, 1.25)]);
    let uneven = route(&moe, &[2.0, -1e4, 0.0, -1e4], &[0.0; 4]);
    assert!((uneven[0].1 + uneven[1].1 - 2.5).abs() < 1e-6 && uneven[0].1 > uneven[1].1);
    // Without the 1e-20 this is 0 / 0.
    assert_eq!(route(&moe, &[-1e4; 4], &[0.0; 4]), [(0, 0.0), (1, 0.0)]);
}

proptest! {
    #[test]
    fn routes_stay_within_the_groups(
        (groups, per_group, topk_groups) in (1usize..6, 2usize..6).prop_flat_map(|(groups, per_group)| {
            (Just(groups), Just(per_group), 1..=groups)
        }),
        values in prop::collection::vec((-4.0f32..4.0, -2.0f32..2.0), 25),
        experts in any::<prop::sample::Index>(),
    ) {
        let routed_experts = groups * per_group;
        let experts_per_token = 1 + experts.index(topk_groups * per_group);
        let moe = MoeConfig { routed_experts, experts_per_token, groups, topk_groups, norm_topk_prob: true, ..MOE };
        let (logits, bias): (Vec<f32>, Vec<f32>) = values[..routed_experts].iter().copied().unzip();
        let route = route(&moe, &logits, &bias);
        prop_assert_eq!(route.len(), experts_per_token);
        prop_assert!(route.is_sorted_by(|a, b| a.0 < b.0));
        let mut visited: Vec<usize> = route.iter().map(|(expert, _)| expert / per_group).collect();
        visited.dedup();
        prop_assert!(visited.len() <= topk_groups);
        let sum: f32 = route.iter().map(|(_, weight)| weight).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5);
    }
}

#[test]
fn shared_experts_lie_side_by_side() {
    let weights = |name: &str| -> Result<(Vec<usize>, Vec<f32>), Error> {
        Ok(match name {
            "gate_proj.weight" => (vec![2, 1], vec![1.0, 2.0]),
            "up_proj.weight" => (vec![2, 1], vec![3.0, 4.0]),
            "down_proj.weight" => (vec![1, 2], vec![5.0, 6.0]),
            other => panic!("{other} is no weight of an MLP"),
        })
    };
    let x = Tensor::from_vec(1, 1, vec![1.0]);
    let two = MoeConfig { shared_experts: 2, ..MOE };
    let output = shared_experts(&two, &Scope::root(&weights), &x).unwrap().unwrap();
    let silu = |z: f64| z / (1.0 + (-z).exp());
    let expected = silu(1.0) * 3.0 * 5.0 + silu(2.0) * 4.0 * 6.0;
    assert!((f64::from(output.values()[0]) - expected).abs() < 1e-5 * expected);
    assert!(shared_experts(&MOE, &Scope::root(&weights), &x).unwrap().is_none());
}

/// Frequencies printed by transformers 5.24 for DeepSeek-V3: kept, in between, divided by 40.
#[test]
fn yarn_frequencies_of_deepseek_v3() {
    let frequencies = inverse_frequencies(&config(DEEPSEEK_V3));
    assert_eq!(frequencies.len(), 32);
    for (pair, expected) in [
        (0, 1.0),
        (1, 0.749_894_2),
        (10, 0.056_234_13),
        (11, 0.039_006_926),
        (16, 0.005_500_000_4),
        (22, 0.000_177_827_94),
        (23, 0.000_033_338_034),
        (31, 0.000_003_333_803_5),
    ] {
        let got = frequencies[pair];
        assert!(
            (got - expected).abs() <= 2.0 * f32::EPSILON * expected,
            "{pair}: {got}, expected {expected}"
        );
    }
}

/// Kimi-K2's two betas are equal: the ramp is a step between pairs 19 and 20, where a formula without floor and
/// ceiling divides by zero.
#[test]
fn yarn_frequencies_of_kimi_k2_are_a_step() {
    let kimi = config(KIMI_K2);
    let frequencies = inverse_frequencies(&kimi);
    let plain: Vec<f32> = (0..32).map(|pair| 1.0 / 50_000f64.powf(f64::from(pair) / 32.0) as f32).collect();
    for (pair, (got, plain)) in frequencies.iter().zip(&plain).enumerate() {
        let expected = if pair < 20 { *plain } else { plain / 32.0 };
        assert!(
            (got - expected).abs() <= 4.0 * f32::EPSILON * expected,
            "{pair}: {got}, expected {expected}"
        );
    }
    assert_eq!(rope_tables(&kimi, 1).cos.values(), [1.0; 32]);
}

/// With 6 original positions both ends of the ramp fall on pair 0, and 0.001 keeps them apart. First values of
/// transformers 5.24.
#[test]
fn yarn_ramps_of_no_length_do_not_divide_by_zero() {
    let mut kimi = config(KIMI_K2);
    kimi.rope.scaling.as_mut().unwrap().original_max_position_embeddings = 6;
    for (got, expected) in inverse_frequencies(&kimi).into_iter().zip([1.0, 0.022_284_722, 0.015_891_483]) {
        assert!((got - expected).abs() <= 2.0 * f32::EPSILON * expected, "{got}, expected {expected}");
    }
}

/// Values of transformers 5.24 for Moonlight, at a position far beyond its context.
#[test]
fn plain_rope_far_out() {
    let moonlight = config(MOONLIGHT);
    let tables = rope_tables(&moonlight, 4096);
    for (got, expected) in
        tables.cos.row(4095).iter().zip([-0.065_975_994, 0.079_485_96, -0.897_817_85, -0.559_724_45])
    {
        // Two units in the last place of a frequency, times the position.
        assert!((got - expected).abs() <= 4096.0 * 2.0 * f32::EPSILON, "{got}, expected {expected}");
    }
}

#[test]
fn neighbouring_features_are_rotated_together() {
    let mut features = [1.0, 2.0, 3.0, 4.0];
    rotate(&mut features, &[0.0, 1.0], &[1.0, 0.0]); // a quarter turn of the first pair
    assert_eq!(features, [-2.0, 1.0, 3.0, 4.0]);
}

/// The attention's norms keep 1e-6: with features of 1e-3 the epsilons 1e-6 and 1e-5 are far apart.
#[test]
fn rms_norm_adds_epsilon_to_the_mean_square() {
    let weights = |_: &str| -> Result<(Vec<usize>, Vec<f32>), Error> { Ok((vec![2], vec![1.0, 2.0])) };
    let x = Tensor::from_vec(1, 2, vec![1e-3, -1e-3]);
    let y = rms_norm(&Scope::root(&weights), LORA_NORM_EPS, &x).unwrap();
    let expected = 1.0 / 2f32.sqrt();
    assert!((y.values()[0] - expected).abs() < 1e-6 && (y.values()[1] + 2.0 * expected).abs() < 1e-6);
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let weights = |name: &str| -> Result<(Vec<usize>, Vec<f32>), Error> {
        match name {
            "a.weight" => Ok((vec![2, 3], vec![0.0; 6])),
            "b.weight" => Ok((vec![3, 2], vec![0.0; 5])),
            _ => Err(Error::Tensor { name: name.to_owned(), message: "is missing".to_owned() }),
        }
    };
    let x = Tensor::zeros(1, 2);
    let error = |part: &str| linear(&Scope::root(&weights).enter(part), 3, &x).unwrap_err().to_string();
    assert_eq!(error("a"), "tensor a.weight: expected the shape [3, 2], got [2, 3] with 6 values");
    assert_eq!(error("b"), "tensor b.weight: expected the shape [3, 2], got [3, 2] with 5 values");
    assert_eq!(error("c"), "tensor c.weight: is missing");
}
