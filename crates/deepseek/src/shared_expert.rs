//! The expert that every token goes to: one MLP as wide as all shared experts together. It stands inside
//! [`Moe`](crate::Moe), which gathers its input and adds up its output, so it has no collectives of its own.

use crate::{
    hf::HfConfig,
    kinds,
    mlp::{MlpWeights, gated_mlp, mlp_weight_specs, projections},
    spec,
};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Error, LeafFn, Mode, Module, PrefillRun, PrefillStep, Prefix, Run,
    Tensor, WeightPath, WeightSpec, WeightTree, ops,
};

/// `w2(silu(w1 x) * w3 x)`, a part of the sum on each device.
pub enum SharedExpert {}

impl Module for SharedExpert {
    type Hf = HfConfig;
    type Weights<W> = MlpWeights<W>;
    type PrefillConfig = ops::ExpertsConfig;
    type DecodeConfig = ops::ExpertsConfig;
    type State = ();
    type Input<'a> = &'a Tensor;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> MlpWeights<WeightSpec> {
        mlp_weight_specs(hf, kinds::SHARED, at, hf.moe().shared_intermediate_size(), spec::SPLIT)
    }

    fn try_map<A, B, E>(
        weights: MlpWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<MlpWeights<B>, E> {
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
        x: &Tensor,
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        Ok(gated_mlp(x, cfg, w, device))
    }

    /// # Shapes
    /// `[users, hidden]` to `[users, hidden]`, to be added up over the columns.
    fn forward_decode(
        x: &Tensor,
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        Ok(gated_mlp(x, cfg, w, device))
    }
}

fn config(hf: &HfConfig, layout: Layout, mode: Mode) -> Result<ops::ExpertsConfig, Error> {
    let intermediate = hf.moe().shared_intermediate_size();
    projections(hf, layout, mode, "n_shared_experts * moe_intermediate_size", intermediate)
}
