//! The gated MLP of the dense layers, split over the columns by intermediate features.

use crate::{hf::HfConfig, kinds, spec};
use dsv3_mesh::{AllGatherConfig, Axis, Layout, Placement, ReduceScatterConfig};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, Leaf, LeafFn, Mode, Module, PrefillRun, PrefillStep,
    Prefix, Run, Tensor, Weight, WeightKind, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// `w2(silu(w1 x) * w3 x)`.
pub enum Mlp {}

weight_tree! {
    /// Weights of a gated MLP: [`Mlp`], [`SharedExpert`](crate::SharedExpert) or one routed expert.
    pub struct MlpWeights<W> {
        /// `gate_proj`, `[intermediate, hidden]`.
        w1: Leaf<W>,
        /// `down_proj`, `[hidden, intermediate]`.
        w2: Leaf<W>,
        /// `up_proj`, `[intermediate, hidden]`.
        w3: Leaf<W>,
    }
}

/// Operator configs of [`Mlp`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Brings the hidden features together.
    pub all_gather: AllGatherConfig,
    /// The gate projection.
    pub w1: ops::LinearConfig,
    /// The up projection.
    pub w3: ops::LinearConfig,
    /// `silu(w1 x) * w3 x`.
    pub mul_activation: ops::MulConfig,
    /// The down projection; gives a part of each sum.
    pub w2: ops::LinearConfig,
    /// Adds the parts, and splits the hidden features again.
    pub reduce_scatter: ReduceScatterConfig,
}

impl Module for Mlp {
    type Hf = HfConfig;
    type Weights<W> = MlpWeights<W>;
    type PrefillConfig = MlpConfig;
    type DecodeConfig = MlpConfig;
    type State = ();
    type Input<'a> = Tensor;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> MlpWeights<WeightSpec> {
        mlp_weight_specs(hf, kinds::DENSE, at, hf.intermediate_size, spec::SPLIT)
    }

    fn try_map<A, B, E>(
        weights: MlpWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<MlpWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<MlpConfig, Error> {
        config(hf, layout, Mode::Prefill)
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<MlpConfig, Error> {
        config(hf, layout, Mode::Decode)
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to the same.
    fn forward_prefill(
        x: Tensor,
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        forward(x, cfg, w, device)
    }

    /// # Shapes
    /// `[users, hidden / columns]` to the same.
    fn forward_decode(
        x: Tensor,
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        forward(x, cfg, w, device)
    }
}

/// The specs of a gated MLP with this many intermediate features.
pub(crate) fn mlp_weight_specs(
    hf: &HfConfig,
    kind: WeightKind,
    at: &Prefix,
    intermediate: usize,
    [w1, w2, w3]: [Placement; 3],
) -> MlpWeights<WeightSpec> {
    let hidden = hf.hidden_size;
    MlpWeights {
        w1: spec::matrix(hf, kind, &at.enter("gate_proj"), [intermediate, hidden], w1),
        w2: spec::matrix(hf, kind, &at.enter("down_proj"), [hidden, intermediate], w2),
        w3: spec::matrix(hf, kind, &at.enter("up_proj"), [intermediate, hidden], w3),
    }
}

/// The projections of a gated MLP with this many intermediate features in all.
pub(crate) fn projections(
    hf: &HfConfig,
    layout: Layout,
    mode: Mode,
    what: &str,
    intermediate: usize,
) -> Result<ops::ExpertsConfig, Error> {
    let local = spec::over_columns(what, intermediate, layout)?;
    let expand = ops::LinearConfig::new(mode, hf.hidden_size, local);
    Ok(ops::ExpertsConfig {
        w1: expand,
        w2: ops::LinearConfig::new(mode, local, hf.hidden_size),
        w3: expand,
        mul_activation: ops::MulConfig { input_tensor_a_activation: ops::Activation::Silu },
    })
}

fn config(hf: &HfConfig, layout: Layout, mode: Mode) -> Result<MlpConfig, Error> {
    let ops::ExpertsConfig { w1, w2, w3, mul_activation } =
        projections(hf, layout, mode, "intermediate_size", hf.intermediate_size)?;
    let cluster_axis = Axis::Columns;
    Ok(MlpConfig {
        all_gather: AllGatherConfig::features(cluster_axis),
        w1,
        w3,
        mul_activation,
        w2,
        reduce_scatter: ReduceScatterConfig::features(cluster_axis),
    })
}

fn forward(x: Tensor, cfg: &MlpConfig, w: &MlpWeights<Weight>, device: &Device) -> Result<Tensor, Error> {
    let x = device.all_gather(x, &cfg.all_gather)?; // [tokens, hidden]
    let &MlpConfig { w1, w2, w3, mul_activation, .. } = cfg;
    let partial = gated_mlp(&x, &ops::ExpertsConfig { w1, w2, w3, mul_activation }, w, device);
    device.reduce_scatter(partial, &cfg.reduce_scatter)
}

/// `w2(silu(w1 x) * w3 x)` with this device's intermediate features.
///
/// # Shapes
/// `[tokens, hidden]` to `[tokens, hidden]`, to be added up over the columns.
pub(crate) fn gated_mlp(
    x: &Tensor,
    cfg: &ops::ExpertsConfig,
    w: &MlpWeights<Weight>,
    device: &Device,
) -> Tensor {
    let gate = ops::linear(x, &w.w1, &cfg.w1, device); // [tokens, intermediate / columns]
    let up = ops::linear(x, &w.w3, &cfg.w3, device);
    let gated = ops::mul(gate, &up, &cfg.mul_activation, device);
    ops::linear(&gated, &w.w2, &cfg.w2, device)
}
