//! The engine over an automaton whose cache is the pages: a wrong page, position or chunk changes the text.

mod answers;
mod random;
mod scheduling;
mod thread;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use dsv3_runtime::TokenId;

use super::*;
use crate::testing::{FakeModel, Next, VOCAB_SIZE, hashed, tokenizer};
use crate::{Finish, Request, Sampler, SamplingParams};

const LIMITS: ModelLimits =
    ModelLimits { vocab_size: VOCAB_SIZE, max_context: 64, page_size: 4, page_count: 64, rows: 1 };

const CONFIG: EngineConfig = EngineConfig {
    queue: 64,
    sequences: 16,
    prefill_chunk: 8,
    gap: None,
    reuse: Reuse::Prompts,
    rows_apart: 4,
    cache_state: None,
};

type Hashed = FakeModel<Next>;

fn model(limits: ModelLimits) -> Hashed {
    FakeModel::new(limits, hashed)
}

fn engine(limits: ModelLimits, config: EngineConfig) -> Engine<Hashed> {
    Engine::new(model(limits), Arc::clone(tokenizer()), config).unwrap()
}

fn ids(ids: std::ops::Range<u32>) -> Vec<TokenId> {
    ids.map(TokenId).collect()
}

/// Greedy, of as many tokens.
fn request(max_new_tokens: usize) -> Request {
    Request { max_new_tokens, ..Request::of(SamplingParams::GREEDY) }
}

fn submission(prompt: Vec<TokenId>, max_new_tokens: usize) -> Submission {
    Submission { prompt: prompt.into(), request: request(max_new_tokens) }
}

/// What a request has brought.
#[derive(Clone, Debug, Default)]
struct Answer {
    cached: Option<usize>,
    /// By choice.
    tokens: Vec<Vec<TokenId>>,
    texts: Vec<String>,
    finishes: Vec<Option<Finish>>,
    prompt_logprobs: Vec<Option<crate::TokenLogprobs>>,
    usage: Option<Usage>,
    failure: Option<String>,
    /// How many more events it takes before it breaks.
    patience: Option<usize>,
}

impl Answer {
    fn take(&mut self, event: StreamEvent) -> ControlFlow<()> {
        assert!(self.usage.is_none() && self.failure.is_none(), "nothing follows the last event: {event:?}");
        match event {
            StreamEvent::Started { cached_tokens, .. } => {
                assert_eq!(self.cached.replace(cached_tokens), None, "a request starts once");
            }
            StreamEvent::PromptLogprobs(found) => self.prompt_logprobs = found,
            StreamEvent::Token { choice, event } => {
                assert!(self.finishes[choice].is_none(), "a choice ends once");
                self.tokens[choice].extend(event.token.map(|token| token.token));
                self.texts[choice] += &event.text_delta;
                self.finishes[choice] = event.finish;
            }
            StreamEvent::Done(usage) => self.usage = Some(usage),
            StreamEvent::Failed(error) => self.failure = Some(error.to_string()),
        }
        match &mut self.patience {
            Some(0) => return ControlFlow::Break(()),
            Some(patience) => *patience -= 1,
            None => {}
        }
        ControlFlow::Continue(())
    }

    fn is_complete(&self) -> bool {
        self.usage.is_some() && self.finishes.iter().all(|finish| *finish != Some(Finish::Cancelled))
    }
}

type Shared = Arc<Mutex<Answer>>;

/// Submits a request whose answer is collected; it breaks after as many events.
#[expect(clippy::needless_pass_by_value, reason = "most are made where they are submitted")]
fn submit<M: LanguageModel>(
    engine: &mut Engine<M>,
    submission: Submission,
    patience: Option<usize>,
) -> Result<(RequestId, Shared), Error> {
    let choices = submission.request.choices;
    let answer = Answer {
        tokens: vec![Vec::new(); choices],
        texts: vec![String::new(); choices],
        finishes: vec![None; choices],
        patience,
        ..Answer::default()
    };
    let answer = Arc::new(Mutex::new(answer));
    let sink = Arc::clone(&answer);
    let id = engine.submit(&submission, move |event| sink.lock().unwrap().take(event))?;
    Ok((id, answer))
}

fn run<M: LanguageModel>(engine: &mut Engine<M>) {
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    assert_eq!(engine.snapshot().pages.held, 0, "no page is lost");
}

/// What the automaton says to a request that it has for itself, by choice; nothing but the length may end it.
fn alone(submission: &Submission, context: usize) -> Vec<Vec<TokenId>> {
    let Submission { prompt, request } = submission;
    let answer = |choice| {
        let mut sampler = Sampler::of_choice(request.sampling, choice);
        let mut tokens = prompt.to_vec();
        while tokens.len() < context && tokens.len() - prompt.len() < request.max_new_tokens {
            tokens.push(sampler.sample(&hashed(&tokens)).unwrap());
        }
        tokens.split_off(prompt.len())
    };
    (0..request.choices as u64).map(answer).collect()
}
