//! The plan as one document.

use super::{
    PlanError,
    check::{Checker, Device, ModelRules, OperationMemory},
    modules::{
        kv_cache,
        model::{self, ModelConfig},
    },
    operations::{Chain, OperationList, forward},
    request::{Dimensions, Fabric, Mode, Request},
    rules::chunks::PrefillChunkSizes,
};
use dsv3_deepseek::HfConfig;
use serde::{Deserialize, Serialize};

/// The version of the document's form.
const FORMAT_VERSION: u32 = 1;
/// The release of TT-NN whose names and checks the configs go by.
const TTNN_VERSION: &str = "0.81.1";

/// The configs of a mode, and what they are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDocument {
    /// What they are for.
    pub header: Header,
    /// The configs, in upstream's tree.
    pub model_config: ModelConfig,
}

/// What configs are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The version of the document's form.
    pub format_version: u32,
    /// The release of TT-NN.
    pub ttnn: String,
    /// The mode.
    pub mode: Mode,
    /// Rows and columns.
    pub mesh: String,
    /// How the chips are connected.
    pub fabric: Fabric,
    /// Users of a row of the mesh.
    pub users_per_row: u32,
    /// Tokens of a prompt, or positions that a user has at most.
    pub sequence_length: u32,
    /// Positions of a user's cache: of the longest sequence that is served.
    pub max_sequence_length: u32,
    /// Prefill: how much of it is taken at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_sizes: Option<PrefillChunkSizes>,
    /// Prefill: the prompt's length with what it is filled up with to whole chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padded_length: Option<u32>,
    /// Prefill: why chunks are less than half of what the mesh has memory for, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_sizes_reason: Option<String>,
    /// The model.
    pub model: Model,
    /// What a device of the mesh holds.
    pub dram: super::dram::Dram,
}

/// The dimensions that the configs follow from, by config.json's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Model {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub first_k_dense_replace: usize,
    pub num_nextn_predict_layers: usize,
    pub intermediate_size: usize,
    pub moe_intermediate_size: Option<usize>,
    pub n_routed_experts: Option<usize>,
    pub n_shared_experts: Option<usize>,
    pub num_experts_per_tok: Option<usize>,
    pub num_attention_heads: usize,
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub vocab_size: usize,
}

/// A plan: its document, the operations that it is for, and what they need of a core's memory by our own count.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The document.
    pub document: PlanDocument,
    /// The operations of a step, built from it.
    pub operations: OperationList,
    /// What they need.
    pub memory: Vec<OperationMemory>,
}

/// Plans a model on a mesh. Every operation that a step issues has passed this project's own rules ([`super::check`]).
///
/// # Errors
/// Options that make no sense, a model that upstream's modules do not compute, dimensions that do not divide, products or
/// layers that do not fit, and operations that the rules refuse.
pub fn plan(hf: &HfConfig, request: Request) -> Result<Plan, PlanError> {
    plan_of(hf, &Dimensions::new(hf, request)?)
}

/// Plans by sizes that the planner derived; the check derives its own.
fn plan_of(hf: &HfConfig, dimensions: &Dimensions) -> Result<Plan, PlanError> {
    let request = dimensions.request;
    let model_config = model::model_config(dimensions)?;
    let dram = super::dram::count(dimensions, &model_config, kv_cache::model_config(dimensions).bytes())?;
    let device = Device { mesh: [dimensions.rows, dimensions.columns], fabric: request.fabric };
    let mut chain = Chain::new(Checker::new(device, Some(ModelRules::new(hf, request.mesh))));
    forward(&mut chain, dimensions, &model_config)?;
    let (operations, checker) = chain.finish();
    let list = OperationList::new(request.mesh, request.fabric, operations);
    let header = Header {
        format_version: FORMAT_VERSION,
        ttnn: TTNN_VERSION.to_owned(),
        mode: request.mode,
        mesh: request.mesh.to_string(),
        fabric: request.fabric,
        users_per_row: request.users_per_row,
        sequence_length: request.sequence_length,
        max_sequence_length: request.max_sequence_length,
        chunk_sizes: (request.mode == Mode::Prefill).then_some(dimensions.chunks),
        padded_length: (request.mode == Mode::Prefill).then_some(dimensions.padded_length),
        chunk_sizes_reason: dimensions.chunks_reason.clone(),
        model: Model::of(hf),
        dram,
    };
    let document = PlanDocument { header, model_config };
    Ok(Plan { document, operations: list, memory: checker.memory().to_vec() })
}

