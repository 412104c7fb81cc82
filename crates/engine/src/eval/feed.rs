//! Tokens that are given go through a model, logits come out: prefill in chunks, decode one by one.

use std::ops::Range;

use dsv3_runtime::{DecodeStep, LogitRows, PageId, PrefillStep, TokenId};

use crate::{Error, LanguageModel, ModelLimits};

/// Runs one sequence of given tokens at a time. All of the model's pages are its own.
pub struct Feed<'a, M> {
    model: &'a mut M,
    limits: ModelLimits,
    pages: Vec<PageId>,
    position: usize,
    prefill_chunk: usize,
}

impl<'a, M: LanguageModel> Feed<'a, M> {
    /// One that runs prompts in chunks of `prefill_chunk` tokens.
    ///
    /// # Panics
    /// If `prefill_chunk` is 0.
    pub fn new(model: &'a mut M, prefill_chunk: usize) -> Self {
        assert!(prefill_chunk > 0, "a chunk holds at least one token");
        let limits = model.limits();
        let pages = (0..).take(limits.page_count).map(PageId).collect();
        Self { model, limits, pages, position: 0, prefill_chunk }
    }

    /// What the model and its state can hold.
    pub fn limits(&self) -> &ModelLimits {
        &self.limits
    }

    /// Begins a sequence and runs its first tokens. The logits `[vocab]` after those whose positions are in `wanted`
    /// go to `on_row`, in order.
    ///
    /// # Errors
    /// If the tokens are none, or not for this model, or the model fails; and what `on_row` returns.
    pub fn prefill(
        &mut self,
        tokens: &[TokenId],
        wanted: Range<usize>,
        mut on_row: impl FnMut(usize, &[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.limits.check_prompt(tokens)?;
        self.position = 0;
        for chunk in tokens.chunks(self.prefill_chunk) {
            let start = self.position;
            let end = start + chunk.len();
            let inside = wanted.start.max(start)..wanted.end.min(end);
            let (rows, first) = match inside {
                _ if inside.is_empty() => (LogitRows::None, end),
                _ if inside.start == end - 1 => (LogitRows::Last, end - 1),
                _ => (LogitRows::All, start),
            };
            let step = PrefillStep::new(start, &self.pages, rows);
            let logits = self.model.forward_prefill(chunk, &step)?; // [end - first, vocab]
            assert_eq!((logits.rows(), logits.cols()), (end - first, self.limits.vocab_size));
            for position in inside {
                on_row(position, logits.row(position - first))?;
            }
            self.position = end;
        }
        Ok(())
    }

    /// Runs the sequence's next token: the logits after it, `[vocab]`.
    ///
    /// # Errors
    /// If the token is not the model's, the context is full, or the model fails.
    pub fn decode(&mut self, token: TokenId) -> Result<Vec<f32>, Error> {
        let (position, vocab_size) = (self.position, self.limits.vocab_size);
        if token.0 as usize >= vocab_size {
            return Err(Error::TokenOutOfVocabulary { position, token, vocab_size });
        }
        let context = self.limits.context();
        if position >= context {
            return Err(Error::PromptTooLong { prompt: position + 1, context });
        }
        let (positions, pages) = ([position], [&self.pages[..]]);
        let step = DecodeStep::new(&positions, &pages);
        let logits = self.model.forward_decode(&[token], &step)?;
        assert_eq!((logits.rows(), logits.cols()), (1, vocab_size));
        self.position += 1;
        Ok(logits.row(0).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeModel, VOCAB_SIZE, one_hot};

    const LIMITS: ModelLimits =
        ModelLimits { vocab_size: VOCAB_SIZE, max_context: 12, page_size: 4, page_count: 3, rows: 1 };

    /// Names the last token, so that a row tells which token it came after.
    fn echo(tokens: &[TokenId]) -> Vec<f32> {
        one_hot(tokens[tokens.len() - 1])
    }

    #[test]
    fn rows_come_in_order_and_only_those_wanted_are_computed() {
        let tokens: Vec<TokenId> = (20..31).map(TokenId).collect();
        let mut model = FakeModel::new(LIMITS, echo);
        let mut seen = Vec::new();
        let mut feed = Feed::new(&mut model, 4);
        feed.prefill(&tokens, 7..10, |position, row| {
            seen.push((position, super::super::distribution::highest(row.iter().copied())));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(7, 27), (8, 28), (9, 29)]);
        let rows: Vec<LogitRows> = model.prefills.iter().map(|prefill| prefill.2).collect();
        assert_eq!(rows, [LogitRows::None, LogitRows::Last, LogitRows::All]);
    }

    #[test]
    fn a_sequence_goes_on_and_begins_anew() {
        let mut model = FakeModel::new(LIMITS, |tokens: &[TokenId]| {
            one_hot(TokenId(tokens.iter().map(|token| token.0).sum()))
        });
        let mut feed = Feed::new(&mut model, 2);
        for _ in 0..2 {
            feed.prefill(&[1, 2, 3].map(TokenId), 0..0, |_, _| unreachable!()).unwrap();
            assert_eq!(feed.decode(TokenId(4)).unwrap()[10], 0.0);
            assert_eq!(feed.decode(TokenId(5)).unwrap()[15], 0.0);
        }
    }

    #[test]
    fn what_the_model_cannot_run_is_refused() {
        let mut model = FakeModel::new(LIMITS, echo);
        let mut feed = Feed::new(&mut model, 4);
        let error = feed.prefill(&[TokenId(20); 13], 0..0, |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { prompt: 13, context: 12 }), "{error}");
        feed.prefill(&[TokenId(20); 12], 0..0, |_, _| Ok(())).unwrap();
        assert!(matches!(feed.decode(TokenId(20)), Err(Error::PromptTooLong { .. })));
        assert!(matches!(feed.decode(TokenId(280)), Err(Error::TokenOutOfVocabulary { .. })));
        assert!(matches!(feed.prefill(&[], 0..0, |_, _| Ok(())), Err(Error::EmptyPrompt)));
    }
}
