//! The whole model.

use super::{
    decoder_block::{self, DecoderBlockConfig},
    embedding::{self, EmbeddingModuleConfig},
    lm_head::{self, LmHeadConfig},
    mlp::MlpConfig,
    moe_block::MoeBlockConfig,
    mtp::{self, MtpConfig},
    rms_norm::{self, DistributedRMSNormConfig},
    rope::{self, DecodeRopeConfig},
};
use crate::{
    plan::{
        PlanError,
        operators::{AllGatherAsyncConfig, ReshardConfig, SliceConfig},
        request::{Dimensions, Mode},
        rules::{collectives, placement},
    },
    types::MemoryConfig,
};
use serde::{Deserialize, Serialize};

/// Operators of the model. Layers of a kind have equal configs: one stands for all of them, as upstream has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Token embedding.
    pub embedding: EmbeddingModuleConfig,
    /// To where the residual stream lies.
    pub embedding_reshard: ReshardConfig,
    /// Decode: the step's rotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<DecodeRopeConfig>,
    /// Layers with a dense MLP; none, or one for all.
    pub mlp_decoder_block: Vec<DecoderBlockConfig<MlpConfig>>,
    /// Layers with experts; none, or one for all.
    pub moe_decoder_block: Vec<DecoderBlockConfig<MoeBlockConfig>>,
    /// Prefill: the rows' positions, of which the last token is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_token: Option<LastToken>,
    /// The last norm.
    pub norm: DistributedRMSNormConfig,
    /// To where the head wants it.
    pub norm_reshard: ReshardConfig,
    /// The head.
    pub lm_head: LmHeadConfig,
    /// The layer for multi-token prediction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp: Option<MtpConfig>,
}

/// How the last token of a prompt is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastToken {
    /// The positions of all rows of the mesh.
    pub all_gather: AllGatherAsyncConfig,
    /// The tile of the token.
    pub slice: SliceConfig,
}

/// Of either mode.
///
/// # Errors
/// A product that does not fit L1, or an attention that cannot be computed.
pub fn model_config(dimensions: &Dimensions) -> Result<ModelConfig, PlanError> {
    let is_decode = dimensions.request.mode == Mode::Decode;
    let stream = if is_decode { placement::residual(dimensions.local_hidden) } else { MemoryConfig::DRAM };
    let dense =
        (dimensions.dense_layers > 0).then(|| decoder_block::dense_model_config(dimensions)).transpose()?;
    let with_experts = dimensions.experts.as_ref();
    let moe = with_experts.filter(|_| dimensions.moe_layers > 0);
    let moe = moe.map(|experts| decoder_block::moe_model_config(dimensions, experts)).transpose()?;
    let mtp = with_experts.filter(|_| dimensions.has_mtp);
    let (embedding, lm_head) = if is_decode {
        (embedding::decode_model_config(dimensions), lm_head::decode_model_config(dimensions)?)
    } else {
        (embedding::prefill_model_config(dimensions), lm_head::prefill_model_config(dimensions)?)
    };
    let mtp =
        mtp.map(|experts| mtp::model_config(dimensions, experts, (&embedding, &lm_head))).transpose()?;
    Ok(ModelConfig {
        embedding,
        embedding_reshard: ReshardConfig { memory_config: stream },
        rope: is_decode.then(|| rope::decode_model_config(dimensions)),
        mlp_decoder_block: dense.into_iter().collect(),
        moe_decoder_block: moe.into_iter().collect(),
        last_token: (!is_decode).then(|| last_token(dimensions)),
        norm: if is_decode {
            rms_norm::distributed_decode(dimensions)
        } else {
            rms_norm::distributed_prefill(dimensions)
        },
        norm_reshard: ReshardConfig {
            memory_config: if is_decode { MemoryConfig::L1 } else { MemoryConfig::DRAM },
        },
        lm_head,
        mtp,
    })
}

fn last_token(dimensions: &Dimensions) -> LastToken {
    LastToken {
        all_gather: collectives::all_gather(dimensions, 2, collectives::ROWS, MemoryConfig::DRAM),
        slice: SliceConfig { memory_config: MemoryConfig::DRAM },
    }
}
