//! The files of routed experts, and of the gate that chooses them.

use super::{
    Form, RingProjection, Split,
    files::{At, FileList, shape, shape_of},
};
use crate::{
    hardware::{CORE_GRID, TILE},
    plan::{modules::moe_optimized::is_made_for, request::Fabric},
    ring::RingPacking,
    tensorbin::TensorSpec,
    types::{BufferType, CoreRangeSet, DataType, MemoryConfig, MemoryLayout, ShardOrientation, ShardSpec},
};
use dsv3_deepseek::{HfConfig, MlpWeights, MoeGateWeights};
use dsv3_mesh::MeshShape;
use dsv3_runtime::{Leaf, WeightSpec};

/// How experts are packed for the fused operators, on a mesh that has them.
pub(super) fn ring_packing(hf: &HfConfig, mesh: MeshShape, fabric: Fabric) -> Option<RingPacking> {
    let width = hf.moe.as_ref()?.intermediate_size;
    let is_fused = fabric == Fabric::Ring && is_made_for(hf.hidden_size, width, mesh);
    if is_fused { RingPacking::of(hf.hidden_size, width) } else { None }
}

impl FileList<'_> {
    pub(super) fn gate(&mut self, at: &At, gate: MoeGateWeights<WeightSpec>) {
        let MoeGateWeights { weight, e_score_correction_bias } = gate;
        let [experts, hidden] = shape_of(&weight);
        self.add(
            &at.part("gate_proj").part("input_tensor_b").joined(),
            vec![weight],
            (Form::Rows, Split::Replicated),
            TensorSpec::tiled(&shape([1, 1, experts, hidden]), DataType::Bfloat16, MemoryConfig::DRAM),
        );
        let [columns, rows] = CORE_GRID;
        let spec = ShardSpec {
            grid: CoreRangeSet::rectangle(columns, rows),
            shape: [TILE; 2],
            orientation: ShardOrientation::RowMajor,
        };
        let config = MemoryConfig::sharded(MemoryLayout::HeightSharded, BufferType::L1, spec);
        self.add(
            &at.enter("e_score_correction_bias.input_tensor_b", "add_score_correction_bias.input_tensor_b"),
            vec![e_score_correction_bias],
            (Form::GateBias, Split::Replicated),
            TensorSpec::tiled(&[columns * rows, TILE, TILE], DataType::Bfloat16, config),
        );
    }

    pub(super) fn experts(&mut self, at: &At, experts: Vec<MlpWeights<WeightSpec>>) {
        let local = experts.len() / (self.rows * self.columns);
        let (mut w1, mut w2, mut w3) = (Vec::new(), Vec::new(), Vec::new());
        for expert in experts {
            w1.push(expert.w1);
            w2.push(expert.w2);
            w3.push(expert.w3);
        }
        if let Some(packing) = self.ring {
            let pairs = w1.iter().zip(&w3).flat_map(|(gate, up)| [gate.clone(), up.clone()]).collect();
            self.ring_experts(at, packing, (RingProjection::Up, pairs), local);
            self.ring_experts(at, packing, (RingProjection::Down, w2.clone()), local);
        }
        let all = [("w1_experts", w1, DataType::Bfloat4B), ("w2_experts", w2, DataType::Bfloat8B)];
        for (name, sources, data_type) in all.into_iter().chain([("w3_experts", w3, DataType::Bfloat4B)]) {
            let [rows, columns] = shape_of(&sources[0]);
            self.add(
                &at.part(name).part("input_tensor_b").joined(),
                sources,
                (Form::Stacked, Split::Devices),
                TensorSpec::tiled(&shape([1, local, rows, columns]), data_type, MemoryConfig::DRAM),
            );
        }
    }

    /// Experts in the packing of the fused operators, under upstream's names for their files.
    fn ring_experts(
        &mut self,
        at: &At,
        packing: RingPacking,
        (projection, sources): (RingProjection, Vec<Leaf<WeightSpec>>),
        local: usize,
    ) {
        let (name, blocks) = match projection {
            RingProjection::Up => ("quad_ring_w0_w1_experts", packing.up_blocks()),
            RingProjection::Down => ("quad_ring_w2_experts", packing.down_blocks()),
        };
        let shape = shape(RingPacking::shape(blocks, local));
        self.add(
            &at.part(name).part("input_tensor_b").joined(),
            sources,
            (Form::Ring { packing, projection }, Split::RingDevices),
            TensorSpec::tiled(&shape, DataType::Bfloat4B, RingPacking::memory_config(shape)),
        );
    }
}
