//! An engine on a thread of its own.
//!
//! Requests are checked, and constraints compiled, on the thread that submits them, for who has a place in the queue; the
//! engine's thread does nothing but steps. What it counts is published after each.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use super::client::Sink;
use super::{Engine, EngineConfig, RequestId, Snapshot, StreamEvent, Submission, check};
use crate::structured::{Guide, Guides};
use crate::{CacheReport, ChosenExperts, Constraint, Error, LanguageModel, ModelLimits, Tokenizer};

/// Whether an engine takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// No more.
    ShuttingDown,
    /// No more, because its model has failed.
    Failed(String),
}

/// An engine on a thread of its own. Dropping it cancels what it does, and waits for the thread.
pub struct EngineThread {
    handle: EngineHandle,
    restored: Option<Saved>,
    thread: Option<JoinHandle<Option<Saved>>>,
}

/// What became of saving or restoring the cache.
type Saved = Result<CacheReport, Error>;

/// Submits requests to an engine, from any thread.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// Holds a request: dropping it cancels the request within one step.
#[must_use = "dropping it cancels the request"]
pub struct Ticket {
    id: RequestId,
    /// None where the request may run on.
    commands: Option<mpsc::Sender<Command>>,
}

enum Command {
    Submit(RequestId, Box<(Submission, Option<Guide>)>, Sink),
    Cancel(RequestId),
    Save(mpsc::Sender<Saved>),
    ChosenExperts(mpsc::Sender<Option<ChosenExperts>>),
    Shutdown { drain: bool },
}

/// What all handles and the thread know.
struct Shared {
    limits: ModelLimits,
    config: EngineConfig,
    tokenizer: Arc<Tokenizer>,
    guides: OnceLock<Guides>,
    /// Requests that have not begun.
    waiting: AtomicUsize,
    refused: AtomicU64,
    next_id: AtomicU64,
    snapshot: Mutex<Snapshot>,
    health: Mutex<Health>,
}

impl EngineThread {
    /// Opens a model on a new thread, and runs it there. It need not be one that can move between threads. The cache is
    /// restored, where the config says from where; if it cannot be, it is empty, and [`restored`](Self::restored) says why.
    ///
    /// # Errors
    /// What `open` says; a config that lets nothing run.
    ///
    /// # Panics
    /// If the operating system gives no thread.
    pub fn start<M: LanguageModel, E: From<Error> + Send + 'static>(
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        open: impl FnOnce() -> Result<M, E> + Send + 'static,
    ) -> Result<Self, E> {
        let (commands, receiver) = mpsc::channel();
        let (opened, is_open) = mpsc::channel();
        let run = move || {
            let engine = open().and_then(|model| {
                Engine::new(model, Arc::clone(&tokenizer), config.clone()).map_err(E::from)
            });
            let mut engine = match engine {
                Ok(engine) => engine,
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return None;
                }
            };
            let restored = config.cache_state.as_ref().map(|state| engine.restore_cache(state));
            let shared = Arc::new(Shared::new(*engine.limits(), config, tokenizer));
            opened.send(Ok((Arc::clone(&shared), restored))).ok()?;
            run(&mut engine, &shared, &receiver);
            if let Health::Failed(_) = *lock(&shared.health) {
                return None; // what a model that has failed holds is not to be trusted
            }
            shared.config.cache_state.as_ref().map(|state| engine.save_cache(state))
        };
        let thread = thread::Builder::new().name("dsv3-engine".to_owned()).spawn(run).expect("a thread");
        match is_open.recv() {
            Ok(Ok((shared, restored))) => {
                Ok(Self { handle: EngineHandle { shared, commands }, restored, thread: Some(thread) })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Failed("it panicked before it was open".to_owned()).into()),
        }
    }

    /// Submits requests.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// What was restored when it started, or why nothing was; none where nothing was to be.
    pub fn restored(&self) -> Option<&Result<CacheReport, Error>> {
        self.restored.as_ref()
    }

    /// Takes no more requests, finishes those that are there or cancels them, saves the cache where the config says so, and
    /// waits until that is done. What was saved, or why it was not.
    pub fn shutdown(mut self, drain: bool) -> Option<Result<CacheReport, Error>> {
        self.end(drain)
    }

    fn end(&mut self, drain: bool) -> Option<Saved> {
        self.handle.shared.set_health(Health::ShuttingDown);
        let _ = self.handle.commands.send(Command::Shutdown { drain });
        // Whoever waits for events of an engine that has panicked finds their sinks dropped.
        self.thread.take()?.join().ok()?
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.end(false);
        }
    }
}

