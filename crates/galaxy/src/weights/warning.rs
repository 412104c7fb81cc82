//! What is to be known of a cache before it is used.

use super::experts::ring_packing;
use crate::plan::request::Fabric;
use dsv3_deepseek::HfConfig;
use dsv3_mesh::MeshShape;
use std::fmt;

/// Something that is to be known before a cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The experts for the fused operators of this mesh are packed as TT-NN packs them, in files with upstream's names; but
    /// at which keys of config.json upstream looks for them is inferred from those names.
    RingKeys {
        /// The mesh.
        mesh: MeshShape,
    },
}

impl Warning {
    /// What is to be known of a model's cache for a mesh whose chips are connected so; nothing of most.
    pub fn of(hf: &HfConfig, mesh: MeshShape, fabric: Fabric) -> Option<Self> {
        let has_experts = hf.num_hidden_layers + hf.mtp_layers > hf.first_k_dense_replace;
        let packing = ring_packing(hf, mesh, fabric).filter(|_| has_experts);
        packing.map(|_| Self::RingKeys { mesh })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RingKeys { mesh } => write!(
                f,
                "{mesh} with rings: quad_ring_w0_w1_experts and quad_ring_w2_experts are packed as TT-NN 0.81.1 packs them; \
                 their keys in config.json are inferred from their files' names"
            ),
        }
    }
}
