//! Program configs of products.

use super::{BUFFER_BYTES, L1_BYTES, grids, kernels::register_tiles, largest_divisor, tile_bytes};
use crate::{
    hardware::{CORE_GRID, DRAM_BANKS, TILE},
    plan::PlanError,
    types::{
        ComputeKernelConfig, CoreCoord, DataType, MatmulMultiCoreReuseMultiCast1DProgramConfig,
        MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig,
        MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig, MatmulMultiCoreReuseMultiCastProgramConfig,
        ProgramConfig,
    },
};

/// A product `[rows, inner] x [inner, columns]`, in elements.
#[derive(Clone, Debug)]
pub struct Product<'a> {
    /// What it is called in messages.
    pub what: &'a str,
    /// Rows of the left factor.
    pub rows: u32,
    /// The dimension that is summed over.
    pub inner: u32,
    /// Columns of the weight.
    pub columns: u32,
    /// The weight's type; the left factor and the result are bfloat16.
    pub weight: DataType,
    /// How it computes.
    pub compute: ComputeKernelConfig,
}

impl Product<'_> {
    fn row_tiles(&self) -> u32 {
        self.rows.div_ceil(TILE)
    }

    fn inner_tiles(&self) -> u32 {
        self.inner / TILE
    }

    fn column_tiles(&self) -> u32 {
        self.columns.div_ceil(TILE)
    }

    /// Bytes of a tile of sums between steps: in 32 bits where they are kept so.
    fn partial_bytes(&self) -> u64 {
        tile_bytes(if self.compute.fp32_dest_acc_en { DataType::Float32 } else { DataType::Bfloat16 })
    }

    fn too_large(&self, bytes: u64) -> PlanError {
        PlanError::L1 { what: self.what.to_owned(), bytes, limit: L1_BYTES }
    }

    /// The largest block of the inner dimension that divides `inner_tiles` and whose buffers fit.
    fn block(&self, inner_tiles: u32, bytes: impl Fn(u32) -> u64) -> Result<u32, PlanError> {
        let fits = |block: &u32| inner_tiles.is_multiple_of(*block) && bytes(*block) <= BUFFER_BYTES;
        (1..=inner_tiles).rev().find(fits).ok_or_else(|| self.too_large(bytes(1)))
    }
}

/// Decode: the weight lies in columns over the banks of DRAM, the left factor in columns over `in_cores`, and so will the
/// result over `out_cores`.
///
/// A step takes `in0_block_w` tiles of the inner dimension. They must lie on one core: TT-NN does not see a block that
/// straddles two cores' parts, and multiplies the wrong ones. Each of the 12 readers keeps three blocks of its bank's
/// columns, so that reads overlap.
///
/// # Errors
/// A weight with so many columns that not even single tiles fit.
pub fn dram_sharded(product: &Product, in_cores: u32, out_cores: u32) -> Result<ProgramConfig, PlanError> {
    let bank_columns = u64::from(product.column_tiles().div_ceil(DRAM_BANKS));
    let bytes = |block: u32| {
        let weight = 3 * u64::from(block) * bank_columns * tile_bytes(product.weight);
        let left = 2 * u64::from(block) * tile_bytes(DataType::Bfloat16);
        weight + left + bank_columns * (product.partial_bytes() + tile_bytes(DataType::Bfloat16))
    };
    let config = MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig {
        in0_block_w: product.block(product.inner_tiles() / in_cores, bytes)?,
        per_core_m: product.row_tiles(),
        per_core_n: product.column_tiles().div_ceil(out_cores),
        fused_activation: None,
        num_workers_per_dram_bank: None,
    };
    Ok(ProgramConfig::MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(config))
}

/// Decode: a weight for each head, whole weights in each bank of DRAM, and their left factors beside the banks. A core
/// has all of the inner dimension, and takes as much of it at a time as fits.
///
/// # Errors
/// A weight with so many columns that not even single tiles fit.
pub fn batched_dram_sharded(product: &Product) -> Result<ProgramConfig, PlanError> {
    let columns = u64::from(product.column_tiles());
    let bytes = |block: u32| {
        let weight = 3 * u64::from(block) * columns * tile_bytes(product.weight);
        weight + columns * (product.partial_bytes() + tile_bytes(DataType::Bfloat16))
    };
    let config = MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig {
        in0_block_w: product.block(product.inner_tiles(), bytes)?,
        per_core_m: product.row_tiles(),
        per_core_n: product.column_tiles(),
        fused_activation: None,
    };
    Ok(ProgramConfig::MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig(config))
}