impl EngineHandle {
    /// Takes a request. Its events go to the sink on the engine's thread, which must not be blocked there; a break
    /// cancels the request. A sink that is dropped without a last event belongs to an engine that has ended.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::ShuttingDown`], [`Error::Failed`]; a prompt, request or constraint that cannot be
    /// served.
    pub fn submit(
        &self,
        submission: Submission,
        sink: impl FnMut(StreamEvent) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Ticket, Error> {
        let place = self.place(&submission)?;
        let guide =
            submission.request.constraint.as_ref().map(|constraint| self.guide(constraint)).transpose()?;
        self.submit_at(place, submission, guide, sink)
    }

    /// Takes a place in the queue for a request, which is looked at but for its constraint. Dropping it gives it back.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn place(&self, submission: &Submission) -> Result<Place, Error> {
        let shared = &self.shared;
        shared.check_health()?;
        check(submission, &shared.limits, &shared.config)?;
        Place::take(shared)
    }

    /// Compiles a constraint, which may take long: who has no [place](Self::place) yet need not begin.
    ///
    /// # Errors
    /// [`Error::Constraint`] for one that cannot be kept to.
    pub fn guide(&self, constraint: &Constraint) -> Result<Guide, Error> {
        self.shared.guides()?.guide(constraint)
    }

    /// As [`submit`](Self::submit), at a place that is taken for this request, with the guide of its constraint.
    ///
    /// # Errors
    /// An engine that has ended.
    ///
    /// # Panics
    /// If a guide is missing, or there is one for a request without a constraint.
    pub fn submit_at(
        &self,
        place: Place,
        submission: Submission,
        guide: Option<Guide>,
        mut sink: impl FnMut(StreamEvent) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Ticket, Error> {
        let has_constraint = submission.request.constraint.is_some();
        assert_eq!(guide.is_some(), has_constraint, "a guide keeps to the request's constraint");
        let shared = &self.shared;
        let mut place = Some(place);
        let sink = move |event| {
            drop(place.take());
            sink(event)
        };
        let id = RequestId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        let command = Command::Submit(id, Box::new((submission, guide)), Box::new(sink));
        if self.commands.send(command).is_err() {
            return Err(shared.check_health().err().unwrap_or(Error::ShuttingDown));
        }
        Ok(Ticket { id, commands: Some(self.commands.clone()) })
    }

    /// Saves the cache between two steps, where the config says.
    ///
    /// # Errors
    /// As [`Engine::save_cache`]; a config that says no place; an engine that has ended.
    pub fn save_cache(&self) -> Result<CacheReport, Error> {
        self.ask(Command::Save)?
    }

    /// Which experts were chosen since this was last asked, up to now; see [`LanguageModel::take_chosen_experts`]. Waits
    /// for the step that runs.
    ///
    /// # Errors
    /// An engine that has ended.
    pub fn take_chosen_experts(&self) -> Result<Option<ChosenExperts>, Error> {
        self.ask(Command::ChosenExperts)
    }

    /// Asks the engine's thread between two steps.
    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Result<T, Error> {
        let (sender, answer) = mpsc::channel();
        let sent = self.commands.send(command(sender));
        let ended = || self.shared.check_health().err().unwrap_or(Error::ShuttingDown);
        sent.map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())
    }

    /// What the engine did up to its last step.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = lock(&self.shared.snapshot).clone();
        snapshot.refused += self.shared.refused.load(Ordering::Relaxed);
        // Those that the engine does not know yet have places, too.
        snapshot.waiting = snapshot.waiting.max(self.shared.waiting.load(Ordering::Relaxed));
        snapshot
    }

    /// Whether it takes requests.
    pub fn health(&self) -> Health {
        lock(&self.shared.health).clone()
    }

    /// What the model can hold.
    pub fn limits(&self) -> ModelLimits {
        self.shared.limits
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
    }
}

impl Ticket {
    /// The request's name.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Lets the request run without it.
    pub fn detach(mut self) {
        self.commands = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(commands) = &self.commands {
            // An engine that has ended has cancelled it.
            let _ = commands.send(Command::Cancel(self.id));
        }
    }
}

impl Shared {
    fn new(limits: ModelLimits, config: EngineConfig, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            limits,
            config,
            tokenizer,
            guides: OnceLock::new(),
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            snapshot: Mutex::new(Snapshot::default()),
            health: Mutex::new(Health::Ready),
        }
    }

    fn guides(&self) -> Result<&Guides, Error> {
        if let Some(guides) = self.guides.get() {
            return Ok(guides);
        }
        let guides = Guides::new(&self.tokenizer)?;
        Ok(self.guides.get_or_init(|| guides))
    }

    fn check_health(&self) -> Result<(), Error> {
        match &*lock(&self.health) {
            Health::Ready => Ok(()),
            Health::ShuttingDown => Err(Error::ShuttingDown),
            Health::Failed(message) => Err(Error::Failed(message.clone())),
        }
    }

    /// A failure is not forgotten.
    fn set_health(&self, health: Health) {
        let mut now = lock(&self.health);
        if !matches!(*now, Health::Failed(_)) {
            *now = health;
        }
    }
}

