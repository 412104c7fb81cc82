//! The layer for multi-token prediction: the next token's embedding and the model's last hidden state, both normed, become
//! the input of a block with experts. Embedding and head are the model's.

use super::{
    decoder_block::{self, DecoderBlockConfig},
    embedding::EmbeddingModuleConfig,
    linear::TransposedWeight,
    lm_head::LmHeadConfig,
    mlp::product_rows,
    moe_block::MoeBlockConfig,
    rms_norm::{self, DistributedRMSNormConfig},
};
use crate::{
    plan::{
        PlanError,
        operators::{AllGatherAsyncConfig, ConcatConfig, LinearConfig, ReshardConfig},
        request::{Dimensions, LocalExperts, Mode},
        rules::{collectives, kernels, placement},
    },
    types::{DataType, MemoryConfig},
};
use serde::{Deserialize, Serialize};

/// Operators of the layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtpConfig {
    /// The next token's embedding: the model's.
    pub embedding: EmbeddingModuleConfig,
    /// Of the model's last hidden state, before the norm that its head has.
    pub hidden_norm: DistributedRMSNormConfig,
    /// Of the token's embedding.
    pub token_norm: DistributedRMSNormConfig,
    /// The whole rows of both.
    pub all_gather: AllGatherAsyncConfig,
    /// Token, then hidden state.
    pub concat: ConcatConfig,
    /// Both into one: a column's part of the residual stream.
    pub eh_proj: EhProjConfig,
    /// To where the residual stream lies.
    pub eh_proj_reshard: ReshardConfig,
    /// The block.
    pub decoder_block: DecoderBlockConfig<MoeBlockConfig>,
    /// Before the head.
    pub head_norm: DistributedRMSNormConfig,
    /// The model's head.
    pub head: LmHeadConfig,
}

/// A product of at most so many rows at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EhProjConfig {
    /// Rows that are multiplied at a time.
    pub max_rows: u32,
    /// The product.
    pub linear: LinearConfig,
}

/// Of either mode.
///
/// # Errors
/// A product that does not fit L1, or an attention that cannot be computed.
pub fn model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
    (embedding, head): (&EmbeddingModuleConfig, &LmHeadConfig),
) -> Result<MtpConfig, PlanError> {
    let weight = TransposedWeight {
        what: "eh_proj",
        inner: 2 * dimensions.hidden,
        columns: dimensions.local_hidden,
        dtype: DataType::Bfloat8B,
        compute: kernels::LOFI,
    };
    let (norm, place, stream, eh_proj) = match dimensions.request.mode {
        Mode::Decode => {
            let linear = weight.few_rows(dimensions, MemoryConfig::L1)?;
            let stream = placement::residual(dimensions.local_hidden);
            let eh_proj = EhProjConfig { max_rows: dimensions.tokens, linear };
            (rms_norm::distributed_decode(dimensions), MemoryConfig::L1, stream, eh_proj)
        }
        Mode::Prefill => {
            let max_rows = product_rows(dimensions.tokens);
            let linear = weight.many_rows(dimensions, max_rows)?;
            let norm = rms_norm::distributed_prefill(dimensions);
            (norm, MemoryConfig::DRAM, MemoryConfig::DRAM, EhProjConfig { max_rows, linear })
        }
    };
    Ok(MtpConfig {
        embedding: embedding.clone(),
        hidden_norm: norm.clone(),
        token_norm: norm.clone(),
        all_gather: collectives::all_gather(dimensions, -1, collectives::COLUMNS, place.clone()),
        concat: ConcatConfig { dim: -1, memory_config: place },
        eh_proj,
        eh_proj_reshard: ReshardConfig { memory_config: stream },
        decoder_block: decoder_block::moe_model_config(dimensions, experts)?,
        head_norm: norm,
        head: head.clone(),
    })
}
