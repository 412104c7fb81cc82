//! The lookup of token embeddings.

use crate::{Device, Error, Tensor, TokenId, Weight};
use serde::{Deserialize, Serialize};

/// Config of [`embedding`], for this device's part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// Rows of the table.
    pub vocab_size: usize,
    /// Columns of the table on this device.
    pub features: usize,
}

/// The table's rows of the tokens, widened to f32.
///
/// # Shapes
/// `tokens` `[tokens]`, `table` `[vocab, features]`; gives `[tokens, features]`.
///
/// # Errors
/// An id beyond the vocabulary.
pub fn embedding(
    tokens: &[TokenId],
    table: &Weight,
    config: &EmbeddingConfig,
    device: &Device,
) -> Result<Tensor, Error> {
    let table = table.matrix();
    if let Some(TokenId(id)) = tokens.iter().find(|token| token.0 as usize >= config.vocab_size) {
        let message = format!("token id {id} is beyond the vocabulary of {} ids", config.vocab_size);
        return Err(Error::Request(message));
    }
    let mut out = Tensor::anything(tokens.len(), config.features);
    device.for_each_row_chunk(out.values_mut(), config.features, |first, chunk| {
        for (token, out) in tokens[first..].iter().zip(chunk.chunks_exact_mut(config.features)) {
            device.kernels().dequantize_row(&table, token.0 as usize, out);
        }
    });
    Ok(out)
}
