//! Whether a tensor's shards hold it, and what an operation needs of a core's memory.

use super::{Refusal, arguments::Call, must, products};
use crate::{
    hardware::{CORE_GRID, DRAM_BANKS, TILE},
    plan::{
        rules::{L1_BYTES, element_bytes, grids::CORES, tile_bytes},
        tensor::TensorSpec,
    },
    types::{BufferType, CoreGrid, DataType, Layout, MemoryLayout, ShardSpec},
};

/// What an operation needs of the core that needs most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationMemory {
    /// The operation.
    pub name: String,
    /// Bytes of its tensors in L1, inputs and outputs.
    pub tensors: u64,
    /// Bytes of a product's circular buffers; of other operations they are not known here.
    pub buffers: u64,
}

/// Whether a tensor can lie where it is said to.
pub(super) fn check_placement(what: &str, tensor: &TensorSpec) -> Result<(), Refusal> {
    let is_block_float = matches!(tensor.dtype, DataType::Bfloat8B | DataType::Bfloat4B);
    must(!is_block_float || tensor.layout == Layout::Tile, what, "block floats in tiles", tensor.layout)?;
    must(!tensor.shape.contains(&0), what, "no side of 0", format_args!("{:?}", tensor.shape))?;
    let config = &tensor.memory_config;
    let Some(spec) = config.shard_spec.as_ref().filter(|_| !config.created_with_nd_shard_spec) else {
        return check_blocks(what, tensor);
    };
    check_grid(what, &spec.grid, config.buffer_type)?;
    let cores = cores_of(&spec.grid);
    let [height, width] = tensor.matrix();
    let [rows, columns] = spec.shape.map(u64::from);
    let shard = format!("{} shards of {rows}x{columns}", config.memory_layout);
    must(rows > 0 && columns > 0, what, "shards with elements", &shard)?;
    if tensor.layout == Layout::Tile {
        let whole = spec.shape.iter().all(|side| side.is_multiple_of(TILE));
        must(whole, what, "shards of whole tiles", &shard)?;
    }
    let of = format!("a tensor of {height}x{width} over {cores} cores");
    match config.memory_layout {
        MemoryLayout::WidthSharded => {
            must(rows == height, what, format_args!("shards as high as {of}"), &shard)?;
            must(width.div_ceil(columns) <= cores, what, format_args!("shards that hold {of}"), &shard)
        }
        MemoryLayout::HeightSharded => {
            must(columns == width, what, format_args!("shards as wide as {of}"), &shard)?;
            must(height.div_ceil(rows) <= cores, what, format_args!("shards that hold {of}"), &shard)
        }
        MemoryLayout::BlockSharded => {
            let parts = height.div_ceil(rows) * width.div_ceil(columns);
            must(parts <= cores, what, format_args!("shards that hold {of}"), &shard)
        }
        MemoryLayout::Interleaved | MemoryLayout::NdSharded => {
            Err(Refusal::new(what, "a layout that has such shards", config.memory_layout))
        }
    }
}

/// Shards in all dimensions: as many as the tensor is cut into find a core each.
fn check_blocks(what: &str, tensor: &TensorSpec) -> Result<(), Refusal> {
    let Some(spec) = &tensor.memory_config.nd_shard_spec else { return Ok(()) };
    check_grid(what, &spec.grid, tensor.memory_config.buffer_type)?;
    let mut parts = 1;
    for (side, part) in tensor.shape.iter().rev().zip(spec.shard_shape.iter().rev()) {
        must(*part > 0, what, "shards with elements", format_args!("{:?}", spec.shard_shape))?;
        parts *= u64::from(side.div_ceil(*part));
    }
    let cores = cores_of(&spec.grid);
    must(parts <= cores, what, format_args!("at most {cores} shards"), parts)
}

/// Cores that there are: workers for L1, banks for DRAM.
fn check_grid(what: &str, grid: &CoreGrid, buffer: BufferType) -> Result<(), Refusal> {
    let [columns, rows] = if buffer == BufferType::Dram { [DRAM_BANKS, 1] } else { CORE_GRID };
    let fits = match grid {
        CoreGrid::Ranges(ranges) => {
            let within = |x: u32, y: u32| x < columns && y < rows;
            ranges.0.iter().all(|range| {
                range.start.x <= range.end.x
                    && range.start.y <= range.end.y
                    && within(range.end.x, range.end.y)
            })
        }
        CoreGrid::Cores(cores) => *cores > 0 && u64::from(*cores) <= u64::from(columns * rows),
        CoreGrid::DramWorkers => buffer == BufferType::L1,
    };
    must(fits, what, format_args!("cores of a grid of {columns}x{rows}"), format_args!("{grid:?}"))
}

pub(super) fn cores_of(grid: &CoreGrid) -> u64 {
    grid.cores().unwrap_or_else(|| u64::from(DRAM_BANKS))
}

/// Bytes of a tensor on the core that has most of it; 0 where it is not in L1.
pub fn l1_bytes(tensor: &TensorSpec) -> u64 {
    let config = &tensor.memory_config;
    if config.buffer_type != BufferType::L1 {
        return 0;
    }
    let bytes = |elements: u64| match tensor.layout {
        Layout::Tile => elements.div_ceil(u64::from(TILE * TILE)) * tile_bytes(tensor.dtype),
        Layout::RowMajor => elements * element_bytes(tensor.dtype),
    };
    let product = |shape: &[u32]| shape.iter().map(|&side| u64::from(side)).product::<u64>();
    match (&config.shard_spec, &config.nd_shard_spec) {
        (Some(ShardSpec { shape, .. }), _) => bytes(product(shape)),
        (None, Some(spec)) => bytes(product(&spec.shard_shape)),
        (None, None) => {
            // Pages go round all cores: a tile, or a row.
            let [height, width] = tensor.matrix();
            let (pages, page) = match tensor.layout {
                Layout::Tile => (height * width / u64::from(TILE * TILE), tile_bytes(tensor.dtype)),
                Layout::RowMajor => (height, width * element_bytes(tensor.dtype)),
            };
            pages.div_ceil(u64::from(CORES)) * page
        }
    }
}

/// What an operation needs of a core.
pub(super) fn of_operation(
    name: &str,
    call: &Call,
    outputs: &[TensorSpec],
) -> Result<OperationMemory, Refusal> {
    // The fused experts leave their work twice, in tiles and in rows, in one buffer.
    let is_shared = |index: &usize| call.op == "moe_compute" && *index == 4;
    let own = outputs.iter().enumerate().filter(|(index, _)| !is_shared(index)).map(|(_, output)| output);
    let tensors = call.tensors().chain(own).map(l1_bytes).sum();
    let buffers = if call.op == "linear" { products::buffer_bytes(call)? } else { 0 };
    must(
        tensors + buffers <= L1_BYTES,
        "L1",
        format_args!("at most {L1_BYTES} bytes on a core"),
        format_args!("{tensors} of tensors and {buffers} of buffers"),
    )?;
    Ok(OperationMemory { name: name.to_owned(), tensors, buffers })
}
