//! Rules for operators that move data.

use super::{
    Refusal,
    arguments::{Call, dimension, of_type, placed, rows, tiles},
    must,
};
use crate::{
    hardware::TILE,
    plan::{rules::placement::Placement, tensor::TensorSpec},
    types::{DataType, Layout, MemoryConfig, MemoryLayout, ShardSpec},
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingArguments {
    layout: Layout,
    memory_config: Placement,
}

/// Rows of a table by their numbers.
pub(super) fn embedding(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([ids], [table]) = call.take::<1, 1>()?;
    let arguments: EmbeddingArguments = call.arguments()?;
    rows("input_tensor", ids)?;
    of_type("input_tensor", ids, DataType::Uint32)?;
    rows("weight", table)?;
    of_type("weight", table, DataType::Bfloat16)?;
    let (count, width) = (ids.elements() as u32, table.shape.last().copied().unwrap_or_default());
    must(ids.elements() <= u64::from(u32::MAX), "input_tensor", "fewer numbers", ids.elements())?;
    let tensor = TensorSpec::tiles(&[1, count, width], arguments.memory_config);
    Ok(TensorSpec { layout: arguments.layout, ..tensor })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypecastArguments {
    dtype: DataType,
    memory_config: Placement,
}

/// Another type.
pub(super) fn typecast(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: TypecastArguments = call.arguments()?;
    tiles("input_tensor", x)?;
    Ok(x.clone().with_dtype(arguments.dtype).placed(arguments.memory_config))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceArguments {
    memory_config: Placement,
}

/// Another place.
pub(super) fn to_memory_config(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: PlaceArguments = call.arguments()?;
    Ok(x.clone().placed(arguments.memory_config))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutArguments {
    layout: Layout,
    memory_config: Placement,
}

/// Another layout.
pub(super) fn to_layout(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: LayoutArguments = call.arguments()?;
    let tensor = x.clone().placed(arguments.memory_config);
    Ok(TensorSpec { layout: arguments.layout, ..tensor })
}

/// Rows to tiles.
pub(super) fn tilize(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: PlaceArguments = call.arguments()?;
    rows("input_tensor", x)?;
    Ok(TensorSpec { layout: Layout::Tile, ..x.clone().placed(arguments.memory_config) })
}

/// Tiles to rows.
pub(super) fn untilize(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: PlaceArguments = call.arguments()?;
    tiles("input_tensor", x)?;
    Ok(TensorSpec { layout: Layout::RowMajor, ..x.clone().placed(placed(&arguments.memory_config, x)) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SliceArguments {
    slice_start: Vec<u32>,
    slice_end: Vec<u32>,
    memory_config: Placement,
}

/// A part. In tiles it begins with one.
pub(super) fn slice(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: SliceArguments = call.arguments()?;
    let (start, end) = (&arguments.slice_start, &arguments.slice_end);
    let rank = x.shape.len();
    must(start.len() == rank && end.len() == rank, "slice_end", format_args!("{rank} sides"), end.len())?;
    let within = start.iter().zip(end).zip(&x.shape).all(|((start, end), side)| start < end && end <= side);
    must(within, "slice_end", format_args!("within {:?}", x.shape), format_args!("{start:?} to {end:?}"))?;
    if x.layout == Layout::Tile {
        let whole = start.iter().rev().take(2).all(|start| start.is_multiple_of(TILE));
        must(whole, "slice_start", "the start of a tile", format_args!("{start:?}"))?;
    }
    let mut result = x.clone().placed(arguments.memory_config);
    result.shape = start.iter().zip(end).map(|(start, end)| end - start).collect();
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConcatArguments {
    dim: i32,
    memory_config: Placement,
}

/// One after the other: equal but for one side.
pub(super) fn concat(call: &Call) -> Result<TensorSpec, Refusal> {
    let arguments: ConcatArguments = call.arguments()?;
    let Some((first, others)) = call.inputs.split_first() else {
        return Err(Refusal::new("tensors", "one at least", 0));
    };
    let index = dimension("dim", first, arguments.dim)?;
    let mut result = first.clone().placed(arguments.memory_config);
    for other in others {
        let mut like = other.shape.clone();
        must(like.len() == first.shape.len(), "tensors", "as many dimensions", like.len())?;
        result.shape[index] += like[index];
        like[index] = first.shape[index];
        must(
            like == first.shape,
            "tensors",
            format_args!("sides of {:?}", first.shape),
            format_args!("{like:?}"),
        )?;
        let same = (other.dtype, other.layout) == (first.dtype, first.layout);
        must(same, "tensors", format_args!("{} in {}", first.dtype, first.layout), other.dtype)?;
        let whole = first.layout == Layout::RowMajor
            || first.shape.len() - index > 2
            || first.shape[index].is_multiple_of(TILE);
        must(whole, "dim", "one of whole tiles", first.shape[index])?;
    }
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PadArguments {
    padding: Vec<[u32; 2]>,
    value: f32,
    memory_config: Placement,
}

/// Zeros behind the last row: whole tiles of them, so that none moves.
pub(super) fn pad(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let PadArguments { padding, value, memory_config } = call.arguments()?;
    must(padding.len() == x.shape.len(), "padding", format_args!("{} sides", x.shape.len()), padding.len())?;
    must(value == 0.0, "value", 0, value)?;
    tiles("input_tensor", x)?;
    let mut result = x.clone().placed(memory_config);
    let (before_last, mut added) = (x.shape.len() - 2, 0);
    for (index, ([before, behind], side)) in padding.into_iter().zip(&mut result.shape).enumerate() {
        let allowed = if index == before_last { u32::MAX } else { 0 };
        must(
            before == 0 && behind <= allowed,
            "padding",
            "some behind the rows",
            format_args!("{before}, {behind}"),
        )?;
        *side = side.saturating_add(behind);
        added += u64::from(behind);
    }
    let whole = x.shape[before_last].is_multiple_of(TILE) && added.is_multiple_of(u64::from(TILE));
    must(whole, "padding", "whole tiles behind whole tiles", added)?;
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RepeatArguments {
    repeat_dims: Vec<u32>,
}

/// Copies.
pub(super) fn repeat(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let RepeatArguments { repeat_dims } = call.arguments()?;
    must(repeat_dims.len() == x.shape.len(), "repeat_dims", x.shape.len(), repeat_dims.len())?;
    must(!repeat_dims.contains(&0), "repeat_dims", "1 or more", 0)?;
    let mut result = x.clone();
    for (side, copies) in result.shape.iter_mut().zip(repeat_dims) {
        *side *= copies;
    }
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReshapeArguments {
    shape: Vec<u32>,
}

/// The same elements in another shape. Rows that lie over cores stay where they are: a core's part is cut anew.
pub(super) fn reshape(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let ReshapeArguments { shape } = call.arguments()?;
    let mut result = x.clone();
    result.shape = shape;
    must(
        x.elements() == result.elements(),
        "shape",
        format_args!("{} elements", x.elements()),
        result.elements(),
    )?;
    let Some(spec) = &x.memory_config.shard_spec else { return Ok(result) };
    let is_rows =
        x.layout == Layout::RowMajor && x.memory_config.memory_layout == MemoryLayout::HeightSharded;
    must(is_rows, "input_tensor", "rows over cores, or what is interleaved", x.memory_config.memory_layout)?;
    let width = result.shape.last().copied().unwrap_or(1);
    let elements = spec.shape[0] * spec.shape[1];
    must(elements.is_multiple_of(width), "shape", format_args!("whole rows of a core's {elements}"), width)?;
    let shape = [elements / width, width];
    let spec = ShardSpec { grid: spec.grid.clone(), shape, orientation: spec.orientation };
    Ok(result.placed(MemoryConfig::sharded(MemoryLayout::HeightSharded, x.memory_config.buffer_type, spec)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PermuteArguments {
    dims: Vec<u32>,
    memory_config: Placement,
}

/// Sides in another order.
pub(super) fn permute(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let PermuteArguments { dims, memory_config } = call.arguments()?;
    let mut sorted = dims.clone();
    sorted.sort_unstable();
    let all: Vec<u32> = (0..x.shape.len() as u32).collect();
    must(sorted == all, "dims", format_args!("each of {all:?} once"), format_args!("{dims:?}"))?;
    let mut result = x.clone().placed(memory_config);
    result.shape = dims.iter().map(|&dim| x.shape[dim as usize]).collect();
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransposeArguments {
    dim1: i32,
    dim2: i32,
    memory_config: Placement,
}

/// Two sides change places.
pub(super) fn transpose(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: TransposeArguments = call.arguments()?;
    let (one, other) = (dimension("dim1", x, arguments.dim1)?, dimension("dim2", x, arguments.dim2)?);
    let mut result = x.clone().placed(arguments.memory_config);
    result.shape.swap(one, other);
    Ok(result)
}
