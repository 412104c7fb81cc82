//! A request on its way through the engine, as async code sees it.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dsv3_engine::{EngineHandle, Error, Place, StreamEvent, Submission, Ticket, Usage};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{self, Instant},
};

use crate::ApiError;

/// Events that may wait for who is to read them. An answer that is further ahead of its reader is cut off: the engine waits
/// for nobody.
const EVENTS: usize = 4096;

/// Answers on their way, one to each prompt. Dropping it cancels them within one step.
pub(crate) struct Running {
    tickets: Vec<Ticket>,
    events: mpsc::Receiver<(usize, StreamEvent)>,
    /// Whether an event found no room.
    overran: Arc<AtomicBool>,
    /// Prompts whose answers have not ended.
    open: usize,
    deadline: Option<(Instant, Duration)>,
    usage: Usage,
}

impl Running {
    /// Asks the engine, at places that are taken. All requests have one constraint, or none. They have time until the
    /// deadline, which is so long after they came.
    ///
    /// # Errors
    /// What the engine says; a constraint that cannot be kept to.
    pub(crate) fn submit(
        engine: &EngineHandle,
        asked: Vec<(Place, Submission)>,
        deadline: Option<(Instant, Duration)>,
    ) -> Result<Self, Error> {
        let constraint = asked.first().and_then(|(_, submission)| submission.request.constraint.as_ref());
        let guide = constraint.map(|constraint| engine.guide(constraint)).transpose()?;
        let (sender, events) = mpsc::channel(EVENTS);
        let overran = Arc::new(AtomicBool::new(false));
        let open = asked.len();
        let tickets = asked.into_iter().enumerate().map(|(index, (place, submission))| {
            let (sender, overran) = (sender.clone(), Arc::clone(&overran));
            engine.submit_at(place, submission, guide.clone(), move |event| {
                match sender.try_send((index, event)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        overran.fetch_or(matches!(error, TrySendError::Full(_)), Ordering::Relaxed);
                        ControlFlow::Break(())
                    }
                }
            })
        });
        let tickets = tickets.collect::<Result<_, _>>()?;
        Ok(Self { tickets, events, overran, open, deadline, usage: Usage::default() })
    }

    /// The next event, with its prompt's number; none after the last.
    ///
    /// # Errors
    /// An answer that failed, took too long or was not read.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, StreamEvent)>, ApiError> {
        if self.open == 0 {
            self.tickets.clear();
            return Ok(None);
        }
        let event = match self.deadline {
            None => self.events.recv().await,
            Some((deadline, limit)) => match time::timeout_at(deadline, self.events.recv()).await {
                Ok(event) => event,
                Err(_) => return Err(ApiError::time_limit(limit.as_secs())),
            },
        };
        match event {
            Some((_, StreamEvent::Failed(error))) => Err(ApiError::from(&*error)),
            Some((index, event)) => {
                if let StreamEvent::Done(usage) = &event {
                    self.open -= 1;
                    self.add(usage);
                }
                Ok(Some((index, event)))
            }
            None if self.overran.load(Ordering::Relaxed) => Err(ApiError::slow_reader()),
            None => Err(ApiError::unavailable("the engine has ended", None)),
        }
    }

    /// What all answers that have ended took together.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    fn add(&mut self, usage: &Usage) {
        let sum = &mut self.usage;
        sum.prompt_tokens += usage.prompt_tokens;
        sum.cached_tokens += usage.cached_tokens;
        sum.completion_tokens += usage.completion_tokens;
        sum.queued = sum.queued.max(usage.queued);
        sum.time_to_first_token = sum.time_to_first_token.max(usage.time_to_first_token);
        for (sum, rate) in [(&mut sum.prefill, usage.prefill), (&mut sum.decode, usage.decode)] {
            sum.tokens += rate.tokens;
            sum.time = sum.time.max(rate.time);
        }
    }
}
