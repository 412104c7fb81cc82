//! Ranks that are threads of one process. They read each other's buffers where they lie.

use crate::{
    Cause, Mesh, MeshShape, Peer, Rank, TransportError,
    transport::{Call, Give, Label, Take, Transport},
    view::View,
};
use std::{
    collections::VecDeque,
    hint::spin_loop,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// How long a rank spins for another before it sleeps: longer than ranks with equal work usually differ by.
const SPIN: Duration = Duration::from_micros(100);
/// Spins between two looks at the clock.
const SPINS: usize = 64;
/// No rank.
const NOBODY: usize = usize::MAX;

/// What one rank has given another and that one has not taken yet.
#[derive(Default)]
struct Mailbox {
    /// How many there are, to look at without the lock.
    waiting: AtomicUsize,
    views: Mutex<VecDeque<(Label, View)>>,
}

/// What the others know of a rank.
struct Place {
    /// What each rank has given this one.
    from: Vec<Mailbox>,
    /// For whom it sleeps, or is about to.
    sleeps_for: AtomicUsize,
    /// The thread that sleeps, and the name of the exchange.
    sleeper: Mutex<Option<(Thread, String)>>,
    /// Whether it has ended.
    gone: AtomicBool,
    /// One call at a time.
    turn: Mutex<()>,
}

/// What all ranks share.
struct Shared {
    places: Vec<Place>,
    /// Whether there is a failure.
    failed: AtomicBool,
    /// The first failure: the others' follow from it.
    failure: Mutex<Option<TransportError>>,
    /// Whether each rank can have a core of its own, so that one which spins keeps no other from running.
    spins: bool,
}

/// A rank's way to the other threads. Its drop is the rank's end.
struct Threads {
    shared: Arc<Shared>,
    rank: Rank,
}

impl Mesh {
    /// A mesh whose ranks are threads of this process: the view of each, in order, to be moved to its thread.
    pub fn threads(shape: MeshShape) -> Vec<Self> {
        let devices = shape.devices();
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let place = || Place {
            from: (0..devices).map(|_| Mailbox::default()).collect(),
            sleeps_for: AtomicUsize::new(NOBODY),
            sleeper: Mutex::new(None),
            gone: AtomicBool::new(false),
            turn: Mutex::new(()),
        };
        let shared = Arc::new(Shared {
            places: (0..devices).map(|_| place()).collect(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            spins: devices <= cores,
        });
        let ranks = (0..devices).map(Rank);
        ranks
            .map(|rank| Self::new(shape, rank, Arc::new(Threads { shared: Arc::clone(&shared), rank })))
            .collect()
    }
}

impl Transport for Threads {
    fn exchange(
        &self,
        call: &Call<'_>,
        give: Give,
        take: Take,
    ) -> Result<Vec<(Label, View)>, TransportError> {
        let _turn = lock(&self.shared.places[self.rank.0].turn);
        self.shared.check()?;
        for (place, view) in give.into_views(call.members) {
            self.shared.give(self.rank, call.members.ranks[place], (call.label, view));
        }
        let start = Instant::now();
        call.members
            .places(take)
            .map(|place| self.shared.take(self.rank, call.members.ranks[place], call, start))
            .collect()
    }

    fn fail(&self, error: TransportError, _: bool) {
        self.shared.fail(error);
    }

    fn host(&self, _: Rank) -> Option<String> {
        None
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.fail(TransportError { peer: peer(self.rank), cause: Cause::Panicked });
        }
        self.shared.places[self.rank.0].gone.store(true, Ordering::SeqCst);
        self.shared.wake_all();
    }
}

impl Shared {
    fn give(&self, from: Rank, to: Rank, view: (Label, View)) {
        let place = &self.places[to.0];
        let mailbox = &place.from[from.0];
        lock(&mailbox.views).push_back(view);
        mailbox.waiting.fetch_add(1, Ordering::SeqCst);
        // Either this sees that the other sleeps, or the other sees the view before it sleeps.
        if place.sleeps_for.load(Ordering::SeqCst) == from.0 {
            place.wake();
        }
    }

    /// Waits for what `from` gives `to`.
    fn take(
        &self,
        to: Rank,
        from: Rank,
        call: &Call<'_>,
        start: Instant,
    ) -> Result<(Label, View), TransportError> {
        let mailbox = &self.places[to.0].from[from.0];
        let came = || mailbox.waiting.load(Ordering::SeqCst) > 0;
        let ended = || self.places[from.0].gone.load(Ordering::SeqCst);
        let over = || came() || ended() || self.failed.load(Ordering::SeqCst);
        if !(self.spins && spin_until(SPIN, over) || over()) {
            self.sleep_until(to, from, call, start, over)?;
        }
        // What was given before the end or the failure counts.
        if ended() && !came() {
            return Err(
                self.fail(TransportError { peer: peer(from), cause: Cause::Gone { call: call.name() } })
            );
        }
        if !came() {
            self.check()?;
        }
        mailbox.waiting.fetch_sub(1, Ordering::SeqCst);
        Ok(lock(&mailbox.views).pop_front().expect("views are put in before they are counted"))
    }

    /// Sleeps until `over`, or fails at the end of the call's time.
    fn sleep_until(
        &self,
        to: Rank,
        from: Rank,
        call: &Call<'_>,
        start: Instant,
        over: impl Fn() -> bool,
    ) -> Result<(), TransportError> {
        let place = &self.places[to.0];
        *lock(&place.sleeper) = Some((thread::current(), call.name()));
        place.sleeps_for.store(from.0, Ordering::SeqCst);
        let mut late = false;
        while !over() && !late {
            let left = call.timeout.saturating_sub(start.elapsed());
            late = left.is_zero();
            thread::park_timeout(left);
        }
        let failure = if over() { None } else { Some(self.late(from, call)) };
        place.sleeps_for.store(NOBODY, Ordering::SeqCst);
        failure.map_or(Ok(()), |failure| Err(self.fail(failure)))
    }

    /// The error for a rank that did not come. Where it waits for another itself, that one is at fault.
    fn late(&self, from: Rank, call: &Call<'_>) -> TransportError {
        let (mut culprit, mut name) = (from, call.name());
        for _ in 0..self.places.len() {
            let next = self.places[culprit.0].sleeps_for.load(Ordering::SeqCst);
            let sleeper = lock(&self.places[culprit.0].sleeper);
            let (Some((_, call)), true) = (&*sleeper, next < self.places.len()) else { break };
            (culprit, name) = (Rank(next), call.clone());
        }
        TransportError { peer: peer(culprit), cause: Cause::Late { call: name, timeout: call.timeout } }
    }

    /// Notes a failure, which ends all calls. Gives the first one, of which this may be a consequence.
    fn fail(&self, error: TransportError) -> TransportError {
        let first = lock(&self.failure).get_or_insert(error).clone();
        self.failed.store(true, Ordering::SeqCst);
        self.wake_all();
        first
    }

    fn check(&self) -> Result<(), TransportError> {
        if !self.failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        lock(&self.failure).clone().map_or(Ok(()), Err)
    }

    fn wake_all(&self) {
        self.places.iter().for_each(Place::wake);
    }
}

impl Place {
    fn wake(&self) {
        if let Some((thread, _)) = &*lock(&self.sleeper) {
            thread.unpark();
        }
    }
}

fn peer(rank: Rank) -> Peer {
    Peer { rank, host: None }
}

/// What these mutexes hold stays right where a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `done` came true within the time.
fn spin_until(time: Duration, done: impl Fn() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..SPINS {
            if done() {
                return true;
            }
            spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() > time {
            return done();
        }
        // On a loaded machine the one that is waited for may need this core.
        thread::yield_now();
    }
}
