//! What changes from step to step: tokens, positions, pages. Made by the engine, read by the modules.

use crate::{Error, Tensor};
use serde::{Deserialize, Serialize};

/// An id of the tokenizer's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

/// A page of the latent cache. The same page id names one page in every layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageId(pub u32);

/// The two ways to run a model. Each has operator configs of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many tokens of one sequence.
    Prefill,
    /// One token of each of several sequences.
    Decode,
}

/// Which rows of a prefill the language-model head is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a chunk that is not the prompt's last. The logits tensor has no rows.
    None,
    /// The chunk's last token.
    Last,
    /// Every token of the chunk.
    All,
}

impl LogitRows {
    /// The rows of a chunk's hidden states that the head is run on.
    ///
    /// # Shapes
    /// `[tokens, features]` to `[rows, features]`.
    pub fn select(self, hidden: &Tensor) -> Tensor {
        let cols = hidden.cols();
        match self {
            Self::None => Tensor::zeros(0, cols),
            Self::Last => Tensor::from_vec(1, cols, hidden.row(hidden.rows() - 1).to_vec()),
            Self::All => hidden.clone(),
        }
    }
}

/// One chunk of one sequence's prompt: tokens at the positions `start .. start + tokens`.
#[derive(Clone, Copy, Debug)]
pub struct PrefillStep<'a> {
    /// Position of the chunk's first token; the cache already holds the positions before it.
    pub start: usize,
    /// The sequence's pages, in order of position; they must cover the chunk.
    pub pages: &'a [PageId],
    /// Which rows get logits.
    pub logits: LogitRows,
}

impl PrefillStep<'_> {
    /// Checks that a chunk has tokens.
    ///
    /// # Errors
    /// A chunk without any.
    pub fn check(&self, tokens: &[TokenId]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::Request(format!("a chunk at position {} has no tokens", self.start)));
        }
        Ok(())
    }
}

/// One token of each of several sequences ("users").
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep<'a> {
    /// Position of each user's token, `[users]`.
    pub positions: &'a [usize],
    /// Each user's pages, in order of position, `[users]`; they must cover the position.
    pub pages: &'a [&'a [PageId]],
}
