//! The mixture of experts: gate, routed experts, shared expert. Both kinds of experts run in the same parallel sections.

use crate::{
    experts::{self, Experts, ExpertsInput},
    hf::HfConfig,
    mlp::MlpWeights,
    moe_gate::{MoeGate, MoeGateConfig, MoeGateWeights},
    shared_expert::SharedExpert,
};
use dsv3_mesh::{AllGatherConfig, Axis, Layout, ReduceScatterConfig};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Error, LeafFn, Module, PrefillRun, PrefillStep, Prefix, Run, Tensor,
    WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};

/// The routed experts' weighted sum, plus the shared expert.
pub enum Moe {}

weight_tree! {
    /// Weights of [`Moe`].
    pub struct MoeWeights<W> {
        /// The router.
        gate: MoeGateWeights<W>,
        /// The routed experts.
        experts: Vec<MlpWeights<W>>,
        /// The shared expert, in models that have one.
        #[serde(skip_serializing_if = "Option::is_none")]
        shared_experts: Option<MlpWeights<W>>,
    }
}

/// Operator configs of [`Moe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Brings the hidden features together, once for the gate and all experts.
    pub all_gather: AllGatherConfig,
    /// The router.
    pub gate: MoeGateConfig,
    /// The routed experts.
    pub experts: ops::ExpertsConfig,
    /// The shared expert, in models that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_experts: Option<ops::ExpertsConfig>,
    /// Adds up all experts' parts, and splits the hidden features again.
    pub reduce_scatter: ReduceScatterConfig,
}

impl Module for Moe {
    type Hf = HfConfig;
    type Weights<W> = MoeWeights<W>;
    type PrefillConfig = MoeConfig;
    type DecodeConfig = MoeConfig;
    type State = ();
    type Input<'a> = Tensor;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, layout: Layout) -> MoeWeights<WeightSpec> {
        MoeWeights {
            gate: MoeGate::weight_specs(hf, &at.enter("gate"), layout),
            experts: Experts::weight_specs(hf, &at.enter("experts"), layout),
            shared_experts: has_shared_expert(hf)
                .then(|| SharedExpert::weight_specs(hf, &at.enter("shared_experts"), layout)),
        }
    }

    fn try_map<A, B, E>(
        weights: MoeWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<MoeWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<MoeConfig, Error> {
        Ok(MoeConfig {
            all_gather: AllGatherConfig::features(Axis::Columns),
            gate: MoeGate::prefill_model_config(hf, layout)?,
            experts: Experts::prefill_model_config(hf, layout)?,
            shared_experts: has_shared_expert(hf)
                .then(|| SharedExpert::prefill_model_config(hf, layout))
                .transpose()?,
            reduce_scatter: ReduceScatterConfig::features(Axis::Columns),
        })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<MoeConfig, Error> {
        Ok(MoeConfig {
            gate: MoeGate::decode_model_config(hf, layout)?,
            experts: Experts::decode_model_config(hf, layout)?,
            shared_experts: has_shared_expert(hf)
                .then(|| SharedExpert::decode_model_config(hf, layout))
                .transpose()?,
            ..Self::prefill_model_config(hf, layout)?
        })
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to the same.
    fn forward_prefill(
        x: Tensor,
        step: &PrefillStep<'_>,
        Run { cfg, w, state, device }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let x = &device.all_gather(x, &cfg.all_gather)?; // [tokens, hidden]
        let gate = Run { cfg: &cfg.gate, w: &w.gate, state, device };
        let routing = &MoeGate::forward_prefill(x, step, gate)?;
        let shared = cfg.shared_experts.as_ref().zip(w.shared_experts.as_ref());
        let input = ExpertsInput { x, routing };
        let sum = experts::forward(&input, shared, &cfg.experts, &w.experts, device); // [tokens, hidden]
        device.reduce_scatter(sum, &cfg.reduce_scatter)
    }

    /// # Shapes
    /// `[users, hidden / columns]` to the same.
    fn forward_decode(
        x: Tensor,
        step: &DecodeStep<'_>,
        Run { cfg, w, state, device }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let x = &device.all_gather(x, &cfg.all_gather)?; // [users, hidden]
        let gate = Run { cfg: &cfg.gate, w: &w.gate, state, device };
        let routing = &MoeGate::forward_decode(x, step, gate)?;
        let shared = cfg.shared_experts.as_ref().zip(w.shared_experts.as_ref());
        let input = ExpertsInput { x, routing };
        let sum = experts::forward(&input, shared, &cfg.experts, &w.experts, device); // [users, hidden]
        device.reduce_scatter(sum, &cfg.reduce_scatter)
    }
}

fn has_shared_expert(hf: &HfConfig) -> bool {
    hf.moe().shared_experts > 0
}
