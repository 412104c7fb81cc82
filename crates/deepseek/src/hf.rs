//! A checkpoint's `config.json`, parsed once into a validated type.
//!
//! Field names and defaults are those of transformers 5.24 (`configuration_deepseek_v3.py`), with two differences:
//! a dimension is never defaulted, and what this crate does not compute is refused by name instead of ignored.
//! What is not known here is skipped, as transformers does. Inside the crate nothing is checked a second time.

mod fields;
mod parse;
#[cfg(test)]
mod tests;

use dsv3_runtime::{TokenId, ops::LatentShape};
use std::path::{Path, PathBuf};

/// Epsilon of the norms inside the attention (`q_a_layernorm`, `kv_a_layernorm`).
///
/// transformers and DeepSeek's own code build both with the default of their norm class and never pass
/// `rms_norm_eps`, so it is this value whatever the configuration says (Moonlight: `rms_norm_eps` 1e-5).
pub const LORA_NORM_EPS: f32 = 1e-6;

/// A configuration that is not one of a DeepSeek-V3, or not a possible one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An operating-system error on the file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Text that is not JSON, or a file too long to be a configuration.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A field that is missing, out of range, or asks for what is not supported.
    #[error("{}: {field}: expected {expected}, got {got}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field; nested ones with dots, as in `rope_scaling.factor`.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What stands there, as JSON and shortened, or `nothing`.
        got: String,
    },
}

/// The hyperparameters of a model of the DeepSeek-V3 architecture. Every value has been checked against the others.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers of the base model; an MTP layer stands behind them and is not counted.
    pub num_hidden_layers: usize,
    /// How many of the first layers have a dense MLP instead of experts; at most `num_hidden_layers`.
    pub first_k_dense_replace: usize,
    /// Width of a dense layer's MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding and of the language-model head.
    pub vocab_size: usize,
    /// The longest context the checkpoint claims to serve, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of every norm outside of the attention; for those inside see [`LORA_NORM_EPS`].
    pub rms_norm_eps: f32,
    /// The multi-head latent attention.
    pub attention: AttentionShape,
    /// The mixture of experts; `None` only where no layer has one.
    pub moe: Option<MoeConfig>,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// Whether the language-model head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Layers for multi-token prediction behind the base model: 0 or 1.
    pub mtp_layers: usize,
    /// How the linear weights are stored, where they are not plain bf16, f16 or f32.
    pub quantization: Option<Fp8Blocks>,
    /// The token that starts a text, where there is one.
    pub bos_token_id: Option<TokenId>,
    /// The tokens that end a text; any of them does.
    pub eos_token_ids: Vec<TokenId>,
}

/// Dimensions of the multi-head latent attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads; keys and values are expanded from the latent for each of them.
    pub heads: usize,
    /// Rank of the query's low-rank pair (`q_a_proj`, `q_b_proj`); `None`: one full `q_proj`.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent from which keys and values are expanded.
    pub kv_lora_rank: usize,
    /// Features of a query or key head that carry no position.
    pub qk_nope_head_dim: usize,
    /// Features of a query head, and of the one key shared by all heads, that are rotated; even.
    pub qk_rope_head_dim: usize,
    /// Features of a value head.
    pub v_head_dim: usize,
    /// Whether `q_a_proj`, `kv_a_proj_with_mqa` and `o_proj` have biases.
    pub bias: bool,
}

/// The mixture of experts of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Routed experts; a multiple of `groups`, with two experts a group at least.
    pub routed_experts: usize,
    /// Routed experts that a token visits; at most those of `topk_groups` groups.
    pub experts_per_token: usize,
    /// Groups into which the routed experts are divided, in order.
    pub groups: usize,
    /// Groups from which a token's experts are chosen.
    pub topk_groups: usize,
    /// Shared experts; together one MLP of `shared_experts * intermediate_size`. May be 0.
    pub shared_experts: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub norm_topk_prob: bool,
    /// Factor on the weights of the routed experts.
    pub routed_scaling_factor: f32,
}

/// The rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// The extension to a longer context; `None`: plain frequencies.
    pub scaling: Option<Yarn>,
}

/// YaRN (arXiv 2309.00071) with DeepSeek's two mscales.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// By how much the context was extended; at least 1.
    pub factor: f64,
    /// The context before the extension, in tokens.
    pub original_max_position_embeddings: usize,
    /// Frequencies with more rotations than this over the original context stay as they are.
    pub beta_fast: f64,
    /// Frequencies with fewer rotations than this over the original context are divided by `factor`.
    pub beta_slow: f64,
    /// Numerator of the factor on cos and sin; 0 where absent (transformers treats both alike).
    pub mscale: f64,
    /// Denominator of the factor on cos and sin, and what sharpens the softmax; 0 where absent.
    pub mscale_all_dim: f64,
}

