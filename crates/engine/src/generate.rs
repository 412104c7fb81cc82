//! One request after another, for who waits for each: an [`Engine`] with a single sequence.

use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dsv3_runtime::TokenId;

use crate::{
    Engine, EngineConfig, Error, Event, Finish, LanguageModel, Request, StreamEvent, Submission, Tokenizer,
    Usage,
};

/// Runs requests through a model, one after another.
pub struct Generator<'a, M> {
    engine: Engine<&'a mut M>,
}

/// What one request brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The generated tokens, without the end-of-sequence token. Where a stop string ended the text, the last tokens
    /// are those that completed it.
    pub tokens: Vec<TokenId>,
    /// Their text, up to the stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were in the cache.
    pub cached_tokens: usize,
    /// How long it took.
    pub timings: Timings,
}

/// How long a generation took. Only the model and the sampler are counted, not what is done with the events.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// The prompt's tokens, up to the logits of the last.
    pub prefill: Rate,
    /// The tokens after the first (an end-of-sequence token included), one step of the model each.
    pub decode: Rate,
    /// From the call to the first token's choice.
    pub time_to_first_token: Duration,
}

/// Tokens in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// How many.
    pub tokens: usize,
    /// In how long.
    pub time: Duration,
}

impl Rate {
    /// Tokens in a second; 0 if there were none.
    pub fn per_second(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

impl From<Usage> for Timings {
    fn from(usage: Usage) -> Self {
        let Usage { prefill, decode, time_to_first_token, .. } = usage;
        Self { prefill, decode, time_to_first_token }
    }
}

impl<'a, M: LanguageModel> Generator<'a, M> {
    /// A generator that runs prompts in chunks of `prefill_chunk` tokens. All of the model's pages are its own.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `prefill_chunk` is 0.
    pub fn new(model: &'a mut M, tokenizer: &Arc<Tokenizer>, prefill_chunk: usize) -> Result<Self, Error> {
        Self::with_config(model, tokenizer, EngineConfig::single(prefill_chunk))
    }

    /// A generator as its engine's config says: with a cache between the prompts, say.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the config lets nothing run.
    pub fn with_config(
        model: &'a mut M,
        tokenizer: &Arc<Tokenizer>,
        config: EngineConfig,
    ) -> Result<Self, Error> {
        Ok(Self { engine: Engine::new(model, Arc::clone(tokenizer), config)? })
    }

    /// Continues a prompt. Each step's event goes to `on_event`, which may end the generation.
    ///
    /// The texts of the events are, one after another, the text of the result; only a break may leave text that was
    /// held back in the result alone. At the context's end a generation finishes with `length`.
    ///
    /// # Errors
    /// If the prompt or the request is refused (see [`Engine::submit`]), or the model fails. The pages are free again
    /// in any case.
    pub fn generate(
        &mut self,
        prompt: &[TokenId],
        request: &Request,
        on_event: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        self.generate_until(prompt, request, || false, on_event)
    }

    /// As [`generate`](Self::generate), until it `should_stop`, which is asked after each step, those of the prompt
    /// included.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_until(
        &mut self,
        prompt: &[TokenId],
        request: &Request,
        mut should_stop: impl FnMut() -> bool,
        mut on_event: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let (sender, events) = mpsc::channel();
        let submission = Submission { prompt: prompt.into(), request: request.clone() };
        let id = self.engine.submit(&submission, move |event| match sender.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })?;
        let (mut tokens, mut text, mut finish) = (Vec::new(), String::new(), Finish::Cancelled);
        let mut wants_more = true;
        loop {
            self.engine.step()?;
            if wants_more && should_stop() {
                // What the step has brought is told all the same.
                self.engine.cancel(id);
            }
            for event in events.try_iter() {
                match event {
                    StreamEvent::Started { .. } | StreamEvent::PromptLogprobs(_) => {}
                    StreamEvent::Token { event, .. } => {
                        tokens.extend(event.token.as_ref().map(|token| token.token));
                        text += &event.text_delta;
                        if wants_more && on_event(&event).is_break() {
                            wants_more = false;
                            self.engine.cancel(id);
                        }
                        finish = event.finish.unwrap_or(finish);
                    }
                    StreamEvent::Done(usage) => {
                        let cached_tokens = usage.cached_tokens;
                        return Ok(Generation { tokens, text, finish, cached_tokens, timings: usage.into() });
                    }
                    StreamEvent::Failed(error) => {
                        return Err(Arc::into_inner(error).expect("nobody else has it"));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
