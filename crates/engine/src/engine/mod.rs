//! Many requests, one model: continuous batching.
//!
//! Requests wait in order of arrival. One begins when there are pages for its prompt, with those that are in the cache
//! already. Each [step](Engine::step) of the engine then runs at most one chunk of one prompt, and one token of every
//! sequence whose prompt has run. So a long prompt holds nobody up for longer than a chunk, and a short prompt goes before
//! a long one; but of four chunks one is that of the prompt which has waited longest.
//!
//! When a sequence needs a page and there is none, the sequence that began last gives up its pages and waits, in front of
//! those that have not begun. It goes on where it was: its prompt is run again, then its answer, token by token as it was
//! made, so that the cache holds the same as before; its sampler has not noticed.
//!
//! Nothing here is asynchronous; [`EngineThread`] runs an engine on a thread of its own.

mod admission;
mod chunks;
mod client;
mod config;
mod metrics;
mod task;
mod thread;
mod work;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunks::ChunkSizes;
use client::Client;
pub use client::{RequestId, StreamEvent, Usage};
pub use config::{EngineConfig, Reuse};
pub use metrics::{Histogram, Snapshot};
use task::Task;
pub use thread::{EngineHandle, EngineThread, Health, Place, Ticket};

use crate::structured::{Guide, Guides};
use crate::{
    CacheReport, CacheState, ChosenExperts, Error, LanguageModel, ModelLimits, PagePool, Request, Tokenizer,
    check_range,
};

/// A prompt, and what is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The prompt.
    pub prompt: Arc<[dsv3_runtime::TokenId]>,
    /// What is asked for.
    pub request: Request,
}

/// What a step has run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Tokens of a prompt.
    pub prefilled: usize,
    /// Sequences, one token each.
    pub decoded: usize,
    /// How long it took.
    pub time: Duration,
}

/// Runs many requests through one model. All of the model's pages are the engine's.
pub struct Engine<M> {
    model: M,
    tokenizer: Arc<Tokenizer>,
    guides: Option<Arc<Guides>>,
    limits: ModelLimits,
    config: EngineConfig,
    pool: PagePool,
    clients: BTreeMap<RequestId, Client>,
    /// Those that have lost their pages stand in front.
    waiting: VecDeque<Task>,
    /// In the order in which they began.
    running: Vec<Task>,
    /// How often in a row the shortest prompt was run while others waited.
    shortest_first: u32,
    /// Requests whose next token could not be chosen.
    failures: Vec<(RequestId, Error)>,
    chunks: ChunkSizes,
    counts: Snapshot,
    next_id: u64,
}

impl<M: LanguageModel> Engine<M> {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the config lets nothing run.
    pub fn new(model: M, tokenizer: Arc<Tokenizer>, config: EngineConfig) -> Result<Self, Error> {
        config.check()?;
        let limits = model.limits();
        Ok(Self {
            chunks: ChunkSizes::new(config.prefill_chunk, limits.page_size, config.gap),
            pool: PagePool::new(&limits),
            model,
            tokenizer,
            guides: None,
            limits,
            config,
            clients: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            shortest_first: 0,
            failures: Vec::new(),
            counts: Snapshot::default(),
            next_id: 0,
        })
    }

