//! A team of threads that runs sections of tens of microseconds.
//!
//! A section is one closure that every thread calls; the closure takes pieces of work (from a [`Queue`](crate::Queue))
//! until none is left. Nobody waits for a thread that has not come: a thread enters an open section, and the caller closes
//! it when the work is all taken, so that on a loaded machine the others do the work of one that is kept from running.
//! Between sections the threads spin for a moment, because the next one usually follows at once, and then sleep.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    hint::spin_loop,
    io,
    mem::{self, transmute},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// How long a thread spins for the next section before it sleeps: longer than what stands between two sections of a
/// forward pass, shorter than anyone would notice on an idle machine.
const SPIN: Duration = Duration::from_micros(100);
/// How long the caller spins for the last piece of another thread before it sleeps: some pieces' time. A thread that
/// takes longer has been kept from running, and may need the caller's core.
const SPIN_FOR_LAST: Duration = Duration::from_micros(30);
/// Spins between two looks at the clock.
const SPINS: usize = 64;

/// The word that all threads watch: the number of the section, whether it is open, how many threads are in it.
const INSIDE: u64 = (1 << 15) - 1;
const OPEN: u64 = 1 << 15;
const SECTION: u64 = 1 << 16;

thread_local! {
    /// Whether this thread is in a section; a section within it runs on this thread alone.
    static IN_SECTION: Cell<bool> = const { Cell::new(false) };
}

/// What a section calls. The lifetime is a lie; see [`Team::run`].
type Job = &'static (dyn Fn() + Sync);

struct Shared {
    word: AtomicU64,
    /// Written by the caller while the section is closed and nobody is inside, read by threads that are inside.
    job: UnsafeCell<Option<Job>>,
    /// The caller of the section while it waits for the last thread to leave.
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    /// By thread, whether it sleeps or is about to.
    sleeping: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    ends: AtomicBool,
}

// SAFETY: `job` is written only by the holder of `Team::turn` while the section is closed and empty, and read only by
// threads inside the section; `word` orders the two (release at opening, acquire at entering, and back). What it
// holds, a reference to a Sync closure, is Send.
unsafe impl Sync for Shared {}

/// Threads that wait for sections. The thread that asks for a section works in it, too.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One section at a time.
    turn: Mutex<()>,
}

impl Team {
    /// A team of `threads`, the caller's own counted.
    ///
    /// # Errors
    /// If the operating system refuses to make the threads.
    ///
    /// # Panics
    /// If `threads` is 0 or more than 32,767.
    pub fn new(threads: usize) -> io::Result<Self> {
        assert!(threads > 0 && threads as u64 <= INSIDE, "a team of {threads} threads");
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            sleeping: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            ends: AtomicBool::new(false),
        });
        // Made first, so that threads that were started before one is refused are ended by its drop.
        let mut team = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let worker = thread::Builder::new().name(format!("dsv3-{index}"));
            team.workers.push(worker.spawn(move || shared.work(index - 1))?);
        }
        Ok(team)
    }

    /// How many threads there are, the caller's own counted.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` once on the caller's thread and at most once on each other thread, at the same time. What is to be
    /// done, `f` must take piece by piece from what the calls share; a call that finds none returns. Within a section
    /// `f` is called on this thread only.
    ///
    /// # Panics
    /// If a call of `f` panics, on whichever thread, when all have returned.
    pub fn run(&self, f: impl Fn() + Sync) {
        if self.workers.is_empty() || IN_SECTION.get() {
            return f();
        }
        let turn = lock(&self.turn);
        let job: &(dyn Fn() + Sync) = &f;
        // SAFETY: only the lifetime is changed. The reference is used by threads inside the section, and `section`'s
        // drop, which comes before that of `f` also where `f` panics, closes it and waits until nobody is inside.
        let job: Job = unsafe { transmute::<&(dyn Fn() + Sync), Job>(job) };
        let section = Section::open(&self.shared, &self.workers, job);
        IN_SECTION.set(true);
        f();
        drop(section);
        let panic = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its jobs.
            let _ = worker.join();
        }
    }
}

/// An open section; its drop ends it.
struct Section<'a>(&'a Shared);

