//! Rules for operators in which devices meet.

use super::{
    Refusal,
    arguments::{Call, dimension},
    must,
};
use crate::{
    hardware::TILE,
    plan::{
        request::Fabric,
        rules::{LINKS, placement::Placement},
        tensor::TensorSpec,
    },
    types::{Layout, Topology},
};
use serde::Deserialize;

/// Links there are, and rings only where the chips form them.
pub(super) fn wires(call: &Call, topology: Topology, num_links: u32) -> Result<(), Refusal> {
    let fits = (1..=LINKS).contains(&num_links);
    must(fits, "num_links", format_args!("1 to {LINKS} links to a neighbour"), num_links)?;
    let expected = match call.device.fabric {
        Fabric::Line => Topology::Linear,
        Fabric::Ring => Topology::Ring,
    };
    must(topology == expected, "topology", format_args!("{expected}, as the chips are connected"), topology)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GatherArguments {
    dim: i32,
    cluster_axis: u32,
    topology: Topology,
    num_links: u32,
    memory_config: Placement,
    #[serde(default)]
    num_workers_per_link: Option<u32>,
    #[serde(default)]
    use_broadcast: Option<bool>,
}

/// All parts along a dimension.
pub(super) fn all_gather(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: GatherArguments = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    let workers = arguments.num_workers_per_link.unwrap_or(1);
    must((1..=8).contains(&workers), "num_workers_per_link", "1 to 8", workers)?;
    let index = dimension("dim", x, arguments.dim)?;
    let from_last = x.shape.len() - index;
    let is_whole = from_last > 2 || x.layout == Layout::RowMajor || x.shape[index].is_multiple_of(TILE);
    // Parts of tiles cannot be passed on as they are: each device sends its part to all.
    let is_broadcast = arguments.use_broadcast == Some(true);
    let is_embedding =
        x.memory_config == Placement::DRAM && from_last == 1 && x.shape[index].is_multiple_of(8);
    must(is_whole || is_broadcast || is_embedding, "dim", "one of whole tiles", x.shape[index])?;
    let mut result = x.clone().placed(arguments.memory_config);
    result.shape[index] *= call.along(arguments.cluster_axis)?;
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScatterArguments {
    dim: i32,
    cluster_axis: u32,
    topology: Topology,
    num_links: u32,
    memory_config: Placement,
}

/// A part of the sum.
pub(super) fn reduce_scatter(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: ScatterArguments = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    let index = dimension("dim", x, arguments.dim)?;
    let mut result = x.clone().placed(arguments.memory_config);
    // Rows may be parts of a tile: TT-NN then gathers, sums and cuts.
    let unit = if index + 1 == x.shape.len() && x.layout == Layout::Tile { TILE } else { 1 };
    result.shape[index] = part(call, x, index, (arguments.cluster_axis, unit))?;
    Ok(result)
}

/// A device's part of a dimension, in whole `unit`s.
fn part(call: &Call, x: &TensorSpec, index: usize, (cluster_axis, unit): (u32, u32)) -> Result<u32, Refusal> {
    let devices = call.along(cluster_axis)?;
    let expected = format!("a multiple of {devices} devices' {unit}");
    must(x.shape[index].is_multiple_of(devices * unit), "dim", expected, x.shape[index])?;
    Ok(x.shape[index] / devices)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllToAllArguments {
    in_dim: i32,
    out_dim: i32,
    cluster_axis: u32,
    topology: Topology,
    num_links: u32,
    memory_config: Placement,
}

/// Parts of one dimension for parts of another.
pub(super) fn all_to_all(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: AllToAllArguments = call.arguments()?;
    wires(call, arguments.topology, arguments.num_links)?;
    let devices = call.along(arguments.cluster_axis)?;
    let (together, apart) =
        (dimension("in_dim", x, arguments.in_dim)?, dimension("out_dim", x, arguments.out_dim)?);
    must(together != apart, "out_dim", "another than in_dim", arguments.out_dim)?;
    must(
        x.shape[apart].is_multiple_of(devices),
        "out_dim",
        format_args!("a multiple of {devices}"),
        x.shape[apart],
    )?;
    let mut result = x.clone().placed(arguments.memory_config);
    result.shape[together] *= devices;
    result.shape[apart] /= devices;
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReduceArguments {
    cluster_axis: u32,
    topology: Topology,
    memory_config: Placement,
}

/// The sum on all.
pub(super) fn all_reduce(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: ReduceArguments = call.arguments()?;
    wires(call, arguments.topology, 1)?;
    call.along(arguments.cluster_axis)?;
    Ok(x.clone().placed(arguments.memory_config))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionArguments {
    dim: i32,
    cluster_axis: u32,
    memory_config: Placement,
}

/// A device's own part.
pub(super) fn mesh_partition(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: PartitionArguments = call.arguments()?;
    let index = dimension("dim", x, arguments.dim)?;
    let mut result = x.clone().placed(arguments.memory_config);
    let unit = if x.layout == Layout::Tile && index + 2 >= x.shape.len() { TILE } else { 1 };
    result.shape[index] = part(call, x, index, (arguments.cluster_axis, unit))?;
    Ok(result)
}
