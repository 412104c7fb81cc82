//! Operators in which devices meet.

use super::{MeshDeviceStub, Operator};
use crate::{plan::rules::placement::Placement, types::Topology};
use serde::{Deserialize, Serialize};

/// All parts on every device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllGatherAsyncConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// The mesh.
    pub mesh_device: MeshDeviceStub,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Where the result lies.
    pub memory_config: Placement,
    /// Cores that feed a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_workers_per_link: Option<u32>,
    /// Whether each device sends its part to all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_broadcast: Option<bool>,
}

impl Operator for AllGatherAsyncConfig {
    const OPERATION: &'static str = "all_gather_async";
}

/// A part of the sum on every device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReduceScatterAsyncMinimalConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for ReduceScatterAsyncMinimalConfig {
    const OPERATION: &'static str = "reduce_scatter_minimal_async";
}

/// Devices exchange parts of one dimension for parts of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllToAllAsyncGenericConfig {
    /// The dimension that is cut.
    pub in_dim: i32,
    /// The dimension that is put together.
    pub out_dim: i32,
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// The mesh.
    pub mesh_device: MeshDeviceStub,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for AllToAllAsyncGenericConfig {
    const OPERATION: &'static str = "all_to_all";
}

/// The sum on every device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduceConfig {
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// How the devices are connected.
    pub topology: Topology,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for AllReduceConfig {
    const OPERATION: &'static str = "all_reduce";
}

/// Each device keeps its own part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshPartitionConfig {
    /// The dimension, from the last where negative.
    pub dim: i32,
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for MeshPartitionConfig {
    const OPERATION: &'static str = "mesh_partition";
}

/// Tokens to the devices of their experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllToAllDispatchConfig {
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for AllToAllDispatchConfig {
    const OPERATION: &'static str = "all_to_all_dispatch";
}

/// What experts made of tokens, back to where they came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllToAllCombineConfig {
    /// Along which axis of the mesh: 0 from row to row, 1 from column to column.
    pub cluster_axis: u32,
    /// How the devices are connected.
    pub topology: Topology,
    /// Links to each neighbour.
    pub num_links: u32,
    /// Where the result lies.
    pub memory_config: Placement,
}

impl Operator for AllToAllCombineConfig {
    const OPERATION: &'static str = "all_to_all_combine";
}
