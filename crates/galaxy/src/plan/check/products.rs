//! Rules for products with weights.

use super::{
    Refusal,
    arguments::{Call, tiles},
    equal,
    memory::cores_of,
    must,
};
use crate::{
    hardware::{CORE_GRID, DRAM_BANKS, TILE},
    plan::{
        rules::{grids::CORES, kernels::register_tiles, placement::Placement, tile_bytes},
        tensor::TensorSpec,
    },
    types::{
        BufferType, ComputeKernelConfig, CoreCoord, CoreRangeSet, DataType,
        MatmulMultiCoreReuseMultiCast1DProgramConfig as OneDimensional,
        MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig as BatchedDramSharded,
        MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig as DramSharded,
        MatmulMultiCoreReuseMultiCastProgramConfig as TwoDimensional, MemoryConfig, MemoryLayout,
        ProgramConfig, ShardOrientation, ShardSpec,
    },
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    #[serde(default)]
    transpose_b: bool,
    memory_config: Placement,
    compute_kernel_config: ComputeKernelConfig,
    #[serde(default)]
    program_config: Option<ProgramConfig>,
}

/// A product in tiles.
struct Product<'a> {
    left: &'a TensorSpec,
    weight: &'a TensorSpec,
    compute: ComputeKernelConfig,
    batch: u32,
    rows: u32,
    inner: u32,
    columns: u32,
}

impl<'a> Product<'a> {
    fn of(call: &'a Call) -> Result<(Self, Arguments), Refusal> {
        let ([left], [weight]) = call.take::<1, 1>()?;
        let arguments: Arguments = call.arguments()?;
        tiles("input_tensor_a", left)?;
        tiles("input_tensor_b", weight)?;
        must(left.shape.len() == 4, "input_tensor_a", "four dimensions", left.shape.len())?;
        let [.., height, width] = weight.shape[..] else {
            return Err(Refusal::new("input_tensor_b", "a matrix", weight.shape.len()));
        };
        let (inner, columns) = if arguments.transpose_b { (width, height) } else { (height, width) };
        let what = if arguments.transpose_b { "true" } else { "false" };
        equal(&format!("inner dimension of input_tensor_b, transpose_b {what}"), &left.shape[3], &inner)?;
        let batches: u32 = weight.shape.iter().rev().skip(2).product();
        let batch = left.shape[0] * left.shape[1];
        must(
            batches == 1 || batches == batch,
            "batch of input_tensor_b",
            format_args!("1 or {batch}"),
            batches,
        )?;
        let product = Self {
            left,
            weight,
            compute: arguments.compute_kernel_config,
            batch,
            rows: left.shape[2].div_ceil(TILE),
            inner: inner.div_ceil(TILE),
            columns: columns.div_ceil(TILE),
        };
        Ok((product, arguments))
    }

    fn has_one_weight(&self) -> bool {
        self.weight.shape.iter().rev().skip(2).product::<u32>() == 1
    }
}

/// A product with a weight.
pub(super) fn linear(call: &Call) -> Result<TensorSpec, Refusal> {
    let (product, arguments) = Product::of(call)?;
    let columns = if arguments.transpose_b {
        product.weight.shape[product.weight.shape.len() - 2]
    } else {
        product.weight.shape[product.weight.shape.len() - 1]
    };
    let mut place = arguments.memory_config.clone();
    match &arguments.program_config {
        // How a batch of products is laid over cores may be left to TT-NN, not how one is.
        None => must(!product.has_one_weight(), "program_config", "one", "none")?,
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(program)) => {
            dram_sharded(&product, program, &arguments.memory_config)?;
            place = result_of_dram_sharded(&product, program);
        }
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig(program)) => {
            batched_dram_sharded(&product, program, &arguments.memory_config)?;
        }
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCast1DProgramConfig(program)) => {
            one_dimensional(&product, program)?;
        }
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCastProgramConfig(program)) => {
            two_dimensional(&product, program)?;
        }
        Some(other) => {
            return Err(Refusal::new("program_config", "one of a product", format_args!("{other:?}")));
        }
    }
    let [a, b, rows, _] = product.left.shape[..] else { unreachable!("four dimensions") };
    Ok(TensorSpec::tiles(&[a, b, rows, columns], place))
}

fn divides(what: &str, part: u32, whole: u32) -> Result<(), Refusal> {
    must(part > 0 && whole.is_multiple_of(part), what, format_args!("a divisor of {whole}"), part)
}

fn sharded(
    what: &str,
    tensor: &TensorSpec,
    layout: MemoryLayout,
    buffer: BufferType,
) -> Result<[u32; 2], Refusal> {
    let config = &tensor.memory_config;
    let got = format!("{} in {}", config.memory_layout, config.buffer_type);
    let is_so = config.memory_layout == layout && config.buffer_type == buffer;
    let spec = config.shard_spec.as_ref().filter(|_| is_so);
    spec.map(|spec| spec.shape).ok_or_else(|| Refusal::new(what, format_args!("{layout} in {buffer}"), got))
}

