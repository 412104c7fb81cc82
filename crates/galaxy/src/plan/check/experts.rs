//! Rules for the operators of the mixture of experts.

use super::{
    Refusal,
    arguments::{Call, of_shape, of_type, rows, tiles},
    collectives::wires,
    equal, must,
};
use crate::{
    hardware::{CORE_GRID, DRAM_BANKS, TILE},
    plan::{
        rules::{grids::CORES, placement::Placement},
        tensor::TensorSpec,
    },
    types::{
        BufferType, CoreCoord, CoreGrid, CoreRange, CoreRangeSet, DataType, Layout, MemoryConfig,
        MemoryLayout, ShardOrientation, ShardSpec, Topology,
    },
};
use serde::Deserialize;

/// Experts of a token, and the side of a token's square of logits: what the fused gate is made for.
const CHOSEN: u32 = 8;
const SIDE: u32 = 16;
const EXPERTS: u32 = SIDE * SIDE;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GateArguments {
    eps: f32,
    scaling_factor: f32,
    enable_sigmoid: bool,
}

/// A token on each core: a square of logits, and a tile of results.
pub(super) fn gate(call: &Call) -> Result<Vec<TensorSpec>, Refusal> {
    let ([logits, numbers, weights, indices], [bias]) = call.take::<4, 1>()?;
    let arguments: GateArguments = call.arguments()?;
    let tokens = logits.shape.first().copied().unwrap_or_default();
    must((1..=CORES).contains(&tokens), "input_tensor", format_args!("at most {CORES} tokens"), tokens)?;
    for (what, tensor, dtype) in [
        ("input_tensor", logits, DataType::Bfloat16),
        ("bias_tensor", bias, DataType::Bfloat16),
        ("input_indices_tensor", numbers, DataType::Uint16),
    ] {
        tiles(what, tensor)?;
        of_type(what, tensor, dtype)?;
        of_shape(what, tensor, &[tokens, SIDE, SIDE])?;
        equal(&format!("place of {what}"), &logits.memory_config, &tensor.memory_config)?;
    }
    for (what, tensor, dtype) in
        [("output_tensor", weights, DataType::Bfloat16), ("output_indices_tensor", indices, DataType::Uint16)]
    {
        of_type(what, tensor, dtype)?;
        of_shape(what, tensor, &[tokens, TILE, TILE])?;
        equal(&format!("place of {what}"), &logits.memory_config, &tensor.memory_config)?;
    }
    let is_per_core = logits.memory_config.memory_layout == MemoryLayout::HeightSharded;
    must(is_per_core, "input_tensor", "a token on each core", logits.memory_config.memory_layout)?;
    must(arguments.enable_sigmoid, "enable_sigmoid", "true: logits come in", false)?;
    must(arguments.eps > 0.0 && arguments.eps < 1e-6, "eps", "above 0 and tiny", arguments.eps)?;
    must(arguments.scaling_factor > 0.0, "scaling_factor", "above 0", arguments.scaling_factor)?;
    Ok(vec![weights.clone(), indices.clone()])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ways {
    cluster_axis: u32,
    topology: Topology,
    num_links: u32,
    memory_config: Placement,
}

/// A one for each expert at the device that has it, for all experts and devices.
fn mapping(call: &Call, mapping: &TensorSpec) -> Result<(), Refusal> {
    let devices = call.device.mesh[0] * call.device.mesh[1];
    of_shape("expert_mapping_tensor", mapping, &[1, 1, EXPERTS, devices])?;
    rows("expert_mapping_tensor", mapping)?;
    of_type("expert_mapping_tensor", mapping, DataType::Uint16)?;
    must(EXPERTS.is_multiple_of(devices), "expert_mapping_tensor", "as many experts on each device", devices)
}

fn along_rows(cluster_axis: u32) -> Result<(), Refusal> {
    must(
        cluster_axis == 0,
        "cluster_axis",
        "0: columns have other experts, and the same tokens",
        cluster_axis,
    )
}

/// Tokens to all rows of the mesh.
pub(super) fn dispatch(call: &Call) -> Result<Vec<TensorSpec>, Refusal> {
    let ([x, indices], [map]) = call.take::<2, 1>()?;
    let arguments: Ways = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    along_rows(arguments.cluster_axis)?;
    mapping(call, map)?;
    rows("input_tensor", x)?;
    rows("expert_indices_tensor", indices)?;
    of_type("expert_indices_tensor", indices, DataType::Uint16)?;
    let [tokens, 1, 1, hidden] = x.shape[..] else {
        return Err(Refusal::new("input_tensor", "[tokens, 1, 1, width]", format_args!("{:?}", x.shape)));
    };
    of_shape("expert_indices_tensor", indices, &[tokens, 1, 1, CHOSEN])?;
    let everyone = tokens * call.along(arguments.cluster_axis)?;
    let output = |width, dtype| {
        TensorSpec::rows(&[1, everyone, 1, width], dtype).placed(arguments.memory_config.clone())
    };
    Ok(vec![output(hidden, x.dtype), output(CHOSEN, DataType::Uint16)])
}

/// What a device's experts made of all tokens, back to the tokens' devices.
pub(super) fn combine(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([x, metadata], [map]) = call.take::<2, 1>()?;
    let arguments: Ways = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    along_rows(arguments.cluster_axis)?;
    mapping(call, map)?;
    rows("input_tensor", x)?;
    let [experts, everyone, 1, hidden] = x.shape[..] else {
        return Err(Refusal::new(
            "input_tensor",
            "[experts, tokens, 1, width]",
            format_args!("{:?}", x.shape),
        ));
    };
    let devices = call.device.mesh[0] * call.device.mesh[1];
    equal("experts of input_tensor", &(EXPERTS / devices), &experts)?;
    of_shape("expert_metadata_tensor", metadata, &[1, everyone, 1, CHOSEN])?;
    let senders = call.along(arguments.cluster_axis)?;
    must(
        everyone.is_multiple_of(senders),
        "input_tensor",
        format_args!("tokens of {senders} devices"),
        everyone,
    )?;
    let shape = [CHOSEN, everyone / senders, 1, hidden];
    Ok(TensorSpec::rows(&shape, x.dtype).placed(arguments.memory_config))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetadataArguments {
    cluster_axis: u32,
    num_links: u32,
    worker_mode: String,
    dispatch_algorithm: String,
    drain_sync_tilizer_core: CoreCoord,
}

/// A mapping for the fused operators: a row for each device.
fn packed_mapping(call: &Call, mapping: &TensorSpec) -> Result<(), Refusal> {
    let devices = call.device.mesh[0] * call.device.mesh[1];
    of_shape("expert_mapping_tensor", mapping, &[devices, EXPERTS])?;
    of_type("expert_mapping_tensor", mapping, DataType::Uint16)
}

/// Tokens, experts and weights to all rows of the mesh; experts and weights on one core.
pub(super) fn dispatch_metadata(call: &Call) -> Result<Vec<TensorSpec>, Refusal> {
    let ([x, indices, scores], [map]) = call.take::<3, 1>()?;
    let arguments: MetadataArguments = call.arguments()?;
    wires(call, Topology::Ring, arguments.num_links)?;
    along_rows(arguments.cluster_axis)?;
    packed_mapping(call, map)?;
    let [tokens, 1, 1, hidden] = x.shape[..] else {
        return Err(Refusal::new("input_tensor", "[tokens, 1, 1, width]", format_args!("{:?}", x.shape)));
    };
    for (what, tensor, dtype) in [
        ("expert_indices_tensor", indices, DataType::Uint16),
        ("expert_scores_tensor", scores, DataType::Bfloat16),
    ] {
        of_type(what, tensor, dtype)?;
        of_shape(what, tensor, &[tokens, 1, 1, CHOSEN])?;
    }
    equal("worker_mode", &"DIRECT", &arguments.worker_mode.as_str())?;
    equal("dispatch_algorithm", &"SPARSE_MCAST_SHORTEST_PATH", &arguments.dispatch_algorithm.as_str())?;
    let core = arguments.drain_sync_tilizer_core;
    let [columns, lines] = CORE_GRID;
    must(core.x < columns && core.y < lines, "drain_sync_tilizer_core", "a core that there is", core)?;
    let everyone = tokens * call.along(arguments.cluster_axis)?;
    let grid = CoreRangeSet(vec![CoreRange::new(core, core)]).into();
    let spec = ShardSpec { grid, shape: [everyone, CHOSEN], orientation: ShardOrientation::RowMajor };
    let on_core = MemoryConfig::sharded(MemoryLayout::HeightSharded, BufferType::L1, spec);
    let choice = |dtype| TensorSpec::rows(&[1, everyone, CHOSEN], dtype).placed(on_core.clone());
    let sent = TensorSpec::rows(&[1, everyone, hidden], x.dtype);
    Ok(vec![sent, choice(DataType::Uint16), choice(DataType::Bfloat16)])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComputeArguments {
    layer_id: u32,
    output_height_shard_dim: u32,
    intermediate_size: u32,
    has_bias: bool,
    cluster_axis: u32,
    topology: Topology,
    num_links: u32,
    mux_core_range_set: CoreGrid,
}

/// All of the experts. It leaves four tables and its work, then what came back.
pub(super) fn compute(call: &Call) -> Result<Vec<TensorSpec>, Refusal> {
    let ([x, indices, scores], [map, up, down, combined]) = call.take::<3, 4>()?;
    let arguments: ComputeArguments = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    along_rows(arguments.cluster_axis)?;
    packed_mapping(call, map)?;
    let devices = call.device.mesh[0] * call.device.mesh[1];
    let [1, everyone, hidden] = x.shape[..] else {
        return Err(Refusal::new("tilize_input_tensor", "[1, tokens, width]", format_args!("{:?}", x.shape)));
    };
    let local = EXPERTS / devices;
    packed(up, "matmul_w0_w1_tensor", [local, 2 * arguments.intermediate_size, hidden])?;
    packed(down, "matmul_w2_tensor", [local, hidden, arguments.intermediate_size])?;
    for (what, tensor) in [("tilize_expert_indices_tensor", indices), ("tilize_expert_scores_tensor", scores)]
    {
        of_shape(what, tensor, &[1, everyone, CHOSEN])?;
    }
    let tokens = everyone / call.along(arguments.cluster_axis)?;
    of_shape("optional_output_tensor", combined, &[CHOSEN, tokens, hidden])?;
    must(arguments.layer_id < up.shape[1], "layer_id", "one of the packed layers", arguments.layer_id)?;
    must(!arguments.has_bias, "has_bias", false, true)?;
    equal("output_height_shard_dim", &4, &arguments.output_height_shard_dim)?;
    let multiplexers = arguments.mux_core_range_set.cores().unwrap_or_default();
    let pair = u64::from(2 * arguments.num_links);
    must(
        multiplexers >= pair,
        "mux_core_range_set",
        format_args!("two cores for each link: {pair}"),
        multiplexers,
    )?;
    // Its tables and its own work, in tiles and in rows, are no other operation's concern.
    let table = |shape: &[u32], dtype, layout| TensorSpec { layout, ..TensorSpec::rows(shape, dtype) };
    let (number, work) = (DataType::Uint32, [CORES, local, TILE, hidden]);
    let [columns, lines] = CORE_GRID;
    let grid = CoreRangeSet::rectangle(columns, lines).into();
    let spec = ShardSpec { grid, shape: [1, 4], orientation: ShardOrientation::RowMajor };
    let over_cores = |shape| {
        MemoryConfig::sharded(
            MemoryLayout::HeightSharded,
            BufferType::L1,
            ShardSpec { shape, ..spec.clone() },
        )
    };
    let of_work = over_cores([local * TILE, hidden]);
    Ok(vec![
        table(&[CORES, 4], number, Layout::RowMajor).placed(over_cores([1, 4])),
        table(&[1, 8 * everyone], number, Layout::RowMajor).placed(MemoryConfig::L1),
        table(&[local, 4 * (everyone + 1)], number, Layout::RowMajor).placed(MemoryConfig::L1),
        table(&work, DataType::Bfloat16, Layout::Tile).placed(of_work.clone()),
        table(&work, DataType::Bfloat16, Layout::RowMajor).placed(of_work),
        combined.clone(),
    ])
}

/// Weights in blocks of four columns of tiles, enough of them on the twelve cores for all columns.
fn packed(weight: &TensorSpec, what: &str, [experts, columns, inner]: [u32; 3]) -> Result<(), Refusal> {
    let [DRAM_BANKS, layers, has_experts, groups, height, width] = weight.shape[..] else {
        return Err(Refusal::new(
            what,
            "[12, layers, experts, groups, inner, 128]",
            format_args!("{:?}", weight.shape),
        ));
    };
    of_type(what, weight, DataType::Bfloat4B)?;
    equal(&format!("experts of {what}"), &experts, &has_experts)?;
    equal(&format!("columns of a block of {what}"), &(4 * TILE), &width)?;
    let holds = u64::from(groups * DRAM_BANKS * width) >= u64::from(columns);
    must(holds, what, format_args!("blocks for {columns} columns"), groups * DRAM_BANKS * width)?;
    must(
        height >= inner && height < inner + 7 * TILE,
        what,
        format_args!("{inner} rows, filled up"),
        height,
    )?;
    must(layers > 0, what, "a layer", layers)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TilizeArguments {
    output_memory_config: Placement,
}

/// Rows to tiles.
pub(super) fn tilize(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let TilizeArguments { output_memory_config } = call.arguments()?;
    rows("input_tensor", x)?;
    Ok(TensorSpec::tiles(&x.shape, output_memory_config))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FastReduceArguments {
    dim: i32,
    split_size: u32,
    output_memory_config: Placement,
}

/// The sum over the first dimension, in parts for each column of the mesh.
pub(super) fn fast_reduce(call: &Call) -> Result<Vec<TensorSpec>, Refusal> {
    let x = call.input()?;
    let arguments: FastReduceArguments = call.arguments()?;
    tiles("input_tensor", x)?;
    equal("dim", &0, &arguments.dim)?;
    let [_, one, tokens, hidden] = x.shape[..] else {
        return Err(Refusal::new("input_tensor", "four dimensions", x.shape.len()));
    };
    let parts = call.along(1)?;
    equal("split_size", &(hidden / parts), &arguments.split_size)?;
    let part = TensorSpec::tiles(&[1, one, tokens, arguments.split_size], arguments.output_memory_config);
    Ok(vec![part; parts as usize])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReduceScatterArguments {
    dim: i32,
    cluster_axis: u32,
    topology: Topology,
    num_links: u32,
    output_memory_config: Placement,
}

/// The sum of a part over the columns of the mesh.
pub(super) fn reduce_scatter(call: &Call) -> Result<TensorSpec, Refusal> {
    let arguments: ReduceScatterArguments = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    must(arguments.topology == Topology::Ring, "topology", "Ring", arguments.topology)?;
    equal("cluster_axis", &1, &arguments.cluster_axis)?;
    equal("dim", &3, &arguments.dim)?;
    equal("parts", &(call.along(1)? as usize), &call.inputs.len())?;
    let Some((first, others)) = call.inputs.split_first() else {
        unreachable!("as many as there are columns")
    };
    must(others.iter().all(|other| other == first), "input_tensors", "equal parts", "others")?;
    Ok(first.clone().placed(arguments.output_memory_config))
}
