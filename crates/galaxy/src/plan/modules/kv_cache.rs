//! The cache of a layer.

use crate::{
    hardware::TILE,
    plan::{request::Dimensions, rules::tile_bytes, tensor::TensorSpec},
    types::{DataType, Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// What is cached of each position, in blocks that a page table names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvCacheConfig {
    /// Blocks, 1, positions of a block, width.
    pub kv_cache_shape: [u32; 4],
    /// Its type.
    pub dtype: DataType,
    /// Users of a device, and blocks of each.
    pub page_table_shape: [u32; 2],
}

/// A block is a tile of positions: less could not be written at once, and more would be read in vain.
pub fn model_config(dimensions: &Dimensions) -> KvCacheConfig {
    let (users, blocks) = (dimensions.local_users(), dimensions.request.max_sequence_length.div_ceil(TILE));
    KvCacheConfig {
        kv_cache_shape: [users * blocks, 1, TILE, dimensions.attention.cached()],
        dtype: DataType::Bfloat8B,
        page_table_shape: [users, blocks],
    }
}

impl KvCacheConfig {
    /// The cache as a tensor.
    pub fn cache(&self) -> TensorSpec {
        TensorSpec {
            shape: self.kv_cache_shape.to_vec(),
            dtype: self.dtype,
            layout: Layout::Tile,
            memory_config: MemoryConfig::DRAM,
        }
    }

    /// The page table as a tensor.
    pub fn page_table(&self) -> TensorSpec {
        TensorSpec::rows(&self.page_table_shape, DataType::Int32)
    }

    /// Bytes of a layer's cache on each device.
    pub fn bytes(&self) -> u64 {
        let [blocks, _, positions, width] = self.kv_cache_shape.map(u64::from);
        blocks * (positions / u64::from(TILE)) * (width / u64::from(TILE)) * tile_bytes(self.dtype)
    }
}
