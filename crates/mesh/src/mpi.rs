//! Ranks that are processes of an MPI job.
//!
//! Only point-to-point transfers that do not block are used, and each exchange has a deadline, so that a process which
//! hangs or a host that is cut off ends in an error and not in waiting for ever. A view goes as one message with its
//! label where it is small; else what is left follows in messages of its own.

use crate::{
    Cause, Mesh, MeshShape, Peer, Rank, TransportError, launched_peer,
    transport::{Call, Give, Label, Take, Transport},
    view::{Buffer, View},
};
use connection::Connection;
use mpi::{Threading, environment, topology::Communicator as _, traits::CommunicatorCollectives as _};
use receive::Receive;
use std::{
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc},
    thread,
    time::{Duration, Instant},
};
use transfer::Transfer;

mod connection;
mod notes;
mod receive;
mod transfer;

/// Bytes of a view that travel with its label: larger than what moves in a decode step, smaller than what a copy of it
/// is worth thinking of.
const INLINE: usize = 16 << 10;
/// Bytes of a message before the view's: three words of the label, and the view's length.
const HEAD: usize = 32;
/// How long a rank looks for messages without sleeping. It yields its core to others between two looks.
const SPIN: Duration = Duration::from_micros(300);
/// The first sleep after that, and the longest: each is twice the one before.
const SLEEP: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];
/// How long a process that fails for a reason that others know, too, waits for each rank before it, so that one of them speaks for all
/// and ends the job meanwhile; and the longest of these times.
const TURN: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(800)];
/// How long the process that has spoken leaves it to the launcher to find out that a host is gone: one that has orders
/// for that host under way no longer looks whether it is there.
const LAUNCHERS_TURN: Duration = Duration::from_millis(2500);
/// How long a failing process waits for the job's end that it asked for before it ends by itself.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What keeps a mesh from being made of the job's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MpiError {
    /// MPI is initialised once in a process.
    #[error("MPI is in use in this process")]
    InUse,
    /// Collectives may be called from any thread, by one at a time.
    #[error("this MPI library does not let threads other than the first call it")]
    Threads,
    /// The job has another number of processes.
    #[error("a {shape} mesh has {} devices, this MPI job {processes} processes", .shape.devices())]
    Processes {
        /// The mesh's shape.
        shape: MeshShape,
        /// The processes of the job.
        processes: usize,
        /// The number of the process that tells, so that one can speak for all.
        rank: usize,
    },
}

impl Mesh {
    /// This process's view of a mesh whose ranks are the processes of the MPI job that it was started in.
    ///
    /// Waits until all of the job's processes have come so far, up to `patience`; then the process ends with an error.
    ///
    /// When the last clone is dropped, MPI is left, which waits for the other processes to do the same. When it is
    /// dropped by a panic, the job ends.
    ///
    /// # Errors
    /// If the job has not as many processes as the mesh has devices, or MPI cannot be had.
    pub fn mpi(shape: MeshShape, patience: Duration) -> Result<Self, MpiError> {
        let own = launched_peer().map_or_else(|| "a process of this job".to_owned(), |peer| peer.to_string());
        let line = format!("{own}: the other ranks did not start within {} s", patience.as_secs_f64());
        let watched = Watch::start(patience, line);
        let (universe, threading) =
            mpi::initialize_with_threading(Threading::Serialized).ok_or(MpiError::InUse)?;
        drop(watched);
        if threading < Threading::Serialized {
            return Err(MpiError::Threads);
        }
        let world = universe.world();
        let (processes, rank) = (world.size() as usize, world.rank() as usize);
        if processes != shape.devices() {
            // To leave MPI is to wait for the others, which may see it otherwise. The process is about to end.
            std::mem::forget(universe);
            return Err(MpiError::Processes { shape, processes, rank });
        }
        let rank = Rank(rank);
        let hosts = all_hosts(&world);
        let connection = Mutex::new(Some(Connection::new(universe, shape, rank)));
        Ok(Self::new(shape, rank, Arc::new(Mpi { connection, hosts, rank })))
    }
}

