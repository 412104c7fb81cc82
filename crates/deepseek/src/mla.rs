//! Multi-head latent attention (DeepSeek-V2 paper, section 2.1), heads split over the columns.
//!
//! The cache holds, for each token, the normed latent and the rotated key part that all heads share. Decode absorbs
//! `kv_b_proj` into queries and outputs and attends to the latents themselves; prefill expands them to keys and
//! values, unless a chunk is so short that absorbing is less work. Both read `kv_b_proj` where it lies in the checkpoint.

use crate::{
    hf::{HfConfig, LORA_NORM_EPS},
    kinds,
    rope::{Rope, RopeInput},
    spec,
};
use dsv3_mesh::{AllGatherConfig, Layout, Placement};
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Device, Error, Leaf, LeafFn, Mode, Module, Order, PrefillRun,
    PrefillStep, Prefix, Run, Tensor, Weight, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Multi-head latent attention over a paged cache.
pub enum Mla {}

weight_tree! {
    /// Weights of [`Mla`].
    pub struct MlaWeights<W> {
        /// `q_a_proj`, `[q_lora_rank, hidden]`; absent where queries are not compressed.
        #[serde(skip_serializing_if = "Option::is_none")]
        wq_a: Option<Leaf<W>>,
        /// `[q_lora_rank]`, with `attention_bias`.
        #[serde(skip_serializing_if = "Option::is_none")]
        wq_a_bias: Option<Leaf<W>>,
        /// `q_a_layernorm`, `[q_lora_rank]`.
        #[serde(skip_serializing_if = "Option::is_none")]
        q_norm: Option<Leaf<W>>,
        /// `q_b_proj` (or `q_proj`), `[heads * (nope + rope), q_lora_rank]` (or `[.., hidden]`).
        wq_b: Leaf<W>,
        /// `kv_a_proj_with_mqa`, `[kv_lora_rank + rope, hidden]`.
        wkv_a: Leaf<W>,
        /// `[kv_lora_rank + rope]`, with `attention_bias`.
        #[serde(skip_serializing_if = "Option::is_none")]
        wkv_a_bias: Option<Leaf<W>>,
        /// `kv_a_layernorm`, `[kv_lora_rank]`.
        kv_norm: Leaf<W>,
        /// `kv_b_proj`, `[heads * (nope + v), kv_lora_rank]`: for each head its key rows, then its value rows.
        wkv_b: Leaf<W>,
        /// `o_proj`, `[hidden, heads * v]`.
        wo: Leaf<W>,
        /// `[hidden]`, with `attention_bias`.
        #[serde(skip_serializing_if = "Option::is_none")]
        wo_bias: Option<Leaf<W>>,
    }
}

/// Operator configs of [`Mla`], the same operators in both modes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaConfig {
    /// Brings columns together: the hidden features, each latent, the heads' outputs.
    pub all_gather: AllGatherConfig,
    /// Compresses the query; absent where queries are not compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wq_a: Option<ops::LinearConfig>,
    /// Norm of the compressed query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q_norm: Option<ops::RmsNormConfig>,
    /// The heads' queries.
    pub wq_b: ops::LinearConfig,
    /// The latent and the shared key part.
    pub wkv_a: ops::LinearConfig,
    /// Norm of the latent.
    pub kv_norm: ops::RmsNormConfig,
    /// Rotates queries and the shared key part.
    pub rope: ops::RopeConfig,
    /// Writes the cache.
    pub paged_cache: ops::PagedCacheConfig,
    /// Brings a sequence's latents to all rows, in prefill on a mesh of several rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<ops::SequenceConfig>,
    /// Attends to the cache.
    pub attention: ops::AttentionConfig,
    /// The output projection.
    pub wo: ops::LinearConfig,
}

/// State of [`Mla`].
pub struct MlaState {
    rope: Arc<ops::RopeTable>,
    cache: ops::LatentCache,
}

