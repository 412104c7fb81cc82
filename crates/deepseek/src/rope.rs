//! Rotary position embedding with YaRN (Peng et al. 2023, as transformers' `_compute_yarn_parameters`).

use crate::hf::{HfConfig, Yarn};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Error, LeafFn, Module, PrefillRun, PrefillStep, Prefix, Run, Tensor,
    WeightPath, ops,
};
use std::{f64::consts::TAU, sync::Arc};

/// Rotation of interleaved pairs `(x0, x1), (x2, x3), ...`: the last features of each head.
pub enum Rope {}

/// What [`Rope`] rotates, in place: columns `first ..` of `x`, as `heads` heads of equal width.
pub struct RopeInput<'a> {
    /// `[tokens, features]`.
    pub x: &'a mut Tensor,
    /// First column of the first head.
    pub first: usize,
    /// Heads in the columns from there on.
    pub heads: usize,
}

impl Module for Rope {
    type Hf = HfConfig;
    type Weights<W> = ();
    type PrefillConfig = ops::RopeConfig;
    type DecodeConfig = ops::RopeConfig;
    /// All layers share one table.
    type State = Arc<ops::RopeTable>;
    type Input<'a> = RopeInput<'a>;
    type Output = ();

    fn weight_specs(_: &HfConfig, _: &Prefix, _: Layout) {}

    fn try_map<A, B, E>((): (), _: &mut WeightPath, _: LeafFn<'_, A, B, E>) -> Result<(), E> {
        Ok(())
    }

    fn prefill_model_config(hf: &HfConfig, _: Layout) -> Result<ops::RopeConfig, Error> {
        Ok(ops::RopeConfig { features: hf.attention.qk_rope_head_dim })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<ops::RopeConfig, Error> {
        Self::prefill_model_config(hf, layout)
    }

    fn create_state(hf: &HfConfig, _: Layout, capacity: &Capacity) -> Result<Self::State, Error> {
        let table = ops::RopeTable::new(capacity.max_context, &frequencies(hf), hf.rope.attention_factor());
        Ok(Arc::new(table))
    }

    fn forward_prefill(
        RopeInput { x, first, heads }: RopeInput<'_>,
        step: &PrefillStep<'_>,
        Run { cfg, state, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<(), Error> {
        let width = x.cols() - first;
        ops::rope(x.columns_mut(first, width), heads, |token| step.start + token, state, cfg, device)
    }

    fn forward_decode(
        RopeInput { x, first, heads }: RopeInput<'_>,
        step: &DecodeStep<'_>,
        Run { cfg, state, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<(), Error> {
        let width = x.cols() - first;
        ops::rope(x.columns_mut(first, width), heads, |user| step.positions[user], state, cfg, device)
    }
}

/// Radians per position of each pair, `[rope / 2]`: in transformers' order and precision, for a model has learned with
/// what they round to, and at large positions the roundings show.
fn frequencies(hf: &HfConfig) -> Vec<f32> {
    let features = hf.attention.qk_rope_head_dim;
    let wavelengths = (0..features / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / features as f32;
        hf.rope.theta.powf(f64::from(exponent)) as f32
    });
    let Some(yarn) = &hf.rope.scaling else {
        return wavelengths.map(|wavelength| 1.0 / wavelength).collect();
    };
    let (low, high) = ramp(yarn, hf.rope.theta, features);
    wavelengths
        .enumerate()
        .map(|(pair, wavelength)| {
            // 0: the pair turns often enough within the original context to stay as it is; 1: stretched.
            let stretch = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
            let keep = 1.0 - stretch;
            1.0 / (yarn.factor as f32 * wavelength) * (1.0 - keep) + 1.0 / wavelength * keep
        })
        .collect()
}

/// The pairs between which YaRN goes from unchanged to stretched frequencies.
fn ramp(yarn: &Yarn, theta: f64, features: usize) -> (f32, f32) {
    let context = yarn.original_max_position_embeddings as f64;
    // The pair that makes this many turns within the original context.
    let pair = |turns: f64| features as f64 * (context / (turns * TAU)).ln() / (2.0 * theta.ln());
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(features as f64 - 1.0);
    // A ramp of no width would divide by zero.
    let width = if low == high { 0.001 } else { high - low };
    (low as f32, (low + width) as f32)
}
