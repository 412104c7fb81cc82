//! One request on its way: its tokens, its pages, and the state of its sampler, text and stop conditions.
//!
//! A sequence never runs the model. Its driver asks what to run ([`Sequence::prefill_chunk`], or a decode of
//! [`Sequence::last_token`]), runs it for one sequence or many, and hands the logits back ([`Sequence::accept`]).

use std::ops::Range;

use dsv3_runtime::{LogitRows, PageId, TokenId};

use crate::{
    Detokenizer, Error, Finish, GenerationConfig, ModelLimits, PagePool, PageTable, Sampler, SamplingParams,
    StopMatcher, Tokenizer, sampler,
};

/// What is asked for, beside the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The most tokens to generate. 0 is legal and gives none; the model is then not run at all.
    pub max_new_tokens: usize,
    /// Ids that end the text. Empty: nothing but the other conditions ends it.
    pub eos_token_ids: Vec<TokenId>,
    /// Strings that end the text and are no part of it.
    pub stop: Vec<String>,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
    /// Whether each token comes with its log probability, which costs an exponential for every id of the vocabulary.
    pub logprobs: bool,
}

impl Request {
    /// What the checkpoint's authors would have: their sampling, and their ids that end a text or else the
    /// tokenizer's EOS. No stop strings; special tokens are skipped.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the defaults are out of their range.
    pub fn new(
        defaults: &GenerationConfig,
        tokenizer: &Tokenizer,
        seed: u64,
        max_new_tokens: usize,
    ) -> Result<Self, Error> {
        let mut eos_token_ids = defaults.eos_token_ids.clone();
        if eos_token_ids.is_empty() {
            eos_token_ids.extend(tokenizer.eos());
        }
        Ok(Self {
            sampling: defaults.sampling_params(seed)?,
            max_new_tokens,
            eos_token_ids,
            stop: Vec::new(),
            skip_special: true,
            logprobs: false,
        })
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub token: TokenId,
    /// The natural logarithm of its probability by the model, before temperature and filters; if asked for.
    pub logprob: Option<f32>,
}

/// What one step of the model brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The token; `None` for the end-of-sequence token, which is not part of the result.
    pub token: Option<SampledToken>,
    /// The text that is certain now. Empty while a character is incomplete or a stop string may be coming.
    pub text_delta: String,
    /// Why the sequence ended with this token, if it did.
    pub finish: Option<Finish>,
}

/// One request on its way.
#[derive(Debug)]
pub struct Sequence {
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
    prompt_len: usize,
    /// Positions that the cache holds.
    cached: usize,
    pages: PageTable,
    sampler: Sampler,
    logprobs: bool,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    eos_token_ids: Vec<TokenId>,
    /// Tokens that the sequence may have at most, and what ends it there.
    max_tokens: usize,
    end: Finish,
    text: String,
    finish: Option<Finish>,
}

impl Sequence {
    /// Checks the prompt and the request; no pages are taken yet.
    ///
    /// # Errors
    /// Those of [`ModelLimits::check_prompt`], and [`Error::Parameter`] for an empty stop string.
    pub fn new(
        prompt: &[TokenId],
        request: &Request,
        limits: &ModelLimits,
        pool: &PagePool,
    ) -> Result<Self, Error> {
        limits.check_prompt(prompt)?;
        let context = limits.context();
        // The context bounds the prompt and its continuation together, as in transformers and vLLM.
        let asked = prompt.len().saturating_add(request.max_new_tokens);
        let (max_tokens, end) =
            if asked <= context { (asked, Finish::MaxNewTokens) } else { (context, Finish::ContextEnd) };
        let mut sequence = Self {
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            cached: 0,
            pages: pool.table(),
            sampler: Sampler::new(request.sampling),
            logprobs: request.logprobs,
            detokenizer: Detokenizer::new(request.skip_special),
            stops: StopMatcher::new(&request.stop)?,
            eos_token_ids: request.eos_token_ids.clone(),
            max_tokens,
            end,
            text: String::new(),
            finish: None,
        };
        sequence.finish = sequence.limit();
        Ok(sequence)
    }

