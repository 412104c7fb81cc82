//! Meshes of devices: shapes, shard arithmetic, and the collectives in which the devices meet.
//!
//! A mesh is `rows x columns` of devices, one *rank* each, numbered in row-major order. Every rank runs the same
//! program on its own shard; the collectives are the only places where ranks meet, and each takes a typed config
//! that names an [`Axis`]. Columns carry tensor parallelism, rows carry the batch (decode) or the sequence
//! (prefill), routed experts lie over all devices.

#![forbid(unsafe_code)]

mod collective;
mod layout;
mod shape;
mod shard;

pub use collective::{AllGatherConfig, AllReduceConfig, Mesh, ReduceScatterConfig, SingleDevice, Transport};
pub use layout::{ExpertSharding, Layout, ParseExpertShardingError};
pub use shape::{Axis, MeshShape, ParseMeshShapeError, Rank};
pub use shard::{Placement, ShardError, shard};