impl MlaState {
    /// A layer's own cache beside the table that all layers share.
    ///
    /// # Errors
    /// A capacity that no cache can have.
    pub fn new(
        hf: &HfConfig,
        rope: Arc<ops::RopeTable>,
        capacity: &Capacity,
        format: ops::CacheFormat,
    ) -> Result<Self, Error> {
        let cache = ops::LatentCache::new(capacity, hf.attention.latent_shape(), format)?;
        Ok(Self { rope, cache })
    }

    /// Bytes that the layer's cache holds of a page.
    pub fn page_bytes(&self) -> usize {
        self.cache.page_bytes()
    }

    /// The layer's cache.
    pub fn cache(&mut self) -> &mut ops::LatentCache {
        &mut self.cache
    }
}

impl Module for Mla {
    type Hf = HfConfig;
    type Weights<W> = MlaWeights<W>;
    type PrefillConfig = MlaConfig;
    type DecodeConfig = MlaConfig;
    type State = MlaState;
    type Input<'a> = Tensor;
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> MlaWeights<WeightSpec> {
        let shape = &hf.attention;
        let (hidden, latent) = (hf.hidden_size, shape.latent_dim());
        let of_kind = |kind, name, shape| spec::matrix(hf, kind, &at.enter(name), shape, spec::BY_OUTPUT);
        let matrix = |name, shape| of_kind(kinds::ATTENTION, name, shape);
        let vector = |name: &str, length, placement| spec::vector(at.name(name), length, placement);
        let bias = |name, length| shape.bias.then(|| vector(name, length, spec::BY_OUTPUT));
        let rank = shape.q_lora_rank;
        MlaWeights {
            wq_a: rank.map(|rank| matrix("q_a_proj", [rank, hidden])),
            wq_a_bias: rank.and_then(|rank| bias("q_a_proj.bias", rank)),
            q_norm: rank.map(|rank| vector("q_a_layernorm.weight", rank, Placement::Replicated)),
            wq_b: match rank {
                Some(rank) => matrix("q_b_proj", [shape.q_dim(), rank]),
                None => matrix("q_proj", [shape.q_dim(), hidden]),
            },
            wkv_a: matrix("kv_a_proj_with_mqa", [latent, hidden]),
            wkv_a_bias: bias("kv_a_proj_with_mqa.bias", latent),
            kv_norm: vector("kv_a_layernorm.weight", shape.kv_lora_rank, Placement::Replicated),
            wkv_b: of_kind(kinds::KV_B, "kv_b_proj", [shape.kv_dim(), shape.kv_lora_rank]),
            wo: matrix("o_proj", [hidden, shape.o_dim()]),
            wo_bias: bias("o_proj.bias", hidden),
        }
    }

