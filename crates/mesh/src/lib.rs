//! Meshes of devices: shapes, shard arithmetic, and the collectives in which the devices meet.
//!
//! A mesh is `rows x columns` of devices, one *rank* each, numbered in row-major order. Every rank runs the same
//! program on its own shard; the collectives are the only places where ranks meet, and each takes a typed config
//! that names an [`Axis`]. Columns carry tensor parallelism, rows carry the batch (decode) or the sequence
//! (prefill), routed experts lie over all devices.

#![cfg_attr(not(feature = "mpi"), forbid(unsafe_code))]
#![deny(unsafe_code)]

mod config;
mod error;
mod launch;
mod layout;
pub mod measure;
mod mesh;
#[cfg(feature = "mpi")]
mod mpi;
pub mod numa;
mod payload;
mod shape;
mod shard;
mod threads;
mod traffic;
mod transport;
mod view;

pub use config::{AllGatherConfig, AllReduceConfig, AllToAllConfig, Dim, ReduceScatterConfig, Topology};
pub use error::{Cause, Peer, TransportError};
pub use launch::{launched_neighbours, launched_peer, launched_processes, launched_rank};
pub use layout::{ExpertSharding, Layout, ParseExpertShardingError};
pub use mesh::{DEFAULT_TIMEOUT, Mesh};
#[cfg(feature = "mpi")]
pub use mpi::MpiError;
pub use payload::Payload;
pub use shape::{Axis, Group, MeshShape, ParseMeshShapeError, Rank};
pub use shard::{Placement, ShardError, shard};
pub use traffic::{Collective, Moved, Traffic};
pub use transport::{Call, Give, Label, Members, SingleDevice, Take, Transport};
pub use view::{Buffer, View};
