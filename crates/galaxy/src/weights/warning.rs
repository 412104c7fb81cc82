//! What a cache does not have that its mesh may want.

use crate::plan::{modules::moe_optimized::is_made_for, request::Fabric};
use dsv3_deepseek::HfConfig;
use dsv3_mesh::MeshShape;
use std::fmt;

/// Something that is to be known before a cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// On this mesh with rings upstream takes fused operators for the experts in decode, which read them from other files
    /// (`quad_ring_w0_w1_experts`, `quad_ring_w2_experts`); they are not made.
    NoRingExperts {
        /// The mesh.
        mesh: MeshShape,
    },
}

impl Warning {
    /// What is to be known of a model's cache for a mesh whose chips are connected so; nothing of most.
    pub fn of(hf: &HfConfig, mesh: MeshShape, fabric: Fabric) -> Option<Self> {
        let has_experts = hf.num_hidden_layers + hf.mtp_layers > hf.first_k_dense_replace;
        let width = hf.moe.as_ref().filter(|_| has_experts)?.intermediate_size;
        let is_fused = fabric == Fabric::Ring && is_made_for(hf.hidden_size, width, mesh);
        is_fused.then_some(Self::NoRingExperts { mesh })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRingExperts { mesh } => write!(
                f,
                "{mesh} with rings: the fused experts (moe_compute) want quad_ring_w0_w1_experts and quad_ring_w2_experts, \
                 which are not made; w1_experts, w2_experts and w3_experts are for a line"
            ),
        }
    }
}