/// FP8 (e4m3fn) weights with one f32 scale per block of `rows x cols` elements; edge blocks may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Blocks {
    /// Output features of a block.
    pub rows: usize,
    /// Input features of a block.
    pub cols: usize,
}

impl HfConfig {
    /// Reads and validates a `config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or describes a model that is impossible or not supported. The error
    /// names the file and the field.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::from_json(path, &parse::read_text(path)?)
    }

    /// Reads the text of a `config.json`, unless it is too long to be one.
    ///
    /// # Errors
    /// If the file cannot be read or is too long.
    pub fn read_text(path: &Path) -> Result<String, ConfigError> {
        parse::read_text(path)
    }

    /// Validates the text of a `config.json`; `path` only appears in messages.
    ///
    /// # Errors
    /// As [`HfConfig::from_file`].
    pub fn from_json(path: &Path, text: &str) -> Result<Self, ConfigError> {
        parse::config(path, text)
    }

    /// Whether a layer's MLP is a mixture of experts. The MTP layer, numbered `num_hidden_layers`, always is one.
    pub fn is_moe(&self, layer: usize) -> bool {
        layer >= self.first_k_dense_replace
    }

    /// The shape of the MoE layers.
    ///
    /// # Panics
    /// If the model has none; modules of MoE layers are only made for models that do.
    pub fn moe(&self) -> &MoeConfig {
        self.moe.as_ref().expect("a model with MoE layers")
    }

    /// Factor on the attention scores: `qk_head_dim^-0.5`, times the square of YaRN's mscale where
    /// `mscale_all_dim` is given, whatever context is served. 1.8739 times the plain one for DeepSeek-V3.
    pub fn softmax_scale(&self) -> f32 {
        let plain = (self.attention.qk_head_dim() as f64).powf(-0.5);
        let sharpening = match &self.rope.scaling {
            Some(yarn) if yarn.mscale_all_dim != 0.0 => {
                Yarn::mscale(yarn.factor, yarn.mscale_all_dim).powi(2)
            }
            _ => 1.0,
        };
        (plain * sharpening) as f32
    }

    /// How many weights the model has, without the FP8 scales and with the gates' correction biases. The MTP layer
    /// is included, its copies of the embedding and the head are not.
    pub fn parameters(&self) -> u64 {
        parse::parameters(self).expect("checked when the configuration was read")
    }
}

impl AttentionShape {
    /// Features of a query or key head: `qk_nope_head_dim + qk_rope_head_dim`.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// What is cached for a token.
    pub fn latent_shape(&self) -> LatentShape {
        LatentShape { kv_lora_rank: self.kv_lora_rank, qk_rope_head_dim: self.qk_rope_head_dim }
    }

    /// Features of what is cached for a token: `kv_lora_rank + qk_rope_head_dim`.
    pub fn latent_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// Features of all query heads together, the rows of `q_b_proj` (or `q_proj`).
    pub fn q_dim(&self) -> usize {
        self.heads * self.qk_head_dim()
    }

    /// Features of all expanded keys and values together, the rows of `kv_b_proj`: for each head
    /// `qk_nope_head_dim` of its key, then `v_head_dim` of its value.
    pub fn kv_dim(&self) -> usize {
        self.heads * (self.qk_nope_head_dim + self.v_head_dim)
    }

    /// Features of all value heads together, the columns of `o_proj`.
    pub fn o_dim(&self) -> usize {
        self.heads * self.v_head_dim
    }
}

impl MoeConfig {
    /// Routed experts of one group.
    pub fn experts_per_group(&self) -> usize {
        self.routed_experts / self.groups
    }

    /// Width of the one MLP that all shared experts form; 0 where there are none.
    pub fn shared_intermediate_size(&self) -> usize {
        self.shared_experts * self.intermediate_size
    }
}

impl RopeConfig {
    /// Factor on cos and sin, 1 without YaRN.
    ///
    /// `m(mscale) / m(mscale_all_dim)` where both are given and not 0, else `m(1)`: transformers then ignores the
    /// one that is given (`_compute_yarn_parameters`).
    pub fn attention_factor(&self) -> f32 {
        let Some(yarn) = &self.scaling else { return 1.0 };
        let factor = if yarn.mscale != 0.0 && yarn.mscale_all_dim != 0.0 {
            Yarn::mscale(yarn.factor, yarn.mscale) / Yarn::mscale(yarn.factor, yarn.mscale_all_dim)
        } else {
            Yarn::mscale(yarn.factor, 1.0)
        };
        factor as f32
    }
}

impl Yarn {
    /// `m = 0.1 * mscale * ln(factor) + 1` (`yarn_get_mscale`).
    fn mscale(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }
}

impl Fp8Blocks {
    /// The grid of scales of a `[rows, cols]` weight.
    pub fn grid(&self, rows: usize, cols: usize) -> [usize; 2] {
        [rows.div_ceil(self.rows), cols.div_ceil(self.cols)]
    }
}
