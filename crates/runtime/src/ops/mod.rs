//! Operators: one file each, a config and a function. The config is data that stage 2 writes; the function splits the
//! work over the device's threads and calls the kernels.

mod absorb;
mod arithmetic;
mod attention;
mod cache;
mod dispatch;
mod embedding;
mod experts;
mod gate;
mod linear;
mod mul;
mod norm;
mod residual;
mod rope;

pub use absorb::{absorb_queries, expand_values};
pub use arithmetic::Arithmetic;
pub use attention::{
    AttentionConfig, Expansion, PrefillForm, Queries, paged_attention_absorbed, paged_attention_decode,
    paged_attention_prefill, prefill_form,
};
pub use cache::{
    CacheFormat, ContextCopy, LatentCache, LatentShape, PagedCacheConfig, SequenceConfig, paged_fill_cache,
    paged_fill_cache_over_rows, paged_update_cache,
};
pub use dispatch::{DispatchConfig, Dispatched, combine, dispatch};
pub use embedding::{EmbeddingConfig, embedding};
pub use experts::{ExpertWeights, ExpertsConfig, SharedExpert, experts};
pub use gate::{GateConfig, Routing, grouped_top_k};
pub use linear::{LinearConfig, add_bias, linear};
pub use mul::{Activation, MulConfig, mul};
pub use norm::{RmsNormConfig, rms_norm, rms_norm_post_all_gather, rms_norm_pre_all_gather};
pub use residual::add;
pub use rope::{RopeConfig, RopeTable, rope};