    fn try_map<A, B, E>(
        weights: MlaWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<MlaWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<MlaConfig, Error> {
        config(hf, layout, Mode::Prefill)
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<MlaConfig, Error> {
        config(hf, layout, Mode::Decode)
    }

    fn create_state(hf: &HfConfig, layout: Layout, capacity: &Capacity) -> Result<MlaState, Error> {
        MlaState::new(hf, Rope::create_state(hf, layout, capacity)?, capacity, ops::CacheFormat::default())
    }

    /// # Shapes
    /// `[tokens, hidden / columns]` to the same.
    fn forward_prefill(
        x: Tensor,
        step: &PrefillStep<'_>,
        Run { cfg, w, state: MlaState { rope, cache }, device }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let mut rotate = |x: RopeInput<'_>| {
            Rope::forward_prefill(x, step, Run { cfg: &cfg.rope, w: &(), state: rope, device })
        };
        let shape = &cfg.attention;
        let x = &device.all_gather(x, &cfg.all_gather)?; // [tokens, hidden]
        let mut latents = latents(x, cfg, w, device)?; // [tokens, kv_lora_rank + rope]
        rotate(RopeInput { x: &mut latents, first: shape.kv_lora_rank, heads: 1 })?;
        let copy = cache_latents(latents, cache, step, cfg, device)?;
        let (cache, pages) = match &copy {
            Some(ops::ContextCopy { cache, pages }) => (cache, &pages[..]),
            None => (&*cache, step.pages),
        };
        let mut queries = queries(x, cfg, w, device)?; // [tokens, heads * (nope + rope)]
        rotate(RopeInput { x: &mut queries, first: 0, heads: shape.heads })?;
        let order = cfg.wq_b.arithmetic.order();
        let form = match order {
            Order::Many => ops::PrefillForm::Expanded,
            Order::Few => ops::PrefillForm::Absorbed,
            Order::Fastest => ops::prefill_form(x.rows(), step.start, cache.format(), shape),
        };
        let heads = match form {
            ops::PrefillForm::Absorbed => {
                let absorbed = ops::absorb_queries(&queries, &w.wkv_b, shape, order, device);
                let attended =
                    ops::paged_attention_absorbed(&absorbed, step.start, cache, pages, shape, device)?;
                ops::expand_values(&attended, &w.wkv_b, shape, order, device)
            }
            ops::PrefillForm::Expanded => {
                let any_chunk = order == Order::Many;
                let queries = ops::Queries { values: &queries, start: step.start, any_chunk };
                let expansion = ops::Expansion { wkv_b: &w.wkv_b };
                ops::paged_attention_prefill(queries, expansion, cache, pages, shape, device)?
            }
        }; // [tokens, heads * v]
        output(heads, cfg, w, device)
    }

    /// # Shapes
    /// `[users, hidden / columns]` to the same.
    fn forward_decode(
        x: Tensor,
        step: &DecodeStep<'_>,
        Run { cfg, w, state: MlaState { rope, cache }, device }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        let mut rotate = |x: RopeInput<'_>| {
            Rope::forward_decode(x, step, Run { cfg: &cfg.rope, w: &(), state: rope, device })
        };
        let shape = &cfg.attention;
        let x = &device.all_gather(x, &cfg.all_gather)?; // [users, hidden]
        let mut latents = latents(x, cfg, w, device)?; // [users, kv_lora_rank + rope]
        rotate(RopeInput { x: &mut latents, first: shape.kv_lora_rank, heads: 1 })?;
        ops::paged_update_cache(cache, &latents, step.positions, step.pages, &cfg.paged_cache)?;
        let mut queries = queries(x, cfg, w, device)?; // [users, heads * (nope + rope)]
        rotate(RopeInput { x: &mut queries, first: 0, heads: shape.heads })?;
        let order = cfg.wq_b.arithmetic.order();
        let absorbed = ops::absorb_queries(&queries, &w.wkv_b, shape, order, device); // [users, heads * (kv_lora_rank + rope)]
        let attended = ops::paged_attention_decode(&absorbed, cache, step, shape, device)?; // [users, heads * kv_lora_rank]
        let heads = ops::expand_values(&attended, &w.wkv_b, shape, order, device); // [users, heads * v]
        output(heads, cfg, w, device)
    }
}

fn config(hf: &HfConfig, layout: Layout, mode: Mode) -> Result<MlaConfig, Error> {
    let shape = &hf.attention;
    let local = |what, size| spec::over_columns(what, size, layout);
    let linear = |inputs, outputs| ops::LinearConfig::new(mode, inputs, outputs);
    let norm = |features| ops::RmsNormConfig { epsilon: LORA_NORM_EPS, features };
    let heads = local("num_attention_heads", shape.heads)?;
    let wq_a = match shape.q_lora_rank {
        Some(rank) => Some(linear(hf.hidden_size, local("q_lora_rank", rank)?)),
        None => None,
    };
    Ok(MlaConfig {
        all_gather: spec::gather_features(),
        wq_a,
        q_norm: shape.q_lora_rank.map(norm),
        wq_b: linear(shape.q_lora_rank.unwrap_or(hf.hidden_size), heads * shape.qk_head_dim()),
        wkv_a: linear(hf.hidden_size, local("kv_lora_rank + qk_rope_head_dim", shape.latent_dim())?),
        kv_norm: norm(shape.kv_lora_rank),
        rope: Rope::prefill_model_config(hf, layout)?,
        paged_cache: ops::PagedCacheConfig { features: shape.latent_dim() },
        sequence: match mode {
            Mode::Prefill => sequence(layout),
            Mode::Decode => None,
        },
        attention: ops::AttentionConfig {
            heads,
            kv_lora_rank: shape.kv_lora_rank,
            qk_nope_head_dim: shape.qk_nope_head_dim,
            qk_rope_head_dim: shape.qk_rope_head_dim,
            v_head_dim: shape.v_head_dim,
            scale: hf.softmax_scale(),
        },
        wo: linear(shape.o_dim(), local("hidden_size", hf.hidden_size)?),
    })
}

