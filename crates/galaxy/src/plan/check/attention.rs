//! Rules for the attention's operators.

use super::{
    Refusal,
    arguments::{Call, of_shape, of_type, rows, tiles},
    equal, must,
};
use crate::{
    hardware::{CORE_GRID, TILE},
    plan::{rules::placement::Placement, tensor::TensorSpec},
    types::{ComputeKernelConfig, CoreCoord, DataType, MemoryLayout, ProgramConfig, SDPAProgramConfig},
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotaryArguments {
    is_decode_mode: bool,
}

/// A rotation: tables as wide as what is rotated, and a matrix of one tile for each core.
pub(super) fn rotary(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([x], [cos, sin, swap]) = call.take::<1, 3>()?;
    let RotaryArguments { is_decode_mode } = call.arguments()?;
    for (what, tensor) in [("input_tensor", x), ("cos_cache", cos), ("sin_cache", sin), ("trans_mat", swap)] {
        tiles(what, tensor)?;
        of_type(what, tensor, DataType::Bfloat16)?;
    }
    let [_, second, third, width] = x.shape[..] else {
        return Err(Refusal::new("input_tensor", "four dimensions", x.shape.len()));
    };
    equal("sin_cache", cos, sin)?;
    if !is_decode_mode {
        of_shape("cos_cache", cos, &[1, 1, third, width])?;
        of_shape("trans_mat", swap, &[1, 1, TILE, TILE])?;
        return Ok(x.clone());
    }
    let users = second;
    must(third <= TILE, "input_tensor", format_args!("at most {TILE} heads of a user"), third)?;
    of_shape("cos_cache", cos, &[1, users, 1, width])?;
    of_shape("trans_mat", swap, &[1, 1, users * TILE, TILE])?;
    for (what, tensor) in [("input_tensor", x), ("cos_cache", cos), ("trans_mat", swap)] {
        let layout = tensor.memory_config.memory_layout;
        must(layout == MemoryLayout::HeightSharded, what, "a user on each core", layout)?;
    }
    let cores = |tensor: &TensorSpec| tensor.memory_config.shard_spec.as_ref().map(|spec| spec.grid.clone());
    equal("cores of cos_cache", &cores(x), &cores(cos))?;
    Ok(x.clone())
}

/// The cache's blocks and width, and the page table's users.
fn cache<'a>(cache: &'a TensorSpec, page_table: &TensorSpec) -> Result<([u32; 4], [u32; 2]), Refusal> {
    let shape = <&'a [u32; 4]>::try_from(&cache.shape[..]).map_err(|_| {
        Refusal::new("cache_tensor", "blocks, 1, positions, width", format_args!("{:?}", cache.shape))
    })?;
    tiles("cache_tensor", cache)?;
    equal("heads of cache_tensor", &1, &shape[1])?;
    equal("positions of a block of cache_tensor", &TILE, &shape[2])?;
    rows("page_table", page_table)?;
    of_type("page_table", page_table, DataType::Int32)?;
    let table = <[u32; 2]>::try_from(&page_table.shape[..]).map_err(|_| {
        Refusal::new("page_table", "users and blocks of each", format_args!("{:?}", page_table.shape))
    })?;
    let blocks = u64::from(table[0]) * u64::from(table[1]);
    must(blocks <= u64::from(shape[0]), "page_table", format_args!("at most {} blocks", shape[0]), blocks)?;
    Ok((*shape, table))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateArguments {
    mesh_coords: Vec<[u32; 2]>,
}

/// One position of each of a device's users.
pub(super) fn update_cache(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([into, entry, positions, page_table], []) = call.take::<4, 0>()?;
    let UpdateArguments { mesh_coords } = call.arguments()?;
    let ([.., width], [users, _]) = cache(into, page_table)?;
    of_shape("input_tensor", entry, &[1, users, 1, width])?;
    let layout = entry.memory_config.memory_layout;
    must(layout == MemoryLayout::HeightSharded, "input_tensor", "a user on each core", layout)?;
    of_shape("update_idxs_tensor", positions, &[users])?;
    of_type("update_idxs_tensor", positions, DataType::Int32)?;
    devices(call, &mesh_coords)?;
    let all = (call.device.mesh[0] * call.device.mesh[1]) as usize;
    equal("mesh_coords", &all, &mesh_coords.len())?;
    Ok(into.clone())
}

