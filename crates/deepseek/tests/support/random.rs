//! Random weights of any configuration, for shapes that no checkpoint has.

use super::F32Weights;
use dsv3_deepseek::hf::HfConfig;
use std::collections::BTreeMap;

/// Weights of the sizes that keep activations near 1: linear maps of gain 1, norms near 1, small biases.
/// The same seed gives the same weights.
pub fn random_weights(hf: &HfConfig, seed: u64) -> F32Weights {
    let mut maker = Maker { tensors: BTreeMap::new(), state: seed };
    let hidden = hf.hidden_size;
    maker.matrix("model.embed_tokens", hf.vocab_size, hidden, 1.0);
    for layer in 0..hf.num_hidden_layers + hf.mtp_layers {
        block(&mut maker, hf, layer);
    }
    for layer in hf.num_hidden_layers..hf.num_hidden_layers + hf.mtp_layers {
        for norm in ["enorm", "hnorm", "shared_head.norm"] {
            maker.norm(&format!("model.layers.{layer}.{norm}"), hidden);
        }
        maker.linear(&format!("model.layers.{layer}.eh_proj"), hidden, 2 * hidden);
    }
    maker.norm("model.norm", hidden);
    if !hf.tie_word_embeddings {
        maker.linear("lm_head", hf.vocab_size, hidden);
    }
    F32Weights(maker.tensors)
}

fn block(maker: &mut Maker, hf: &HfConfig, layer: usize) {
    let prefix = format!("model.layers.{layer}");
    maker.norm(&format!("{prefix}.input_layernorm"), hf.hidden_size);
    maker.norm(&format!("{prefix}.post_attention_layernorm"), hf.hidden_size);
    attention(maker, hf, &format!("{prefix}.self_attn"));
    let Some(moe) = hf.moe.as_ref().filter(|_| hf.is_moe(layer)) else {
        return maker.mlp(&format!("{prefix}.mlp"), hf.hidden_size, hf.intermediate_size);
    };
    maker.linear(&format!("{prefix}.mlp.gate"), moe.routed_experts, hf.hidden_size);
    maker.vector(&format!("{prefix}.mlp.gate.e_score_correction_bias"), moe.routed_experts, -0.2, 0.2);
    for expert in 0..moe.routed_experts {
        maker.mlp(&format!("{prefix}.mlp.experts.{expert}"), hf.hidden_size, moe.intermediate_size);
    }
    if moe.shared_experts > 0 {
        maker.mlp(&format!("{prefix}.mlp.shared_experts"), hf.hidden_size, moe.shared_intermediate_size());
    }
}

fn attention(maker: &mut Maker, hf: &HfConfig, prefix: &str) {
    let shape = &hf.attention;
    let mut biased = vec![("kv_a_proj_with_mqa", shape.latent_dim()), ("o_proj", hf.hidden_size)];
    if let Some(rank) = shape.q_lora_rank {
        maker.linear(&format!("{prefix}.q_a_proj"), rank, hf.hidden_size);
        maker.norm(&format!("{prefix}.q_a_layernorm"), rank);
        maker.linear(&format!("{prefix}.q_b_proj"), shape.q_dim(), rank);
        biased.push(("q_a_proj", rank));
    } else {
        maker.linear(&format!("{prefix}.q_proj"), shape.q_dim(), hf.hidden_size);
    }
    maker.linear(&format!("{prefix}.kv_a_proj_with_mqa"), shape.latent_dim(), hf.hidden_size);
    maker.norm(&format!("{prefix}.kv_a_layernorm"), shape.kv_lora_rank);
    maker.linear(&format!("{prefix}.kv_b_proj"), shape.kv_dim(), shape.kv_lora_rank);
    maker.linear(&format!("{prefix}.o_proj"), hf.hidden_size, shape.o_dim());
    if shape.bias {
        for (name, len) in biased {
            maker.vector(&format!("{prefix}.{name}.bias"), len, -0.5, 0.5);
        }
    }
}

struct Maker {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    state: u64,
}

impl Maker {
    fn mlp(&mut self, prefix: &str, hidden: usize, intermediate: usize) {
        self.linear(&format!("{prefix}.gate_proj"), intermediate, hidden);
        self.linear(&format!("{prefix}.up_proj"), intermediate, hidden);
        self.linear(&format!("{prefix}.down_proj"), hidden, intermediate);
    }

    /// Uniform on an interval of variance `1 / cols`, which keeps the size of what it is applied to.
    fn linear(&mut self, prefix: &str, rows: usize, cols: usize) {
        self.matrix(prefix, rows, cols, (3.0 / cols as f32).sqrt());
    }

    fn matrix(&mut self, prefix: &str, rows: usize, cols: usize, bound: f32) {
        let values = self.uniform(rows * cols, -bound, bound);
        self.tensors.insert(format!("{prefix}.weight"), (vec![rows, cols], values));
    }

    fn norm(&mut self, prefix: &str, len: usize) {
        self.vector(&format!("{prefix}.weight"), len, 0.8, 1.2);
    }

    fn vector(&mut self, name: &str, len: usize, low: f32, high: f32) {
        let values = self.uniform(len, low, high);
        self.tensors.insert(name.to_owned(), (vec![len], values));
    }

    fn uniform(&mut self, len: usize, low: f32, high: f32) -> Vec<f32> {
        (0..len).map(|_| low + (high - low) * self.next()).collect()
    }

    /// From 0 to 1, by SplitMix64.
    fn next(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}
