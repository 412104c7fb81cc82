//! An operation's tensors and arguments.

use super::{Device, Refusal, must};
use crate::{
    plan::{rules::placement::Placement, tensor::TensorSpec},
    types::{DataType, Layout, MemoryLayout},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// An operation with what earlier ones left in its place.
pub(super) struct Call {
    pub(super) op: String,
    pub(super) inputs: Vec<TensorSpec>,
    pub(super) weights: Vec<TensorSpec>,
    pub(super) config: Map<String, Value>,
    pub(super) device: Device,
}

impl Call {
    pub(super) fn new(op: &str, config: Map<String, Value>, device: Device) -> Self {
        Self { op: op.to_owned(), inputs: Vec::new(), weights: Vec::new(), config, device }
    }

    /// Its arguments, all of which must be known.
    pub(super) fn arguments<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_value(Value::Object(self.config.clone()))
            .map_err(|error| Refusal::new("config", format_args!("the arguments of {}", self.op), error))
    }

    /// Inputs, then weights.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.inputs.iter().chain(&self.weights)
    }

    /// As many inputs and weights as the operator takes.
    pub(super) fn take<const I: usize, const W: usize>(
        &self,
    ) -> Result<([&TensorSpec; I], [&TensorSpec; W]), Refusal> {
        let inputs: Vec<&TensorSpec> = self.inputs.iter().collect();
        let weights: Vec<&TensorSpec> = self.weights.iter().collect();
        let inputs = inputs.try_into().map_err(|_| Refusal::new("inputs", I, self.inputs.len()))?;
        Ok((inputs, weights.try_into().map_err(|_| Refusal::new("weights", W, self.weights.len()))?))
    }

    /// The only input.
    pub(super) fn input(&self) -> Result<&TensorSpec, Refusal> {
        self.take::<1, 0>().map(|([input], [])| input)
    }

    /// Which of some arguments it was given, for messages about what follows from them.
    pub(super) fn given(&self, names: &[&str]) -> String {
        given(&self.config, names)
    }

    /// Devices along an axis.
    pub(super) fn along(&self, cluster_axis: u32) -> Result<u32, Refusal> {
        let devices = self.device.mesh.get(cluster_axis as usize);
        devices.copied().ok_or_else(|| Refusal::new("cluster_axis", "0 or 1", cluster_axis))
    }
}

/// As [`Call::given`].
pub(super) fn given(config: &Map<String, Value>, names: &[&str]) -> String {
    let given: Vec<&str> = names.iter().copied().filter(|name| config.contains_key(*name)).collect();
    if given.is_empty() { String::new() } else { format!(", by {}", given.join(", ")) }
}

/// A dimension, from the last where negative.
pub(super) fn dimension(what: &str, tensor: &TensorSpec, dim: i32) -> Result<usize, Refusal> {
    let rank = tensor.shape.len();
    let index = if dim < 0 { rank.checked_sub(dim.unsigned_abs() as usize) } else { Some(dim as usize) };
    let fits = index.filter(|index| *index < rank);
    fits.ok_or_else(|| Refusal::new(what, format_args!("a dimension of {:?}", tensor.shape), dim))
}

/// A tensor that must lie in tiles.
pub(super) fn tiles(what: &str, tensor: &TensorSpec) -> Result<(), Refusal> {
    must(tensor.layout == Layout::Tile, what, "tiles", tensor.layout)
}

/// A tensor that must lie in rows.
pub(super) fn rows(what: &str, tensor: &TensorSpec) -> Result<(), Refusal> {
    must(tensor.layout == Layout::RowMajor, what, "rows", tensor.layout)
}

/// A tensor that must have a type.
pub(super) fn of_type(what: &str, tensor: &TensorSpec, dtype: DataType) -> Result<(), Refusal> {
    must(tensor.dtype == dtype, what, dtype, tensor.dtype)
}

/// A tensor that must have a shape.
pub(super) fn of_shape(what: &str, tensor: &TensorSpec, shape: &[u32]) -> Result<(), Refusal> {
    must(tensor.shape == shape, what, format_args!("{shape:?}"), format_args!("{:?}", tensor.shape))
}

/// Where a result lies: where its config says; shards that are left to the operator are those of an input.
pub(super) fn placed(asked: &Placement, like: &TensorSpec) -> Placement {
    let is_open = asked.shard_spec.is_none()
        && asked.nd_shard_spec.is_none()
        && asked.memory_layout != MemoryLayout::Interleaved;
    if is_open { like.memory_config.clone() } else { asked.clone() }
}