/// The left factor's columns lie over cores, and a block of the inner dimension on one of them.
fn dram_sharded(product: &Product, program: &DramSharded, result: &Placement) -> Result<(), Refusal> {
    let left = sharded("input_tensor_a", product.left, MemoryLayout::WidthSharded, BufferType::L1)?;
    let weight = sharded("input_tensor_b", product.weight, MemoryLayout::WidthSharded, BufferType::Dram)?;
    must(product.has_one_weight() && product.batch == 1, "input_tensor_a", "one matrix", product.batch)?;
    equal("rows in shard_spec of input_tensor_b", &(product.inner * TILE), &weight[0])?;
    let columns = product.columns.div_ceil(DRAM_BANKS) * TILE;
    equal("columns in shard_spec of input_tensor_b", &columns, &weight[1])?;
    let part = left[1] / TILE;
    let cores = product.left.memory_config.shard_spec.as_ref().map_or(0, |spec| cores_of(&spec.grid));
    must(
        u64::from(part) * cores == u64::from(product.inner),
        "input_tensor_a",
        format_args!("{} tiles of the inner dimension over {cores} cores evenly", product.inner),
        format_args!("{part} on each"),
    )?;
    divides("in0_block_w of a core's part", program.in0_block_w, part)?;
    equal("per_core_M", &product.rows, &program.per_core_m)?;
    divides("per_core_N", program.per_core_n, product.columns)?;
    let cores = product.columns / program.per_core_n;
    must(
        cores <= CORES,
        "per_core_N",
        format_args!("{} columns over at most {CORES} cores", product.columns),
        cores,
    )?;
    let is_open = result.memory_layout == MemoryLayout::WidthSharded && result.shard_spec.is_none();
    must(is_open, "memory_config", "L1_WIDTH_SHARDED, as per_core_N says", result.memory_layout)
}

/// Columns over cores, row by row.
fn result_of_dram_sharded(product: &Product, program: &DramSharded) -> Placement {
    let cores = product.columns / program.per_core_n;
    let grid = CoreRangeSet::row_by_row(cores, CORE_GRID[0]).into();
    let shape = [product.rows * TILE, program.per_core_n * TILE];
    let spec = ShardSpec { grid, shape, orientation: ShardOrientation::RowMajor };
    MemoryConfig::sharded(MemoryLayout::WidthSharded, BufferType::L1, spec)
}

/// Whole matrices lie on the cores beside the banks with their weights.
fn batched_dram_sharded(
    product: &Product,
    program: &BatchedDramSharded,
    result: &Placement,
) -> Result<(), Refusal> {
    let left = sharded("input_tensor_a", product.left, MemoryLayout::HeightSharded, BufferType::L1)?;
    let weight = sharded("input_tensor_b", product.weight, MemoryLayout::HeightSharded, BufferType::Dram)?;
    must(!product.has_one_weight() || product.batch == 1, "input_tensor_b", "a weight for each matrix", 1)?;
    let of_each = product.batch.div_ceil(DRAM_BANKS);
    equal("rows in shard_spec of input_tensor_a", &(of_each * product.rows * TILE), &left[0])?;
    equal("rows in shard_spec of input_tensor_b", &(of_each * product.inner * TILE), &weight[0])?;
    divides("in0_block_w", program.in0_block_w, product.inner)?;
    equal("per_core_M", &product.rows, &program.per_core_m)?;
    equal("per_core_N", &product.columns, &program.per_core_n)?;
    let shape = result.shard_spec.as_ref().map(|spec| spec.shape);
    equal("shards of memory_config", &Some([of_each * product.rows * TILE, product.columns * TILE]), &shape)?;
    let same = product.left.memory_config.shard_spec.as_ref().map(|spec| &spec.grid);
    equal("cores of memory_config", &same, &result.shard_spec.as_ref().map(|spec| &spec.grid))
}

/// Cores of a program config's grid, which must be there.
fn grid(size: CoreCoord) -> Result<[u32; 2], Refusal> {
    let fits = (1..=CORE_GRID[0]).contains(&size.x) && (1..=CORE_GRID[1]).contains(&size.y);
    let [columns, rows] = CORE_GRID;
    must(fits, "compute_with_storage_grid_size", format_args!("at most {columns}x{rows} cores"), size)?;
    Ok([size.x, size.y])
}

