//! TT-NN's types, by TT-NN's own names.
//!
//! JSON has two forms. These types write the short one, which people read: enumerations by name, a core as `[x, y]`, a
//! range of cores as `[[x0, y0], [x1, y1]]`, a memory config without shards as `"DRAM"`. They read that one and TT-NN's
//! own (`MemoryConfig.to_json`: enumerations as numbers, cores as `{"x", "y"}`, ranges as `{"start", "end"}`), which
//! [`MemoryConfig::to_json`] writes.

mod compute;
mod enumeration;
mod grid;
mod memory;
mod program;

pub use compute::ComputeKernelConfig;
pub use enumeration::{
    BufferType, DataType, Layout, MathFidelity, MemoryLayout, ShardDistributionStrategy, ShardOrientation,
    Topology, UnknownName,
};
pub use grid::{CoreCoord, CoreGrid, CoreRange, CoreRangeSet};
pub use memory::{MemoryConfig, NdShardSpec, ShardSpec};
pub use program::{
    LayerNormDefaultProgramConfig, LayerNormShardedMultiCoreProgramConfig,
    MatmulMultiCoreReuseMultiCast1DProgramConfig,
    MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig,
    MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig, MatmulMultiCoreReuseMultiCastProgramConfig,
    MatmulMultiCoreReuseProgramConfig, ProgramConfig, SDPAProgramConfig, UnaryObject, UnaryWithParam,
};
