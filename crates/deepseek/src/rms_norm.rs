//! The norm of the hidden state, whose features are split over the columns. (The norms of the latents inside MLA are
//! whole on each device: see [`ops::rms_norm`].)

use crate::{hf::HfConfig, spec};
use dsv3_mesh::{AllReduceConfig, Axis, Layout};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, Leaf, LeafFn, Module, PrefillRun, PrefillStep, Prefix,
    Run, Tensor, Weight, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// Root-mean-square norm of the hidden state.
pub enum RmsNorm {}

weight_tree! {
    /// Weights of [`RmsNorm`].
    pub struct RmsNormWeights<W> {
        /// `[hidden]`.
        weight: Leaf<W>,
    }
}

/// Operator configs of [`RmsNorm`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RmsNormConfig {
    /// Adds up the devices' sums of squares.
    pub all_reduce: AllReduceConfig,
    /// Normalises with the sum.
    pub rms_norm: ops::RmsNormConfig,
}

impl Module for RmsNorm {
    type Hf = HfConfig;
    type Weights<W> = RmsNormWeights<W>;
    type PrefillConfig = RmsNormConfig;
    type DecodeConfig = RmsNormConfig;
    type State = ();
    type Input<'a> = &'a Tensor;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> RmsNormWeights<WeightSpec> {
        RmsNormWeights { weight: spec::vector(at.name("weight"), hf.hidden_size, spec::BY_OUTPUT) }
    }

    fn try_map<A, B, E>(
        weights: RmsNormWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<RmsNormWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<RmsNormConfig, Error> {
        spec::over_columns("hidden_size", hf.hidden_size, layout)?;
        Ok(RmsNormConfig {
            all_reduce: AllReduceConfig::new(Axis::Columns),
            rms_norm: ops::RmsNormConfig { epsilon: hf.rms_norm_eps, features: hf.hidden_size },
        })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<RmsNormConfig, Error> {
        Self::prefill_model_config(hf, layout)
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to the same.
    fn forward_prefill(
        x: &Tensor,
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        forward(x, cfg, w, device)
    }

    /// # Shapes
    /// `[users, hidden / columns]` to the same.
    fn forward_decode(
        x: &Tensor,
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        forward(x, cfg, w, device)
    }
}

fn forward(
    x: &Tensor,
    cfg: &RmsNormConfig,
    w: &RmsNormWeights<Weight>,
    device: &Device,
) -> Result<Tensor, Error> {
    let squares = ops::rms_norm_pre_all_gather(x, device); // [tokens, 1]
    let squares = device.all_reduce(squares, &cfg.all_reduce)?;
    Ok(ops::rms_norm_post_all_gather(x, &squares, &w.weight, &cfg.rms_norm, device))
}