/// All of a dimension is dealt, and no part of the grid along it is without work.
fn dealt(what: &str, per_core: u32, parts: u32, tiles: u32) -> Result<(), Refusal> {
    let holds = per_core > 0 && u64::from(per_core) * u64::from(parts) >= u64::from(tiles);
    must(holds, what, format_args!("{tiles} tiles over {parts}"), format_args!("{per_core} each"))?;
    must(
        (parts - 1) * per_core < tiles,
        what,
        format_args!("work for all {parts}"),
        format_args!("{per_core} each"),
    )
}

/// What the registers take at a time divides a block, and they hold it.
fn subblock(product: &Product, [height, width]: [u32; 2], [rows, columns]: [u32; 2]) -> Result<(), Refusal> {
    divides("out_subblock_h", height, rows)?;
    divides("out_subblock_w", width, columns)?;
    let most = register_tiles(&product.compute);
    must(
        height * width <= most,
        "out_subblock",
        format_args!("at most the {most} tiles of registers"),
        height * width,
    )?;
    must(height == 1 || width == columns, "out_subblock", "one row, or all columns of the block", height)
}

fn one_dimensional(product: &Product, program: &OneDimensional) -> Result<(), Refusal> {
    let [columns, rows] = grid(program.compute_with_storage_grid_size)?;
    divides("in0_block_w", program.in0_block_w, product.inner)?;
    must(program.mcast_in0, "mcast_in0", "true: the left factor is the smaller one", false)?;
    must(product.has_one_weight(), "input_tensor_b", "one matrix", product.weight.shape.len())?;
    equal("per_core_M", &(product.rows * product.batch), &program.per_core_m)?;
    let cores = product.columns.div_ceil(program.per_core_n.max(1));
    let fits = cores.div_ceil(columns) == rows && cores >= columns;
    must(
        fits,
        "per_core_N",
        format_args!("{} tiles over {columns}x{rows} cores", product.columns),
        program.per_core_n,
    )?;
    let block = [
        program.out_block_h.unwrap_or(program.per_core_m),
        program.out_block_w.unwrap_or(program.per_core_n),
    ];
    subblock(product, [program.out_subblock_h, program.out_subblock_w], block)
}

fn two_dimensional(product: &Product, program: &TwoDimensional) -> Result<(), Refusal> {
    let [columns, rows] = grid(program.compute_with_storage_grid_size)?;
    divides("in0_block_w", program.in0_block_w, product.inner)?;
    let fusable = product.has_one_weight() || product.batch == 1;
    let fuses = program.fuse_batch.unwrap_or(true);
    must(!fuses || fusable, "fuse_batch", "false: each matrix has a weight of its own", true)?;
    must(!program.transpose_mcast, "transpose_mcast", "false: rows of tiles go over rows of cores", true)?;
    let high = if fuses { product.rows * product.batch } else { product.rows };
    dealt("per_core_M", program.per_core_m, rows, high)?;
    dealt("per_core_N", program.per_core_n, columns, product.columns)?;
    let block = [
        program.out_block_h.unwrap_or(program.per_core_m),
        program.out_block_w.unwrap_or(program.per_core_n),
    ];
    divides("out_block_h", block[0], program.per_core_m)?;
    divides("out_block_w", block[1], program.per_core_n)?;
    subblock(product, [program.out_subblock_h, program.out_subblock_w], block)
}

/// Bytes of a product's circular buffers on a core: two blocks of each factor, three where a weight is read from its bank
/// of DRAM; the result, and sums where they are kept otherwise.
pub(super) fn buffer_bytes(call: &Call) -> Result<u64, Refusal> {
    let (product, arguments) = Product::of(call)?;
    let (left, weight) = (tile_bytes(product.left.dtype), tile_bytes(product.weight.dtype));
    let sums = if product.compute.fp32_dest_acc_en { DataType::Float32 } else { DataType::Bfloat16 };
    let result = tile_bytes(DataType::Bfloat16) + tile_bytes(sums);
    let of = |[height, width, inner]: [u32; 3], weights: u64| {
        let [height, width, inner] = [height, width, inner].map(u64::from);
        2 * height * inner * left + weights * width * inner * weight + height * width * result
    };
    Ok(match &arguments.program_config {
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(program)) => {
            of([product.rows, product.columns.div_ceil(DRAM_BANKS), program.in0_block_w], 3)
        }
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig(program)) => {
            of([product.rows, product.columns, program.in0_block_w], 3)
        }
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCast1DProgramConfig(program)) => {
            of([program.per_core_m, program.per_core_n, program.in0_block_w], 2)
        }
        Some(ProgramConfig::MatmulMultiCoreReuseMultiCastProgramConfig(program)) => {
            let height = program.out_block_h.unwrap_or(program.per_core_m);
            of([height, program.out_block_w.unwrap_or(program.per_core_n), program.in0_block_w], 2)
        }
        _ => 0,
    })
}
