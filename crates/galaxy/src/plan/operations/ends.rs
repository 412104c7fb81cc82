//! The operations before the first block and after the last.

use super::{
    attention::Rotations,
    chain::{Chain, Tensor},
    feed_forward,
};
use crate::{
    hardware::TILE,
    plan::{
        PlanError,
        modules::{
            embedding::EmbeddingModuleConfig,
            lm_head::LmHeadConfig,
            model::{LastToken, ModelConfig},
            rope::DecodeRopeConfig,
        },
        request::{Dimensions, Mode},
        tensor::TensorSpec,
    },
    types::DataType,
};

/// Token ids to a column's part of the residual stream, each row with its own tokens.
pub(super) fn embedding(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &EmbeddingModuleConfig,
) -> Result<Tensor, PlanError> {
    // Every device has the ids of all rows, filled up to whole tiles.
    let ids = dimensions.tokens * dimensions.rows;
    let padded = ids.next_multiple_of(TILE);
    let part = dimensions.embedding_part;
    let tokens = Tensor::new(TensorSpec::rows(&[1, 1, padded], DataType::Uint32));
    let x = chain.step("embedding", &config.embedding, &[&tokens]).put()?;
    let x = chain.reshape("unsqueeze", "reshape", &x, &[1, 1, padded, part])?;
    let x = chain.step("typecast", &config.typecast, &[&x]).put()?;
    let x = chain.step("all_gather", &config.all_gather, &[&x]).put()?;
    let x = chain.step("reduce_scatter", &config.reduce_scatter, &[&x]).put()?;
    chain.step("reduce_scatter_scale", &config.reduce_scatter_scale, &[&x]).put()
}

/// A step's rotations in decode.
pub(super) fn rotations(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &DecodeRopeConfig,
) -> Result<Rotations, PlanError> {
    let users = dimensions.tokens;
    let positions = Tensor::new(TensorSpec::rows(&[1, users], DataType::Uint32));
    let mut table = |name: &str| -> Result<Tensor, PlanError> {
        let x = chain.step(name, &config.embedding, &[&positions]).put()?;
        let x = chain.reshape(
            &format!("{name}_unsqueeze"),
            "reshape",
            &x,
            &[1, 1, users, dimensions.attention.rope],
        )?;
        chain.step(&format!("{name}_by_user"), &config.by_user, &[&x]).put()
    };
    let (cos, sin) = (table("cos")?, table("sin")?);
    Ok(Rotations { cos, sin, transformation: Tensor::new(config.transformation.clone()) })
}

/// The last token of a prompt: the tile that it is in, on all rows of the mesh.
fn last_token(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &LastToken,
    x: &Tensor,
) -> Result<Tensor, PlanError> {
    let x = chain.step("all_gather", &config.all_gather, &[x]).put()?;
    let (end, width) = (x.shape()[2], dimensions.local_hidden);
    chain.slice("slice", &config.slice, &x, [&[0, 0, end - TILE, 0], &[1, 1, end, width]])
}

/// The residual stream after the last block to a column's part of the logits.
pub(super) fn head(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &ModelConfig,
    x: &Tensor,
) -> Result<(), PlanError> {
    let last = match &config.last_token {
        Some(last) => chain.within("last_token", |chain| last_token(chain, dimensions, last, x))?,
        None => x.clone(),
    };
    let normed = feed_forward::norm(chain, "norm", &config.norm, &last)?;
    let normed = chain.step("norm_reshard", &config.norm_reshard, &[&normed]).put()?;
    chain.within("lm_head", |chain| logits(chain, &config.lm_head, &normed))?;
    if dimensions.request.mode == Mode::Prefill {
        let normed = feed_forward::norm(chain, "norm_of_all", &config.norm, x)?;
        chain.within("lm_head_of_all", |chain| logits_of_all(chain, &config.lm_head, &normed))?;
    }
    Ok(())
}

/// Logits of a tile of rows.
pub(super) fn logits(chain: &mut Chain, config: &LmHeadConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let x = chain.step("all_gather", &config.all_gather, &[x]).put()?;
    chain.step("linear", &config.linear, &[&x]).put()
}

/// Logits of all rows.
pub(super) fn logits_of_all(
    chain: &mut Chain,
    config: &LmHeadConfig,
    x: &Tensor,
) -> Result<Tensor, PlanError> {
    let (linear, max_rows) = config.of_all_tokens().expect("prefill has it");
    let x = chain.step("all_gather", &config.all_gather, &[x]).put()?;
    feed_forward::rows(chain, "linear", &linear, max_rows, &x)
}
