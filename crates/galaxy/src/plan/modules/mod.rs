//! Stage 2 of each module, in upstream's tree and under its names. A module's config is made by `decode_model_config` and
//! `prefill_model_config`.

pub mod decoder_block;
pub mod embedding;
pub mod experts;
pub mod kv_cache;
mod linear;
pub mod lm_head;
pub mod mla;
pub mod mla_prefill;
pub mod mlp;
pub mod model;
pub mod moe;
pub mod moe_block;
pub mod moe_gate;
pub mod moe_optimized;
pub mod mtp;
pub mod rms_norm;
pub mod rope;
