//! A tensor on each device.

use super::{operators::FromWeightConfig, rules::placement::Placement};
use crate::{
    hardware::TILE,
    types::{DataType, Layout, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// What a tensor is on each device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Its shape.
    pub shape: Vec<u32>,
    /// Its type.
    pub dtype: DataType,
    /// Its layout.
    pub layout: Layout,
    /// Where it lies.
    #[serde(default = "dram")]
    pub memory_config: Placement,
}

fn dram() -> Placement {
    MemoryConfig::DRAM
}

impl TensorSpec {
    /// A bfloat16 tensor in tiles.
    pub fn tiles(shape: &[u32], memory_config: Placement) -> Self {
        Self { shape: shape.to_vec(), dtype: DataType::Bfloat16, layout: Layout::Tile, memory_config }
    }

    /// A tensor in rows, in DRAM.
    pub fn rows(shape: &[u32], dtype: DataType) -> Self {
        Self { shape: shape.to_vec(), dtype, layout: Layout::RowMajor, memory_config: MemoryConfig::DRAM }
    }

    /// With another type.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DataType) -> Self {
        self.dtype = dtype;
        self
    }

    /// In another place.
    #[must_use]
    pub fn placed(mut self, memory_config: Placement) -> Self {
        self.memory_config = memory_config;
        self
    }

    /// Rows and columns of it as one matrix, filled up to whole tiles where it lies in them.
    pub fn matrix(&self) -> [u64; 2] {
        let tile = if self.layout == Layout::Tile { u64::from(TILE) } else { 1 };
        let side = |from_last: usize| {
            let index = self.shape.len().checked_sub(from_last);
            index.map_or(1, |index| u64::from(self.shape[index])).next_multiple_of(tile)
        };
        let batch: u64 = self.shape.iter().rev().skip(2).map(|&side| u64::from(side)).product();
        [batch * side(2), side(1)]
    }

    /// Elements, without what tiles are filled up with.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&side| u64::from(side)).product()
    }
}

impl From<&FromWeightConfig> for TensorSpec {
    fn from(weight: &FromWeightConfig) -> Self {
        Self {
            shape: weight.shape.clone(),
            dtype: weight.dtype,
            layout: weight.layout,
            memory_config: weight.memory_config.clone(),
        }
    }
}
