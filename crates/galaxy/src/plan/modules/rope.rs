//! The rotation's tables.

use crate::{
    hardware::TILE,
    plan::{
        operators::{EmbeddingConfig, FromWeightConfig, TransposeConfig},
        request::Dimensions,
        rules::placement,
        tensor::TensorSpec,
    },
    types::{Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// Of decode: cosines and sines of each user's position are looked up once a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeRopeConfig {
    /// The look-up, of cosines and of sines.
    pub embedding: EmbeddingConfig,
    /// Each user's to a core of its own, on which its keys and queries are rotated.
    pub by_user: TransposeConfig,
    /// The matrix that swaps the two numbers of a pair, on each of those cores.
    pub transformation: TensorSpec,
}

/// Of decode.
pub fn decode_model_config(dimensions: &Dimensions) -> DecodeRopeConfig {
    let (users, rope) = (dimensions.tokens, dimensions.attention.rope);
    let swap = TensorSpec::tiles(&[1, 1, users * TILE, TILE], placement::by_token(users, TILE, TILE));
    DecodeRopeConfig {
        embedding: EmbeddingConfig {
            weight: FromWeightConfig::rows(dimensions, &[1, 1, dimensions.request.max_sequence_length, rope]),
            layout: Layout::Tile,
            memory_config: MemoryConfig::DRAM,
        },
        by_user: TransposeConfig { dim1: 1, dim2: 2, memory_config: placement::by_token(users, TILE, rope) },
        transformation: swap,
    }
}

/// Of prefill: the tables' rows of a chunk, as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillRopeConfig {
    /// Cosines of a chunk's positions; sines are the same.
    pub table: TensorSpec,
    /// The matrix that swaps the two numbers of a pair.
    pub transformation: TensorSpec,
}

/// Of prefill.
pub fn prefill_model_config(dimensions: &Dimensions) -> PrefillRopeConfig {
    let shape = [1, 1, dimensions.chunks.mla_chunk, dimensions.attention.rope];
    PrefillRopeConfig {
        table: TensorSpec::tiles(&shape, MemoryConfig::DRAM),
        transformation: TensorSpec::tiles(&[1, 1, TILE, TILE], MemoryConfig::DRAM),
    }
}
