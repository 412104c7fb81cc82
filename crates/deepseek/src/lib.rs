//! DeepSeek-V3: the configuration, the modules, and a naive reference to hold them to.
//!
//! A module is a namespace: an uninhabited enum that implements [`Module`](dsv3_runtime::Module), one file each, with
//! the same parts in the same order. [`Model`] is the whole; every other module also runs alone.

#![forbid(unsafe_code)]

mod collectives;
pub mod counts;
mod decoder_block;
mod embedding;
mod experts;
pub mod gguf;
pub mod hf;
pub mod kinds;
mod lm_head;
mod mla;
mod mlp;
mod model;
mod moe;
mod moe_gate;
mod mtp;
mod plan;
pub mod reference;
mod rms_norm;
mod rope;
mod rows;
mod shared_expert;
mod spec;
mod speed;
mod traffic;

pub use collectives::{PlannedChunk, PlannedCollective, PlannedStep, planned_collectives};
pub use decoder_block::{
    DecoderBlock, DecoderBlockConfig, DecoderBlockState, DecoderBlockWeights, FeedForward, MlpDecoderBlock,
    MoeDecoderBlock,
};
pub use embedding::{Embedding, EmbeddingWeights};
pub use experts::{Experts, ExpertsInput};
pub use hf::HfConfig;
pub use lm_head::{LmHead, LmHeadConfig, LmHeadWeights};
pub use mla::{Mla, MlaConfig, MlaState, MlaWeights};
pub use mlp::{Mlp, MlpConfig, MlpWeights};
pub use model::{Model, ModelConfig, ModelOutput, ModelState, ModelWeights};
pub use moe::{Moe, MoeConfig, MoeState, MoeWeights};
pub use moe_gate::{MoeGate, MoeGateConfig, MoeGateWeights};
pub use mtp::{Mtp, MtpConfig, MtpInput, MtpWeights};
pub use plan::{HeldWeights, PlannedWeight, held_weights, plan_weights, scratch_bytes, usual_format};
pub use rms_norm::{RmsNorm, RmsNormConfig, RmsNormWeights};
pub use rope::{Rope, RopeInput};
pub use shared_expert::SharedExpert;
pub use speed::{Machines, StepTime, Work, busiest_share};
pub use traffic::{decode_bytes, planned_step_bytes, planned_step_bytes_of, step_bytes};
