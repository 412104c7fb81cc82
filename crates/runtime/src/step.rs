//! What changes from step to step: tokens, positions, pages. Made by the engine, read by the modules.

use serde::{Deserialize, Serialize};

/// An id of the tokenizer's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

/// A page of the latent cache. The same page id names one page in every layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageId(pub u32);

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

/// One token of each of several sequences ("users").
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep<'a> {
    /// Position of each user's token, `[users]`.
    pub positions: &'a [usize],
    /// Each user's pages, in order of position, `[users]`; they must cover the position.
    pub pages: &'a [&'a [PageId]],
}
