//! What the engine knows of a model: its limits and functions from tokens to logits.

use dsv3_runtime::{DecodeStep, PageId, PrefillStep, Tensor, TokenId};

use serde::Serialize;

use crate::Error;

/// What a model with its state can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLimits {
    /// The number of ids that have an embedding and a logit; it may exceed the tokenizer's (padding).
    pub vocab_size: usize,
    /// Positions that the state can hold for one sequence.
    pub max_context: usize,
    /// Positions of one page.
    pub page_size: usize,
    /// Pages of the cache of each row, shared by all sequences.
    pub page_count: usize,
    /// Rows of the mesh. A sequence is cached by one of them.
    pub rows: usize,
}

impl ModelLimits {
    /// Positions that one sequence can have when it is alone in the cache.
    pub fn context(&self) -> usize {
        self.max_context.min(self.page_size.saturating_mul(self.page_count))
    }

    /// Whether the model can run a prompt.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TokenOutOfVocabulary`] or [`Error::PromptTooLong`].
    pub fn check_prompt(&self, prompt: &[TokenId]) -> Result<(), Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let vocab_size = self.vocab_size;
        if let Some(position) = prompt.iter().position(|token| token.0 as usize >= vocab_size) {
            return Err(Error::TokenOutOfVocabulary { position, token: prompt[position], vocab_size });
        }
        let context = self.context();
        if prompt.len() > context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context });
        }
        Ok(())
    }
}

/// How often the experts of a mixture were chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChosenExperts {
    /// The number of the first layer that has experts.
    pub first_layer: usize,
    /// By layer from there on, and expert.
    pub counts: Vec<Vec<u32>>,
}

/// A language model with its state: a cache of pages that the caller hands out.
pub trait LanguageModel {
    /// What the model and its state can hold; constant.
    fn limits(&self) -> ModelLimits;

    /// Runs one chunk of one sequence's prompt.
    ///
    /// # Shapes
    /// tokens `[t]` -> logits `[rows by step.logits, vocab]`
    ///
    /// # Errors
    /// If the step is outside of what the state can hold, or the model fails.
    fn forward_prefill(
        &mut self,
        tokens: &[TokenId],
        step: &PrefillStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error>;

    /// Runs one token of each of several sequences ("users").
    ///
    /// # Shapes
    /// tokens `[users]` -> logits `[users, vocab]`
    ///
    /// # Errors
    /// If the step is outside of what the state can hold, or the model fails.
    fn forward_decode(
        &mut self,
        tokens: &[TokenId],
        step: &DecodeStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error>;

    /// Copies what one page of a row's cache holds into another.
    ///
    /// # Errors
    /// A page that the state does not have.
    fn copy_page(&mut self, row: usize, from: PageId, to: PageId) -> Result<(), dsv3_runtime::Error>;

    /// Which experts its tokens went to since this was last asked; the first time none, for counting begins then. None of a
    /// model without experts.
    fn take_chosen_experts(&mut self) -> Option<ChosenExperts> {
        None
    }

    /// Bytes that all layers hold of a page. None where pages cannot be brought out and back.
    fn page_bytes(&self) -> Option<usize> {
        None
    }

    /// Appends the bytes of a page.
    ///
    /// # Errors
    /// A page that the state does not have, or whose bytes cannot be had.
    fn read_page(&mut self, page: PageId, _: &mut Vec<u8>) -> Result<(), dsv3_runtime::Error> {
        Err(dsv3_runtime::Error::Request(format!("page {} cannot be brought out", page.0)))
    }

    /// Brings the bytes of a page back.
    ///
    /// # Errors
    /// A page that the state does not have, or bytes that are not one.
    fn write_page(&mut self, page: PageId, _: &[u8]) -> Result<(), dsv3_runtime::Error> {
        Err(dsv3_runtime::Error::Request(format!("page {} cannot be brought back", page.0)))
    }
}

impl<M: LanguageModel + ?Sized> LanguageModel for &mut M {
    fn limits(&self) -> ModelLimits {
        (**self).limits()
    }

    fn forward_prefill(
        &mut self,
        tokens: &[TokenId],
        step: &PrefillStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error> {
        (**self).forward_prefill(tokens, step)
    }

    fn forward_decode(
        &mut self,
        tokens: &[TokenId],
        step: &DecodeStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error> {
        (**self).forward_decode(tokens, step)
    }

    fn copy_page(&mut self, row: usize, from: PageId, to: PageId) -> Result<(), dsv3_runtime::Error> {
        (**self).copy_page(row, from, to)
    }

    fn take_chosen_experts(&mut self) -> Option<ChosenExperts> {
        (**self).take_chosen_experts()
    }

    fn page_bytes(&self) -> Option<usize> {
        (**self).page_bytes()
    }

    fn read_page(&mut self, page: PageId, out: &mut Vec<u8>) -> Result<(), dsv3_runtime::Error> {
        (**self).read_page(page, out)
    }

    fn write_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), dsv3_runtime::Error> {
        (**self).write_page(page, bytes)
    }
}
