//! Small models of shapes that no checkpoint of the test data has, and every model that modules are tested on.

use super::{CASES, F32Weights, random::random_weights};
use dsv3_deepseek::hf::HfConfig;
use dsv3_runtime::{Tensor, TokenId};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A small model with every part; `changes` are fields with other values.
pub fn config(changes: &serde_json::Value) -> HfConfig {
    let mut config = serde_json::json!({
        "model_type": "deepseek_v3", "hidden_size": 24, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "intermediate_size": 20, "vocab_size": 50, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "num_attention_heads": 3, "q_lora_rank": 10, "kv_lora_rank": 12, "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4, "v_head_dim": 7, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3,
        "topk_group": 2, "n_shared_experts": 1, "moe_intermediate_size": 9, "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": 1,
        "rope_scaling": { "type": "yarn", "factor": 4, "original_max_position_embeddings": 32,
            "mscale": 1.0, "mscale_all_dim": 1.0 },
    });
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    HfConfig::from_json(Path::new("config.json"), &config.to_string()).unwrap()
}

/// Shapes that no checkpoint of the test data has.
pub fn shapes() -> Vec<HfConfig> {
    let changes = [
        serde_json::json!({}),
        serde_json::json!({ "q_lora_rank": null, "rope_scaling": null, "attention_bias": true }),
        serde_json::json!({ "n_shared_experts": 0, "first_k_dense_replace": 0, "norm_topk_prob": false }),
        serde_json::json!({ "n_shared_experts": 3, "n_group": 1, "topk_group": 1, "tie_word_embeddings": true }),
        serde_json::json!({ "first_k_dense_replace": 3, "num_nextn_predict_layers": 0, "n_routed_experts": null }),
        serde_json::json!({ "first_k_dense_replace": 3, "attention_bias": true }),
    ];
    changes.iter().map(config).collect()
}

/// A model to test modules on: a checkpoint, and its weights in f32 for the reference.
pub struct Subject {
    pub name: String,
    pub hf: HfConfig,
    pub weights: F32Weights,
    pub checkpoint: PathBuf,
    /// Holds a checkpoint that was made for the test.
    _dir: Option<TempDir>,
}

/// The checkpoints with golden files, and random models of all [`shapes`].
pub fn subjects() -> Vec<Subject> {
    let cases = CASES.iter().map(|case| Subject {
        name: case.name.to_owned(),
        hf: case.config(),
        weights: case.weights(),
        checkpoint: case.checkpoint_path(),
        _dir: None,
    });
    let random = shapes().into_iter().enumerate();
    let random = random.map(|(index, hf)| Subject::random(format!("random {index}"), hf, index as u64));
    cases.chain(random).collect()
}

impl Subject {
    /// A model of random weights.
    pub fn random(name: String, hf: HfConfig, seed: u64) -> Self {
        let weights = random_weights(&hf, seed);
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), &weights);
        let checkpoint = dir.path().to_owned();
        Self { name, hf, weights, checkpoint, _dir: Some(dir) }
    }
}

fn write_checkpoint(dir: &Path, weights: &F32Weights) {
    let bytes: Vec<_> = weights
        .0
        .iter()
        .map(|(name, (shape, values))| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// Values spread evenly over -1..1, the same for the same seed.
pub fn noise(rows: usize, cols: usize, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values = (0..rows * cols).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    });
    Tensor::from_vec(rows, cols, values.collect())
}

/// Tokens in no particular order.
pub fn text(hf: &HfConfig, len: usize) -> Vec<TokenId> {
    (0..len).map(|position| TokenId((position * 17 % hf.vocab_size) as u32)).collect()
}