/// The name of each rank's host.
fn all_hosts(world: &impl mpi::traits::Communicator) -> Vec<String> {
    const LENGTH: usize = 256;
    let mut mine = environment::processor_name().unwrap_or_default().into_bytes();
    mine.resize(LENGTH, 0);
    let mut all = vec![0; LENGTH * world.size() as usize];
    world.all_gather_into(&mine[..], &mut all[..]);
    all.chunks(LENGTH).map(|host| String::from_utf8_lossy(host).trim_end_matches('\0').to_owned()).collect()
}

/// A process's way to the others. Its drop is the rank's end.
struct Mpi {
    /// Until the drop. One call at a time.
    connection: Mutex<Option<Connection>>,
    hosts: Vec<String>,
    rank: Rank,
}

impl Transport for Mpi {
    fn exchange(
        &self,
        call: &Call<'_>,
        give: Give,
        take: Take,
    ) -> Result<Vec<(Label, View)>, TransportError> {
        let mut connection = lock(&self.connection);
        let connection = connection.as_mut().expect("the connection stays until the drop");
        let result = self.transfer(connection, call, give, take);
        connection.broken |= result.is_err();
        result
    }

    fn fail(&self, error: TransportError, shared: bool) {
        self.end_job(&error, shared)
    }

    fn host(&self, rank: Rank) -> Option<String> {
        self.hosts.get(rank.0).cloned()
    }
}

impl Mpi {
    fn peer(&self, rank: Rank) -> Peer {
        Peer { rank, host: self.host(rank) }
    }

    fn others(&self) -> Vec<Rank> {
        (0..self.hosts.len()).map(Rank).filter(|&rank| rank != self.rank).collect()
    }

    fn transfer(
        &self,
        connection: &mut Connection,
        call: &Call<'_>,
        give: Give,
        take: Take,
    ) -> Result<Vec<(Label, View)>, TransportError> {
        let error =
            |place: usize, cause| TransportError { peer: self.peer(call.members.ranks[place]), cause };
        let start = Instant::now();
        let mut receives = Vec::new();
        for place in call.members.places(take) {
            let peer = connection.peer(call.members.group, place);
            let head = connection.heads.pop().unwrap_or_else(|| vec![0; HEAD + INLINE]);
            receives.push((place, Receive::new(peer, head).map_err(|cause| error(place, cause))?));
        }
        let mut sends = Vec::new();
        let views = give.into_views(call.members);
        let gives = views.len();
        for (place, view) in views {
            let peer = connection.peer(call.members.group, place);
            let messages = send(peer, call.label, &view).map_err(|cause| error(place, cause))?;
            sends.extend(messages.into_iter().map(|message| (place, message)));
        }
        let mut pause = Pause::default();
        let mut noted = None;
        loop {
            let mut missing = None;
            for (place, message) in &mut sends {
                if !message.done().map_err(|cause| error(*place, cause))? {
                    missing = missing.or(Some(*place));
                }
            }
            for (place, receive) in &mut receives {
                if !receive.done().map_err(|cause| error(*place, cause))? {
                    missing = Some(*place);
                }
            }
            let Some(place) = missing else { break };
            let waited = start.elapsed();
            if waited > call.timeout / 2 && noted != Some(place) {
                notes::send(connection, &self.others(), Some(call.members.ranks[place]), call.label);
                noted = Some(place);
            }
            if waited > call.timeout {
                let first = (call.members.ranks[place], call.label);
                let (rank, label) = notes::at_fault(connection, &self.others(), first);
                let cause = Cause::Late { call: label.name(), timeout: call.timeout };
                return Err(TransportError { peer: self.peer(rank), cause });
            }
            pause.next(sends.len() > gives || receives.iter().any(|(_, receive)| receive.is_moving()));
        }
        if noted.is_some() {
            notes::send(connection, &self.others(), None, call.label);
        }
        Ok(receives.into_iter().map(|(_, receive)| receive.finish(&mut connection.heads)).collect())
    }

    /// Who says that a rank is at fault: one that may still be heard where that one's host is gone.
    fn first_to_speak(&self, fault: Rank) -> Rank {
        let elsewhere = |rank: &Rank| self.hosts.get(rank.0) != self.hosts.get(fault.0);
        let mut ranks = (0..self.hosts.len()).map(Rank);
        ranks.clone().find(elsewhere).or_else(|| ranks.find(|&rank| rank != fault)).unwrap_or(self.rank)
    }

