//! The released configurations, every refusal by name, and mutations that must never panic.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const DEEPSEEK_V3: &str = include_str!("../../../../testdata/configs/deepseek-v3-671b.json");
const MOONLIGHT: &str = include_str!("../../../../testdata/configs/moonlight-16b.json");
const KIMI_K2: &str = include_str!("../../../../testdata/configs/kimi-k2.json");

fn parse(text: &str) -> Result<HfConfig, ConfigError> {
    HfConfig::from_json(Path::new("model/config.json"), text)
}

/// DeepSeek-V3's configuration with other values; `null` here means null there. A name has dots where it is nested.
fn changed(changes: &[(&str, Value)]) -> Value {
    let mut config: Value = serde_json::from_str(DEEPSEEK_V3).unwrap();
    for (field, value) in changes {
        let mut place = &mut config;
        for name in field.split('.') {
            place = &mut place[name];
        }
        *place = value.clone();
    }
    config
}

fn parse_changed(changes: &[(&str, Value)]) -> Result<HfConfig, ConfigError> {
    parse(&changed(changes).to_string())
}

fn without(field: &str) -> Result<HfConfig, ConfigError> {
    let mut config: Value = serde_json::from_str(DEEPSEEK_V3).unwrap();
    match field.split_once('.') {
        Some((outer, inner)) => config[outer].as_object_mut().unwrap().remove(inner),
        None => config.as_object_mut().unwrap().remove(field),
    };
    parse(&config.to_string())
}

fn refusal(changes: &[(&str, Value)]) -> String {
    parse_changed(changes).unwrap_err().to_string()
}

fn close(got: f32, expected: f64) {
    assert!((f64::from(got) - expected).abs() <= 1e-6 * expected.abs(), "got {got}, expected {expected}");
}

#[test]
fn deepseek_v3_is_read_whole() {
    let expected = HfConfig {
        hidden_size: 7168,
        num_hidden_layers: 61,
        first_k_dense_replace: 3,
        intermediate_size: 18432,
        vocab_size: 129_280,
        max_position_embeddings: 163_840,
        rms_norm_eps: 1e-6,
        attention: AttentionShape {
            heads: 128,
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            bias: false,
        },
        moe: Some(MoeConfig {
            routed_experts: 256,
            experts_per_token: 8,
            groups: 8,
            topk_groups: 4,
            shared_experts: 1,
            intermediate_size: 2048,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
        }),
        rope: RopeConfig {
            theta: 10_000.0,
            scaling: Some(Yarn {
                factor: 40.0,
                original_max_position_embeddings: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                mscale: 1.0,
                mscale_all_dim: 1.0,
            }),
        },
        tie_word_embeddings: false,
        mtp_layers: 1,
        quantization: Some(Fp8Blocks { rows: 128, cols: 128 }),
        bos_token_id: Some(TokenId(0)),
        eos_token_ids: vec![TokenId(1)],
    };
    assert_eq!(parse(DEEPSEEK_V3).unwrap(), expected);
}

#[test]
fn derived_dimensions_of_deepseek_v3() {
    let config = parse(DEEPSEEK_V3).unwrap();
    let shape = &config.attention;
    assert_eq!(
        [shape.qk_head_dim(), shape.latent_dim(), shape.q_dim(), shape.kv_dim(), shape.o_dim()],
        [192, 576, 24_576, 32_768, 16_384]
    );
    let moe = config.moe.as_ref().unwrap();
    assert_eq!([moe.experts_per_group(), moe.shared_intermediate_size()], [32, 2048]);
    assert_eq!([2, 3, 60, 61].map(|layer| config.is_moe(layer)), [false, true, true, true]);
    // kv_a_proj_with_mqa has 576 rows: its last row of blocks is half full.
    assert_eq!(config.quantization.unwrap().grid(576, 7168), [5, 56]);
}

/// The published element counts of the checkpoint: FP8 680 571 043 840, BF16 3 918 786 560, and among the F32 ones
/// the correction biases of 59 gates. They include the MTP layer's copies of embedding and head.
#[test]
fn parameters_of_deepseek_v3_are_the_published_ones() {
    let copies = 2 * 129_280 * 7168;
    let published = 680_571_043_840 + 3_918_786_560 + 59 * 256;
    assert_eq!(parse(DEEPSEEK_V3).unwrap().parameters() + copies, published);
}

