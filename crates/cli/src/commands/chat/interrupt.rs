//! Ctrl-C: it stops an answer, and the program only where there is none.

use super::printer;
use anyhow::{Context, Result};
use std::{
    process,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a model may take to notice that it is to stop: it does so between two steps. Who asks again later wants to
/// leave.
const PATIENCE: Duration = Duration::from_secs(2);
/// The exit code of a program that Ctrl-C ended.
const EXIT_CODE: i32 = 130;

/// What Ctrl-C does now.
#[derive(Clone)]
pub(super) struct Interrupt(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing runs that could be stopped.
    Idle,
    Answering,
    /// Since when the answer is to stop.
    Stopping(Instant),
}

/// An answer that Ctrl-C stops.
pub(super) struct Listening<'a>(&'a Interrupt);

impl Interrupt {
    /// Takes over Ctrl-C for the whole program.
    ///
    /// # Errors
    /// If the system does not give it.
    pub(super) fn install() -> Result<Self> {
        let interrupt = Self(Arc::new(Mutex::new(State::Idle)));
        let handler = interrupt.clone();
        let pressed = move || {
            if handler.press(Instant::now()) {
                printer::reset();
                process::exit(EXIT_CODE);
            }
        };
        ctrlc::set_handler(pressed).context("Ctrl-C")?;
        Ok(interrupt)
    }

    /// From now until the result is dropped, Ctrl-C stops an answer.
    pub(super) fn listen(&self) -> Listening<'_> {
        self.set(State::Answering);
        Listening(self)
    }

    /// Whether that ends the program.
    fn press(&self, now: Instant) -> bool {
        match self.get() {
            State::Idle => true,
            State::Answering => {
                self.set(State::Stopping(now));
                false
            }
            State::Stopping(since) => now.duration_since(since) > PATIENCE,
        }
    }

    fn get(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Listening<'_> {
    /// Whether the answer is to stop.
    pub(super) fn is_asked(&self) -> bool {
        self.0.get() != State::Answering
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.set(State::Idle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_stopped_and_who_has_waited_leaves() {
        let interrupt = Interrupt(Arc::new(Mutex::new(State::Idle)));
        let now = Instant::now();
        assert!(interrupt.press(now));
        let listening = interrupt.listen();
        assert!(!listening.is_asked());
        assert!(!interrupt.press(now) && listening.is_asked());
        assert!(!interrupt.press(now + PATIENCE), "twice at once is once");
        assert!(interrupt.press(now + PATIENCE * 2));
        drop(listening);
        assert!(!interrupt.listen().is_asked());
    }
}
