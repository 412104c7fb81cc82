//! Token embedding. A device has a part of each row for the whole vocabulary; a column puts its rows' parts together, and
//! then each row keeps its own users or positions.

use crate::{
    plan::{
        operators::{
            AllGatherAsyncConfig, EmbeddingConfig, FromWeightConfig, ReduceScatterAsyncMinimalConfig,
            ScaleConfig, TypecastConfig,
        },
        request::Dimensions,
        rules::{collectives, placement::Placement},
    },
    types::{DataType, Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// Operators of the embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingModuleConfig {
    /// The look-up.
    pub embedding: EmbeddingConfig,
    /// To the type of the residual stream: 32 bits in decode, 16 in prefill.
    pub typecast: TypecastConfig,
    /// The parts of the rows of the mesh.
    pub all_gather: AllGatherAsyncConfig,
    /// Each row's own tokens. It is the sum of equal copies, since there is no other way to part a tensor along rows.
    pub reduce_scatter: ReduceScatterAsyncMinimalConfig,
    /// Divides that sum by the number of copies.
    pub reduce_scatter_scale: ScaleConfig,
}

/// Of decode.
pub fn decode_model_config(dimensions: &Dimensions) -> EmbeddingModuleConfig {
    config(dimensions, DataType::Float32, MemoryConfig::L1)
}

/// Of prefill.
pub fn prefill_model_config(dimensions: &Dimensions) -> EmbeddingModuleConfig {
    config(dimensions, DataType::Bfloat16, MemoryConfig::DRAM)
}

fn config(dimensions: &Dimensions, dtype: DataType, result: Placement) -> EmbeddingModuleConfig {
    let shape = [1, 1, dimensions.vocabulary, dimensions.embedding_part];
    EmbeddingModuleConfig {
        embedding: EmbeddingConfig {
            weight: FromWeightConfig::rows(dimensions, &shape),
            layout: Layout::Tile,
            memory_config: MemoryConfig::DRAM,
        },
        typecast: TypecastConfig { dtype, memory_config: MemoryConfig::DRAM },
        all_gather: collectives::all_gather(dimensions, -1, collectives::ROWS, MemoryConfig::DRAM),
        reduce_scatter: collectives::reduce_scatter(dimensions, 2, collectives::ROWS, result.clone()),
        reduce_scatter_scale: ScaleConfig {
            input_tensor_b: 1.0 / dimensions.rows as f32,
            memory_config: result,
        },
    }
}
