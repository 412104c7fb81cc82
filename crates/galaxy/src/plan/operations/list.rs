//! Operations as data: the form in which `tools/ttnn_check/check_config.py` reads them, which then asks TT-NN.

use crate::plan::{request::Fabric, tensor::TensorSpec};
use dsv3_mesh::{Axis, MeshShape};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Operations one after the other, and the mesh that they are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationList {
    /// Rows and columns, as `4x8`.
    pub mesh: String,
    /// The file of a mock cluster that has this mesh, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// TT-NN's name of the fabric.
    pub fabric: String,
    /// Bytes of L1 that are set aside for small buffers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub l1_small_size: u64,
    /// The operations.
    pub operations: Vec<Operation>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Where it stands in the tree of configs, and what it is there; no other has this name.
    pub name: String,
    /// The operator.
    pub op: String,
    /// Its inputs.
    pub inputs: Vec<Operand>,
    /// Its weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<Operand>,
    /// Its other arguments, by TT-NN's names.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// What its outputs must be, all of them.
    pub expect: Vec<TensorSpec>,
    /// What else is to be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A tensor that an operation takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Operand {
    /// What an earlier operation left.
    From(Source),
    /// One that was there before.
    New(NewTensor),
}

/// An output of an earlier operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The operation.
    pub from: String,
    /// Which of its outputs; the first where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
}

/// Which of an operation's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Output {
    /// This one.
    One(u32),
    /// All of them, as one argument.
    All(AllOutputs),
}

/// All outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllOutputs {
    /// All.
    All,
}

/// A tensor that was there before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewTensor {
    /// What it is.
    #[serde(flatten)]
    pub spec: TensorSpec,
    /// The argument that it is, where its place does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arg: Option<String>,
}

/// Bytes of L1 that the fused experts want set aside for their semaphores.
const FUSED_SMALL_BYTES: u64 = 16384;

impl OperationList {
    /// Operations for a mesh.
    ///
    /// Several Galaxies fit one mock process only as single chips, where rings are said by a fabric of two dimensions.
    pub fn new(mesh: MeshShape, fabric: Fabric, operations: Vec<Operation>) -> Self {
        let shape = (mesh.size(Axis::Rows), mesh.size(Axis::Columns));
        let (cluster, ring) = match shape {
            (4, 8) | (8, 4) if fabric == Fabric::Ring => (Some("galaxy_4x8_torus.yaml"), "FABRIC_1D_RING"),
            (4, 8) | (8, 4) => (Some("galaxy_4x8.yaml"), "FABRIC_1D_RING"),
            (8, 8) => (Some("dual_8x8.yaml"), "FABRIC_2D_TORUS_XY"),
            (16, 8) => (Some("quad_16x8.yaml"), "FABRIC_2D_TORUS_XY"),
            _ => (None, "FABRIC_1D_RING"),
        };
        Self {
            mesh: mesh.to_string(),
            cluster: cluster.map(str::to_owned),
            fabric: if fabric == Fabric::Ring { ring } else { "FABRIC_1D" }.to_owned(),
            l1_small_size: if operations.iter().any(|one| one.op == "moe_compute") {
                FUSED_SMALL_BYTES
            } else {
                0
            },
            operations,
        }
    }
}