fn devices(call: &Call, mesh_coords: &[[u32; 2]]) -> Result<(), Refusal> {
    let [rows, columns] = call.device.mesh;
    let outside = mesh_coords.iter().find(|[row, column]| *row >= rows || *column >= columns);
    outside.map_or(Ok(()), |outside| {
        Err(Refusal::new(
            "mesh_coords",
            format_args!("devices of {rows}x{columns}"),
            format_args!("{outside:?}"),
        ))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FillArguments {
    batch_idx: u32,
    mesh_coords: Vec<[u32; 2]>,
}

/// Many positions of a user, on the one device that owns it.
pub(super) fn fill_cache(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([into, entry, page_table], []) = call.take::<3, 0>()?;
    let FillArguments { batch_idx, mesh_coords } = call.arguments()?;
    let ([.., width], [users, blocks]) = cache(into, page_table)?;
    tiles("input_tensor", entry)?;
    of_type("input_tensor", entry, into.dtype)?;
    let length = entry.shape.get(2).copied().unwrap_or_default();
    of_shape("input_tensor", entry, &[1, 1, length, width])?;
    must(
        length <= blocks * TILE,
        "page_table",
        format_args!("blocks for {length} positions"),
        blocks * TILE,
    )?;
    must(batch_idx < users, "batch_idx", format_args!("less than {users} users"), batch_idx)?;
    equal("mesh_coords", &1, &mesh_coords.len())?;
    devices(call, &mesh_coords)?;
    Ok(into.clone())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlashArguments {
    head_dim_v: u32,
    scale: f32,
    #[serde(default)]
    is_causal: Option<bool>,
    #[serde(default)]
    chunk_start_idx: Option<u32>,
    program_config: ProgramConfig,
    compute_kernel_config: ComputeKernelConfig,
    memory_config: Placement,
}

impl FlashArguments {
    fn program(&self) -> Result<&SDPAProgramConfig, Refusal> {
        let ProgramConfig::SDPAProgramConfig(program) = &self.program_config else {
            return Err(Refusal::new(
                "program_config",
                "one of attention",
                format_args!("{:?}", self.program_config),
            ));
        };
        let size = program.compute_with_storage_grid_size;
        let all = CoreCoord::new(CORE_GRID[0], CORE_GRID[1]);
        equal("compute_with_storage_grid_size", &all, &size)?;
        must(self.scale > 0.0 && self.scale < 1.0, "scale", "between 0 and 1", self.scale)?;
        let config = &self.compute_kernel_config;
        must(!config.fp32_dest_acc_en, "fp32_dest_acc_en", "false: attention needs all registers", true)?;
        Ok(program)
    }

    /// Queries as wide as keys, and a latent that is a part of them.
    fn widths(&self, q: &TensorSpec, k: &TensorSpec) -> Result<[u32; 4], Refusal> {
        tiles("input_tensor_q", q)?;
        tiles("input_tensor_k", k)?;
        let shape = <[u32; 4]>::try_from(&q.shape[..])
            .map_err(|_| Refusal::new("input_tensor_q", "four dimensions", q.shape.len()))?;
        equal("width of input_tensor_k", &shape[3], k.shape.last().unwrap_or(&0))?;
        let fits = self.head_dim_v < shape[3] && self.head_dim_v > 0 && self.head_dim_v.is_multiple_of(TILE);
        must(fits, "head_dim_v", format_args!("whole tiles, less than {}", shape[3]), self.head_dim_v)?;
        Ok(shape)
    }

    fn result(&self, [a, b, c, _]: [u32; 4]) -> TensorSpec {
        TensorSpec::tiles(&[a, b, c, self.head_dim_v], self.memory_config.clone())
    }
}

/// A chunk of positions that never reads beyond the end of them.
fn chunk(what: &str, chunk: u32, positions: u32) -> Result<(), Refusal> {
    let fits = chunk > 0 && chunk.is_multiple_of(TILE) && positions.is_multiple_of(chunk);
    must(fits, what, format_args!("whole tiles that divide {positions} positions"), chunk)
}

/// One position of each of a device's users, all heads.
pub(super) fn flash_decode(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([q, keys, page_table, positions], []) = call.take::<4, 0>()?;
    let arguments: FlashArguments = call.arguments()?;
    let program = arguments.program()?;
    let shape = arguments.widths(q, keys)?;
    let (_, [users, blocks]) = cache(keys, page_table)?;
    equal("users of input_tensor_q", &users, &shape[1])?;
    of_shape("cur_pos_tensor", positions, &[users])?;
    equal("q_chunk_size", &0, &program.q_chunk_size)?;
    chunk("k_chunk_size", program.k_chunk_size, blocks * TILE)?;
    Ok(arguments.result(shape))
}

/// Many positions over themselves.
pub(super) fn flash_prefill(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([q, k], []) = call.take::<2, 0>()?;
    let arguments: FlashArguments = call.arguments()?;
    let program = arguments.program()?;
    let shape = arguments.widths(q, k)?;
    of_shape("input_tensor_k", k, &[1, 1, shape[2], shape[3]])?;
    equal("is_causal", &Some(true), &arguments.is_causal)?;
    chunk("q_chunk_size", program.q_chunk_size, shape[2])?;
    chunk("k_chunk_size", program.k_chunk_size, shape[2])?;
    Ok(arguments.result(shape))
}

/// A later chunk over the cache.
pub(super) fn chunked_flash_prefill(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([q, keys, page_table], []) = call.take::<3, 0>()?;
    let arguments: FlashArguments = call.arguments()?;
    let program = arguments.program()?;
    let shape = arguments.widths(q, keys)?;
    let (_, [_, blocks]) = cache(keys, page_table)?;
    let start = arguments.chunk_start_idx.unwrap_or_default();
    must(start > 0, "chunk_start_idx", "above 0: the first chunk needs no cache", start)?;
    chunk("q_chunk_size", program.q_chunk_size, start)?;
    chunk("q_chunk_size", program.q_chunk_size, shape[2])?;
    chunk("k_chunk_size", program.k_chunk_size, shape[2])?;
    let end = start + shape[2];
    must(end <= blocks * TILE, "page_table", format_args!("blocks of {end} positions"), blocks * TILE)?;
    Ok(arguments.result(shape))
}
