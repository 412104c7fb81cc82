//! What changes from step to step: tokens, positions, pages. Made by the engine, read by the modules.

use crate::{Error, Tensor};
use serde::{Deserialize, Serialize};
use std::ops::Range;

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

/// One chunk of one sequence's prompt. Every rank of a mesh is given the same step; inside the model, each row of the
/// mesh has [its own](Self::of_row).
#[derive(Clone, Copy, Debug)]
pub struct PrefillStep<'a> {
    /// Position of the first token.
    pub start: usize,
    /// The sequence's pages, in order of position; they must cover the chunk.
    pub pages: &'a [PageId],
    /// Which rows get logits.
    pub logits: LogitRows,
    /// The row of the mesh whose devices cache the sequence.
    pub row: usize,
    /// Positions that the cache holds before the chunk: `start`, but for the later rows of a mesh.
    pub context: usize,
}

impl<'a> PrefillStep<'a> {
    /// The tokens from the position `start` on, of a sequence that the mesh's first row caches; the cache already
    /// holds the positions before it.
    pub fn new(start: usize, pages: &'a [PageId], logits: LogitRows) -> Self {
        Self { start, pages, logits, row: 0, context: start }
    }

    /// The same step of a sequence that another row of the mesh caches.
    #[must_use]
    pub fn on_row(self, row: usize) -> Self {
        Self { row, ..self }
    }

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

    /// Which of a chunk's `tokens` one of the `rows` rows of a mesh runs, and its step. The shares are as even as
    /// can be, the first rows' are the larger ones.
    pub fn of_row(&self, tokens: usize, rows: usize, row: usize) -> (Range<usize>, Self) {
        let (each, more) = (tokens / rows, tokens % rows);
        let start = row * each + row.min(more);
        let own = start..start + each + usize::from(row < more);
        let logits = match self.logits {
            LogitRows::Last if own.is_empty() || own.end < tokens => LogitRows::None,
            logits => logits,
        };
        (own, Self { start: self.start + start, logits, ..*self })
    }
}

/// One token of each of several sequences ("users"). Every rank of a mesh is given the same step; inside the model, each
/// row of the mesh has that of [its own users](Self::of_row).
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep<'a> {
    /// Position of each user's token, `[users]`.
    pub positions: &'a [usize],
    /// Each user's pages, in order of position, `[users]`; they must cover the position.
    pub pages: &'a [&'a [PageId]],
    /// The row of the mesh whose devices cache each user's sequence, `[users]`; empty where all are on the first.
    pub rows: &'a [usize],
}

impl<'a> DecodeStep<'a> {
    /// One token of each user at its position, of sequences that the mesh's first row caches.
    pub fn new(positions: &'a [usize], pages: &'a [&'a [PageId]]) -> Self {
        Self { positions, pages, rows: &[] }
    }

    /// The same step of sequences that these rows of the mesh cache.
    #[must_use]
    pub fn on_rows(self, rows: &'a [usize]) -> Self {
        Self { rows, ..self }
    }

    /// The row of the mesh that caches a user's sequence.
    pub fn row(&self, user: usize) -> usize {
        self.rows.get(user).copied().unwrap_or(0)
    }

    /// The users whose sequences a row of the mesh caches.
    pub fn of_row(&self, row: usize) -> RowUsers<'a> {
        let users: Vec<_> = (0..self.positions.len()).filter(|&user| self.row(user) == row).collect();
        RowUsers {
            positions: users.iter().map(|&user| self.positions[user]).collect(),
            pages: users.iter().map(|&user| self.pages[user]).collect(),
            users,
        }
    }
}

/// The users of one row of a mesh.
#[derive(Clone, Debug)]
pub struct RowUsers<'a> {
    /// Their numbers among all users, ascending.
    pub users: Vec<usize>,
    positions: Vec<usize>,
    pages: Vec<&'a [PageId]>,
}

impl RowUsers<'_> {
    /// The row's step.
    pub fn step(&self) -> DecodeStep<'_> {
        DecodeStep::new(&self.positions, &self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_rows_of_a_mesh_share_a_chunk_evenly(tokens in 1_usize..100, rows in 1_usize..20) {
            let step = PrefillStep::new(7, &[], LogitRows::Last);
            let shares: Vec<_> = (0..rows).map(|row| step.of_row(tokens, rows, row)).collect();
            let mut next = 0;
            for (own, step) in &shares {
                prop_assert_eq!((own.start, step.start, step.context), (next, 7 + next, 7));
                prop_assert!(own.len().abs_diff(tokens / rows) <= 1);
                next = own.end;
                let has_last = own.contains(&(tokens - 1));
                prop_assert_eq!(step.logits, if has_last { LogitRows::Last } else { LogitRows::None });
            }
            prop_assert_eq!(next, tokens);
        }
    }

    #[test]
    fn a_row_decodes_its_own_users() {
        let pages: Vec<_> = (0..4).map(|page| [PageId(page)]).collect();
        let pages: Vec<&[PageId]> = pages.iter().map(|pages| &pages[..]).collect();
        let step = DecodeStep::new(&[10, 11, 12, 13], &pages);
        assert_eq!(step.of_row(0).users, [0, 1, 2, 3]);
        let step = step.on_rows(&[1, 0, 1, 2]);
        let own = step.of_row(1);
        assert_eq!(own.users, [0, 2]);
        assert_eq!((own.step().positions, own.step().pages), (&[10, 12][..], &[pages[0], pages[2]][..]));
        assert!(step.of_row(3).users.is_empty());
    }
}
