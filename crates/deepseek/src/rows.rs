//! What one row of the mesh runs of a step, and how the rows' logits come together.

use crate::model::ModelOutput;
use dsv3_mesh::{AllGatherConfig, Axis};
use dsv3_runtime::{DecodeStep, Device, Error, PrefillStep, Tensor, TokenId};
use std::ops::Range;

/// Which of a chunk's `tokens` this device's row runs, and its step.
pub(crate) fn prefill<'a>(
    step: &PrefillStep<'a>,
    tokens: usize,
    device: &Device,
) -> (Range<usize>, PrefillStep<'a>) {
    step.of_row(tokens, rows(device), row(device))
}

/// The logits of all rows, in order of row: of a chunk's tokens in their order.
///
/// # Shapes
/// `[tokens of this row, vocab]` to `[tokens, vocab]`.
pub(crate) fn gather(
    logits: Tensor,
    cfg: Option<&AllGatherConfig>,
    device: &Device,
) -> Result<Tensor, Error> {
    match cfg {
        Some(cfg) => device.all_gather(logits, cfg),
        None => Ok(logits),
    }
}

/// Runs `forward` on the users of this device's row. Gives all users' logits, and the hidden state of the row's.
pub(crate) fn decode(
    tokens: &[TokenId],
    step: &DecodeStep<'_>,
    cfg: Option<&AllGatherConfig>,
    device: &Device,
    forward: impl FnOnce(&[TokenId], &DecodeStep<'_>) -> Result<ModelOutput, Error>,
) -> Result<ModelOutput, Error> {
    let Some(cfg) = cfg else { return forward(tokens, step) };
    assert!(step.rows.iter().all(|&row| row < rows(device)), "a user's row is one of the mesh");
    let own = step.of_row(row(device));
    let own_tokens: Vec<_> = own.users.iter().map(|&user| tokens[user]).collect();
    let ModelOutput { logits, hidden } = forward(&own_tokens, &own.step())?;
    let by_row = device.all_gather(logits, cfg)?; // [users, vocab]
    let mut logits = Tensor::zeros(tokens.len(), by_row.cols());
    let order = (0..rows(device)).flat_map(|row| step.of_row(row).users);
    for (place, user) in order.enumerate() {
        logits.row_mut(user).copy_from_slice(by_row.row(place));
    }
    Ok(ModelOutput { logits, hidden })
}

fn rows(device: &Device) -> usize {
    device.mesh().shape().size(Axis::Rows)
}

fn row(device: &Device) -> usize {
    device.mesh().shape().coordinate(device.mesh().rank(), Axis::Rows)
}
