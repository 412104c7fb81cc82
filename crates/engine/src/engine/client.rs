//! Who has made a request, and what was told them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Error, Event, Rate, TokenLogprobs};

/// Names a request among all of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What a request brings, in this order.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// The request begins to run.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that are in the cache.
        cached_tokens: usize,
    },
    /// The log probability of each token of the prompt, of the first none; if asked for.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// A step of one choice.
    Token {
        /// Which one, from 0.
        choice: usize,
        /// What it brought.
        event: Event,
    },
    /// All choices have ended. The last event.
    Done(Usage),
    /// The request cannot go on. The last event.
    Failed(Arc<Error>),
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache.
    pub cached_tokens: usize,
    /// Tokens of all choices, without ends of text.
    pub completion_tokens: usize,
    /// How long it waited to begin.
    pub queued: Duration,
    /// The prompt's tokens that were run, by the time of their chunks.
    pub prefill: Rate,
    /// The tokens after the first ones (ends of text included), by the time of the steps, which others may have shared.
    pub decode: Rate,
    /// From the request to the first token's choice.
    pub time_to_first_token: Duration,
}

/// Where the events of a request go. A break cancels it.
pub(super) type Sink = Box<dyn FnMut(StreamEvent) -> ControlFlow<()> + Send>;

/// Who has made a request.
pub(super) struct Client {
    sink: Sink,
    pub(super) submitted: Instant,
    pub(super) usage: Usage,
    /// Choices that have not ended.
    pub(super) open: usize,
    pub(super) has_started: bool,
    /// Whether the sink wants no more.
    pub(super) is_gone: bool,
}

impl Client {
    pub(super) fn new(sink: Sink, prompt_tokens: usize, choices: usize) -> Self {
        let usage = Usage { prompt_tokens, ..Usage::default() };
        let submitted = Instant::now();
        Self { sink, submitted, usage, open: choices, has_started: false, is_gone: false }
    }

    /// Hands out an event, unless there is nobody any more.
    pub(super) fn send(&mut self, event: StreamEvent) {
        if !self.is_gone {
            self.is_gone = (self.sink)(event).is_break();
        }
    }

    /// Hands out what a step of a choice brought.
    pub(super) fn token(&mut self, choice: usize, event: Event) {
        self.usage.completion_tokens += usize::from(event.token.is_some());
        self.open -= usize::from(event.finish.is_some());
        self.send(StreamEvent::Token { choice, event });
    }
}
