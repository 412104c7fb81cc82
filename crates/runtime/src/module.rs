//! The module contract and its three stages.
//!
//! A module is a namespace of stateless functions: an uninhabited enum that implements [`Module`]. Configs are
//! immutable and serialisable, weights immutable and shared by both modes, state mutable and beside them.

use crate::{
    Checkpoint, DecodeStep, Device, Error, LeafFn, PrefillStep, Prefix, SavedWeight, Weight, WeightOutput,
    WeightPath, WeightSpec,
};
use dsv3_mesh::Layout;
use serde::{Serialize, de::DeserializeOwned};
use std::{convert::Infallible, fmt::Debug};

/// How much state to make: the size of the latent cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Positions that one sequence may use.
    pub max_context: usize,
    /// Tokens in a page.
    pub page_size: usize,
    /// Pages in each layer's cache, for all sequences together.
    pub pages: usize,
}

/// A namespace of stateless functions. Implementors are uninhabited.
pub trait Module: Sized {
    /// The model's config, as its author parsed it from config.json.
    type Hf;
    /// The weight tree.
    type Weights<W>;
    /// Typed operator configs for prefill.
    type PrefillConfig: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// Typed operator configs for decode.
    type DecodeConfig: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// What a forward pass changes.
    type State: Send;
    /// What a forward pass takes.
    type Input<'a>;
    /// What a forward pass gives.
    type Output;

    /// What stage 1 is to do, for the tensors under the prefix `at`.
    fn weight_specs(hf: &Self::Hf, at: &Prefix, layout: Layout) -> Self::Weights<WeightSpec>;

    /// Replaces every leaf of a weight tree.
    ///
    /// # Errors
    /// Those of `f`.
    fn try_map<A, B, E>(
        weights: Self::Weights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<Self::Weights<B>, E>;

    /// Stage 1: saves every weight, or notes where it already lies, and returns the WeightConfig.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen, or of a type that is not supported; a failing write.
    fn convert_weights(
        hf: &Self::Hf,
        at: &Prefix,
        checkpoint: &Checkpoint,
        out: &mut WeightOutput<'_>,
    ) -> Result<Self::Weights<SavedWeight>, Error> {
        let mut trees = Self::convert_weights_of_ranks(hf, at, checkpoint, std::slice::from_mut(out))?;
        Ok(trees.pop().expect("one output gives one tree"))
    }

    /// Stage 1 for several ranks of one mesh at a time, weight by weight: what they cut from one tensor is read once. A
    /// WeightConfig for each output.
    ///
    /// # Errors
    /// As [`convert_weights`](Self::convert_weights).
    ///
    /// # Panics
    /// If there is no output.
    fn convert_weights_of_ranks(
        hf: &Self::Hf,
        at: &Prefix,
        checkpoint: &Checkpoint,
        outs: &mut [WeightOutput<'_>],
    ) -> Result<Vec<Self::Weights<SavedWeight>>, Error> {
        let layout = outs.first().expect("conversion is for one rank at least").layout();
        let mut saved = vec![Vec::new(); outs.len()];
        Self::try_map(Self::weight_specs(hf, at, layout), &mut WeightPath::default(), &mut |path, spec| {
            for (out, saved) in outs.iter_mut().zip(&mut saved) {
                saved.push(out.save(path, &spec, checkpoint)?);
            }
            Ok::<_, Error>(())
        })?;
        let tree = |saved: Vec<SavedWeight>| {
            let mut saved = saved.into_iter();
            let specs = Self::weight_specs(hf, at, layout);
            let Ok(tree) = Self::try_map(specs, &mut WeightPath::default(), &mut |_, _| {
                Ok::<_, Infallible>(saved.next().expect("both go through one tree"))
            });
            tree
        };
        Ok(saved.into_iter().map(tree).collect())
    }

    /// Stage 2: the operator configs of prefill.
    ///
    /// # Errors
    /// If the model does not divide over the mesh.
    fn prefill_model_config(hf: &Self::Hf, layout: Layout) -> Result<Self::PrefillConfig, Error>;

    /// Stage 2: the operator configs of decode.
    ///
    /// # Errors
    /// If the model does not divide over the mesh.
    fn decode_model_config(hf: &Self::Hf, layout: Layout) -> Result<Self::DecodeConfig, Error>;

    /// Stage 3: fresh state.
    ///
    /// # Errors
    /// If the model does not divide over the mesh.
    fn create_state(hf: &Self::Hf, layout: Layout, capacity: &Capacity) -> Result<Self::State, Error>;

    /// Stage 3: one chunk of one sequence.
    ///
    /// # Errors
    /// A step that the state cannot hold.
    fn forward_prefill(
        x: Self::Input<'_>,
        step: &PrefillStep<'_>,
        run: PrefillRun<'_, Self>,
    ) -> Result<Self::Output, Error>;

    /// Stage 3: one token of each of several sequences.
    ///
    /// # Errors
    /// A step that the state cannot hold.
    fn forward_decode(
        x: Self::Input<'_>,
        step: &DecodeStep<'_>,
        run: DecodeRun<'_, Self>,
    ) -> Result<Self::Output, Error>;
}

/// What a forward pass sees: operator configs, weights, its own state, the device.
pub struct Run<'a, C, W, S> {
    /// Operator configs.
    pub cfg: &'a C,
    /// Weights.
    pub w: &'a W,
    /// What the pass may change.
    pub state: &'a mut S,
    /// Where it runs.
    pub device: &'a Device,
}

/// What a prefill pass of `M` sees.
pub type PrefillRun<'a, M> =
    Run<'a, <M as Module>::PrefillConfig, <M as Module>::Weights<Weight>, <M as Module>::State>;

/// What a decode pass of `M` sees.
pub type DecodeRun<'a, M> =
    Run<'a, <M as Module>::DecodeConfig, <M as Module>::Weights<Weight>, <M as Module>::State>;

/// Stage 3: everything but the state, bound in one place. Both modes share the weights.
pub struct RunConfig<M: Module> {
    prefill: M::PrefillConfig,
    decode: M::DecodeConfig,
    weights: M::Weights<Weight>,
    device: Device,
}

impl<M: Module> RunConfig<M> {
    /// Merges model configs, loaded weights and a device.
    pub fn new(
        prefill: M::PrefillConfig,
        decode: M::DecodeConfig,
        weights: M::Weights<Weight>,
        device: Device,
    ) -> Self {
        Self { prefill, decode, weights, device }
    }

    /// Joins the run config with a state for a prefill pass.
    pub fn prefill<'a>(&'a self, state: &'a mut M::State) -> PrefillRun<'a, M> {
        Run { cfg: &self.prefill, w: &self.weights, state, device: &self.device }
    }

    /// Joins the run config with a state for a decode pass.
    pub fn decode<'a>(&'a self, state: &'a mut M::State) -> DecodeRun<'a, M> {
        Run { cfg: &self.decode, w: &self.weights, state, device: &self.device }
    }

    /// The weights.
    pub fn weights(&self) -> &M::Weights<Weight> {
        &self.weights
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
