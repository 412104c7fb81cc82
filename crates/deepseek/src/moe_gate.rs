//! The router: which experts a token goes to, and with which weights. Computed in f32 on every device alike.

use crate::{hf::HfConfig, spec};
use dsv3_mesh::{Layout, Placement};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, Leaf, LeafFn, Mode, Module, PrefillRun, PrefillStep,
    Prefix, Run, Tensor, Weight, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// Sigmoid scores and grouped top-k (`noaux_tc`).
pub enum MoeGate {}

weight_tree! {
    /// Weights of [`MoeGate`].
    pub struct MoeGateWeights<W> {
        /// `[experts, hidden]`.
        weight: Leaf<W>,
        /// `[experts]`; takes part in the choice only.
        e_score_correction_bias: Leaf<W>,
    }
}

/// Operator configs of [`MoeGate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeGateConfig {
    /// The logits.
    pub linear: ops::LinearConfig,
    /// The choice.
    pub grouped_top_k: ops::GateConfig,
}

impl Module for MoeGate {
    type Hf = HfConfig;
    type Weights<W> = MoeGateWeights<W>;
    type PrefillConfig = MoeGateConfig;
    type DecodeConfig = MoeGateConfig;
    type State = ();
    type Input<'a> = &'a Tensor;
    type Output = ops::Routing;

    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> MoeGateWeights<WeightSpec> {
        let experts = hf.moe().routed_experts;
        let bias = at.name("e_score_correction_bias");
        MoeGateWeights {
            weight: spec::matrix(hf, None, at, [experts, hf.hidden_size], Placement::Replicated),
            e_score_correction_bias: spec::vector(bias, experts, Placement::Replicated),
        }
    }

    fn try_map<A, B, E>(
        weights: MoeGateWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<MoeGateWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, _: Layout) -> Result<MoeGateConfig, Error> {
        Ok(config(hf, Mode::Prefill))
    }

    fn decode_model_config(hf: &HfConfig, _: Layout) -> Result<MoeGateConfig, Error> {
        Ok(config(hf, Mode::Decode))
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens, hidden]` to a choice for each token.
    fn forward_prefill(
        x: &Tensor,
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<ops::Routing, Error> {
        Ok(forward(x, cfg, w, device))
    }

    /// # Shapes
    /// `[users, hidden]` to a choice for each user.
    fn forward_decode(
        x: &Tensor,
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<ops::Routing, Error> {
        Ok(forward(x, cfg, w, device))
    }
}

fn config(hf: &HfConfig, mode: Mode) -> MoeGateConfig {
    let moe = hf.moe();
    MoeGateConfig {
        linear: ops::LinearConfig::new(mode, hf.hidden_size, moe.routed_experts),
        grouped_top_k: ops::GateConfig {
            experts: moe.routed_experts,
            experts_per_token: moe.experts_per_token,
            groups: moe.groups,
            topk_groups: moe.topk_groups,
            norm_topk_prob: moe.norm_topk_prob,
            routed_scaling_factor: moe.routed_scaling_factor,
        },
    }
}

fn forward(x: &Tensor, cfg: &MoeGateConfig, w: &MoeGateWeights<Weight>, device: &Device) -> ops::Routing {
    let logits = ops::linear(x, &w.weight, &cfg.linear, device); // [tokens, experts]
    ops::grouped_top_k(logits, &w.e_score_correction_bias, &cfg.grouped_top_k, device)
}