    /// Takes a request. Its events go to the sink, in later steps; a break from there cancels it.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; a prompt or request that the model cannot serve; a constraint that is none.
    pub fn submit(
        &mut self,
        submission: &Submission,
        sink: impl FnMut(StreamEvent) -> ControlFlow<()> + Send + 'static,
    ) -> Result<RequestId, Error> {
        check(submission, &self.limits, &self.config)?;
        let (waiting, limit) = (self.waiting.len(), self.config.queue);
        if waiting >= limit {
            self.counts.refused += 1;
            return Err(Error::QueueFull { waiting, limit });
        }
        let guide = match &submission.request.constraint {
            Some(constraint) => Some(self.guides()?.guide(constraint)?),
            None => None,
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.queue(id, submission, guide.as_ref(), Box::new(sink));
        Ok(id)
    }

    /// Ends a request that has not ended. Its open choices finish with [`Finish::Cancelled`](crate::Finish::Cancelled),
    /// and its pages are free at once.
    pub fn cancel(&mut self, id: RequestId) {
        if self.clients.contains_key(&id) {
            self.counts.cancelled += 1;
            self.end_choices(id);
            self.remove(id);
        }
    }

    /// Runs a chunk of a prompt, and a token of every sequence that generates. Nothing, where there is no request.
    ///
    /// # Errors
    /// If the model fails. All requests have failed then.
    pub fn step(&mut self) -> Result<StepReport, Error> {
        let start = Instant::now();
        self.admit();
        let ran = self.run_prompt().and_then(|prefilled| {
            // The pages of an answer that its first token has ended are there for the others.
            self.remove_ended();
            Ok((prefilled, self.run_decode()?))
        });
        self.remove_ended();
        let (prefilled, decoded) = ran.inspect_err(|error| self.fail_all(error))?;
        Ok(StepReport { prefilled, decoded, time: start.elapsed() })
    }

    /// Brings back the pages that were saved, as many as there is room for. Nothing where none were.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is damaged or was saved for something else; nothing has changed then. A mesh of
    /// several devices.
    pub fn restore_cache(&mut self, state: &CacheState) -> Result<CacheReport, Error> {
        self.state(state).restore(&self.pool, &mut self.model)
    }

    /// Which experts were chosen since this was last asked; see [`LanguageModel::take_chosen_experts`].
    pub fn take_chosen_experts(&mut self) -> Option<ChosenExperts> {
        self.model.take_chosen_experts()
    }

    /// Saves the pages that are kept.
    ///
    /// # Errors
    /// A file that cannot be written; a mesh of several devices.
    pub fn save_cache(&mut self, state: &CacheState) -> Result<CacheReport, Error> {
        self.state(state).save(&self.pool, &mut self.model)
    }

    /// Which pages are kept decides what they may be used for.
    fn state(&self, CacheState { directory, fingerprint }: &CacheState) -> CacheState {
        let fingerprint = format!("{fingerprint}\nkept of {:?}", self.config.reuse);
        CacheState { directory: directory.clone(), fingerprint }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.clients.is_empty()
    }

    /// What the engine does and has done.
    pub fn snapshot(&self) -> Snapshot {
        let prefilling = self.running.iter().filter(|task| task.is_in_prompt()).count();
        Snapshot {
            waiting: self.waiting.len(),
            prefilling,
            decoding: self.running.len() - prefilling,
            pages: self.pool.usage(),
            ..self.counts.clone()
        }
    }

    /// What the model can hold.
    pub fn limits(&self) -> &ModelLimits {
        &self.limits
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Made when they are needed first.
    fn guides(&mut self) -> Result<Arc<Guides>, Error> {
        if self.guides.is_none() {
            self.guides = Some(Arc::new(Guides::new(&self.tokenizer)?));
        }
        Ok(self.guides.clone().expect("they were made"))
    }

    /// Takes a request that was checked, however many wait.
    fn queue(&mut self, id: RequestId, submission: &Submission, guide: Option<&Guide>, sink: client::Sink) {
        let task = self.task(id, submission, guide);
        self.counts.submitted += 1;
        let (prompt, choices) = (submission.prompt.len(), submission.request.choices);
        self.clients.insert(id, Client::new(sink, prompt, choices));
        self.waiting.push_back(task);
    }

    fn cancel_all(&mut self) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        ids.into_iter().for_each(|id| self.cancel(id));
    }

    /// Ends requests whose sink wants no more, and forgets those that have ended.
    fn remove_ended(&mut self) {
        self.running.retain(|task| task.sequence.finish().is_none());
        let ended = |(id, client): (&RequestId, &Client)| {
            (client.is_gone || client.open == 0).then_some((*id, client.open == 0))
        };
        let ended: Vec<_> = self.clients.iter().filter_map(ended).collect();
        for (id, by_itself) in ended {
            *(if by_itself { &mut self.counts.finished } else { &mut self.counts.cancelled }) += 1;
            self.remove(id);
        }
    }

    /// Finishes a request's choices before their time.
    fn end_choices(&mut self, id: RequestId) {
        let client = self.clients.get_mut(&id).expect("a request that is there");
        let tasks = self.running.iter_mut().chain(&mut self.waiting).filter(|task| task.client == id);
        for task in tasks {
            if let Some(event) = task.sequence.cancel() {
                task.choices().for_each(|choice| client.token(choice, event.clone()));
            }
        }
    }

    /// Forgets a request and frees its pages. Its last event says what it took.
    fn remove(&mut self, id: RequestId) {
        self.running.retain(|task| task.client != id);
        self.waiting.retain(|task| task.client != id);
        if let Some(mut client) = self.clients.remove(&id) {
            client.send(StreamEvent::Done(client.usage));
        }
    }

    /// Ends a request that cannot go on.
    fn fail(&mut self, id: RequestId, error: Error) {
        self.running.retain(|task| task.client != id);
        self.waiting.retain(|task| task.client != id);
        if let Some(mut client) = self.clients.remove(&id) {
            self.counts.failed += 1;
            client.send(StreamEvent::Failed(Arc::new(error)));
        }
    }

    fn fail_all(&mut self, error: &Error) {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        for id in ids {
            self.fail(id, Error::Failed(error.to_string()));
        }
    }
}

/// Whether an engine can serve a request; its constraint is not looked at.
fn check(submission: &Submission, limits: &ModelLimits, config: &EngineConfig) -> Result<(), Error> {
    limits.check_prompt(&submission.prompt)?;
    submission.request.check(limits)?;
    let choices = submission.request.choices;
    let expected = "no more than sequences that may run at once";
    check_range("n", choices, choices <= config.sequences, expected)
}
