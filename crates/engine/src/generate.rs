//! The generation loop: prompt ids in, events out, one sequence at a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use dsv3_runtime::{DecodeStep, LogitRows, PrefillStep, Tensor, TokenId};

use crate::{Error, Event, Finish, LanguageModel, ModelLimits, PagePool, Request, Sequence, Tokenizer};

/// Runs sequences through a model, one after another.
pub struct Generator<'a, M> {
    model: &'a mut M,
    tokenizer: &'a Tokenizer,
    limits: ModelLimits,
    pool: PagePool,
    prefill_chunk: usize,
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

impl<'a, M: LanguageModel> Generator<'a, M> {
    /// A generator that runs prompts in chunks of `prefill_chunk` tokens. All of the model's pages are its own.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `prefill_chunk` is 0.
    pub fn new(model: &'a mut M, tokenizer: &'a Tokenizer, prefill_chunk: usize) -> Result<Self, Error> {
        if prefill_chunk == 0 {
            let expected = "at least 1";
            return Err(Error::Parameter { parameter: "prefill_chunk", value: "0".to_owned(), expected });
        }
        let limits = model.limits();
        let pool = PagePool::new(&limits);
        Ok(Self { model, tokenizer, limits, pool, prefill_chunk })
    }

    /// Continues a prompt. Each step's event goes to `on_event`, which may end the generation.
    ///
    /// The texts of the events are, one after another, the text of the result; only a break may leave text that was
    /// held back in the result alone. At the context's end a generation finishes with `length`.
    ///
    /// # Errors
    /// If the prompt or the request is refused (see [`Sequence::new`]), or the model fails. The pages are free again
    /// in any case.
    pub fn generate(
        &mut self,
        prompt: &[TokenId],
        request: &Request,
        mut on_event: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let mut sequence = Sequence::new(prompt, request, &self.limits, &self.pool)?;
        let mut timings = Timings::default();
        if sequence.finish().is_none() {
            let mut event = self.first(&mut sequence, &mut timings)?;
            while on_event(&event).is_continue() && sequence.finish().is_none() {
                event = self.next(&mut sequence, &mut timings)?;
            }
            sequence.cancel();
        }
        Ok(Generation {
            tokens: sequence.generated().to_vec(),
            text: sequence.text().to_owned(),
            finish: sequence.finish().expect("the loop ends with the sequence").clone(),
            timings,
        })
    }

    /// Runs the prompt and chooses the first token.
    fn first(&mut self, sequence: &mut Sequence, timings: &mut Timings) -> Result<Event, Error> {
        let start = Instant::now();
        let logits = self.prefill(sequence)?;
        timings.prefill = Rate { tokens: sequence.cached(), time: start.elapsed() };
        let event = sequence.accept(logits.row(0), self.tokenizer)?;
        timings.time_to_first_token = start.elapsed();
        Ok(event)
    }

    /// Runs the last token and chooses the next.
    fn next(&mut self, sequence: &mut Sequence, timings: &mut Timings) -> Result<Event, Error> {
        let start = Instant::now();
        let logits = self.decode(sequence)?;
        let event = sequence.accept(logits.row(0), self.tokenizer)?;
        timings.decode.tokens += 1;
        timings.decode.time += start.elapsed();
        Ok(event)
    }

    /// # Shapes
    /// prompt `[t]` -> logits `[1, vocab]` of its last token
    fn prefill(&mut self, sequence: &mut Sequence) -> Result<Tensor, Error> {
        loop {
            let (range, rows) =
                sequence.prefill_chunk(self.prefill_chunk).expect("a prompt has at least one token to run");
            sequence.reserve(range.end)?;
            let step = PrefillStep::new(range.start, sequence.pages(), rows).on_row(sequence.row());
            let logits = self.model.forward_prefill(&sequence.tokens()[range.clone()], &step)?;
            sequence.set_cached(range.end);
            if rows == LogitRows::Last {
                self.check_shape(&logits);
                return Ok(logits);
            }
        }
    }

    /// # Shapes
    /// last token `[1]` -> logits `[1, vocab]`
    fn decode(&mut self, sequence: &mut Sequence) -> Result<Tensor, Error> {
        let position = sequence.cached();
        sequence.reserve(position + 1)?;
        let (positions, pages, rows) = ([position], [sequence.pages()], [sequence.row()]);
        let step = DecodeStep::new(&positions, &pages).on_rows(&rows);
        let logits = self.model.forward_decode(&[sequence.last_token()], &step)?;
        sequence.set_cached(position + 1);
        self.check_shape(&logits);
        Ok(logits)
    }

    fn check_shape(&self, logits: &Tensor) {
        let (got, expected) = ((logits.rows(), logits.cols()), (1, self.limits.vocab_size));
        assert_eq!(got, expected, "the model's logits have another shape than its limits say");
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
