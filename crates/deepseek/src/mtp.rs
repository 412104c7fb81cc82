//! Multi-token prediction (DeepSeek-V3 paper, section 2.2): one more decoder layer that predicts the token after the
//! next from the hidden state and the next token. Embedding and head are the base model's own; the checkpoint's copies
//! under the MTP layer are not read.

use crate::{
    decoder_block::{DecoderBlockConfig, DecoderBlockState, DecoderBlockWeights, MoeDecoderBlock},
    embedding::{Embedding, EmbeddingWeights},
    hf::HfConfig,
    kinds,
    lm_head::{LmHead, LmHeadConfig, LmHeadWeights},
    model::ModelOutput,
    moe::{MoeConfig, MoeState, MoeWeights},
    rms_norm::{RmsNorm, RmsNormConfig, RmsNormWeights},
    rows, spec,
};
use dsv3_mesh::{AllGatherConfig, Layout};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, Leaf, LeafFn, Mode, Module, PrefillRun, PrefillStep,
    Prefix, Run, Tensor, TokenId, Weight, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// The MTP layer of a whole model.
pub enum Mtp {}

/// What [`Mtp`] takes.
pub struct MtpInput<'a> {
    /// The token after each position, `[tokens]`.
    pub tokens: &'a [TokenId],
    /// The base model's hidden state at each position, before its final norm, of this row's,
    /// `[tokens, hidden / columns]`.
    pub hidden: &'a Tensor,
}

weight_tree! {
    /// Weights of [`Mtp`].
    pub struct MtpWeights<W> {
        /// The base model's.
        embedding: EmbeddingWeights<W>,
        /// Norm of the token's embedding.
        enorm: RmsNormWeights<W>,
        /// Norm of the hidden state.
        hnorm: RmsNormWeights<W>,
        /// `[hidden, 2 * hidden]`, the embedding's features first.
        eh_proj: Leaf<W>,
        /// The decoder layer.
        decoder_block: DecoderBlockWeights<W, MoeWeights<W>>,
        /// `shared_head.norm`.
        norm: RmsNormWeights<W>,
        /// The base model's.
        lm_head: LmHeadWeights<W>,
    }
}

/// Operator configs of [`Mtp`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtpConfig {
    /// The next token's embedding.
    pub embedding: ops::EmbeddingConfig,
    /// Norm of the embedding.
    pub enorm: RmsNormConfig,
    /// Norm of the hidden state.
    pub hnorm: RmsNormConfig,
    /// Brings the features of each together.
    pub all_gather: AllGatherConfig,
    /// Joins both.
    pub eh_proj: ops::LinearConfig,
    /// The decoder layer.
    pub decoder_block: DecoderBlockConfig<MoeConfig>,
    /// Before the head.
    pub norm: RmsNormConfig,
    /// The head.
    pub lm_head: LmHeadConfig,
    /// Brings the logits of all rows together, on a mesh of several rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_all_gather: Option<AllGatherConfig>,
}

impl Module for Mtp {
    type Hf = HfConfig;
    type Weights<W> = MtpWeights<W>;
    type PrefillConfig = MtpConfig;
    type DecodeConfig = MtpConfig;
    type State = DecoderBlockState<MoeState>;
    type Input<'a> = MtpInput<'a>;
    type Output = ModelOutput;

    fn weight_specs(hf: &HfConfig, at: &Prefix, layout: Layout) -> MtpWeights<WeightSpec> {
        let layer = at.enter("model.layers").enter(hf.num_hidden_layers);
        let norm = |name| RmsNorm::weight_specs(hf, &layer.enter(name), layout);
        let eh_proj = [hf.hidden_size, 2 * hf.hidden_size];
        MtpWeights {
            embedding: Embedding::weight_specs(hf, &at.enter("model.embed_tokens"), layout),
            enorm: norm("enorm"),
            hnorm: norm("hnorm"),
            eh_proj: spec::matrix(hf, kinds::DENSE, &layer.enter("eh_proj"), eh_proj, spec::BY_OUTPUT),
            decoder_block: MoeDecoderBlock::weight_specs(hf, &layer, layout),
            norm: norm("shared_head.norm"),
            lm_head: LmHead::weight_specs(hf, at, layout),
        }
    }

