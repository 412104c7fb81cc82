//! The routed experts: each split over the columns by intermediate features, or each whole on one of all devices.

use crate::{
    hf::HfConfig,
    kinds,
    mlp::{MlpWeights, mlp_weight_specs, projections},
    spec,
};
use dsv3_mesh::{ExpertSharding, Layout, Placement};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, LeafFn, Mode, Module, PrefillRun, PrefillStep, Prefix,
    Run, Tensor, Weight, WeightPath, WeightSpec, WeightTree, ops,
};

/// The MLPs that tokens are routed to.
pub enum Experts {}

/// What [`Experts`] takes.
pub struct ExpertsInput<'a> {
    /// `[tokens, hidden]`.
    pub x: &'a Tensor,
    /// Where each token goes.
    pub routing: &'a ops::Routing,
}

impl Module for Experts {
    type Hf = HfConfig;
    type Weights<W> = Vec<MlpWeights<W>>;
    type PrefillConfig = ops::ExpertsConfig;
    type DecodeConfig = ops::ExpertsConfig;
    type State = ();
    type Input<'a> = ExpertsInput<'a>;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, layout: Layout) -> Vec<MlpWeights<WeightSpec>> {
        let moe = hf.moe();
        let of = moe.routed_experts;
        let placement = |index| match layout.experts {
            ExpertSharding::Tensor => spec::SPLIT,
            ExpertSharding::Expert => [Placement::Member { index, of }; 3],
        };
        (0..of)
            .map(|expert| {
                let at = at.enter(expert);
                mlp_weight_specs(hf, kinds::EXPERTS, &at, moe.intermediate_size, placement(expert))
            })
            .collect()
    }

    fn try_map<A, B, E>(
        weights: Vec<MlpWeights<A>>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<Vec<MlpWeights<B>>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<ops::ExpertsConfig, Error> {
        config(hf, layout, Mode::Prefill)
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<ops::ExpertsConfig, Error> {
        config(hf, layout, Mode::Decode)
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens, hidden]` to `[tokens, hidden]`, to be added up over the columns.
    fn forward_prefill(
        input: ExpertsInput<'_>,
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        Ok(forward(&input, None, cfg, w, device))
    }

    /// # Shapes
    /// `[users, hidden]` to `[users, hidden]`, to be added up over the columns.
    fn forward_decode(
        input: ExpertsInput<'_>,
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        Ok(forward(&input, None, cfg, w, device))
    }
}

fn config(hf: &HfConfig, layout: Layout, mode: Mode) -> Result<ops::ExpertsConfig, Error> {
    let moe = hf.moe();
    // An expert that is not split has the shape that it has on one device.
    let split = match layout.experts {
        ExpertSharding::Tensor => layout,
        ExpertSharding::Expert => Layout::SINGLE,
    };
    let each = projections(hf, split, mode, "moe_intermediate_size", moe.intermediate_size)?;
    let (inputs, outputs) = (each.w2.in_features, each.w2.out_features);
    // A part of the sum goes over all experts of a token.
    let w2 = ops::LinearConfig::side_by_side(moe.experts_per_token, mode, inputs, outputs);
    Ok(ops::ExpertsConfig { w2, ..each })
}

/// The routed experts, and in the same parallel sections the shared one, where there is one.
pub(crate) fn forward(
    input: &ExpertsInput<'_>,
    shared: Option<(&ops::ExpertsConfig, &MlpWeights<Weight>)>,
    cfg: &ops::ExpertsConfig,
    w: &[MlpWeights<Weight>],
    device: &Device,
) -> Tensor {
    let shared = shared.map(|(config, w)| ops::SharedExpert { weights: weights_of(w), config });
    ops::experts(input.x, input.routing, |expert| weights_of(&w[expert]), shared, cfg, device)
}

fn weights_of(MlpWeights { w1, w2, w3 }: &MlpWeights<Weight>) -> ops::ExpertWeights<'_> {
    ops::ExpertWeights { w1, w2, w3 }
}
