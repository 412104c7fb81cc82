//! Where activations lie.

use super::grids::{Rectangle, sharing_all};
use crate::{
    hardware::{CORE_GRID, DRAM_BANKS, TILE},
    types::{BufferType, CoreGrid, CoreRangeSet, MemoryConfig, MemoryLayout, ShardOrientation, ShardSpec},
};

/// A memory config of an operator.
pub type Placement = MemoryConfig<CoreGrid>;

/// Tiles of the inner dimension that a core should hold at least where a weight is multiplied from DRAM: they are what is
/// read from a bank at a time, and bandwidth falls with shorter reads.
pub const LEAST_INNER_TILES: u32 = 4;

fn sharded(layout: MemoryLayout, grid: impl Into<CoreGrid>, shape: [u32; 2]) -> Placement {
    let spec = ShardSpec { grid: grid.into(), shape, orientation: ShardOrientation::RowMajor };
    MemoryConfig::sharded(layout, BufferType::L1, spec)
}

/// Columns over cores, a tile high.
pub fn by_columns(width: u32, cores: Rectangle) -> Placement {
    sharded(MemoryLayout::WidthSharded, cores.ranges(), [TILE, width / cores.cores()])
}

/// Columns over the first core alone: a norm reads its statistics there.
pub fn on_one_core(width: u32) -> Placement {
    sharded(
        MemoryLayout::WidthSharded,
        Rectangle { first_row: 0, columns: 1, rows: 1 }.ranges(),
        [TILE, width],
    )
}

/// One user or token a core, row by row: rotations and the gate take one each.
pub fn by_token(tokens: u32, height: u32, width: u32) -> Placement {
    sharded(MemoryLayout::HeightSharded, CoreGrid::Cores(tokens), [height, width])
}

/// A tile on each core that there is.
pub fn on_all_cores() -> Placement {
    let [columns, rows] = CORE_GRID;
    sharded(MemoryLayout::HeightSharded, CoreRangeSet::rectangle(columns, rows), [TILE, TILE])
}

/// Rows over as few cores as hold `per_core` each.
pub fn by_rows(rows: u32, per_core: u32, width: u32) -> Placement {
    sharded(MemoryLayout::HeightSharded, CoreGrid::Cores(rows.div_ceil(per_core)), [per_core, width])
}

/// Matrices of a batch on the cores next to the banks that hold their weights: upstream's layout for products of heads.
pub fn beside_banks(batch: u32, width: u32) -> Placement {
    sharded(MemoryLayout::HeightSharded, CoreGrid::DramWorkers, [batch.div_ceil(DRAM_BANKS) * TILE, width])
}

/// Columns over cores as the operator's own rules say.
pub const COLUMNS: Placement = MemoryConfig::unsharded(MemoryLayout::WidthSharded, BufferType::L1);

/// Cores of the residual stream between blocks: a tile each where there are enough. The norm of a row is a sum over
/// them, and elementwise steps are spread widest.
pub fn residual_cores(local_hidden: u32) -> Rectangle {
    sharing_all(local_hidden / TILE, 1)
}

/// The residual stream between blocks in decode.
pub fn residual(local_hidden: u32) -> Placement {
    by_columns(local_hidden, residual_cores(local_hidden))
}

/// Cores of a left factor whose weight lies over the banks of DRAM.
pub fn factor_cores(width: u32) -> Rectangle {
    sharing_all(width / TILE, LEAST_INNER_TILES)
}

/// A left factor whose weight lies over the banks of DRAM.
pub fn factor(width: u32) -> Placement {
    by_columns(width, factor_cores(width))
}
