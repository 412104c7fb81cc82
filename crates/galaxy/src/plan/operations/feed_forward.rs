//! The operations of norms and of MLPs.

use super::chain::{Chain, Tensor};
use crate::plan::{
    PlanError,
    modules::{mlp::MlpConfig, rms_norm::DistributedRMSNormConfig},
    operators::LinearConfig,
};

/// The norm of rows whose parts are on the columns.
pub(super) fn norm(
    chain: &mut Chain,
    name: &str,
    config: &DistributedRMSNormConfig,
    x: &Tensor,
) -> Result<Tensor, PlanError> {
    chain.within(name, |chain| {
        let sums = chain.step("rms_norm_pre_all_gather", &config.rms_norm_pre_all_gather, &[x]).put()?;
        let sums = chain.step("all_gather", &config.all_gather, &[&sums]).put()?;
        chain.step("rms_norm_post_all_gather", &config.rms_norm_post_all_gather, &[x, &sums]).put()
    })
}

/// An MLP, and the collectives around it where it has them.
pub(super) fn mlp(chain: &mut Chain, config: &MlpConfig, x: &Tensor) -> Result<Tensor, PlanError> {
    let x = match &config.all_gather {
        Some(gather) => chain.step("all_gather", gather, &[x]).put()?,
        None => x.clone(),
    };
    let (gate, up) = (
        rows(chain, "w1", &config.w1, config.max_rows, &x)?,
        rows(chain, "w3", &config.w3, config.max_rows, &x)?,
    );
    let y = chain.step("mul", &config.mul, &[&gate, &up]).put()?;
    let y = rows(chain, "w2", &config.w2, config.max_rows, &y)?;
    match &config.reduce_scatter {
        Some(scatter) => chain.step("reduce_scatter", scatter, &[&y]).put(),
        None => Ok(y),
    }
}

/// A product of at most so many rows at a time: more of them become a batch.
pub(super) fn rows(
    chain: &mut Chain,
    name: &str,
    config: &LinearConfig,
    at_a_time: u32,
    x: &Tensor,
) -> Result<Tensor, PlanError> {
    let (tokens, width) = (x.shape()[2], x.shape()[3]);
    if tokens <= at_a_time {
        return chain.step(name, config, &[x]).put();
    }
    let batch = tokens.div_ceil(at_a_time);
    let padded = batch * at_a_time;
    let x = chain.pad_rows(&format!("{name}_pad"), x, padded)?;
    let x = chain.reshape(&format!("{name}_batch"), "reshape", &x, &[1, batch, at_a_time, width])?;
    let y = chain.step(name, config, &[&x]).put()?;
    let columns = y.shape()[3];
    let y = chain.reshape(&format!("{name}_rows"), "reshape", &y, &[1, 1, padded, columns])?;
    chain.first_rows(&format!("{name}_unpad"), &y, tokens)
}
