//! The reference's decoder block, whole model and multi-token prediction.

use super::{MoeTrace, Scope, Weights, add, linear, mla, mlp, moe, rms_norm};
use crate::hf::HfConfig;
use dsv3_runtime::{Error, Tensor, TokenId};

// ---- Decoder block ---------------------------------------------------------------------------------------------

/// What a decoder block computes; every tensor is `[tokens, hidden]`.
#[derive(Clone, Debug)]
pub struct BlockTrace {
    /// The residual stream before the block.
    pub input: Tensor,
    /// After `input_layernorm`.
    pub mla_norm: Tensor,
    /// The attention's output.
    pub mla: Tensor,
    /// The residual stream between attention and MLP.
    pub middle: Tensor,
    /// After `post_attention_layernorm`.
    pub mlp_norm: Tensor,
    /// The parts of the mixture of experts; `None` in a dense block.
    pub moe: Option<MoeTrace>,
    /// The output of the MLP or of the mixture of experts.
    pub mlp: Tensor,
    /// The residual stream after the block.
    pub output: Tensor,
}

/// One decoder block (`DeepseekV3DecoderLayer`): `x + mla(norm(x))`, then `x + mlp(norm(x))`. Weights: those of
/// `model.layers.{layer}`.
///
/// # Shapes
/// `x: [tokens, hidden]` to the same
///
/// # Errors
/// If a weight is missing or misshapen.
pub fn decoder_block(
    hf: &HfConfig,
    weights: &Scope<'_>,
    layer: usize,
    x: &Tensor,
) -> Result<BlockTrace, Error> {
    let mla_norm = rms_norm(&weights.enter("input_layernorm"), hf.rms_norm_eps, x)?;
    let mla = mla(hf, &weights.enter("self_attn"), &mla_norm)?;
    let middle = add(x, &mla);

    let mlp_norm = rms_norm(&weights.enter("post_attention_layernorm"), hf.rms_norm_eps, &middle)?;
    let weights = weights.enter("mlp");
    let (moe, mlp) = match &hf.moe {
        Some(config) if hf.is_moe(layer) => {
            let trace = moe(config, &weights, &mlp_norm)?;
            let output = trace.output.clone();
            (Some(trace), output)
        }
        _ => (None, mlp(&weights, hf.intermediate_size, &mlp_norm)?),
    };
    let output = add(&middle, &mlp);
    Ok(BlockTrace { input: x.clone(), mla_norm, mla, middle, mlp_norm, moe, mlp, output })
}

// ---- Whole model -----------------------------------------------------------------------------------------------

/// The rows of the embedding matrix. Weights: those of `model.embed_tokens`.
///
/// # Shapes
/// `tokens: [tokens]` to `[tokens, hidden]`
///
/// # Errors
/// If a token is outside of the vocabulary, or the weight is missing or misshapen.
pub fn embedding(hf: &HfConfig, weights: &Scope<'_>, tokens: &[TokenId]) -> Result<Tensor, Error> {
    let table = weights.matrix("weight", hf.vocab_size, hf.hidden_size)?;
    let mut output = Tensor::zeros(tokens.len(), hf.hidden_size);
    for (row, &TokenId(token)) in tokens.iter().enumerate() {
        if token as usize >= hf.vocab_size {
            return Err(Error::Request(format!("expected a token below {}, got {token}", hf.vocab_size)));
        }
        output.row_mut(row).copy_from_slice(table.row(token as usize));
    }
    Ok(output)
}

/// The logits of the next token. Weights: all of the checkpoint, of which `lm_head` or, where it is tied,
/// `model.embed_tokens` is used.
///
/// # Shapes
/// `x: [tokens, hidden]` to `[tokens, vocab]`
///
/// # Errors
/// If the weight is missing or misshapen.
pub fn lm_head(hf: &HfConfig, weights: &Scope<'_>, x: &Tensor) -> Result<Tensor, Error> {
    let name = if hf.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
    linear(&weights.enter(name), hf.vocab_size, x)
}

/// What the model computes on its way to the logits.
#[derive(Clone, Debug)]
pub struct Trace {
    /// `[tokens, hidden]`
    pub embedding: Tensor,
    /// One entry a layer of the base model.
    pub layers: Vec<BlockTrace>,
    /// After the final norm, `[tokens, hidden]`.
    pub norm: Tensor,
    /// `[tokens, vocab]`
    pub logits: Tensor,
}

impl Trace {
    /// The residual stream after the last layer, before the final norm: `[tokens, hidden]`.
    pub fn hidden(&self) -> &Tensor {
        self.layers.last().map_or(&self.embedding, |layer| &layer.output)
    }
}

/// A model: its configuration and where its weights come from. Weights are read when they are needed and not kept.
#[derive(Clone)]
pub struct Model<'a> {
    hf: &'a HfConfig,
    weights: Scope<'a>,
}

impl<'a> Model<'a> {
    /// A model of a configuration and all weights of its checkpoint.
    pub fn new(hf: &'a HfConfig, weights: &'a dyn Weights) -> Self {
        Self { hf, weights: Scope::root(weights) }
    }

