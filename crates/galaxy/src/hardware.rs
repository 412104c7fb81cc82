//! A Wormhole chip of a Galaxy, as far as weights and operator configs depend on it, and how a weight lies in its DRAM.

use crate::{
    tile::Tile,
    types::{BufferType, CoreRangeSet, MemoryConfig, MemoryLayout, ShardOrientation, ShardSpec},
};

/// Banks of DRAM. A weight that is sharded over them names them as the cores of row 0.
pub const DRAM_BANKS: u32 = 12;
/// Bytes of a chip's DRAM: a gibibyte a bank.
pub const DRAM_BYTES: u64 = 12 << 30;
/// The side of a tile of all weights.
pub const TILE: u32 = 32;
/// Columns and rows of the cores that operators may use, where what dispatches to them takes a row of cores, as TT-NN has it
/// by default; a column would leave 7x10.
pub const CORE_GRID: [u32; 2] = [8, 9];

const _: () = assert!(Tile::SQUARE.elements() == (TILE * TILE) as usize);

/// A weight of `height` rows and `width` columns, cut by columns over the banks, whole tiles in each: the last banks may
/// hold less, or nothing. Upstream's `dram_sharded_weight_config`.
///
/// # Panics
/// If a side is 0.
pub fn dram_width_sharded(height: u32, width: u32) -> MemoryConfig {
    assert!(height > 0 && width > 0, "a weight of {height}x{width}");
    let columns = width.div_ceil(DRAM_BANKS).next_multiple_of(TILE);
    over_banks(MemoryLayout::WidthSharded, [height.next_multiple_of(TILE), columns])
}

/// A weight of `batch` matrices of `height` rows and `width` columns, whole matrices in each bank: the last banks may hold
/// less, or nothing.
///
/// # Panics
/// If a side is 0.
pub fn dram_height_sharded(batch: u32, height: u32, width: u32) -> MemoryConfig {
    assert!(batch > 0 && height > 0 && width > 0, "{batch} weights of {height}x{width}");
    let rows = batch.div_ceil(DRAM_BANKS) * height.next_multiple_of(TILE);
    over_banks(MemoryLayout::HeightSharded, [rows, width.next_multiple_of(TILE)])
}

fn over_banks(memory_layout: MemoryLayout, shape: [u32; 2]) -> MemoryConfig {
    let grid = CoreRangeSet::rectangle(DRAM_BANKS, 1);
    let spec = ShardSpec { grid, shape, orientation: ShardOrientation::RowMajor };
    MemoryConfig::sharded(memory_layout, BufferType::Dram, spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_over_the_banks_as_upstream_has_them() {
        let shape = |config: MemoryConfig| config.shard_spec.unwrap().shape;
        // DeepSeek-V3's wq_kv_a, wo and w1 of a dense layer over eight columns.
        assert_eq!(shape(dram_width_sharded(896, 2112)), [896, 192]);
        assert_eq!(shape(dram_width_sharded(16384, 896)), [16384, 96]);
        assert_eq!(shape(dram_width_sharded(7168, 2304)), [7168, 192]);
        // wkv_b1 and wkv_b2: 24 and 132 matrices with the padding.
        assert_eq!(shape(dram_height_sharded(16, 128, 512)), [256, 512]);
        assert_eq!(shape(dram_height_sharded(128, 512, 128)), [5632, 128]);
        // Rows and columns that are no whole tiles.
        assert_eq!(shape(dram_width_sharded(48, 5)), [64, 32]);
        assert_eq!(shape(dram_height_sharded(1, 16, 40)), [32, 64]);
    }
}