    fn try_map<A, B, E>(
        weights: MtpWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<MtpWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<MtpConfig, Error> {
        let norm = RmsNorm::prefill_model_config(hf, layout)?;
        Ok(MtpConfig {
            embedding: Embedding::prefill_model_config(hf, layout)?,
            enorm: norm.clone(),
            hnorm: norm.clone(),
            all_gather: spec::gather_features(),
            eh_proj: eh_proj(hf, layout, Mode::Prefill)?,
            decoder_block: MoeDecoderBlock::prefill_model_config(hf, layout)?,
            norm,
            lm_head: LmHead::prefill_model_config(hf, layout)?,
            logits_all_gather: spec::gather_tokens(layout),
        })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<MtpConfig, Error> {
        Ok(MtpConfig {
            eh_proj: eh_proj(hf, layout, Mode::Decode)?,
            decoder_block: MoeDecoderBlock::decode_model_config(hf, layout)?,
            lm_head: LmHead::decode_model_config(hf, layout)?,
            ..Self::prefill_model_config(hf, layout)?
        })
    }

    fn create_state(hf: &HfConfig, layout: Layout, capacity: &Capacity) -> Result<Self::State, Error> {
        MoeDecoderBlock::create_state(hf, layout, capacity)
    }

    /// # Shapes
    /// `[tokens]` and `[tokens of this row, hidden / columns]`; logits as the step asks.
    fn forward_prefill(
        MtpInput { tokens, hidden }: MtpInput<'_>,
        step: &PrefillStep<'_>,
        Run { cfg, w, state, device }: PrefillRun<'_, Self>,
    ) -> Result<ModelOutput, Error> {
        step.check(tokens)?;
        let (own, step) = &rows::prefill(step, tokens.len(), device);
        let tokens = &tokens[own.clone()];
        let unit = &mut ();
        let embedding = Run { cfg: &cfg.embedding, w: &w.embedding, state: &mut *unit, device };
        let embedded = Embedding::forward_prefill(tokens, step, embedding)?;
        let enorm = Run { cfg: &cfg.enorm, w: &w.enorm, state: &mut *unit, device };
        let embedded = RmsNorm::forward_prefill(&embedded, step, enorm)?;
        let hnorm = Run { cfg: &cfg.hnorm, w: &w.hnorm, state: &mut *unit, device };
        let hidden = RmsNorm::forward_prefill(hidden, step, hnorm)?;
        let x = join(embedded, hidden, cfg, w, device)?; // [tokens, hidden / columns]
        let block = Run { cfg: &cfg.decoder_block, w: &w.decoder_block, state, device };
        let hidden = MoeDecoderBlock::forward_prefill(x, step, block)?;
        let norm = Run { cfg: &cfg.norm, w: &w.norm, state: &mut *unit, device };
        let normed = RmsNorm::forward_prefill(&step.logits.select(&hidden), step, norm)?;
        let head = Run { cfg: &cfg.lm_head, w: &w.lm_head, state: unit, device };
        let logits = LmHead::forward_prefill(normed, step, head)?;
        Ok(ModelOutput { logits: rows::gather(logits, cfg.logits_all_gather.as_ref(), device)?, hidden })
    }

    /// # Shapes
    /// `[users]` and `[users of this row, hidden / columns]`; logits `[users, vocab]`.
    fn forward_decode(
        MtpInput { tokens, hidden }: MtpInput<'_>,
        step: &DecodeStep<'_>,
        run: DecodeRun<'_, Self>,
    ) -> Result<ModelOutput, Error> {
        let (cfg, device) = (run.cfg.logits_all_gather.as_ref(), run.device);
        rows::decode(tokens, step, cfg, device, |tokens, step| decode_row(tokens, hidden, step, run))
    }
}

/// One token of each of a row's users.
fn decode_row(
    tokens: &[TokenId],
    hidden: &Tensor,
    step: &DecodeStep<'_>,
    Run { cfg, w, state, device }: DecodeRun<'_, Mtp>,
) -> Result<ModelOutput, Error> {
    let unit = &mut ();
    let embedding = Run { cfg: &cfg.embedding, w: &w.embedding, state: &mut *unit, device };
    let embedded = Embedding::forward_decode(tokens, step, embedding)?;
    let enorm = Run { cfg: &cfg.enorm, w: &w.enorm, state: &mut *unit, device };
    let embedded = RmsNorm::forward_decode(&embedded, step, enorm)?;
    let hnorm = Run { cfg: &cfg.hnorm, w: &w.hnorm, state: &mut *unit, device };
    let hidden = RmsNorm::forward_decode(hidden, step, hnorm)?;
    let x = join(embedded, hidden, cfg, w, device)?; // [users, hidden / columns]
    let block = Run { cfg: &cfg.decoder_block, w: &w.decoder_block, state, device };
    let hidden = MoeDecoderBlock::forward_decode(x, step, block)?;
    let norm = Run { cfg: &cfg.norm, w: &w.norm, state: &mut *unit, device };
    let normed = RmsNorm::forward_decode(&hidden, step, norm)?;
    let head = Run { cfg: &cfg.lm_head, w: &w.lm_head, state: unit, device };
    Ok(ModelOutput { logits: LmHead::forward_decode(normed, step, head)?, hidden })
}

fn eh_proj(hf: &HfConfig, layout: Layout, mode: Mode) -> Result<ops::LinearConfig, Error> {
    let hidden = spec::over_columns("hidden_size", hf.hidden_size, layout)?;
    Ok(ops::LinearConfig::new(mode, 2 * hf.hidden_size, hidden))
}

/// `eh_proj [embedded, hidden]`: the embedding first, in the checkpoint's order, which is not the paper's.
fn join(
    embedded: Tensor,
    hidden: Tensor,
    cfg: &MtpConfig,
    w: &MtpWeights<Weight>,
    device: &Device,
) -> Result<Tensor, Error> {
    let embedded = device.all_gather(embedded, &cfg.all_gather)?; // [tokens, hidden]
    let hidden = device.all_gather(hidden, &cfg.all_gather)?;
    let joined = embedded.concat_columns(&hidden); // [tokens, 2 * hidden]
    Ok(ops::linear(&joined, &w.eh_proj, &cfg.eh_proj, device))
}
