//! A model's configuration, in few words.

use super::line;
use dsv3_deepseek::{HfConfig, hf};
use indicatif::HumanCount;
use serde::Serialize;
use std::fmt;

/// What config.json says, by its own names.
#[derive(Serialize)]
pub(super) struct Architecture {
    parameters: u64,
    dense_layers: usize,
    moe_layers: usize,
    mtp_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    attention: Attention,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    vocab_size: usize,
    tie_word_embeddings: bool,
    max_position_embeddings: usize,
    /// How far, and from how many tokens, YaRN extends the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    yarn: Option<Extension>,
    /// Rows and columns of an FP8 block.
    #[serde(skip_serializing_if = "Option::is_none")]
    fp8_block: Option<[usize; 2]>,
}

#[derive(Serialize)]
struct Attention {
    heads: usize,
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
}

#[derive(Serialize)]
struct Experts {
    routed: usize,
    per_token: usize,
    groups: usize,
    topk_groups: usize,
    shared: usize,
    intermediate_size: usize,
}

#[derive(Serialize)]
struct Extension {
    factor: f64,
    original_max_position_embeddings: usize,
}

impl Architecture {
    /// Of a configuration.
    pub(super) fn of(hf: &HfConfig) -> Self {
        let shape = &hf.attention;
        Self {
            parameters: hf.parameters(),
            dense_layers: hf.first_k_dense_replace,
            moe_layers: hf.num_hidden_layers - hf.first_k_dense_replace,
            mtp_layers: hf.mtp_layers,
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            attention: Attention {
                heads: shape.heads,
                q_lora_rank: shape.q_lora_rank,
                kv_lora_rank: shape.kv_lora_rank,
                qk_nope_head_dim: shape.qk_nope_head_dim,
                qk_rope_head_dim: shape.qk_rope_head_dim,
                v_head_dim: shape.v_head_dim,
            },
            experts: hf.moe.as_ref().map(Experts::of),
            vocab_size: hf.vocab_size,
            tie_word_embeddings: hf.tie_word_embeddings,
            max_position_embeddings: hf.max_position_embeddings,
            yarn: hf.rope.scaling.as_ref().map(|yarn| Extension {
                factor: yarn.factor,
                original_max_position_embeddings: yarn.original_max_position_embeddings,
            }),
            fp8_block: hf.quantization.map(|block| [block.rows, block.cols]),
        }
    }
}

impl Experts {
    fn of(moe: &hf::MoeConfig) -> Self {
        Self {
            routed: moe.routed_experts,
            per_token: moe.experts_per_token,
            groups: moe.groups,
            topk_groups: moe.topk_groups,
            shared: moe.shared_experts,
            intermediate_size: moe.intermediate_size,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "parameters", HumanCount(self.parameters))?;
        let Self { dense_layers, moe_layers, mtp_layers, .. } = self;
        line(f, "layers", format_args!("{dense_layers} dense, {moe_layers} MoE, {mtp_layers} MTP"))?;
        line(f, "hidden size", self.hidden_size)?;
        line(f, "dense MLP", format_args!("{} wide", self.intermediate_size))?;
        let Attention { heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } = self.attention;
        line(
            f,
            "attention",
            format_args!(
                "{heads} heads; query and key {qk_nope_head_dim} + {qk_rope_head_dim} rotated, value {v_head_dim}"
            ),
        )?;
        let kv_rank = self.attention.kv_lora_rank;
        match self.attention.q_lora_rank {
            Some(q_rank) => line(f, "ranks", format_args!("query {q_rank}, key and value {kv_rank}"))?,
            None => line(f, "ranks", format_args!("query full, key and value {kv_rank}"))?,
        }
        if let Some(Experts { routed, per_token, groups, topk_groups, shared, intermediate_size }) =
            self.experts
        {
            let choice = if groups == 1 {
                format!("{routed}, {per_token} a token")
            } else {
                format!("{routed} in {groups} groups, {per_token} a token from {topk_groups} of them")
            };
            line(f, "experts", format_args!("{choice}; {shared} shared; each {intermediate_size} wide"))?;
        }
        let head = if self.tie_word_embeddings { ", head tied to the embedding" } else { "" };
        line(f, "vocabulary", format_args!("{}{head}", self.vocab_size))?;
        match &self.yarn {
            Some(Extension { factor, original_max_position_embeddings }) => line(
                f,
                "context",
                format_args!(
                    "{} tokens (YaRN x{factor} from {original_max_position_embeddings})",
                    self.max_position_embeddings
                ),
            )?,
            None => line(f, "context", format_args!("{} tokens", self.max_position_embeddings))?,
        }
        match self.fp8_block {
            Some([rows, cols]) => line(f, "quantisation", format_args!("FP8 in blocks of {rows}x{cols}")),
            None => line(f, "quantisation", "none"),
        }
    }
}