    /// Runs the model on a sequence from position 0 (`DeepseekV3ForCausalLM`).
    ///
    /// # Shapes
    /// `tokens: [tokens]`; logits `[tokens, vocab]`, of which row `t` predicts token `t + 1`
    ///
    /// # Errors
    /// If a token is outside of the vocabulary, or a weight is missing or misshapen.
    pub fn forward(&self, tokens: &[TokenId]) -> Result<Trace, Error> {
        let (hf, weights) = (self.hf, &self.weights);
        let embedding = embedding(hf, &weights.enter("model.embed_tokens"), tokens)?;
        let mut layers: Vec<BlockTrace> = Vec::new();
        for layer in 0..hf.num_hidden_layers {
            let x = layers.last().map_or(&embedding, |previous| &previous.output);
            layers.push(decoder_block(hf, &weights.enter(format_args!("model.layers.{layer}")), layer, x)?);
        }
        let x = layers.last().map_or(&embedding, |last| &last.output);
        let norm = rms_norm(&weights.enter("model.norm"), hf.rms_norm_eps, x)?;
        let logits = lm_head(hf, weights, &norm)?;
        Ok(Trace { embedding, layers, norm, logits })
    }

    /// Continues a prompt by `count` tokens, each the likeliest (of equal ones the lowest), by running the model on
    /// the whole text for each of them. Does not stop at an end-of-text token.
    ///
    /// # Errors
    /// If the prompt is empty, and as [`Model::forward`].
    pub fn greedy(&self, prompt: &[TokenId], count: usize) -> Result<Vec<TokenId>, Error> {
        if prompt.is_empty() {
            return Err(Error::Request("expected a prompt of one token or more, got none".to_owned()));
        }
        let mut text = prompt.to_vec();
        for _ in 0..count {
            let logits = self.forward(&text)?.logits;
            text.push(likeliest(logits.row(text.len() - 1)));
        }
        Ok(text.split_off(prompt.len()))
    }

    /// Runs the layer for multi-token prediction of the model; see [`mtp`].
    ///
    /// # Errors
    /// As [`mtp`].
    pub fn mtp(&self, following: &[TokenId], hidden: &Tensor) -> Result<MtpTrace, Error> {
        mtp(self.hf, &self.weights, following, hidden)
    }
}

/// The token with the largest logit; of equal ones the lowest.
pub(super) fn likeliest(logits: &[f32]) -> TokenId {
    TokenId(super::best(logits, 1)[0] as u32)
}

// ---- Multi-token prediction ------------------------------------------------------------------------------------

/// What the layer for multi-token prediction computes.
#[derive(Clone, Debug)]
pub struct MtpTrace {
    /// The projection of embedding and hidden state, `[tokens, hidden]`.
    pub eh_proj: Tensor,
    /// The decoder block on it.
    pub block: BlockTrace,
    /// After `shared_head.norm`, `[tokens, hidden]`.
    pub output: Tensor,
    /// `[tokens, vocab]`
    pub logits: Tensor,
}

/// The layer for multi-token prediction, at `model.layers.{num_hidden_layers}` (transformers' `MtpLayer`;
/// arXiv 2412.19437, section 2.2). Weights: all of the checkpoint, since embedding and head are the base model's;
/// the copies that a checkpoint may hold are not read.
///
/// Row `t` sees token `t + 1` and the base model's hidden state of token `t`, and predicts token `t + 2`. Serving
/// engines and transformers' `generate(use_mtp=True)` take the hidden state after the final norm ([`Trace::norm`]).
/// The embedding comes first in `eh_proj`, opposite to the paper's text.
///
/// # Shapes
/// `following: [tokens]`, `hidden: [tokens, hidden]`; logits `[tokens, vocab]`
///
/// # Errors
/// If a token is outside of the vocabulary, or a weight is missing or misshapen.
pub fn mtp(
    hf: &HfConfig,
    weights: &Scope<'_>,
    following: &[TokenId],
    hidden: &Tensor,
) -> Result<MtpTrace, Error> {
    assert_eq!(following.len(), hidden.rows(), "one following token a hidden state");
    let layer = hf.num_hidden_layers;
    let own = weights.enter(format_args!("model.layers.{layer}"));
    let embedded = embedding(hf, &weights.enter("model.embed_tokens"), following)?;
    let embedded = rms_norm(&own.enter("enorm"), hf.rms_norm_eps, &embedded)?;
    let hidden = rms_norm(&own.enter("hnorm"), hf.rms_norm_eps, hidden)?;

    let mut joined = Tensor::zeros(following.len(), 2 * hf.hidden_size);
    for token in 0..following.len() {
        let (left, right) = joined.row_mut(token).split_at_mut(hf.hidden_size);
        left.copy_from_slice(embedded.row(token));
        right.copy_from_slice(hidden.row(token));
    }
    let eh_proj = linear(&own.enter("eh_proj"), hf.hidden_size, &joined)?;
    let block = decoder_block(hf, &own, layer, &eh_proj)?;
    let output = rms_norm(&own.enter("shared_head.norm"), hf.rms_norm_eps, &block.output)?;
    let logits = lm_head(hf, weights, &output)?;
    Ok(MtpTrace { eh_proj, block, output, logits })
}
