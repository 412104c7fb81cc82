//! One choice of a request on its way: its tokens, its pages, and the state of its sampler, text and stop conditions.
//!
//! A sequence never runs the model. Its driver asks what to run ([`Sequence::prefill_chunk`], or a decode of
//! [`Sequence::next_token`]), runs it for one sequence or many, and hands the logits back ([`Sequence::accept`]).

use std::ops::Range;
use std::sync::Arc;

use dsv3_runtime::{LogitRows, TokenId};

use crate::adjust::{self, Adjustments};
use crate::structured::Guide;
use crate::{
    Constraint, Detokenizer, Error, Finish, GenerationConfig, ModelLimits, PagePool, PageTable, Sampler,
    SamplingParams, StopMatcher, Submission, TokenLogprobs, Tokenizer, check_range, logprobs,
};

/// Choices that one request may have.
const MOST_CHOICES: usize = 128;

/// What is asked for, beside the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Added to the logits of these ids, from -100 to 100.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The most tokens to generate. 0 is legal and gives none; the model is then not run at all.
    pub max_new_tokens: usize,
    /// Ids that end the text. Empty: nothing but the other conditions ends it.
    pub eos_token_ids: Vec<TokenId>,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether the string that ended the text is part of it.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
    /// Whether each token comes with its log probability and those of as many of the likeliest tokens (20 at most),
    /// which costs an exponential for every id of the vocabulary.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt, the first excepted. The whole prompt is run then, whatever is cached.
    pub prompt_logprobs: Option<usize>,
    /// Answers to the one prompt, 1 to 128. Where tokens are drawn, each answer has random numbers of its own.
    pub choices: usize,
    /// The form that the answer must have.
    pub constraint: Option<Constraint>,
    /// Cached prefixes are shared only between requests with the same salt.
    pub cache_salt: String,
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
        Ok(Self { max_new_tokens, eos_token_ids, ..Self::of(defaults.sampling_params(seed)?) })
    }

    /// One answer of no given length that nothing but the context ends; special tokens are skipped.
    pub fn of(sampling: SamplingParams) -> Self {
        Self {
            sampling,
            logit_bias: Vec::new(),
            max_new_tokens: usize::MAX,
            eos_token_ids: Vec::new(),
            stop: Vec::new(),
            include_stop: false,
            skip_special: true,
            logprobs: None,
            prompt_logprobs: None,
            choices: 1,
            constraint: None,
            cache_salt: String::new(),
        }
    }

    /// Whether a model with these limits can serve it; a constraint is not looked at.
    ///
    /// # Errors
    /// [`Error::Parameter`], which names the field.
    pub fn check(&self, limits: &ModelLimits) -> Result<(), Error> {
        adjust::check_bias(&self.logit_bias, limits.vocab_size)?;
        logprobs::check_count("logprobs", self.logprobs)?;
        logprobs::check_count("prompt_logprobs", self.prompt_logprobs)?;
        let choices = 1..=MOST_CHOICES;
        check_range("n", self.choices, choices.contains(&self.choices), "at least 1 and at most 128")?;
        StopMatcher::new(&self.stop, self.include_stop).map(drop)
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub token: TokenId,
    /// Its log probability and the likeliest tokens', by the model before biases, penalties, temperature and filters;
    /// if asked for.
    pub logprobs: Option<TokenLogprobs>,
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

/// One choice of a request on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Shared among all choices of a request.
    prompt: Arc<[TokenId]>,
    /// The prompt, then what was generated; empty until something was.
    tokens: Vec<TokenId>,
    /// Positions that the cache holds.
    cached: usize,
    pub(crate) pages: PageTable,
    chooser: Chooser,
    logprobs: Option<usize>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// Tokens that the sequence may have at most, and what ends it there.
    max_tokens: usize,
    end: Finish,
    text: String,
    finish: Option<Finish>,
}

impl Sequence {
    /// A choice of a request that was [checked](Request::check), as was the prompt; no pages are taken yet. The guide is
    /// that of the request's constraint. Pages come from the pool, for as many tokens as a context has.
    ///
    /// # Panics
    /// If a stop string is empty.
    pub(crate) fn new(
        Submission { prompt, request }: &Submission,
        choice: usize,
        guide: Option<Guide>,
        (pool, context): (&PagePool, usize),
    ) -> Self {
        // The context bounds the prompt and its continuation together, as in transformers and vLLM.
        let asked = prompt.len().saturating_add(request.max_new_tokens);
        let (max_tokens, end) =
            if asked <= context { (asked, Finish::MaxNewTokens) } else { (context, Finish::ContextEnd) };
        Self {
            prompt: Arc::clone(prompt),
            tokens: Vec::new(),
            cached: 0,
            pages: pool.table(),
            chooser: Chooser::new(prompt, request, choice, guide),
            logprobs: request.logprobs,
            detokenizer: Detokenizer::new(request.skip_special),
            stops: StopMatcher::new(&request.stop, request.include_stop).expect("the request was checked"),
            max_tokens,
            end,
            text: String::new(),
            finish: None,
        }
    }

    /// The next chunk of the prompt to run, of at most `max_len` tokens: its positions, and the rows that need
    /// logits. `None` when the whole prompt is in the cache. Chunks end where pages do, if they can.
    ///
    /// # Panics
    /// If `max_len` is 0.
    pub(crate) fn prefill_chunk(
        &self,
        max_len: usize,
        page_size: usize,
    ) -> Option<(Range<usize>, LogitRows)> {
        assert!(max_len > 0, "a chunk holds at least one token");
        let rest = self.prompt_len().checked_sub(self.cached).filter(|&rest| rest > 0)?;
        if rest <= max_len {
            return Some((self.cached..self.prompt_len(), LogitRows::Last));
        }
        let end = self.cached + max_len;
        let whole = end - end % page_size;
        Some((self.cached..if whole > self.cached { whole } else { end }, LogitRows::None))
    }

