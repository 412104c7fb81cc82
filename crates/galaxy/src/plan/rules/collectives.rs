//! How devices of a row or a column exchange activations.

use super::LINKS;
use crate::{
    plan::{
        operators::{
            AllGatherAsyncConfig, AllToAllAsyncGenericConfig, MeshDeviceStub, ReduceScatterAsyncMinimalConfig,
        },
        request::{Dimensions, Fabric},
    },
    types::Topology,
};

use super::placement::Placement;

/// From row to row: along it users or positions are dealt.
pub const ROWS: u32 = 0;
/// From column to column: along it matrices and heads are dealt.
pub const COLUMNS: u32 = 1;

/// Over a ring where the chips form one: half the hops.
pub fn topology(dimensions: &Dimensions) -> Topology {
    match dimensions.request.fabric {
        Fabric::Line => Topology::Linear,
        Fabric::Ring => Topology::Ring,
    }
}

/// Every device of an axis gets the parts of all, along `dim`. Over all links that there are.
pub fn all_gather(
    dimensions: &Dimensions,
    dim: i32,
    cluster_axis: u32,
    memory_config: Placement,
) -> AllGatherAsyncConfig {
    AllGatherAsyncConfig {
        dim,
        cluster_axis,
        mesh_device: MeshDeviceStub::of(dimensions),
        topology: topology(dimensions),
        num_links: LINKS,
        memory_config,
        num_workers_per_link: None,
        use_broadcast: None,
    }
}

/// Every device of an axis gets the sum of its own part along `dim`.
pub fn reduce_scatter(
    dimensions: &Dimensions,
    dim: i32,
    cluster_axis: u32,
    memory_config: Placement,
) -> ReduceScatterAsyncMinimalConfig {
    ReduceScatterAsyncMinimalConfig {
        dim,
        cluster_axis,
        topology: topology(dimensions),
        num_links: LINKS,
        memory_config,
    }
}

/// Devices of the columns exchange heads for users.
pub fn heads_to_users(dimensions: &Dimensions, memory_config: Placement) -> AllToAllAsyncGenericConfig {
    AllToAllAsyncGenericConfig {
        in_dim: 2,
        out_dim: 1,
        cluster_axis: COLUMNS,
        mesh_device: MeshDeviceStub::of(dimensions),
        topology: topology(dimensions),
        num_links: LINKS,
        memory_config,
    }
}
