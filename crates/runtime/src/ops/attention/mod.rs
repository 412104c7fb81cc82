//! Attention over the paged latents, absorbed or expanded. Both walk the context in blocks with a running softmax, so
//! that scores of a whole context never exist at once, for strips of queries that share their keys.
//!
//! A context is cut into segments by its length alone, so that threads have work to share and results do not depend
//! on how many there are; what the segments give is merged in their order.

mod absorbed;
mod cost;
mod expanded;
mod segments;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use absorbed::{paged_attention_absorbed, paged_attention_decode};
pub use cost::{PrefillForm, prefill_form};
pub use expanded::{Expansion, Queries, paged_attention_prefill};

/// Config of attention, for this device's heads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Heads on this device.
    pub heads: usize,
    /// Features of a latent: the rank of the compressed keys and values.
    pub kv_lora_rank: usize,
    /// Features of a query or key head that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Features of a query or key head that are rotated.
    pub qk_rope_head_dim: usize,
    /// Features of a value head.
    pub v_head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
}
