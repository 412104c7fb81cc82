//! The whole model.

use crate::{
    decoder_block::{
        DecoderBlockConfig, DecoderBlockState, DecoderBlockWeights, MlpDecoderBlock, MoeDecoderBlock,
    },
    embedding::{Embedding, EmbeddingWeights},
    hf::HfConfig,
    lm_head::{LmHead, LmHeadConfig, LmHeadWeights},
    mla::MlaState,
    mlp::{MlpConfig, MlpWeights},
    moe::{MoeConfig, MoeState, MoeWeights},
    mtp::{Mtp, MtpConfig, MtpWeights},
    rms_norm::{RmsNorm, RmsNormConfig, RmsNormWeights},
    rope::Rope,
    rows, spec,
};
use dsv3_mesh::{AllGatherConfig, Layout};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Error, LeafFn, Module, PrefillRun, PrefillStep, Prefix, Run, Tensor,
    TokenId, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// Embedding, decoder layers, norm and head; the MTP layer beside them.
pub enum Model {}

/// What a model gives.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOutput {
    /// `[rows, vocab]`, for the rows that the step asks for; the same on every rank.
    pub logits: Tensor,
    /// The hidden state before the final norm of every token that this row runs, `[tokens, hidden / columns]`.
    pub hidden: Tensor,
}

weight_tree! {
    /// Weights of [`Model`].
    pub struct ModelWeights<W> {
        /// `model.embed_tokens`.
        embedding: EmbeddingWeights<W>,
        /// The dense layers, which come first.
        mlp_decoder_block: Vec<DecoderBlockWeights<W, MlpWeights<W>>>,
        /// The MoE layers.
        moe_decoder_block: Vec<DecoderBlockWeights<W, MoeWeights<W>>>,
        /// `model.norm`.
        norm: RmsNormWeights<W>,
        /// `lm_head`.
        lm_head: LmHeadWeights<W>,
        /// The MTP layer, in checkpoints that have one.
        #[serde(skip_serializing_if = "Option::is_none")]
        mtp: Option<MtpWeights<W>>,
    }
}

/// Operator configs of [`Model`]: one for each kind of layer, for layers of a kind are alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The tokens' embeddings.
    pub embedding: ops::EmbeddingConfig,
    /// The dense layers, in models that have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_decoder_block: Option<DecoderBlockConfig<MlpConfig>>,
    /// The MoE layers, in models that have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe_decoder_block: Option<DecoderBlockConfig<MoeConfig>>,
    /// Before the head.
    pub norm: RmsNormConfig,
    /// The head.
    pub lm_head: LmHeadConfig,
    /// Brings the logits of all rows together, on a mesh of several rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_gather: Option<AllGatherConfig>,
    /// The MTP layer, in checkpoints that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtp: Option<MtpConfig>,
}

/// State of [`Model`]: each layer's cache, and the table of rotations that they share.
pub struct ModelState {
    mlp_decoder_block: Vec<DecoderBlockState<()>>,
    moe_decoder_block: Vec<DecoderBlockState<MoeState>>,
    mtp: Option<DecoderBlockState<MoeState>>,
}

impl ModelState {
    /// State whose caches are stored in `format`; [`Model::create_state`] stores what was computed.
    ///
    /// # Errors
    /// A capacity that no cache can have.
    pub fn new(
        hf: &HfConfig,
        layout: Layout,
        capacity: &Capacity,
        format: ops::CacheFormat,
    ) -> Result<Self, Error> {
        let rope = Rope::create_state(hf, layout, capacity)?;
        let (mla, moe) = (|| MlaState::new(hf, rope.clone(), capacity, format), || MoeState::new(hf));
        Ok(Self {
            mlp_decoder_block: states(hf.first_k_dense_replace, mla, || ())?,
            moe_decoder_block: states(hf.num_hidden_layers - hf.first_k_dense_replace, mla, moe)?,
            mtp: states(hf.mtp_layers, mla, moe)?.pop(),
        })
    }

    /// Bytes that all layers' caches hold of a page.
    pub fn page_bytes(&self) -> usize {
        let dense = self.mlp_decoder_block.iter().map(|layer| layer.mla.page_bytes());
        let moe = self.moe_decoder_block.iter().chain(&self.mtp).map(|layer| layer.mla.page_bytes());
        dense.chain(moe).sum()
    }

    /// Each layer's cache, the MTP layer's last.
    pub fn caches(&mut self) -> impl Iterator<Item = &mut ops::LatentCache> {
        let dense = self.mlp_decoder_block.iter_mut().map(|layer| layer.mla.cache());
        dense.chain(self.moe_decoder_block.iter_mut().chain(&mut self.mtp).map(|layer| layer.mla.cache()))
    }

