//! The language-model head, the vocabulary split over the columns.

use crate::{hf::HfConfig, kinds, spec};
use dsv3_mesh::{AllGatherConfig, Axis, Layout};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, Leaf, LeafFn, Mode, Module, PrefillRun, PrefillStep,
    Prefix, Run, Tensor, Weight, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// Logits of a normed hidden state.
pub enum LmHead {}

weight_tree! {
    /// Weights of [`LmHead`].
    pub struct LmHeadWeights<W> {
        /// `[vocab, hidden]`; with tied embeddings, the embedding's.
        weight: Leaf<W>,
    }
}

/// Operator configs of [`LmHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmHeadConfig {
    /// Brings the hidden features together, then the logits.
    pub all_gather: AllGatherConfig,
    /// The logits of this device's part of the vocabulary.
    pub linear: ops::LinearConfig,
}

impl Module for LmHead {
    type Hf = HfConfig;
    type Weights<W> = LmHeadWeights<W>;
    type PrefillConfig = LmHeadConfig;
    type DecodeConfig = LmHeadConfig;
    type State = ();
    type Input<'a> = Tensor;
    type Output = Tensor;

    /// The specs of the model at the prefix `at`: whether its head is its embedding is the config's to say.
    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> LmHeadWeights<WeightSpec> {
        let at = if hf.tie_word_embeddings { at.enter("model.embed_tokens") } else { at.enter("lm_head") };
        LmHeadWeights {
            weight: spec::matrix(hf, kinds::HEAD, &at, [hf.vocab_size, hf.hidden_size], spec::BY_OUTPUT),
        }
    }

    fn try_map<A, B, E>(
        weights: LmHeadWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<LmHeadWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<LmHeadConfig, Error> {
        config(hf, layout, Mode::Prefill)
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<LmHeadConfig, Error> {
        config(hf, layout, Mode::Decode)
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to `[tokens, vocab]`.
    fn forward_prefill(
        x: Tensor,
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        forward(x, cfg, w, device)
    }

    /// # Shapes
    /// `[users, hidden / columns]` to `[users, vocab]`.
    fn forward_decode(
        x: Tensor,
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        forward(x, cfg, w, device)
    }
}

fn config(hf: &HfConfig, layout: Layout, mode: Mode) -> Result<LmHeadConfig, Error> {
    let vocab = spec::over_columns("vocab_size", hf.vocab_size, layout)?;
    Ok(LmHeadConfig {
        all_gather: AllGatherConfig::features(Axis::Columns),
        linear: ops::LinearConfig::new(mode, hf.hidden_size, vocab),
    })
}

fn forward(
    x: Tensor,
    cfg: &LmHeadConfig,
    w: &LmHeadWeights<Weight>,
    device: &Device,
) -> Result<Tensor, Error> {
    let x = device.all_gather(x, &cfg.all_gather)?; // [tokens, hidden]
    let logits = ops::linear(&x, &w.weight, &cfg.linear, device); // [tokens, vocab / columns]
    device.all_gather(logits, &cfg.all_gather)
}
