//! The language-model head: each column has a part of the vocabulary.

use super::{linear::TransposedWeight, mlp::product_rows};
use crate::{
    plan::{
        PlanError,
        operators::{AllGatherAsyncConfig, LinearConfig},
        request::Dimensions,
        rules::{collectives, kernels, placement::Placement},
    },
    types::{DataType, MemoryConfig, ProgramConfig},
};
use serde::{Deserialize, Serialize};

/// Operators of the head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmHeadConfig {
    /// The whole rows on each column.
    pub all_gather: AllGatherAsyncConfig,
    /// The product, of a tile of rows: decode's users, or the last token of a prompt.
    pub linear: LinearConfig,
    /// Prefill: the same of all tokens of a prompt, so many rows at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_tokens: Option<ManyRows>,
}

/// A product of many rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManyRows {
    /// Rows that are multiplied at a time.
    pub max_rows: u32,
    /// How the product is laid over cores then.
    pub program_config: ProgramConfig,
}

impl LmHeadConfig {
    /// The product of many rows, and how many of them; none in decode.
    pub fn of_all_tokens(&self) -> Option<(LinearConfig, u32)> {
        let ManyRows { max_rows, program_config } = self.all_tokens.as_ref()?;
        let linear = LinearConfig { program_config: Some(program_config.clone()), ..self.linear.clone() };
        Some((linear, *max_rows))
    }
}

/// Of decode.
///
/// # Errors
/// A product that does not fit L1.
pub fn decode_model_config(dimensions: &Dimensions) -> Result<LmHeadConfig, PlanError> {
    config(dimensions, MemoryConfig::L1, None)
}

/// Of prefill.
///
/// # Errors
/// A product that does not fit L1.
pub fn prefill_model_config(dimensions: &Dimensions) -> Result<LmHeadConfig, PlanError> {
    let max_rows = product_rows(dimensions.tokens);
    let program_config = weight(dimensions).program_of_many_rows(max_rows)?;
    config(dimensions, MemoryConfig::DRAM, Some(ManyRows { max_rows, program_config }))
}

fn config(
    dimensions: &Dimensions,
    place: Placement,
    all_tokens: Option<ManyRows>,
) -> Result<LmHeadConfig, PlanError> {
    Ok(LmHeadConfig {
        all_gather: collectives::all_gather(dimensions, -1, collectives::COLUMNS, place.clone()),
        linear: weight(dimensions).few_rows(dimensions, place)?,
        all_tokens,
    })
}

fn weight(dimensions: &Dimensions) -> TransposedWeight<'static> {
    TransposedWeight {
        what: "lm_head",
        inner: dimensions.hidden,
        columns: dimensions.local_vocabulary,
        dtype: DataType::Bfloat8B,
        compute: kernels::PRODUCT,
    }
}
