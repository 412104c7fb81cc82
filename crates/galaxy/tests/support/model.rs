//! A small random DeepSeek-V3 that divides over 4x8 devices: FP8 in blocks that end nowhere where a device's part does,
//! and a tensor of each other type.

// Every test binary compiles this file for itself and uses a part of it.
#![allow(dead_code, unreachable_pub)]

use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// Sides of an FP8 block.
const BLOCK: usize = 128;

/// The configuration, with some fields changed.
pub fn config(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "deepseek_v3", "hidden_size": 256, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "intermediate_size": 320, "vocab_size": 200, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "num_attention_heads": 8, "q_lora_rank": 64, "kv_lora_rank": 96, "qk_nope_head_dim": 40,
        "qk_rope_head_dim": 16, "v_head_dim": 24, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "n_shared_experts": 1, "moe_intermediate_size": 24, "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1, "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        },
    });
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

/// Writes config.json and one file of weights, the same for each seed.
pub fn write(dir: &Path, config: &Value, seed: u64) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut maker =
        Maker { header: Map::new(), data: Vec::new(), state: seed.wrapping_mul(2).wrapping_add(1) };
    maker.model(config);
    let header = Value::Object(maker.header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(maker.data);
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

struct Maker {
    header: Map<String, Value>,
    data: Vec<u8>,
    state: u64,
}

impl Maker {
    fn model(&mut self, config: &Value) {
        let of = |field: &str| config[field].as_u64().unwrap() as usize;
        let (hidden, vocab, layers) = (of("hidden_size"), of("vocab_size"), of("num_hidden_layers"));
        self.bf16("model.embed_tokens.weight", &[vocab, hidden]);
        for layer in 0..layers + of("num_nextn_predict_layers") {
            self.layer(&of, &format!("model.layers.{layer}"), layer >= of("first_k_dense_replace"));
        }
        self.f16("model.norm.weight", &[hidden]);
        self.f32("lm_head.weight", &[vocab, hidden]);
        for layer in layers..layers + of("num_nextn_predict_layers") {
            for norm in ["enorm", "hnorm", "shared_head.norm"] {
                self.bf16(&format!("model.layers.{layer}.{norm}.weight"), &[hidden]);
            }
            self.f16(&format!("model.layers.{layer}.eh_proj.weight"), &[hidden, 2 * hidden]);
        }
    }

    fn layer(&mut self, of: &impl Fn(&str) -> usize, at: &str, is_moe: bool) {
        let hidden = of("hidden_size");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            self.bf16(&format!("{at}.{norm}.weight"), &[hidden]);
        }
        let (q, kv, heads) = (of("q_lora_rank"), of("kv_lora_rank"), of("num_attention_heads"));
        let (nope, rope, value) = (of("qk_nope_head_dim"), of("qk_rope_head_dim"), of("v_head_dim"));
        let mla = format!("{at}.self_attn");
        self.bf16(&format!("{mla}.q_a_layernorm.weight"), &[q]);
        self.bf16(&format!("{mla}.kv_a_layernorm.weight"), &[kv]);
        self.fp8(&format!("{mla}.q_a_proj.weight"), q, hidden);
        self.fp8(&format!("{mla}.q_b_proj.weight"), heads * (nope + rope), q);
        self.fp8(&format!("{mla}.kv_a_proj_with_mqa.weight"), kv + rope, hidden);
        self.fp8(&format!("{mla}.kv_b_proj.weight"), heads * (nope + value), kv);
        self.fp8(&format!("{mla}.o_proj.weight"), hidden, heads * value);
        if !is_moe {
            return self.mlp(&format!("{at}.mlp"), hidden, of("intermediate_size"));
        }
        let width = of("moe_intermediate_size");
        self.bf16(&format!("{at}.mlp.gate.weight"), &[of("n_routed_experts"), hidden]);
        self.f32(&format!("{at}.mlp.gate.e_score_correction_bias"), &[of("n_routed_experts")]);
        for expert in 0..of("n_routed_experts") {
            self.mlp(&format!("{at}.mlp.experts.{expert}"), hidden, width);
        }
        if of("n_shared_experts") > 0 {
            self.mlp(&format!("{at}.mlp.shared_experts"), hidden, of("n_shared_experts") * width);
        }
    }

    fn mlp(&mut self, at: &str, hidden: usize, width: usize) {
        self.fp8(&format!("{at}.gate_proj.weight"), width, hidden);
        self.fp8(&format!("{at}.up_proj.weight"), width, hidden);
        self.fp8(&format!("{at}.down_proj.weight"), hidden, width);
    }

    /// Random bits, by the constants of Knuth's MMIX generator.
    fn next(&mut self) -> u32 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as u32
    }

    /// A value over many powers of two.
    fn value(&mut self) -> f32 {
        let (fraction, power) = (self.next() as f32 / (1_u32 << 30) as f32 - 1.0, self.next() % 12);
        fraction * (-(power as f32)).exp2()
    }

    fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let start = self.data.len();
        self.data.extend(bytes);
        let tensor = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, self.data.len()] });
        self.header.insert(name.to_owned(), tensor);
    }

    fn floats(&mut self, name: &str, dtype: &str, shape: &[usize], to_bytes: impl Fn(f32) -> Vec<u8>) {
        let count = shape.iter().product::<usize>();
        let bytes: Vec<u8> = (0..count).flat_map(|_| to_bytes(self.value())).collect();
        self.add(name, dtype, shape, &bytes);
    }

    fn f32(&mut self, name: &str, shape: &[usize]) {
        self.floats(name, "F32", shape, |value| value.to_le_bytes().to_vec());
    }

    fn bf16(&mut self, name: &str, shape: &[usize]) {
        self.floats(name, "BF16", shape, |value| value.to_le_bytes()[2..].to_vec());
    }

    fn f16(&mut self, name: &str, shape: &[usize]) {
        // Only normal numbers: a sign, exponents 1 to 30, any fraction.
        let count = shape.iter().product::<usize>();
        let bits = |bits: u32| (bits & 0x8000) | (1 + bits % 20) << 10 | (bits >> 16 & 0x3FF);
        let bytes: Vec<u8> = (0..count).flat_map(|_| (bits(self.next()) as u16).to_le_bytes()).collect();
        self.add(name, "F16", shape, &bytes);
    }

    fn fp8(&mut self, name: &str, rows: usize, cols: usize) {
        // Any bits but those of NaN.
        let byte = |bits: u32| if bits & 0x7F == 0x7F { 0 } else { bits as u8 };
        let bytes: Vec<u8> = (0..rows * cols).map(|_| byte(self.next())).collect();
        self.add(name, "F8_E4M3", &[rows, cols], &bytes);
        let grid = [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
        let scales: Vec<u8> =
            (0..grid[0] * grid[1]).flat_map(|_| (2e-4 * (1.0 + self.value().abs())).to_le_bytes()).collect();
        self.add(&format!("{name}_scale_inv"), "F32", &grid, &scales);
    }
}