/// Few rows, and a weight that is interleaved: columns over as many cores as there are tiles, and every core is sent all
/// of the left factor. An explicit grid, since the one that TT-NN chooses for the head hung (PR #41479).
///
/// # Errors
/// A weight with so many columns that not even single tiles fit.
pub fn one_dimensional(product: &Product) -> Result<ProgramConfig, PlanError> {
    let per_core = product.column_tiles().div_ceil(grids::CORES);
    let cores = product.column_tiles().div_ceil(per_core);
    let grid = CoreCoord::new(CORE_GRID[0].min(cores), cores.div_ceil(CORE_GRID[0]));
    let rows = product.row_tiles();
    let tiles = u64::from(per_core) * u64::from(rows);
    let bytes = |block: u32| {
        let left = 2 * u64::from(block) * u64::from(rows) * tile_bytes(DataType::Bfloat16);
        let weight = 2 * u64::from(block) * u64::from(per_core) * tile_bytes(product.weight);
        left + weight + tiles * (product.partial_bytes() + tile_bytes(DataType::Bfloat16))
    };
    let (out_subblock_h, out_subblock_w) = subblock(rows, per_core, &product.compute);
    let config = MatmulMultiCoreReuseMultiCast1DProgramConfig {
        compute_with_storage_grid_size: grid,
        in0_block_w: product.block(product.inner_tiles(), bytes)?,
        out_subblock_h,
        out_subblock_w,
        out_block_h: None,
        out_block_w: None,
        per_core_m: rows,
        per_core_n: per_core,
        fuse_batch: true,
        fused_activation: None,
        mcast_in0: true,
        gather_in0: None,
        hop_cores: None,
        num_global_cb_receivers: None,
        untilize_out: None,
        allowed_worker_cores: None,
        stream_in1: None,
    };
    Ok(ProgramConfig::MatmulMultiCoreReuseMultiCast1DProgramConfig(config))
}

/// Prefill: rows of tiles over the rows of a grid, columns over its columns; each row of cores is sent its part of the left
/// factor, each column its part of the weight.
///
/// Sums of a core's whole result may be more than L1 holds: then it is computed in blocks (`out_block_h`, `out_block_w`).
/// Each block of rows reads the weight again, each block of columns the left factor: of the blocks that fit, those with the
/// least to read are taken, and then the most of the inner dimension at a time.
///
/// `fuse_batch` lets the rows of a batch count as one matrix; a weight for each of them forbids it.
///
/// # Errors
/// A product of which not even single tiles fit.
pub fn two_dimensional(
    product: &Product,
    grid: [u32; 2],
    fuse_batch: bool,
) -> Result<ProgramConfig, PlanError> {
    let (rows, columns) = (product.row_tiles().div_ceil(grid[1]), product.column_tiles().div_ceil(grid[0]));
    let blocks = Blocks::of(product, rows, columns)?;
    let (out_subblock_h, out_subblock_w) = subblock(blocks.height, blocks.width, &product.compute);
    let is_split = (blocks.height, blocks.width) != (rows, columns);
    let config = MatmulMultiCoreReuseMultiCastProgramConfig {
        compute_with_storage_grid_size: CoreCoord::new(grid[0], grid[1]),
        in0_block_w: blocks.inner,
        out_subblock_h,
        out_subblock_w,
        out_block_h: is_split.then_some(blocks.height),
        out_block_w: is_split.then_some(blocks.width),
        per_core_m: rows,
        per_core_n: columns,
        transpose_mcast: false,
        fused_activation: None,
        fuse_batch: Some(fuse_batch),
        allowed_worker_cores: None,
    };
    Ok(ProgramConfig::MatmulMultiCoreReuseMultiCastProgramConfig(config))
}

/// Tiles of a core that are computed at a time.
struct Blocks {
    height: u32,
    width: u32,
    inner: u32,
}

/// Tiles of the inner dimension beyond which longer blocks gain nothing more, and below which steps are mostly waiting.
const INNER_TILES: [u32; 2] = [8, 4];

impl Blocks {
    fn of(product: &Product, rows: u32, columns: u32) -> Result<Self, PlanError> {
        let longest = largest_divisor(product.inner_tiles(), INNER_TILES[0]);
        let divisors = |number: u32| (1..=number).filter(move |part| number.is_multiple_of(*part));
        let of_inner = |least: u32| divisors(longest).filter(move |inner| *inner >= least);
        let fitting = |least: u32| {
            let all =
                divisors(rows).flat_map(move |height| divisors(columns).map(move |width| (height, width)));
            all.flat_map(move |(height, width)| {
                of_inner(least).map(move |inner| Self { height, width, inner })
            })
            .filter(|blocks| blocks.bytes(product) <= BUFFER_BYTES)
            .min_by_key(|blocks| (blocks.read(rows, columns), u32::MAX - blocks.inner))
        };
        fitting(INNER_TILES[1].min(longest))
            .or_else(|| fitting(1))
            .ok_or_else(|| product.too_large(Self { height: 1, width: 1, inner: 1 }.bytes(product)))
    }

    fn bytes(&self, product: &Product) -> u64 {
        let [height, width, inner] = [self.height, self.width, self.inner].map(u64::from);
        let left = 2 * height * inner * tile_bytes(DataType::Bfloat16);
        let weight = 2 * width * inner * tile_bytes(product.weight);
        left + weight + height * width * (product.partial_bytes() + tile_bytes(DataType::Bfloat16))
    }

    /// Tiles of both factors that are read for one of the inner dimension.
    fn read(&self, rows: u32, columns: u32) -> u32 {
        rows * (columns / self.width) + columns * (rows / self.height)
    }
}

/// The grid of a prefill's product.
pub fn prefill_grid(product: &Product) -> [u32; 2] {
    [grids::dealing(product.column_tiles(), CORE_GRID[0]), grids::dealing(product.row_tiles(), CORE_GRID[1])]
}

/// Rows and columns of tiles that the registers take at a time: as many as they hold. TT-NN wants them to divide the
/// block, and more than one row only of the block's full width.
fn subblock(rows: u32, columns: u32, compute: &ComputeKernelConfig) -> (u32, u32) {
    let most = register_tiles(compute);
    if columns <= most {
        return (largest_divisor(rows, most / columns), columns);
    }
    (1, largest_divisor(columns, most))
}
