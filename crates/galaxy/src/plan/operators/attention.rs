//! Operators of the attention.

use super::Operator;
use crate::{
    plan::rules::placement::Placement,
    types::{ComputeKernelConfig, ProgramConfig},
};
use serde::{Deserialize, Serialize};

/// A rotation by position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotaryConfig {
    /// Whether each user has a position of its own.
    pub is_decode_mode: bool,
}

impl Operator for RotaryConfig {
    const OPERATION: &'static str = "rotary_embedding_llama";
}

/// One position of each user into the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagedUpdateCacheConfig {
    /// The devices that do.
    pub mesh_coords: Vec<[u32; 2]>,
}

impl Operator for PagedUpdateCacheConfig {
    const OPERATION: &'static str = "paged_update_cache";
}

/// Many positions of a user into the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagedFillCacheConfig {
    /// Which of the device's users.
    pub batch_idx: u32,
    /// The device that holds the user's cache; another for each user.
    pub mesh_coords: Vec<[u32; 2]>,
}

impl Operator for PagedFillCacheConfig {
    const OPERATION: &'static str = "paged_fill_cache";
}

/// Attention of one position over the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashMLADecodeConfig {
    /// Width of the latent.
    pub head_dim_v: u32,
    /// Factor on the scores.
    pub scale: f32,
    /// How it is laid over cores.
    pub program_config: ProgramConfig,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for FlashMLADecodeConfig {
    const OPERATION: &'static str = "flash_mla_decode";
}

/// Attention of many positions over themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashMLAPrefillConfig {
    /// Width of the latent.
    pub head_dim_v: u32,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether a position sees only those before it.
    pub is_causal: bool,
    /// How it is laid over cores.
    pub program_config: ProgramConfig,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for FlashMLAPrefillConfig {
    const OPERATION: &'static str = "flash_mla_prefill";
}

/// Attention of a later chunk over the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkedFlashMLAPrefillConfig {
    /// Width of the latent.
    pub head_dim_v: u32,
    /// Factor on the scores.
    pub scale: f32,
    /// How it is laid over cores.
    pub program_config: ProgramConfig,
    /// How precisely it computes.
    pub compute_kernel_config: ComputeKernelConfig,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for ChunkedFlashMLAPrefillConfig {
    const OPERATION: &'static str = "chunked_flash_mla_prefill";
}
