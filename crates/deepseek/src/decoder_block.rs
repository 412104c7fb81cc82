//! One decoder layer, dense or MoE.

use crate::{
    hf::HfConfig,
    mla::{Mla, MlaConfig, MlaState, MlaWeights},
    mlp::Mlp,
    moe::Moe,
    rms_norm::{RmsNorm, RmsNormConfig, RmsNormWeights},
};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Error, LeafFn, Module, PrefillRun, PrefillStep, Prefix, Run, Tensor,
    WeightPath, WeightSpec, ops, weight_tree,
};
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, marker::PhantomData};

/// A decoder layer whose second half is `F`.
pub struct DecoderBlock<F>(Infallible, PhantomData<F>);

/// A layer with an MLP.
pub type MlpDecoderBlock = DecoderBlock<Mlp>;
/// A layer with a mixture of experts.
pub type MoeDecoderBlock = DecoderBlock<Moe>;

/// What can be the second half of a decoder layer.
pub trait FeedForward: for<'a> Module<Hf = HfConfig, Input<'a> = Tensor, Output = Tensor> {}

impl FeedForward for Mlp {}
impl FeedForward for Moe {}

weight_tree! {
    /// Weights of [`DecoderBlock`].
    pub struct DecoderBlockWeights<W, F> {
        /// `input_layernorm`.
        mla_norm: RmsNormWeights<W>,
        /// `self_attn`.
        mla: MlaWeights<W>,
        /// `post_attention_layernorm`.
        mlp_norm: RmsNormWeights<W>,
        /// `mlp`.
        mlp: F,
    }
}

/// Operator configs of [`DecoderBlock`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderBlockConfig<F> {
    /// Before attention.
    pub mla_norm: RmsNormConfig,
    /// Attention.
    pub mla: MlaConfig,
    /// Before the second half.
    pub mlp_norm: RmsNormConfig,
    /// The second half.
    pub mlp: F,
}

/// State of [`DecoderBlock`].
pub struct DecoderBlockState<S> {
    /// The layer's cache.
    pub mla: MlaState,
    /// The second half's.
    pub mlp: S,
}

impl<F: FeedForward> Module for DecoderBlock<F> {
    type Hf = HfConfig;
    type Weights<W> = DecoderBlockWeights<W, F::Weights<W>>;
    type PrefillConfig = DecoderBlockConfig<F::PrefillConfig>;
    type DecodeConfig = DecoderBlockConfig<F::DecodeConfig>;
    type State = DecoderBlockState<F::State>;
    type Input<'a> = Tensor;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, layout: Layout) -> Self::Weights<WeightSpec> {
        DecoderBlockWeights {
            mla_norm: RmsNorm::weight_specs(hf, &at.enter("input_layernorm"), layout),
            mla: Mla::weight_specs(hf, &at.enter("self_attn"), layout),
            mlp_norm: RmsNorm::weight_specs(hf, &at.enter("post_attention_layernorm"), layout),
            mlp: F::weight_specs(hf, &at.enter("mlp"), layout),
        }
    }

    fn try_map<A, B, E>(
        weights: Self::Weights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<Self::Weights<B>, E> {
        Ok(DecoderBlockWeights {
            mla_norm: path.enter("mla_norm", |path| RmsNorm::try_map(weights.mla_norm, path, f))?,
            mla: path.enter("mla", |path| Mla::try_map(weights.mla, path, f))?,
            mlp_norm: path.enter("mlp_norm", |path| RmsNorm::try_map(weights.mlp_norm, path, f))?,
            mlp: path.enter("mlp", |path| F::try_map(weights.mlp, path, f))?,
        })
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<Self::PrefillConfig, Error> {
        Ok(DecoderBlockConfig {
            mla_norm: RmsNorm::prefill_model_config(hf, layout)?,
            mla: Mla::prefill_model_config(hf, layout)?,
            mlp_norm: RmsNorm::prefill_model_config(hf, layout)?,
            mlp: F::prefill_model_config(hf, layout)?,
        })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<Self::DecodeConfig, Error> {
        Ok(DecoderBlockConfig {
            mla_norm: RmsNorm::decode_model_config(hf, layout)?,
            mla: Mla::decode_model_config(hf, layout)?,
            mlp_norm: RmsNorm::decode_model_config(hf, layout)?,
            mlp: F::decode_model_config(hf, layout)?,
        })
    }

    fn create_state(hf: &HfConfig, layout: Layout, capacity: &Capacity) -> Result<Self::State, Error> {
        Ok(DecoderBlockState {
            mla: Mla::create_state(hf, layout, capacity)?,
            mlp: F::create_state(hf, layout, capacity)?,
        })
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to the same.
    fn forward_prefill(
        x: Tensor,
        step: &PrefillStep<'_>,
        Run { cfg, w, state, device }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let norm = Run { cfg: &cfg.mla_norm, w: &w.mla_norm, state: &mut (), device };
        let normed = RmsNorm::forward_prefill(&x, step, norm)?;
        let mla = Run { cfg: &cfg.mla, w: &w.mla, state: &mut state.mla, device };
        let x = ops::add(x, &Mla::forward_prefill(normed, step, mla)?, device);
        let norm = Run { cfg: &cfg.mlp_norm, w: &w.mlp_norm, state: &mut (), device };
        let normed = RmsNorm::forward_prefill(&x, step, norm)?;
        let mlp = Run { cfg: &cfg.mlp, w: &w.mlp, state: &mut state.mlp, device };
        Ok(ops::add(x, &F::forward_prefill(normed, step, mlp)?, device))
    }

    /// # Shapes
    /// `[users, hidden / columns]` to the same.
    fn forward_decode(
        x: Tensor,
        step: &DecodeStep<'_>,
        Run { cfg, w, state, device }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let norm = Run { cfg: &cfg.mla_norm, w: &w.mla_norm, state: &mut (), device };
        let normed = RmsNorm::forward_decode(&x, step, norm)?;
        let mla = Run { cfg: &cfg.mla, w: &w.mla, state: &mut state.mla, device };
        let x = ops::add(x, &Mla::forward_decode(normed, step, mla)?, device);
        let norm = Run { cfg: &cfg.mlp_norm, w: &w.mlp_norm, state: &mut (), device };
        let normed = RmsNorm::forward_decode(&x, step, norm)?;
        let mlp = Run { cfg: &cfg.mlp, w: &w.mlp, state: &mut state.mlp, device };
        Ok(ops::add(x, &F::forward_decode(normed, step, mlp)?, device))
    }
}
