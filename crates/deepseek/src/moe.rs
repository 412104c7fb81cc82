//! The mixture of experts: gate, routed experts, shared expert. Both kinds of experts run in the same parallel sections.

use crate::{
    experts::{self, Experts, ExpertsInput},
    hf::HfConfig,
    mlp::{MlpWeights, gated_mlp},
    moe_gate::{MoeGate, MoeGateConfig, MoeGateWeights},
    shared_expert::SharedExpert,
    spec,
};
use dsv3_mesh::{AllGatherConfig, AllToAllConfig, Axis, ExpertSharding, Layout, ReduceScatterConfig, shard};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, LeafFn, Module, PrefillRun, PrefillStep, Prefix, Run,
    Tensor, Weight, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
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
    /// Sends tokens to whole experts on other devices, where these are not split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<ops::DispatchConfig>,
    /// Adds up all experts' parts, and splits the hidden features again.
    pub reduce_scatter: ReduceScatterConfig,
}

/// State of [`Moe`]: how often each expert was chosen, from when somebody first asked.
#[derive(Debug)]
pub struct MoeState {
    experts: usize,
    /// By expert; empty while nobody asks.
    chosen: Vec<u32>,
}

impl MoeState {
    /// Nothing is counted yet.
    pub fn new(hf: &HfConfig) -> Self {
        Self { experts: hf.moe().routed_experts, chosen: Vec::new() }
    }

    /// How often each expert was chosen since this was last asked. The first time all are zero, for nothing was counted.
    pub fn take_chosen(&mut self) -> Vec<u32> {
        self.chosen.resize(self.experts, 0);
        std::mem::replace(&mut self.chosen, vec![0; self.experts])
    }

    /// Counts, if somebody asks.
    fn count(&mut self, routing: &ops::Routing) {
        if self.chosen.is_empty() {
            return;
        }
        for &(expert, _) in (0..routing.tokens()).flat_map(|token| routing.token(token)) {
            self.chosen[expert] += 1;
        }
    }
}

impl Module for Moe {
    type Hf = HfConfig;
    type Weights<W> = MoeWeights<W>;
    type PrefillConfig = MoeConfig;
    type DecodeConfig = MoeConfig;
    type State = MoeState;
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
            all_gather: spec::gather_features(),
            gate: MoeGate::prefill_model_config(hf, layout)?,
            experts: Experts::prefill_model_config(hf, layout)?,
            shared_experts: has_shared_expert(hf)
                .then(|| SharedExpert::prefill_model_config(hf, layout))
                .transpose()?,
            dispatch: dispatch(hf, layout)?,
            reduce_scatter: spec::scatter_features(),
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

    fn create_state(hf: &HfConfig, _: Layout, _: &Capacity) -> Result<MoeState, Error> {
        Ok(MoeState::new(hf))
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to the same.
    fn forward_prefill(
        x: Tensor,
        step: &PrefillStep<'_>,
        Run { cfg, w, state, device }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let x = &device.all_gather(x, &cfg.all_gather)?; // [tokens, hidden]
        let gate = Run { cfg: &cfg.gate, w: &w.gate, state: &mut (), device };
        let routing = MoeGate::forward_prefill(x, step, gate)?;
        state.count(&routing);
        let sum = mixture(x, routing, cfg, w, device)?; // [tokens, hidden]
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
        let gate = Run { cfg: &cfg.gate, w: &w.gate, state: &mut (), device };
        let routing = MoeGate::forward_decode(x, step, gate)?;
        state.count(&routing);
        let sum = mixture(x, routing, cfg, w, device)?; // [users, hidden]
        device.reduce_scatter(sum, &cfg.reduce_scatter)
    }
}

fn has_shared_expert(hf: &HfConfig) -> bool {
    hf.moe().shared_experts > 0
}

/// How tokens come to experts that lie whole on one device each.
fn dispatch(hf: &HfConfig, layout: Layout) -> Result<Option<ops::DispatchConfig>, Error> {
    let experts = hf.moe().routed_experts;
    match layout.experts {
        ExpertSharding::Tensor => Ok(None),
        ExpertSharding::Expert => {
            shard("n_routed_experts", experts, layout.mesh.devices(), 0)?;
            Ok(Some(ops::DispatchConfig { experts, all_to_all: AllToAllConfig::new(Axis::Rows) }))
        }
    }
}

/// This device's part of all experts' sum, to be added up over the columns.
///
/// # Shapes
/// `[tokens, hidden]` to the same.
fn mixture(
    x: &Tensor,
    routing: ops::Routing,
    cfg: &MoeConfig,
    w: &MoeWeights<Weight>,
    device: &Device,
) -> Result<Tensor, Error> {
    let shared = cfg.shared_experts.as_ref().zip(w.shared_experts.as_ref());
    let experts =
        |input: &ExpertsInput<'_>, shared| experts::forward(input, shared, &cfg.experts, &w.experts, device);
    match &cfg.dispatch {
        None => Ok(experts(&ExpertsInput { x, routing: &routing }, shared)),
        Some(dispatch) if device.mesh().shape().size(Axis::Rows) == 1 => {
            let routing = &routing.held_by(dispatch.held(device));
            Ok(experts(&ExpertsInput { x, routing }, shared))
        }
        Some(dispatch) => {
            let visitors = ops::dispatch(x, &routing, dispatch, device)?;
            let input = ExpertsInput { x: &visitors.x, routing: &visitors.routing };
            let sums = experts(&input, None); // [tokens that came, hidden]
            let mut out = match shared {
                Some((cfg, w)) => gated_mlp(x, cfg, w, device),
                None => Tensor::zeros(x.rows(), x.cols()),
            };
            ops::combine(&sums, &visitors, &mut out, dispatch, device)?;
            Ok(out)
        }
    }
}