/// A chunk's tokens lie on all rows, the sequence's cache on one.
fn sequence(layout: Layout) -> Option<ops::SequenceConfig> {
    spec::gather_tokens(layout).map(|all_gather| ops::SequenceConfig { all_gather })
}

/// The heads' queries, not rotated yet.
///
/// # Shapes
/// `[tokens, hidden]` to `[tokens, heads * (nope + rope)]`.
fn queries(x: &Tensor, cfg: &MlaConfig, w: &MlaWeights<Weight>, device: &Device) -> Result<Tensor, Error> {
    Ok(match (&cfg.wq_a, &cfg.q_norm, &w.wq_a, &w.q_norm) {
        (Some(wq_a), Some(q_norm), Some(w_a), Some(w_norm)) => {
            let mut compressed = ops::linear(x, w_a, wq_a, device); // [tokens, q_lora_rank / columns]
            ops::add_bias(&mut compressed, w.wq_a_bias.as_deref(), device);
            let mut compressed = device.all_gather(compressed, &cfg.all_gather)?;
            ops::rms_norm(&mut compressed, w_norm, q_norm, device);
            ops::linear(&compressed, &w.wq_b, &cfg.wq_b, device)
        }
        _ => ops::linear(x, &w.wq_b, &cfg.wq_b, device),
    })
}

/// What is cached, not rotated yet: the normed latent, then the shared key part.
///
/// # Shapes
/// `[tokens, hidden]` to `[tokens, kv_lora_rank + rope]`.
fn latents(x: &Tensor, cfg: &MlaConfig, w: &MlaWeights<Weight>, device: &Device) -> Result<Tensor, Error> {
    let mut latents = ops::linear(x, &w.wkv_a, &cfg.wkv_a, device); // [tokens, (kv_lora_rank + rope) / columns]
    ops::add_bias(&mut latents, w.wkv_a_bias.as_deref(), device);
    let mut latents = device.all_gather(latents, &cfg.all_gather)?;
    ops::rms_norm(&mut latents, &w.kv_norm, &cfg.kv_norm, device);
    Ok(latents)
}

/// Caches a chunk's latents where the sequence's other ones are; gives other rows of the mesh a copy of the context.
fn cache_latents(
    latents: Tensor,
    cache: &mut ops::LatentCache,
    step: &PrefillStep<'_>,
    cfg: &MlaConfig,
    device: &Device,
) -> Result<Option<ops::ContextCopy>, Error> {
    let Some(sequence) = &cfg.sequence else {
        ops::paged_fill_cache(cache, &latents, step.start, step.pages, &cfg.paged_cache)?;
        return Ok(None);
    };
    ops::paged_fill_cache_over_rows(cache, latents, step, &cfg.paged_cache, sequence, device)
}

/// # Shapes
/// `[tokens, heads * v]` to `[tokens, hidden / columns]`.
fn output(heads: Tensor, cfg: &MlaConfig, w: &MlaWeights<Weight>, device: &Device) -> Result<Tensor, Error> {
    let heads = device.all_gather(heads, &cfg.all_gather)?; // [tokens, all heads * v]
    let mut out = ops::linear(&heads, &w.wo, &cfg.wo, device);
    ops::add_bias(&mut out, w.wo_bias.as_deref(), device);
    Ok(out)
}