#[test]
fn moonlight_has_one_group_a_full_query_and_plain_rope() {
    let config = parse(MOONLIGHT).unwrap();
    assert_eq!(config.attention.q_lora_rank, None);
    assert_eq!(config.rope, RopeConfig { theta: 50_000.0, scaling: None });
    assert_eq!((config.rms_norm_eps, config.mtp_layers, config.quantization), (1e-5, 0, None));
    let moe = config.moe.as_ref().unwrap();
    assert_eq!((moe.groups, moe.topk_groups, moe.shared_experts), (1, 1, 2));
    assert_eq!(moe.shared_intermediate_size(), 2816);
    close(config.softmax_scale(), 192f64.powf(-0.5));
    assert_eq!(config.rope.attention_factor(), 1.0);
    assert_eq!(config.parameters() / 10_000_000, 1596, "16B");
}

#[test]
fn kimi_k2_has_a_yarn_of_one_step() {
    let config = parse(KIMI_K2).unwrap();
    let yarn = config.rope.scaling.as_ref().unwrap();
    assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.factor), (1.0, 1.0, 32.0));
    assert_eq!(config.moe.as_ref().unwrap().routed_experts, 384);
    // transformers 5.24: DeepseekV3Attention.scaling
    close(config.softmax_scale(), 0.130_860_799_962_950_05);
    assert_eq!(config.parameters() / 1_000_000_000, 1026, "1T");
}

#[test]
fn yarn_sharpens_the_softmax_by_its_mscale_squared() {
    let config = parse(DEEPSEEK_V3).unwrap();
    close(config.softmax_scale(), 0.135_233_778_860_880_1); // transformers 5.24
    let squared = config.softmax_scale() / 192f32.powf(-0.5);
    assert!((squared - 1.8739).abs() < 5e-5, "{squared}");
    // Kimi-K2-0905 has the factor 64.
    let longer = parse_changed(&[("rope_scaling.factor", json!(64))]).unwrap();
    let squared = longer.softmax_scale() / 192f32.powf(-0.5);
    assert!((squared - 2.0047).abs() < 5e-5, "{squared}");
}

/// Values printed by transformers 5.24 for a factor of 4: (mscale, mscale_all_dim, factor on cos and sin, m^2).
#[test]
fn the_two_mscales_are_combined_as_in_transformers() {
    let cases = [
        (json!(0.8), json!(0.6), 1.025_596_804_848_913_7, 1.173_273_846_734_809_2),
        (json!(0), json!(1.0), 1.138_629_436_111_989, 1.296_476_992_781_070_3),
        (json!(null), json!(1.0), 1.138_629_436_111_989, 1.296_476_992_781_070_3),
        (json!(1.0), json!(null), 1.138_629_436_111_989, 1.0),
        (json!(0.5), json!(0), 1.138_629_436_111_989, 1.0),
        (json!(null), json!(null), 1.138_629_436_111_989, 1.0),
        (json!(0.707), json!(0.707), 1.0, 1.205_628_181_004_512_6),
    ];
    for (mscale, mscale_all_dim, attention_factor, squared) in cases {
        let config = parse_changed(&[
            ("rope_scaling.factor", json!(4)),
            ("rope_scaling.mscale", mscale),
            ("rope_scaling.mscale_all_dim", mscale_all_dim),
        ])
        .unwrap();
        close(config.rope.attention_factor(), attention_factor);
        close(config.softmax_scale(), 192f64.powf(-0.5) * squared);
    }
}

#[test]
fn both_spellings_of_the_rotary_embedding_are_read() {
    let expected = parse(DEEPSEEK_V3).unwrap().rope;
    let mut value = changed(&[]);
    let mut parameters = value["rope_scaling"].take();
    parameters["rope_theta"] = value["rope_theta"].take();
    parameters["rope_type"] = parameters["type"].take();
    value["rope_parameters"] = parameters;
    assert_eq!(parse(&value.to_string()).unwrap().rope, expected);

    // As in transformers: `rope_scaling` wins over `rope_parameters`, a theta inside over one beside.
    value["rope_scaling"] = json!({ "rope_type": "default", "rope_theta": 5000 });
    value["rope_theta"] = json!(7);
    assert_eq!(parse(&value.to_string()).unwrap().rope, RopeConfig { theta: 5000.0, scaling: None });
    // Betas of 0 stand for the defaults, and an absent theta for 10000.
    let config = parse_changed(&[
        ("rope_scaling.beta_fast", json!(0)),
        ("rope_scaling.beta_slow", json!(null)),
        ("rope_theta", json!(null)),
    ]);
    assert_eq!(config.unwrap().rope, expected);
}