impl Model {
    fn of(hf: &HfConfig) -> Self {
        let (attention, moe) = (&hf.attention, hf.moe.as_ref());
        Self {
            hidden_size: hf.hidden_size,
            num_hidden_layers: hf.num_hidden_layers,
            first_k_dense_replace: hf.first_k_dense_replace,
            num_nextn_predict_layers: hf.mtp_layers,
            intermediate_size: hf.intermediate_size,
            moe_intermediate_size: moe.map(|moe| moe.intermediate_size),
            n_routed_experts: moe.map(|moe| moe.routed_experts),
            n_shared_experts: moe.map(|moe| moe.shared_experts),
            num_experts_per_tok: moe.map(|moe| moe.experts_per_token),
            num_attention_heads: attention.heads,
            q_lora_rank: attention.q_lora_rank,
            kv_lora_rank: attention.kv_lora_rank,
            qk_nope_head_dim: attention.qk_nope_head_dim,
            qk_rope_head_dim: attention.qk_rope_head_dim,
            v_head_dim: attention.v_head_dim,
            vocab_size: hf.vocab_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::TILE;
    use std::{fs, path::Path};

    /// The check has its own sizes: an error in one of the planner's is found, in each of them.
    #[test]
    fn an_error_in_a_size_of_the_planner_is_found() {
        type Alter = fn(&mut Dimensions);
        let alterations: [(&str, Alter); 21] = [
            ("hidden", |d| d.hidden += 8 * TILE),
            ("local_hidden", |d| d.local_hidden += TILE),
            ("embedding_part", |d| d.embedding_part += TILE),
            ("vocabulary", |d| d.vocabulary += TILE),
            ("local_vocabulary", |d| d.local_vocabulary += TILE),
            ("local_dense", |d| d.local_dense += TILE),
            ("epsilon", |d| d.epsilon *= 10.0),
            ("heads", |d| d.attention.heads += 8),
            ("local_heads", |d| d.attention.local_heads += 1),
            ("heads and local_heads", |d| {
                d.attention.heads += 8;
                d.attention.local_heads += 1;
            }),
            ("query_rank", |d| d.attention.query_rank += TILE),
            ("latent_rank", |d| d.attention.latent_rank += TILE),
            ("nope", |d| d.attention.nope += TILE),
            ("rope", |d| d.attention.rope += TILE),
            ("value", |d| d.attention.value += TILE),
            ("scale", |d| d.attention.scale *= 1.1),
            ("routed", |d| d.experts.as_mut().unwrap().routed += 32),
            ("local", |d| d.experts.as_mut().unwrap().local += 1),
            ("width", |d| d.experts.as_mut().unwrap().width += TILE),
            ("local_shared", |d| d.experts.as_mut().unwrap().local_shared += TILE),
            ("experts.scale", |d| d.experts.as_mut().unwrap().scale = 1.0),
        ];
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs/deepseek-v3-671b.json");
        let hf = HfConfig::from_json(&path, &fs::read_to_string(&path).unwrap()).unwrap();
        for mode in [Mode::Decode, Mode::Prefill] {
            let request = Request {
                mesh: "4x8".parse().unwrap(),
                mode,
                users_per_row: 32,
                sequence_length: 1024,
                max_sequence_length: 1024,
                fabric: Fabric::Line,
            };
            assert!(plan_of(&hf, &Dimensions::new(&hf, request).unwrap()).is_ok());
            for (name, alter) in alterations {
                let mut dimensions = Dimensions::new(&hf, request).unwrap();
                alter(&mut dimensions);
                let error = plan_of(&hf, &dimensions).err();
                assert!(matches!(error, Some(PlanError::Refused { .. })), "{name} in {mode}: {error:?}");
            }
        }
    }
}