    /// The number of the first MoE layer; and for each from there on how often each expert was chosen since this was last
    /// asked, in the work of this row of the mesh. Counting begins when it is asked the first time.
    pub fn take_chosen_experts(&mut self) -> (usize, Vec<Vec<u32>>) {
        let layers = self.moe_decoder_block.iter_mut();
        (self.mlp_decoder_block.len(), layers.map(|layer| layer.mlp.take_chosen()).collect())
    }
}

impl Module for Model {
    type Hf = HfConfig;
    type Weights<W> = ModelWeights<W>;
    type PrefillConfig = ModelConfig;
    type DecodeConfig = ModelConfig;
    type State = ModelState;
    type Input<'a> = &'a [TokenId];
    type Output = ModelOutput;

    fn weight_specs(hf: &HfConfig, at: &Prefix, layout: Layout) -> ModelWeights<WeightSpec> {
        let model = at.enter("model");
        let layer = |index| model.enter("layers").enter(index);
        let dense = hf.first_k_dense_replace;
        ModelWeights {
            embedding: Embedding::weight_specs(hf, &model.enter("embed_tokens"), layout),
            mlp_decoder_block: (0..dense)
                .map(|i| MlpDecoderBlock::weight_specs(hf, &layer(i), layout))
                .collect(),
            moe_decoder_block: (dense..hf.num_hidden_layers)
                .map(|i| MoeDecoderBlock::weight_specs(hf, &layer(i), layout))
                .collect(),
            norm: RmsNorm::weight_specs(hf, &model.enter("norm"), layout),
            lm_head: LmHead::weight_specs(hf, at, layout),
            mtp: (hf.mtp_layers > 0).then(|| Mtp::weight_specs(hf, at, layout)),
        }
    }