#[test]
fn what_may_be_absent_has_the_defaults_of_transformers() {
    let expected = parse(DEEPSEEK_V3).unwrap();
    for field in [
        "architectures",
        "attention_bias",
        "hidden_act",
        "moe_layer_freq",
        "norm_topk_prob",
        "num_key_value_heads",
        "rms_norm_eps",
        "scoring_func",
        "tie_word_embeddings",
        "topk_method",
        "rope_theta",
        "rope_scaling.beta_fast",
        "rope_scaling.beta_slow",
        "quantization_config.fmt",
    ] {
        assert_eq!(without(field).unwrap(), expected, "{field}");
    }
    assert_eq!(without("num_nextn_predict_layers").unwrap().mtp_layers, 0);
    assert_eq!(without("quantization_config").unwrap().quantization, None);
    assert_eq!(without("rope_scaling").unwrap().rope.scaling, None);
    assert!(
        without("n_shared_experts")
            .unwrap_err()
            .to_string()
            .contains("n_shared_experts: expected an integer")
    );
    assert_eq!(without("bos_token_id").unwrap().bos_token_id, None);
    assert_eq!(without("eos_token_id").unwrap().eos_token_ids, []);
}

#[test]
fn what_must_be_there_is_named_when_it_is_missing() {
    for field in [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "first_k_dense_replace",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "moe_intermediate_size",
        "routed_scaling_factor",
        "rope_scaling.factor",
        "rope_scaling.original_max_position_embeddings",
        "quantization_config.quant_method",
        "quantization_config.weight_block_size",
    ] {
        let message = without(field).unwrap_err().to_string();
        assert!(message.starts_with(&format!("model/config.json: {field}: expected ")), "{message}");
        assert!(message.ends_with(", got nothing"), "{message}");
    }
}

#[test]
fn dense_models_need_no_experts() {
    let dense = [
        ("first_k_dense_replace", json!(61)),
        ("n_routed_experts", json!(null)),
        ("num_nextn_predict_layers", json!(0)),
    ];
    let config = parse_changed(&dense).unwrap();
    assert_eq!(config.moe, None);
    assert!(!config.is_moe(60));
    // More dense layers than layers are all of them.
    let config =
        parse_changed(&[("first_k_dense_replace", json!(100)), dense[1].clone(), dense[2].clone()]).unwrap();
    assert_eq!((config.first_k_dense_replace, config.moe), (61, None));
    // The MTP layer has experts even then.
    let message = refusal(&dense[..2]);
    assert!(message.contains("n_routed_experts"), "{message}");
    let config = parse_changed(&dense[..1]).unwrap();
    assert_eq!([60, 61].map(|layer| config.is_moe(layer)), [false, true]);
    assert!(config.moe.is_some());
}

#[test]
fn unusual_but_possible_values_are_taken() {
    let config = parse_changed(&[
        ("first_k_dense_replace", json!(0)),
        ("norm_topk_prob", json!(false)),
        ("attention_bias", json!(true)),
        ("tie_word_embeddings", json!(true)),
        ("eos_token_id", json!([1, 7, 129_279])),
        ("quantization_config.weight_block_size", json!([1, 96])),
        ("num_nextn_predict_layers", json!(0)),
        ("something_unknown", json!({ "a": [1, 2, 3] })),
    ])
    .unwrap();
    assert!(config.is_moe(0) && config.attention.bias && config.tie_word_embeddings);
    assert!(!config.moe.unwrap().norm_topk_prob);
    assert_eq!(config.eos_token_ids, [1, 7, 129_279].map(TokenId));
    assert_eq!(config.quantization, Some(Fp8Blocks { rows: 1, cols: 96 }));
    let mut value = changed(&[("num_mtp_layers", json!(1))]);
    value.as_object_mut().unwrap().remove("num_nextn_predict_layers");
    assert_eq!(parse(&value.to_string()).unwrap().mtp_layers, 1);
}