    /// Says why, in one line, and ends all processes of the job.
    fn end_job(&self, error: &TransportError, shared: bool) -> ! {
        let connection = match self.connection.try_lock() {
            // Another thread is in an exchange, and MPI takes one at a time.
            Err(TryLockError::WouldBlock) => None,
            Ok(connection) => Some(connection),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        };
        let broken =
            connection.as_ref().and_then(|connection| connection.as_ref()).is_some_and(|it| it.broken);
        let lost = matches!(error.cause, Cause::Late { .. } | Cause::Broken(_))
            && self.hosts.get(error.peer.rank.0) != self.hosts.get(self.rank.0);
        let first = self.first_to_speak(error.peer.rank);
        if (broken || shared) && self.rank != first {
            let turn = (TURN[0] * self.rank.0 as u32).clamp(TURN[0], TURN[1]);
            thread::sleep(if lost { LAUNCHERS_TURN + turn } else { turn });
        }
        last_line(&error.to_string());
        if lost && self.rank == first {
            thread::sleep(LAUNCHERS_TURN);
        }
        // Where the network is gone, so may be the job's other end; then this process ends alone.
        thread::spawn(|| {
            thread::sleep(LAST_WORDS);
            end_process();
        });
        if connection.is_none() {
            end_process();
        }
        mpi::topology::SimpleCommunicator::world().abort(1)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if thread::panicking() {
            self.fail(TransportError { peer: self.peer(self.rank), cause: Cause::Panicked }, false);
        }
        let Some(connection) = lock(&self.connection).take() else { return };
        if connection.broken {
            // To leave MPI is to wait for the others, of which one is gone. The process is about to end.
            std::mem::forget(connection);
            return;
        }
        let patience = crate::DEFAULT_TIMEOUT;
        let line =
            format!("{}: the other ranks did not end within {} s", self.peer(self.rank), patience.as_secs());
        let watched = Watch::start(patience, line);
        drop(connection);
        drop(watched);
    }
}

/// Ends the process where MPI itself waits for others too long. Its drop is the end of the wait.
struct Watch {
    _waits: mpsc::Sender<()>,
}

impl Watch {
    /// Waits for so long, then says why and ends the process.
    fn start(patience: Duration, line: String) -> Self {
        let (waits, ended) = mpsc::channel();
        thread::spawn(move || {
            if ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                last_line(&line);
                end_process();
            }
        });
        Self { _waits: waits }
    }
}

/// Says why the process ends, at once, so that no other's words come between.
fn last_line(message: &str) {
    let line = format!("dsv3: error: {}\n", message.replace(['\n', '\r'], " "));
    // Nobody is left to be told if it fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Sends a view: its label, its length and its first bytes in one message, what is left after it.
fn send(peer: connection::Address, label: Label, view: &View) -> Result<Vec<Transfer<View>>, Cause> {
    let bytes = view.to_contiguous();
    let mut head = Vec::with_capacity(HEAD + bytes.len().min(INLINE));
    for word in label.to_words().into_iter().chain([bytes.len() as u64]) {
        head.extend(word.to_ne_bytes());
    }
    head.extend(&bytes[..bytes.len().min(INLINE)]);
    let mut messages = vec![Transfer::send(peer, View::whole(Buffer::from(head)), 0)?];
    if bytes.len() > INLINE {
        let whole = match view.contiguous() {
            Some(_) => view.clone(),
            None => View::whole(Buffer::from(bytes.into_owned())),
        };
        messages.push(Transfer::send(peer, whole, INLINE)?);
    }
    Ok(messages)
}

/// Looks often at first, then with sleeps that grow.
#[derive(Default)]
struct Pause {
    start: Option<Instant>,
    sleep: Duration,
}

impl Pause {
    /// Waits a little. Large views move only while both ends look for it, so then it does not sleep.
    fn next(&mut self, moves: bool) {
        if moves || self.start.get_or_insert_with(Instant::now).elapsed() < SPIN {
            thread::yield_now();
            return;
        }
        self.sleep = (2 * self.sleep).clamp(SLEEP[0], SLEEP[1]);
        thread::sleep(self.sleep);
    }
}

fn end_process() -> ! {
    // What runs at a regular exit may wait for other processes.
    #[allow(unsafe_code)]
    // SAFETY: takes a number and does not return; no other thread's memory is touched.
    unsafe {
        libc::_exit(1)
    }
}

/// What these mutexes hold stays right where a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