impl<'a> Section<'a> {
    fn open(shared: &'a Shared, workers: &[JoinHandle<()>], job: Job) -> Self {
        // SAFETY: the caller holds the turn, and the section before was closed and left by all, so nobody reads.
        unsafe { *shared.job.get() = Some(job) };
        let word = shared.word.load(Ordering::Relaxed);
        shared.word.store((word & !(SECTION - 1)).wrapping_add(SECTION) | OPEN, Ordering::SeqCst);
        for (worker, sleeping) in workers.iter().zip(&shared.sleeping) {
            if sleeping.load(Ordering::SeqCst) && sleeping.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        Self(shared)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        IN_SECTION.set(false);
        let shared = self.0;
        shared.word.fetch_and(!OPEN, Ordering::AcqRel);
        let empty = || shared.word.load(Ordering::SeqCst) & INSIDE == 0;
        if !spin_until(SPIN_FOR_LAST, empty) {
            *lock(&shared.caller) = Some(thread::current());
            shared.caller_sleeps.store(true, Ordering::SeqCst);
            while !empty() {
                thread::park();
            }
            shared.caller_sleeps.store(false, Ordering::SeqCst);
        }
        if thread::panicking() {
            // The caller's own panic goes on; another's of the same section must not end the next one.
            lock(&shared.panic).take();
        }
    }
}

impl Shared {
    /// The life of thread number `index`.
    fn work(&self, index: usize) {
        IN_SECTION.set(true);
        let mut done = 0;
        while let Some(section) = self.next_section(index, done) {
            done = section;
            let entered = self.word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |word| {
                (word & !(SECTION - 1) == section && word & OPEN != 0).then_some(word + 1)
            });
            if entered.is_err() {
                continue;
            }
            // SAFETY: inside the section: it was open when this thread was counted, so the job was written before,
            // and it stays while this thread is counted.
            let job = unsafe { *self.job.get() }.expect("an open section has a job");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                // Not dropped here: what an earlier payload does then must not end this thread.
                mem::forget(lock(&self.panic).replace(panic));
            }
            // From here on the job may be gone.
            self.word.fetch_sub(1, Ordering::SeqCst);
            if self.caller_sleeps.load(Ordering::SeqCst)
                && let Some(caller) = &*lock(&self.caller)
            {
                caller.unpark();
            }
        }
    }

    /// Waits for a section other than `done`; none when the team ends.
    fn next_section(&self, index: usize, done: u64) -> Option<u64> {
        let section =
            || Some(self.word.load(Ordering::SeqCst) & !(SECTION - 1)).filter(|&section| section != done);
        let ends = || self.ends.load(Ordering::Relaxed);
        spin_until(SPIN, || section().is_some() || ends());
        loop {
            if ends() {
                return None;
            }
            if let Some(section) = section() {
                return Some(section);
            }
            self.sleeping[index].store(true, Ordering::SeqCst);
            if section().is_none() && !ends() {
                thread::park();
            }
            self.sleeping[index].store(false, Ordering::SeqCst);
        }
    }
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chunks, Cuts, Queue};
    use std::sync::atomic::AtomicUsize;

    /// Adds 1 to every value, chunk by chunk.
    fn increment(team: &Team, values: &mut [usize]) {
        let chunks = Queue::new(Chunks::new(values, Cuts::Every(3)));
        team.run(|| {
            for (_, chunk) in chunks.drain() {
                chunk.iter_mut().for_each(|value| *value += 1);
            }
        });
    }

    #[test]
    fn every_section_does_all_its_work_once() {
        for threads in 1..6 {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            let mut values = [0; 100];
            for section in 1..2000 {
                increment(&team, &mut values);
                assert_eq!(values, [section; 100], "{threads} threads");
            }
        }
    }

    #[test]
    fn threads_that_sleep_are_woken() {
        let team = Team::new(3).unwrap();
        for _ in 0..3 {
            thread::sleep(3 * SPIN);
            let arrived = AtomicUsize::new(0);
            let all = || arrived.load(Ordering::SeqCst) == 3;
            team.run(|| {
                arrived.fetch_add(1, Ordering::SeqCst);
                // A section whose calls wait for each other: only where all threads come does it end.
                assert!(spin_until(Duration::from_secs(60), all));
            });
        }
    }

    #[test]
    fn the_caller_waits_for_a_thread_that_is_late() {
        let team = Team::new(2).unwrap();
        let (first, done) = (AtomicBool::new(true), AtomicBool::new(false));
        let caller = thread::current().id();
        let entered = AtomicBool::new(false);
        team.run(|| {
            if thread::current().id() == caller {
                assert!(spin_until(Duration::from_secs(60), || entered.load(Ordering::SeqCst)));
            } else if first.swap(false, Ordering::SeqCst) {
                entered.store(true, Ordering::SeqCst);
                thread::sleep(20 * SPIN_FOR_LAST);
                done.store(true, Ordering::SeqCst);
            }
        });
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn sections_within_sections_and_from_several_threads() {
        let team = Team::new(3).unwrap();
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut values = [0; 30];
                        increment(&team, &mut values);
                        assert_eq!(values, [1; 30]);
                        let once = AtomicBool::new(true);
                        team.run(|| {
                            if once.swap(false, Ordering::SeqCst) {
                                team.run(|| {
                                    count.fetch_add(1, Ordering::SeqCst);
                                });
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 3 * 200);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        let caller = thread::current().id();
        for on_caller in [true, false] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                let met = AtomicBool::new(false);
                team.run(|| {
                    if (thread::current().id() == caller) == on_caller {
                        met.store(true, Ordering::SeqCst);
                        panic!("as asked");
                    }
                    assert!(spin_until(Duration::from_secs(60), || met.load(Ordering::SeqCst)));
                });
            }));
            assert_eq!(result.unwrap_err().downcast_ref(), Some(&"as asked"));
            let mut values = [0; 10];
            increment(&team, &mut values);
            assert_eq!(values, [1; 10]);
        }
    }
}