    fn try_map<A, B, E>(
        weights: ModelWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<ModelWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<ModelConfig, Error> {
        let (mlp, moe) = (has_mlp_layers(hf), has_moe_layers(hf));
        Ok(ModelConfig {
            embedding: Embedding::prefill_model_config(hf, layout)?,
            mlp_decoder_block: mlp.then(|| MlpDecoderBlock::prefill_model_config(hf, layout)).transpose()?,
            moe_decoder_block: moe.then(|| MoeDecoderBlock::prefill_model_config(hf, layout)).transpose()?,
            norm: RmsNorm::prefill_model_config(hf, layout)?,
            lm_head: LmHead::prefill_model_config(hf, layout)?,
            all_gather: spec::gather_tokens(layout),
            mtp: (hf.mtp_layers > 0).then(|| Mtp::prefill_model_config(hf, layout)).transpose()?,
        })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<ModelConfig, Error> {
        let (mlp, moe) = (has_mlp_layers(hf), has_moe_layers(hf));
        Ok(ModelConfig {
            embedding: Embedding::decode_model_config(hf, layout)?,
            mlp_decoder_block: mlp.then(|| MlpDecoderBlock::decode_model_config(hf, layout)).transpose()?,
            moe_decoder_block: moe.then(|| MoeDecoderBlock::decode_model_config(hf, layout)).transpose()?,
            norm: RmsNorm::decode_model_config(hf, layout)?,
            lm_head: LmHead::decode_model_config(hf, layout)?,
            all_gather: spec::gather_tokens(layout),
            mtp: (hf.mtp_layers > 0).then(|| Mtp::decode_model_config(hf, layout)).transpose()?,
        })
    }

    fn create_state(hf: &HfConfig, layout: Layout, capacity: &Capacity) -> Result<ModelState, Error> {
        ModelState::new(hf, layout, capacity, ops::CacheFormat::default())
    }

    /// # Shapes
    /// `[tokens]`; logits as the step asks, hidden `[tokens, hidden / columns]`.
    fn forward_prefill(
        tokens: &[TokenId],
        step: &PrefillStep<'_>,
        Run { cfg, w, state, device }: PrefillRun<'_, Self>,
    ) -> Result<ModelOutput, Error> {
        step.check(tokens)?;
        let (own, step) = &rows::prefill(step, tokens.len(), device);
        let tokens = &tokens[own.clone()];
        let unit = &mut ();
        let embedding = Run { cfg: &cfg.embedding, w: &w.embedding, state: &mut *unit, device };
        let mut hidden = Embedding::forward_prefill(tokens, step, embedding)?; // [tokens, hidden / columns]
        for (cfg, w, state) in
            layers(&cfg.mlp_decoder_block, &w.mlp_decoder_block, &mut state.mlp_decoder_block)
        {
            hidden = MlpDecoderBlock::forward_prefill(hidden, step, Run { cfg, w, state, device })?;
        }
        for (cfg, w, state) in
            layers(&cfg.moe_decoder_block, &w.moe_decoder_block, &mut state.moe_decoder_block)
        {
            hidden = MoeDecoderBlock::forward_prefill(hidden, step, Run { cfg, w, state, device })?;
        }
        let norm = Run { cfg: &cfg.norm, w: &w.norm, state: &mut *unit, device };
        let normed = RmsNorm::forward_prefill(&step.logits.select(&hidden), step, norm)?;
        let head = Run { cfg: &cfg.lm_head, w: &w.lm_head, state: unit, device };
        let logits = LmHead::forward_prefill(normed, step, head)?;
        Ok(ModelOutput { logits: rows::gather(logits, cfg.all_gather.as_ref(), device)?, hidden })
    }

    /// # Shapes
    /// `[users]`; logits `[users, vocab]`, hidden `[users of this row, hidden / columns]`.
    fn forward_decode(
        tokens: &[TokenId],
        step: &DecodeStep<'_>,
        run: DecodeRun<'_, Self>,
    ) -> Result<ModelOutput, Error> {
        let (cfg, device) = (run.cfg.all_gather.as_ref(), run.device);
        rows::decode(tokens, step, cfg, device, |tokens, step| decode_row(tokens, step, run))
    }
}

impl Model {
    /// Narrows a prefill run to the MTP layer, where the model has one.
    pub fn mtp_prefill(run: PrefillRun<'_, Self>) -> Option<PrefillRun<'_, Mtp>> {
        let Run { cfg, w, state, device } = run;
        Some(Run { cfg: cfg.mtp.as_ref()?, w: w.mtp.as_ref()?, state: state.mtp.as_mut()?, device })
    }

    /// Narrows a decode run to the MTP layer, where the model has one.
    pub fn mtp_decode(run: DecodeRun<'_, Self>) -> Option<DecodeRun<'_, Mtp>> {
        let Run { cfg, w, state, device } = run;
        Some(Run { cfg: cfg.mtp.as_ref()?, w: w.mtp.as_ref()?, state: state.mtp.as_mut()?, device })
    }
}

/// One token of each of a row's users.
fn decode_row(
    tokens: &[TokenId],
    step: &DecodeStep<'_>,
    Run { cfg, w, state, device }: DecodeRun<'_, Model>,
) -> Result<ModelOutput, Error> {
    let unit = &mut ();
    let embedding = Run { cfg: &cfg.embedding, w: &w.embedding, state: &mut *unit, device };
    let mut hidden = Embedding::forward_decode(tokens, step, embedding)?; // [users, hidden / columns]
    for (cfg, w, state) in layers(&cfg.mlp_decoder_block, &w.mlp_decoder_block, &mut state.mlp_decoder_block)
    {
        hidden = MlpDecoderBlock::forward_decode(hidden, step, Run { cfg, w, state, device })?;
    }
    for (cfg, w, state) in layers(&cfg.moe_decoder_block, &w.moe_decoder_block, &mut state.moe_decoder_block)
    {
        hidden = MoeDecoderBlock::forward_decode(hidden, step, Run { cfg, w, state, device })?;
    }
    let norm = Run { cfg: &cfg.norm, w: &w.norm, state: &mut *unit, device };
    let normed = RmsNorm::forward_decode(&hidden, step, norm)?;
    let head = Run { cfg: &cfg.lm_head, w: &w.lm_head, state: unit, device };
    Ok(ModelOutput { logits: LmHead::forward_decode(normed, step, head)?, hidden })
}

fn has_mlp_layers(hf: &HfConfig) -> bool {
    hf.first_k_dense_replace > 0
}

fn has_moe_layers(hf: &HfConfig) -> bool {
    hf.first_k_dense_replace < hf.num_hidden_layers
}

/// A state for each of `count` layers.
fn states<S>(
    count: usize,
    mla: impl Fn() -> Result<MlaState, Error>,
    mlp: impl Fn() -> S,
) -> Result<Vec<DecoderBlockState<S>>, Error> {
    (0..count).map(|_| Ok(DecoderBlockState { mla: mla()?, mlp: mlp() })).collect()
}

/// Joins the layers of one kind: their one config, each one's weights and state.
fn layers<'a, C, W, S>(
    cfg: &'a Option<C>,
    weights: &'a [W],
    states: &'a mut [S],
) -> impl Iterator<Item = (&'a C, &'a W, &'a mut S)> {
    assert_eq!(weights.len(), states.len(), "weights and state have the same layers");
    weights
        .iter()
        .zip(states)
        .map(move |(w, state)| (cfg.as_ref().expect("layers of a kind have that kind's config"), w, state))
}