    /// The next chunk of the prompt to run, of at most `max_len` tokens: its positions, and the rows that need
    /// logits. `None` when the whole prompt is in the cache.
    ///
    /// # Panics
    /// If `max_len` is 0.
    pub fn prefill_chunk(&self, max_len: usize) -> Option<(Range<usize>, LogitRows)> {
        assert!(max_len > 0, "a chunk holds at least one token");
        let rest = self.prompt_len.checked_sub(self.cached).filter(|&rest| rest > 0)?;
        let rows = if rest <= max_len { LogitRows::Last } else { LogitRows::None };
        Some((self.cached..self.cached + rest.min(max_len), rows))
    }

    /// Takes the pages for all positions before `position`.
    ///
    /// # Errors
    /// [`Error::OutOfPages`], and the sequence is as it was.
    pub fn reserve(&mut self, position: usize) -> Result<(), Error> {
        self.pages.grow_to(position)
    }

    /// Records that the model has run all positions before `position`.
    ///
    /// # Panics
    /// If these are fewer than before, more than there are tokens, or more than the pages hold.
    pub fn set_cached(&mut self, position: usize) {
        assert!(
            (self.cached..=self.tokens.len()).contains(&position) && position <= self.pages.capacity(),
            "{position} positions cannot be cached: {} were, of {} tokens",
            self.cached,
            self.tokens.len()
        );
        self.cached = position;
    }

    /// Chooses the next token from the logits `[vocab]` after the last one.
    ///
    /// # Errors
    /// If no token can be chosen from the logits.
    ///
    /// # Panics
    /// If the sequence is finished, or its last token was not run.
    pub fn accept(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<Event, Error> {
        assert!(self.finish.is_none(), "a finished sequence takes no more tokens");
        assert_eq!(self.cached, self.tokens.len(), "these are not the logits after the last token");
        let token = self.sampler.sample(logits)?;
        let start = self.text.len();
        if self.eos_token_ids.contains(&token) {
            self.end_with(Finish::EndOfSequence(token));
            return Ok(self.event(None, start));
        }
        self.tokens.push(token);
        let mut piece = String::new();
        self.detokenizer.push(tokenizer, token, &mut piece);
        if let Some(stop) = self.stops.push(&piece, &mut self.text) {
            self.finish = Some(Finish::StopString(stop));
        } else if let Some(finish) = self.limit() {
            self.end_with(finish);
        }
        let logprob = self.logprobs.then(|| sampler::logprob(logits, token));
        Ok(self.event(Some(SampledToken { token, logprob }), start))
    }

    /// Ends the sequence at the caller's wish, unless it has ended already.
    pub fn cancel(&mut self) {
        if self.finish.is_none() {
            self.end_with(Finish::Cancelled);
        }
    }

    /// Ends the text: an unfinished character, and what was held back for a stop string. The character may itself
    /// complete a stop string that holds U+FFFD; the sequence then ended with that.
    fn end_with(&mut self, finish: Finish) {
        let mut tail = String::new();
        self.detokenizer.finish(&mut tail);
        self.finish = Some(match self.stops.push(&tail, &mut self.text) {
            Some(stop) => Finish::StopString(stop),
            None => {
                self.text.push_str(&self.stops.finish());
                finish
            }
        });
    }

    fn limit(&self) -> Option<Finish> {
        (self.tokens.len() >= self.max_tokens).then(|| self.end.clone())
    }

    fn event(&self, token: Option<SampledToken>, start: usize) -> Event {
        Event { token, text_delta: self.text[start..].to_owned(), finish: self.finish.clone() }
    }

    /// All tokens, the prompt's first.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The generated tokens.
    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// The token that a decode step runs.
    pub fn last_token(&self) -> TokenId {
        self.tokens[self.tokens.len() - 1]
    }

    /// Positions that the cache holds; where the next token to run goes.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// The pages, in order of position.
    pub fn pages(&self) -> &[PageId] {
        self.pages.pages()
    }

    /// The row of the mesh that caches it.
    pub fn row(&self) -> usize {
        self.pages.row()
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why the sequence ended, if it did.
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }
}
