//! Program configs of norms.

use super::{grids::Rectangle, kernels, largest_divisor};
use crate::{
    hardware::TILE,
    types::{LayerNormShardedMultiCoreProgramConfig, ProgramConfig},
};

/// A norm over a tile of rows whose columns are shared by cores. Each core takes as many tiles at a time as the registers
/// hold and divide its part: TT-NN refuses a rest.
pub fn sharded(width: u32, cores: Rectangle) -> ProgramConfig {
    let block_w = width / (TILE * cores.cores());
    ProgramConfig::LayerNormShardedMultiCoreProgramConfig(LayerNormShardedMultiCoreProgramConfig {
        compute_with_storage_grid_size: cores.size(),
        subblock_w: largest_divisor(block_w, kernels::register_tiles(&kernels::NORM)),
        block_h: 1,
        block_w,
        inplace: false,
        legacy_reduction: None,
        use_welford: None,
    })
}
