//! A decoder block: `x += MLA(norm(x)); x += MLP(norm(x))`, with experts or without.

use super::{
    mla::{self, MlaDecodeConfig},
    mla_prefill::{self, MlaPrefillConfig},
    mlp::{self, Collectives, MlpConfig},
    moe_block::{self, MoeBlockConfig},
    rms_norm::{self, DistributedRMSNormConfig},
};
use crate::{
    plan::{
        PlanError,
        operators::{AddConfig, ReshardConfig},
        request::{Dimensions, LocalExperts, Mode},
        rules::placement,
    },
    types::MemoryConfig,
};
use serde::{Deserialize, Serialize};

/// Operators of a block whose MLP part is `M`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderBlockConfig<M> {
    /// Before the attention.
    pub mla_norm: DistributedRMSNormConfig,
    /// To where the attention wants it.
    pub mla_norm_reshard: ReshardConfig,
    /// The attention.
    pub mla: Mla2dConfig,
    /// To where the residual stream lies.
    pub mla_reshard: ReshardConfig,
    /// Before the MLP.
    pub mlp_norm: DistributedRMSNormConfig,
    /// To where the MLP wants it.
    pub mlp_norm_reshard: ReshardConfig,
    /// The MLP, or the experts.
    pub mlp: M,
    /// To where the residual stream lies.
    pub mlp_reshard: ReshardConfig,
    /// Onto the residual stream, both times.
    pub residual: AddConfig,
}

/// The attention, as upstream nests it: what the rows of the mesh share is around what each of them computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mla2dConfig {
    /// All of it.
    pub mla1d: MlaConfig,
}

/// The attention of a mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MlaConfig {
    /// Decode.
    Decode(Box<MlaDecodeConfig>),
    /// Prefill.
    Prefill(Box<MlaPrefillConfig>),
}

/// A block with a dense MLP.
///
/// # Errors
/// A product that does not fit L1, or an attention that cannot be computed.
pub fn dense_model_config(dimensions: &Dimensions) -> Result<DecoderBlockConfig<MlpConfig>, PlanError> {
    let width = dimensions.local_dense;
    let mlp = match dimensions.request.mode {
        Mode::Decode => mlp::decode_model_config(dimensions, width, Collectives::Here)?,
        Mode::Prefill => mlp::prefill_model_config(dimensions, width, Collectives::Here)?,
    };
    config(dimensions, mlp)
}

/// A block with experts.
///
/// # Errors
/// A product that does not fit L1, or an attention that cannot be computed.
pub fn moe_model_config(
    dimensions: &Dimensions,
    experts: &LocalExperts,
) -> Result<DecoderBlockConfig<MoeBlockConfig>, PlanError> {
    let mlp = match dimensions.request.mode {
        Mode::Decode => moe_block::decode_model_config(dimensions, experts)?,
        Mode::Prefill => moe_block::prefill_model_config(dimensions, experts)?,
    };
    config(dimensions, mlp)
}

fn config<M>(dimensions: &Dimensions, mlp: M) -> Result<DecoderBlockConfig<M>, PlanError> {
    let width = dimensions.local_hidden;
    let (norm, mla, stream, mla_input) = match dimensions.request.mode {
        Mode::Decode => {
            let mla = mla::decode_model_config(dimensions)?;
            let input = mla.input_memory_config.clone();
            let norm = rms_norm::distributed_decode(dimensions);
            (norm, MlaConfig::Decode(Box::new(mla)), placement::residual(width), input)
        }
        Mode::Prefill => {
            let mla = MlaConfig::Prefill(Box::new(mla_prefill::prefill_model_config(dimensions)?));
            (rms_norm::distributed_prefill(dimensions), mla, MemoryConfig::DRAM, MemoryConfig::DRAM)
        }
    };
    let reshard = || ReshardConfig { memory_config: stream.clone() };
    Ok(DecoderBlockConfig {
        mla_norm: norm.clone(),
        mla_norm_reshard: ReshardConfig { memory_config: mla_input },
        mla: Mla2dConfig { mla1d: mla },
        mla_reshard: reshard(),
        mlp_norm: norm,
        mlp_norm_reshard: reshard(),
        mlp,
        mlp_reshard: reshard(),
        residual: AddConfig { memory_config: stream.clone() },
    })
}
