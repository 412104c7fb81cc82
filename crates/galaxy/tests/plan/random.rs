//! Random models on random meshes.

use super::*;
use dsv3_galaxy::plan::check::{Device, ModelRules, verify};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

/// Models of any dimensions, most of which do not divide, and some that do.
fn any_model() -> impl Strategy<Value = Value> {
    let tiles = |most: u64| prop_oneof![4 => (1..most).prop_map(|tiles| tiles * 32), 1 => 1..most * 32];
    let whole = |most: u64| (1..most).prop_map(|parts| parts * 256);
    (
        prop_oneof![4 => whole(32), 1 => tiles(64)],
        prop_oneof![4 => whole(64), 1 => tiles(64)],
        (tiles(48), tiles(20), tiles(6), tiles(4), tiles(6)),
        prop_oneof![3 => (1u64..32).prop_map(|heads| heads * 8), 1 => 1u64..256],
        (prop_oneof![4 => whole(12), 1 => tiles(64)], 0u64..3, prop_oneof![4 => whole(600), 1 => tiles(600)]),
    )
        .prop_map(|(hidden, dense, (q, kv, nope, rope, value), heads, (width, first, vocabulary))| {
            json!({
                "hidden_size": hidden, "intermediate_size": dense, "q_lora_rank": q, "kv_lora_rank": kv,
                "qk_nope_head_dim": nope, "qk_rope_head_dim": rope.next_multiple_of(2), "v_head_dim": value,
                "num_attention_heads": heads, "num_key_value_heads": heads, "moe_intermediate_size": width,
                "first_k_dense_replace": first, "num_hidden_layers": 4, "vocab_size": vocabulary,
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A plan that is made has passed the rules, and passes them again as data; else there is a reason, never a panic.
    #[test]
    fn every_model_has_a_verified_plan_or_a_reason(
        changes in any_model(),
        (rows, columns) in (2u32..17, 2u32..9),
        (users, tiles, more) in (1u32..33, 1u32..80, 0u32..80),
        (is_decode, is_ring) in any::<(bool, bool)>(),
    ) {
        let (rows, columns) = if users % 2 == 0 { (4, 8) } else { (rows, columns) };
        let users_per_row = if users % 4 == 0 { users / 4 * 8 } else { users }.min(32);
        let mode = if is_decode { Mode::Decode } else { Mode::Prefill };
        let fabric = if is_ring { Fabric::Ring } else { Fabric::Line };
        let mesh = format!("{rows}x{columns}").parse().unwrap();
        let sequence_length = tiles * 32 * rows;
        let max_sequence_length = sequence_length + more * 32;
        let request = Request { mesh, mode, users_per_row, sequence_length, max_sequence_length, fabric };
        let hf = model(&changes);
        match plan(&hf, request) {
            Ok(plan) => {
                let device = Device { mesh: [rows, columns], fabric };
                let rules = ModelRules::new(&hf, request.mesh);
                prop_assert!(verify(&plan.operations, device, Some(rules)).is_ok());
            }
            Err(error) => {
                let is_ours = matches!(error, PlanError::Refused { .. });
                prop_assert!(!is_ours, "the planner wrote what the rules refuse: {error}");
            }
        }
    }
}

/// That random models are not all refused: else nothing would be verified.
#[test]
fn some_random_models_have_a_plan() {
    let mut runner = TestRunner::deterministic();
    let has_plan = |changes: &Value| {
        let request = Request { users_per_row: 8, ..request("4x8", Mode::Decode, 1024) };
        plan(&model(changes), request).is_ok()
    };
    let models = (0..200).map(|_| any_model().new_tree(&mut runner).unwrap().current());
    let plans = models.filter(has_plan).count();
    assert!(plans >= 5, "{plans} plans for 200 models");
}