#[test]
fn other_models_and_impossible_ones_are_refused_by_name() {
    let cases = [
        ("model_type", json!("deepseek_v2"), r#"expected "deepseek_v3" or "kimi_k2", got "deepseek_v2""#),
        ("model_type", json!("deepseek_v32"), r#"expected "deepseek_v3" or "kimi_k2", got "deepseek_v32""#),
        (
            "architectures",
            json!(["DeepseekV2ForCausalLM"]),
            r#"expected ["DeepseekV3ForCausalLM"], got ["DeepseekV2ForCausalLM"]"#,
        ),
        ("architectures", json!([]), r#"expected ["DeepseekV3ForCausalLM"], got []"#),
        (
            "index_topk",
            json!(2048),
            "expected nothing (the sparse attention of DeepSeek-V3.2 is not supported), got 2048",
        ),
        ("hidden_act", json!("gelu"), r#"expected "silu", got "gelu""#),
        ("scoring_func", json!("softmax"), r#"expected "sigmoid", got "softmax""#),
        ("topk_method", json!("group_limited_greedy"), r#"expected "noaux_tc", got "group_limited_greedy""#),
        ("moe_layer_freq", json!(2), "expected 1, got 2"),
        ("rope_interleave", json!(false), "expected true, got false"),
        ("num_key_value_heads", json!(8), "expected 128, got 8"),
        ("rope_scaling.type", json!("linear"), r#"expected "yarn" or "default", got "linear""#),
        ("rope_scaling.rope_type", json!("llama3"), r#"expected "yarn" or "default", got "llama3""#),
        ("rope_scaling.type", json!(3), r#"expected "yarn" or "default", got 3"#),
        ("rope_scaling.truncate", json!(false), "expected nothing (not supported), got false"),
        ("rope_scaling.attention_factor", json!(1.0), "expected nothing (not supported), got 1.0"),
        ("rope_scaling.factor", json!(0.5), "expected a number from 1 to 1000000, got 0.5"),
        ("rope_scaling.factor", json!("NaN"), r#"expected a number from 1 to 1000000, got "NaN""#),
        ("rope_scaling.beta_fast", json!(0.5), "expected a number not below beta_slow (1), got 0.5"),
        ("rope_scaling.mscale", json!(-1), "expected a number from 0 to 1000, got -1"),
        ("rope_scaling", json!("yarn"), r#"expected an object or null, got "yarn""#),
        ("rope_theta", json!(1), "expected a number above 1 to 1000000000000, got 1"),
        ("partial_rotary_factor", json!(0.5), "expected 1.0, got 0.5"),
        ("qk_rope_head_dim", json!(63), "expected an even number (features are rotated in pairs), got 63"),
        ("num_attention_heads", json!(0), "expected an integer from 1 to 16384, got 0"),
        ("num_hidden_layers", json!(1_000_000_000), "expected an integer from 1 to 4096, got 1000000000"),
        ("num_hidden_layers", json!(-61), "expected an integer from 1 to 4096, got -61"),
        ("num_hidden_layers", json!(61.0), "expected an integer from 1 to 4096, got 61.0"),
        ("hidden_size", json!("7168"), r#"expected an integer from 1 to 1048576, got "7168""#),
        ("q_lora_rank", json!(0), "expected an integer from 1 to 1048576, got 0"),
        ("rms_norm_eps", json!(0), "expected a number from 0.000000000000000000000000000001 to 1, got 0"),
        ("attention_bias", json!(1), "expected true or false, got 1"),
        (
            "n_group",
            json!(7),
            "expected a divisor of n_routed_experts (256) with 2 experts a group or more, got 7",
        ),
        (
            "n_group",
            json!(256),
            "expected a divisor of n_routed_experts (256) with 2 experts a group or more, got 256",
        ),
        ("topk_group", json!(9), "expected an integer from 1 to 8, got 9"),
        ("num_experts_per_tok", json!(129), "expected an integer from 1 to 128, got 129"),
        ("num_nextn_predict_layers", json!(2), "expected an integer from 0 to 1, got 2"),
        ("bos_token_id", json!(129_280), "expected token ids below vocab_size (129280), got 129280"),
        ("eos_token_id", json!([1, -1]), "expected token ids below vocab_size (129280), got [1,-1]"),
        (
            "quantization_config.quant_method",
            json!("compressed-tensors"),
            r#"expected "fp8", got "compressed-tensors""#,
        ),
        ("quantization_config.fmt", json!("e5m2"), r#"expected "e4m3", got "e5m2""#),
    ];
    for (field, value, expected) in cases {
        assert_eq!(refusal(&[(field, value)]), format!("model/config.json: {field}: {expected}"));
    }
    for blocks in
        [json!(null), json!([128]), json!([0, 128]), json!([128, 128, 1]), json!([128.0, 128]), json!(128)]
    {
        let message = refusal(&[("quantization_config.weight_block_size", blocks)]);
        assert!(
            message.contains("weight_block_size: expected [rows, columns], each from 1 to "),
            "{message}"
        );
    }
}

/// Each field is within its bounds, their product is not.
#[test]
fn a_model_that_no_machine_could_hold_is_refused() {
    let message = refusal(&[
        ("num_hidden_layers", json!(4096)),
        ("hidden_size", json!(1 << 20)),
        ("moe_intermediate_size", json!(1 << 20)),
        ("n_routed_experts", json!(1 << 14)),
        ("n_shared_experts", json!(1 << 10)),
    ]);
    let expected = "num_hidden_layers: expected a model of at most 1048576 tensors, got 4096";
    assert_eq!(message, format!("model/config.json: {expected}"));
}

#[test]
fn what_is_no_configuration_is_refused_in_one_line() {
    let cases =
        ["", "{", "[]", "null", "3", "{\"hidden_size\": NaN}", "{\"hidden_size\": 1e999}", "\u{0}", "{}x"];
    let deep = "[".repeat(100_000);
    for text in cases.into_iter().chain([deep.as_str()]) {
        let message = parse(text).unwrap_err().to_string();
        assert!(message.starts_with("model/config.json: "), "{message}");
        assert!(!message.contains('\n') && message.len() < 200, "{message}");
    }
    let long = refusal(&[("model_type", json!("é\n".repeat(1_000_000)))]);
    assert!(!long.contains('\n') && long.len() < 250, "{long}");
}

#[test]
fn files_are_read_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let message = HfConfig::from_file(&path).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
    std::fs::write(&path, KIMI_K2).unwrap();
    assert_eq!(HfConfig::from_file(&path).unwrap(), parse(KIMI_K2).unwrap());
    std::fs::write(&path, " ".repeat((16 << 20) + 1)).unwrap();
    let message = HfConfig::from_file(&path).unwrap_err().to_string();
    assert!(
        message.ends_with("expected a configuration of at most 16777216 bytes, got a longer file"),
        "{message}"
    );
    std::fs::write(&path, b"{\"model_type\": \"\xff\"}").unwrap();
    assert!(matches!(HfConfig::from_file(&path), Err(ConfigError::Io { .. })));
}

/// Every field of DeepSeek-V3's configuration, the nested ones with dots.
fn field_names() -> Vec<String> {
    let config = changed(&[]);
    let mut names = vec!["rope_parameters".to_owned(), "index_topk".to_owned(), "num_mtp_layers".to_owned()];
    for (name, value) in config.as_object().unwrap() {
        names.push(name.clone());
        names.extend(value.as_object().into_iter().flatten().map(|(inner, _)| format!("{name}.{inner}")));
    }
    names
}

fn weird_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        (0u32..64).prop_map(|shift| Value::from(1u64 << shift)),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        prop::collection::vec(any::<i32>(), 0..4).prop_map(Value::from),
        Just(json!({})),
        Just(json!({ "type": "yarn", "factor": 1e308, "original_max_position_embeddings": 1 })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever stands in the fields, it is refused by an error or gives a usable configuration.
    #[test]
    fn mutated_configurations_never_panic(
        changes in prop::collection::vec((prop::sample::select(field_names()), weird_value()), 1..4),
    ) {
        let mut config = changed(&[]);
        for (field, value) in &changes {
            match field.split_once('.') {
                // An earlier change may have replaced the object.
                Some((outer, inner)) => {
                    if let Some(object) = config[outer].as_object_mut() {
                        object.insert(inner.to_owned(), value.clone());
                    }
                }
                None => config[field] = value.clone(),
            }
        }
        match parse(&config.to_string()) {
            Ok(config) => {
                prop_assert!(config.parameters() > 0);
                prop_assert!(config.softmax_scale().is_finite() && config.softmax_scale() > 0.0);
                prop_assert!(config.rope.attention_factor().is_finite() && config.rope.attention_factor() > 0.0);
                prop_assert!(config.rms_norm_eps > 0.0);
            }
            Err(error) => prop_assert!(error.to_string().starts_with("model/config.json: ")),
        }
    }

    #[test]
    fn torn_configurations_never_panic(cut in 0..DEEPSEEK_V3.len(), junk in ".{0,10}") {
        // The file is ASCII, so that every byte is a boundary.
        let _ = parse(&format!("{}{junk}", &DEEPSEEK_V3[..cut]));
    }
}
