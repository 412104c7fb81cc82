//! Collectives: where ranks exchange activations. Each takes a config that a file on disk can hold.

use crate::{Axis, MeshShape, Rank};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Config of [`Mesh::all_gather`]: concatenate the columns of all devices of `axis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllGatherConfig {
    /// The axis whose devices meet.
    pub cluster_axis: Axis,
}

/// Config of [`Mesh::reduce_scatter`]: add over all devices of `axis`, keep one's own columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReduceScatterConfig {
    /// The axis whose devices meet.
    pub cluster_axis: Axis,
}

/// Config of [`Mesh::all_reduce`]: add over all devices of `axis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduceConfig {
    /// The axis whose devices meet.
    pub cluster_axis: Axis,
}

/// How ranks reach each other. Values are row-major f32 matrices; `cols` is the width of the caller's matrix.
pub trait Transport: Send + Sync {
    /// Concatenates the matrices of all ranks of `axis` column-wise, in order of rank.
    fn all_gather(&self, values: Vec<f32>, cols: usize, axis: Axis) -> Vec<f32>;
    /// Adds the matrices of all ranks of `axis`, in order of rank, and keeps the caller's share of the columns.
    fn reduce_scatter(&self, values: Vec<f32>, cols: usize, axis: Axis) -> Vec<f32>;
    /// Adds the matrices of all ranks of `axis`, in order of rank.
    fn all_reduce(&self, values: Vec<f32>, cols: usize, axis: Axis) -> Vec<f32>;
}

/// The transport of a mesh of one device: every collective is the identity, and copies nothing.
#[derive(Debug)]
pub struct SingleDevice;

impl Transport for SingleDevice {
    fn all_gather(&self, values: Vec<f32>, _: usize, _: Axis) -> Vec<f32> {
        values
    }

    fn reduce_scatter(&self, values: Vec<f32>, _: usize, _: Axis) -> Vec<f32> {
        values
    }

    fn all_reduce(&self, values: Vec<f32>, _: usize, _: Axis) -> Vec<f32> {
        values
    }
}

/// One rank's view of the mesh: its shape, its own place, and the way to the others.
#[derive(Clone)]
pub struct Mesh {
    shape: MeshShape,
    rank: Rank,
    transport: Arc<dyn Transport>,
}

impl Mesh {
    /// The mesh of one device.
    pub fn single() -> Self {
        Self { shape: MeshShape::SINGLE, rank: Rank(0), transport: Arc::new(SingleDevice) }
    }

    /// The mesh's shape.
    pub fn shape(&self) -> MeshShape {
        self.shape
    }

    /// The caller's own number.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Concatenates column-wise over the config's axis.
    ///
    /// # Shapes
    /// `[rows, cols]` on each device to `[rows, cols * devices of the axis]`.
    pub fn all_gather(&self, values: Vec<f32>, cols: usize, config: &AllGatherConfig) -> Vec<f32> {
        self.transport.all_gather(values, cols, config.cluster_axis)
    }

    /// Adds over the config's axis and keeps this device's columns.
    ///
    /// # Shapes
    /// `[rows, cols]` on each device to `[rows, cols / devices of the axis]`.
    pub fn reduce_scatter(&self, values: Vec<f32>, cols: usize, config: &ReduceScatterConfig) -> Vec<f32> {
        self.transport.reduce_scatter(values, cols, config.cluster_axis)
    }

    /// Adds over the config's axis.
    ///
    /// # Shapes
    /// `[rows, cols]` to `[rows, cols]`.
    pub fn all_reduce(&self, values: Vec<f32>, cols: usize, config: &AllReduceConfig) -> Vec<f32> {
        self.transport.all_reduce(values, cols, config.cluster_axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_keeps_its_values() {
        let mesh = Mesh::single();
        let values = vec![1.0, 2.0, 3.0, 4.0];
        let cluster_axis = Axis::Columns;
        assert_eq!(mesh.all_gather(values.clone(), 2, &AllGatherConfig { cluster_axis }), values);
        assert_eq!(mesh.reduce_scatter(values.clone(), 2, &ReduceScatterConfig { cluster_axis }), values);
        assert_eq!(mesh.all_reduce(values.clone(), 2, &AllReduceConfig { cluster_axis }), values);
    }
}