    /// Records that the model has run all positions before `position`.
    ///
    /// # Panics
    /// If these are fewer than before, more than there are tokens, or more than the pages hold.
    pub(crate) fn set_cached(&mut self, position: usize) {
        assert!(
            (self.cached..=self.tokens().len()).contains(&position) && position <= self.pages.capacity(),
            "{position} positions cannot be cached: {} were, of {} tokens",
            self.cached,
            self.tokens().len()
        );
        self.cached = position;
    }

    /// Gives up what is cached; it can be run again.
    pub(crate) fn give_up_pages(&mut self) {
        self.pages.release();
        self.cached = 0;
    }

    /// Chooses the next token from the logits `[vocab]` after the last one.
    ///
    /// # Errors
    /// If no token can be chosen from the logits.
    ///
    /// # Panics
    /// If the sequence is finished, or its last token was not run.
    pub(crate) fn accept(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<Event, Error> {
        assert!(self.finish.is_none(), "a finished sequence takes no more tokens");
        assert_eq!(self.cached, self.tokens().len(), "these are not the logits after the last token");
        let start = self.text.len();
        let Some(chosen) = self.chooser.choose(logits)? else {
            self.end_with(Finish::GrammarEnd);
            return Ok(self.event(None, start));
        };
        let token = chosen.token;
        if chosen.ends_text {
            self.end_with(Finish::EndOfSequence(token));
            return Ok(self.event(None, start));
        }
        if self.tokens.is_empty() {
            self.tokens.extend_from_slice(&self.prompt);
        }
        self.tokens.push(token);
        let mut piece = String::new();
        self.detokenizer.push(tokenizer, token, &mut piece);
        if let Some(stop) = self.stops.push(&piece, &mut self.text) {
            self.finish = Some(Finish::StopString(stop));
        } else if chosen.ends_grammar {
            self.end_with(Finish::GrammarEnd);
        } else if let Some(finish) = self.limit() {
            self.end_with(finish);
        }
        let logprobs = self.logprobs.map(|count| TokenLogprobs::of(logits, token, count)).transpose()?;
        Ok(self.event(Some(SampledToken { token, logprobs }), start))
    }

    /// Ends the sequence where it is full before it has begun.
    pub(crate) fn end_at_limit(&mut self) -> Option<Event> {
        let finish = self.limit()?;
        self.end_with(finish);
        Some(self.event(None, 0))
    }

    /// Ends the sequence at the caller's wish, unless it has ended already.
    pub(crate) fn cancel(&mut self) -> Option<Event> {
        if self.finish.is_some() {
            return None;
        }
        let start = self.text.len();
        self.end_with(Finish::Cancelled);
        Some(self.event(None, start))
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
        (self.tokens().len() >= self.max_tokens).then(|| self.end.clone())
    }

    fn event(&self, token: Option<SampledToken>, start: usize) -> Event {
        Event { token, text_delta: self.text[start..].to_owned(), finish: self.finish.clone() }
    }

    /// All tokens, the prompt's first.
    pub(crate) fn tokens(&self) -> &[TokenId] {
        if self.tokens.is_empty() { &self.prompt } else { &self.tokens }
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt.len()
    }

    /// Tokens of the prompt that are to be run.
    pub(crate) fn prompt_rest(&self) -> usize {
        self.prompt_len().saturating_sub(self.cached)
    }

    /// The token that a decode step runs: the last one, or, where the sequence has lost its pages, one that is known
    /// already.
    pub(crate) fn next_token(&self) -> TokenId {
        self.tokens()[self.cached]
    }

    /// Whether all tokens have been run, and the logits after the last choose the next.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.cached == self.tokens().len()
    }

    /// Positions that the cache holds; where the next token to run goes.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    /// Why the sequence ended, if it did.
    pub(crate) fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
struct Chooser {
    sampler: Sampler,
    adjustments: Adjustments,
    guide: Option<Guide>,
    ends: Vec<TokenId>,
    /// The logits as they are changed.
    adjusted: Vec<f32>,
}

/// What was chosen, and what that means.
struct Chosen {
    token: TokenId,
    ends_text: bool,
    ends_grammar: bool,
}

impl Chooser {
    fn new(prompt: &[TokenId], request: &Request, choice: usize, guide: Option<Guide>) -> Self {
        let Request { sampling, logit_bias, eos_token_ids, .. } = request;
        Self {
            sampler: Sampler::of_choice(*sampling, choice as u64),
            adjustments: Adjustments::new(logit_bias.clone(), sampling.penalties(), prompt),
            guide,
            ends: eos_token_ids.clone(),
            adjusted: Vec::new(),
        }
    }

    /// The next token by these logits `[vocab]`. None where the grammar has none.
    fn choose(&mut self, logits: &[f32]) -> Result<Option<Chosen>, Error> {
        let token = if self.guide.is_none() && self.adjustments.are_none() {
            self.sampler.sample(logits)?
        } else {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            if let Some(guide) = &mut self.guide
                && !guide.mask(&mut self.adjusted, &self.ends)?
            {
                return Ok(None);
            }
            self.adjustments.apply(&mut self.adjusted);
            self.sampler.sample(&self.adjusted)?
        };
        self.adjustments.push(token);
        let ends_text = self.ends.contains(&token);
        let ends_grammar = match &mut self.guide {
            Some(guide) if !ends_text => guide.push(token)?,
            _ => false,
        };
        Ok(Some(Chosen { token, ends_text, ends_grammar }))
    }
}