/// A place in an engine's queue, until it is dropped or its request begins.
#[must_use = "dropping it gives the place back"]
pub struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Result<Self, Error> {
        let limit = shared.config.queue;
        let one_more = |waiting| (waiting < limit).then_some(waiting + 1);
        match shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Self(Arc::clone(shared))),
            Err(waiting) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
                Err(Error::QueueFull { waiting, limit })
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sets the health of an engine that panics.
struct OnPanic<'a>(&'a Shared);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.set_health(Health::Failed("it panicked".to_owned()));
        }
    }
}

/// Steps until it is told to end, and all that is to be finished is.
fn run<M: LanguageModel>(engine: &mut Engine<M>, shared: &Shared, commands: &mpsc::Receiver<Command>) {
    let _on_panic = OnPanic(shared);
    let mut is_ending = false;
    loop {
        *lock(&shared.snapshot) = engine.snapshot();
        while let Some(command) = next(commands, engine.is_idle() && !is_ending) {
            match command {
                // It was on its way when the end was asked for.
                Command::Submit(_, _, sink) if is_ending => refuse(shared, sink),
                Command::Submit(id, request, sink) => {
                    let (submission, guide) = *request;
                    engine.queue(id, &submission, guide.as_ref(), sink);
                }
                Command::Cancel(id) => engine.cancel(id),
                Command::Save(saved) => {
                    let _ = saved.send(save(engine, shared));
                }
                Command::ChosenExperts(chosen) => {
                    let _ = chosen.send(engine.take_chosen_experts());
                }
                Command::Shutdown { drain } => {
                    is_ending = true;
                    if !drain {
                        engine.cancel_all();
                    }
                }
            }
            if engine.is_idle() {
                *lock(&shared.snapshot) = engine.snapshot();
            }
        }
        if is_ending && engine.is_idle() {
            break;
        }
        if let Err(error) = engine.step() {
            *lock(&shared.snapshot) = engine.snapshot();
            shared.set_health(Health::Failed(error.to_string()));
            break;
        }
    }
    // The engine has told all requests that it knew.
    for command in commands.try_iter() {
        if let Command::Submit(_, _, sink) = command {
            refuse(shared, sink);
        }
    }
}

/// Tells a request that it came too late.
fn refuse(shared: &Shared, mut sink: Sink) {
    let error = shared.check_health().err().unwrap_or(Error::ShuttingDown);
    let _ = sink(StreamEvent::Failed(Arc::new(error)));
}

fn save<M: LanguageModel>(engine: &mut Engine<M>, shared: &Shared) -> Saved {
    let none = || Error::Parameter {
        parameter: "cache-state",
        value: "not set".to_owned(),
        expected: "a directory for the cache to be saved",
    };
    engine.save_cache(shared.config.cache_state.as_ref().ok_or_else(none)?)
}

/// The next command. Where there is nothing else to do, waits for it.
fn next(commands: &mpsc::Receiver<Command>, wait: bool) -> Option<Command> {
    if wait { commands.recv().ok() } else { commands.try_recv().ok() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use dsv3_runtime::TokenId;

    use super::*;
    use crate::testing::{FakeModel, VOCAB_SIZE, hashed, tokenizer};
    use crate::{Request, SamplingParams};

    #[test]
    fn a_request_that_comes_behind_the_end_is_told() {
        let limits =
            ModelLimits { vocab_size: VOCAB_SIZE, max_context: 64, page_size: 4, page_count: 16, rows: 1 };
        let (config, tokenizer) = (EngineConfig::single(8), Arc::clone(tokenizer()));
        let model = FakeModel::new(limits, hashed);
        let mut engine = Engine::new(model, Arc::clone(&tokenizer), config.clone()).unwrap();
        let shared = Shared::new(limits, config, tokenizer);
        let (commands, receiver) = mpsc::channel();
        let (sender, events) = mpsc::channel();
        let submit = |id| {
            let request = Request { max_new_tokens: 3, ..Request::of(SamplingParams::GREEDY) };
            let submission = Submission { prompt: [TokenId(5)].into(), request };
            let sender = sender.clone();
            let sink = Box::new(move |event| {
                sender.send((id, event)).unwrap();
                ControlFlow::Continue(())
            });
            commands.send(Command::Submit(RequestId(id), Box::new((submission, None)), sink)).unwrap();
        };
        submit(0);
        shared.set_health(Health::ShuttingDown);
        commands.send(Command::Shutdown { drain: true }).unwrap();
        submit(1);
        run(&mut engine, &shared, &receiver);
        let events: Vec<_> = events.try_iter().collect();
        let of = |id| events.iter().rev().find(|event| event.0 == id).map(|event| &event.1);
        assert!(matches!(of(0), Some(StreamEvent::Done(_))));
        assert!(matches!(of(1), Some(StreamEvent::Failed(error)) if matches!(**error, Error::ShuttingDown)));
    }
}
