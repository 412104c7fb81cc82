//! How the weights come into memory. A map reads what is touched, a few pages at a time and in the order of use; a disk
//! is several times faster in the order of the file.

use crate::{
    args::LoadArgs,
    output::note,
    progress::{Progress, Unit},
    session::is_launched,
};
use anyhow::{Context, Result, bail};
use dsv3_deepseek::{Model, ModelWeights};
use dsv3_runtime::{
    Device, Error, MappedChunk, MappedWeights, Module, Weight, WeightCopy, WeightPath, WeightTree, lock_limit,
};
use indicatif::DecimalBytes;
use std::{
    convert::Infallible,
    fs,
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// What is said while weights are read.
const LABEL: &str = "reading the weights";
/// Threads that read ahead, each waiting for a chunk of its own, so that a disk always has a next question. Asking further
/// ahead with `MADV_WILLNEED` takes one thread, but Linux answers that in pages of 4 kB where the map asks for huge ones, and
/// as long as they stay in memory decode is about 6 % slower.
const READERS: usize = 4;
/// The name of such a thread.
const READER: &str = "dsv3-read-ahead";

/// Reads weights into memory as the options say: all of them now, or beside what follows. Where they are in memory
/// already nothing is read and nothing is said.
///
/// # Errors
/// A failing read; weights that cannot be locked, or do not fit into memory where all are to be read now.
pub(crate) fn load(
    weights: ModelWeights<Weight>,
    args: LoadArgs,
    device: &Device,
) -> Result<(ModelWeights<Weight>, ReadAhead)> {
    if args.copy_weights {
        return Ok((copy(weights, device)?, ReadAhead::default()));
    }
    let read_ahead = load_mapped(&weights, args, device)?;
    Ok((weights, read_ahead))
}

/// Weights in memory of their own.
fn copy(weights: ModelWeights<Weight>, device: &Device) -> Result<ModelWeights<Weight>> {
    let mut copy = WeightCopy::default();
    weights.clone().for_each(|_, weight| copy.add(&weight));
    let total = copy.bytes();
    // The devices of a process copy at once, each about as much.
    let devices = if is_launched() { 1 } else { device.mesh().shape().devices() as u64 };
    let all = total.saturating_mul(devices);
    if let Some(free) = free_memory().filter(|&free| all > free) {
        let (all, free) = (DecimalBytes(all), DecimalBytes(free));
        bail!(
            "--copy-weights: the weights take {all}, and this system has {free} free: leave the option out"
        );
    }
    let progress = Mutex::new(Progress::new("copying the weights", Unit::BytesRead));
    let copied = copy.run(device, |done| {
        progress.lock().unwrap_or_else(PoisonError::into_inner).update(done, total);
    });
    let Ok(weights) = Model::try_map(weights, &mut WeightPath::default(), &mut |_, weight: Weight| {
        Ok::<_, Infallible>(copied.of(&weight))
    });
    Ok(weights)
}

fn load_mapped(weights: &ModelWeights<Weight>, args: LoadArgs, device: &Device) -> Result<ReadAhead> {
    let mut mapped = MappedWeights::default();
    weights.clone().for_each(|_, weight| mapped.add(&weight));
    if !args.preload && !args.mlock {
        return Ok(ReadAhead::start(mapped.chunks()));
    }
    if args.mlock {
        check_lock_limit(mapped.bytes(), lock_limit())?;
    }
    let option = if args.mlock { "--mlock" } else { "--preload" };
    preload(&mut mapped.chunks(), option, device)?;
    if args.mlock {
        mapped.lock().map_err(|error| refusal(mapped.bytes(), &error))?;
    }
    Ok(ReadAhead::default())
}

/// How much has been read, and what is said of it.
struct Shown {
    /// None if nothing is to be said.
    progress: Option<Progress>,
    done: u64,
    total: u64,
}

impl Shown {
    fn of(total: u64) -> Self {
        Self { progress: Some(Progress::new(LABEL, Unit::BytesRead)), done: 0, total }
    }

    fn add(&mut self, chunk: &MappedChunk) {
        self.done += chunk.bytes();
        if let Some(progress) = &mut self.progress {
            progress.update(self.done, self.total);
        }
    }
}

/// Reads all chunks with all threads, and enters them into the page table.
fn preload(chunks: &mut [MappedChunk], option: &str, device: &Device) -> Result<()> {
    let missing: u64 = chunks.iter().filter(|chunk| chunk.is_missing()).map(MappedChunk::bytes).sum();
    if let Some(free) = free_memory().filter(|&free| missing > free) {
        bail!(
            "{option}: {} of weights are not in memory yet, and this system has {} free: leave the option out, \
             and they are read as they are needed",
            DecimalBytes(missing),
            DecimalBytes(free)
        );
    }
    let total = chunks.iter().map(MappedChunk::bytes).sum();
    let shown = Mutex::new(Shown::of(total));
    let failed = Mutex::new(None::<Error>);
    device.for_each_chunk(chunks, 1, |_, chunk| {
        let chunk = &chunk[0];
        if let Err(error) = chunk.populate() {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        shown.lock().unwrap_or_else(PoisonError::into_inner).add(chunk);
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), Err).context("the weights cannot be read")
}

/// Refuses before hours of reading what would be refused after.
fn check_lock_limit(bytes: u64, limit: Option<u64>) -> Result<()> {
    match limit {
        // Root may lock what it wants, whatever the limit.
        Some(limit) if bytes > limit && !may_lock_anything() => {
            Err(refusal(bytes, &io::Error::from(ErrorKind::PermissionDenied)))
        }
        _ => Ok(()),
    }
}

/// Whether this process has the capability CAP_IPC_LOCK, number 14.
fn may_lock_anything() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> 14 & 1 == 1)
}

/// What to do where the system does not let weights be locked.
fn refusal(bytes: u64, error: &io::Error) -> anyhow::Error {
    let bytes = DecimalBytes(bytes);
    match lock_limit() {
        Some(limit) => anyhow::anyhow!(
            "--mlock: the weights take {bytes}, and this process may lock {}: raise the limit with `ulimit -l \
             unlimited` (RLIMIT_MEMLOCK), or leave the option out",
            DecimalBytes(limit)
        ),
        None => anyhow::anyhow!("--mlock: {bytes} of weights cannot be locked in memory: {error}"),
    }
}

/// Weights that are read in the order of the files beside what else is done; that ends when it is dropped.
#[derive(Default)]
pub(crate) struct ReadAhead {
    flags: Arc<Flags>,
    thread: Option<JoinHandle<()>>,
}

/// What the reading threads are told.
#[derive(Default)]
struct Flags {
    stop: AtomicBool,
    hide: AtomicBool,
}

impl ReadAhead {
    /// Of those of the chunks that are not in memory.
    fn start(chunks: Vec<MappedChunk>) -> Self {
        let flags = Arc::<Flags>::default();
        let seen = Arc::clone(&flags);
        // Without the thread it goes as it would have gone without this file.
        let thread = thread::Builder::new().name(READER.to_owned());
        let thread = thread.spawn(move || read_ahead(&chunks, &seen)).ok();
        Self { flags, thread }
    }

    /// Reads on without a word.
    pub(crate) fn hide(&self) {
        self.flags.hide.store(true, Ordering::Relaxed);
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.flags.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, nothing would depend on it.
            let _ = thread.join();
        }
    }
}

fn read_ahead(chunks: &[MappedChunk], flags: &Flags) {
    let stopped = || flags.stop.load(Ordering::Relaxed);
    let missing: Vec<_> =
        chunks.iter().take_while(|_| !stopped()).filter(|chunk| chunk.is_missing()).collect();
    let total = missing.iter().map(|chunk| chunk.bytes()).sum();
    if let Some(free) = free_memory().filter(|&free| total > free) {
        // Reading on would drive out what was read before.
        let (total, free) = (DecimalBytes(total), DecimalBytes(free));
        return note(format_args!(
            "the weights do not fit into memory ({total} are not there yet, {free} are free): each is read when it \
             is needed"
        ));
    }
    let shown = Mutex::new(Shown::of(total));
    by_readers(&missing, stopped, |chunk| {
        // A read that fails here fails again where the weight is used.
        let _ = chunk.populate();
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if flags.hide.load(Ordering::Relaxed) {
            shown.progress = None;
        }
        shown.add(chunk);
    });
}

/// Reads each chunk with one of the threads, in their order, until all are read or it is `stopped`.
fn by_readers<C: Sync>(chunks: &[C], stopped: impl Fn() -> bool + Sync, read: impl Fn(&C) + Sync) {
    let next = AtomicUsize::new(0);
    let read_on = || {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stopped()) {
            read(chunk);
        }
    };
    thread::scope(|scope| {
        for _ in 1..READERS.min(chunks.len()) {
            // Without it the others read its share.
            let _ = thread::Builder::new().name(READER.to_owned()).spawn_scoped(scope, read_on);
        }
        read_on();
    });
}

/// Bytes of memory that can be had without driving out what is in use; none where the system does not tell.
pub(crate) fn free_memory() -> Option<u64> {
    available_bytes(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    kilobytes(meminfo, "MemAvailable:")
}

/// Bytes of memory that this process holds beyond files that are mapped; none where the system does not tell.
pub(crate) fn own_memory() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// The bytes of a line `NAME   12 kB`, as files in /proc have them.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       24689964 kB\nMemFree:  1 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(available_bytes(meminfo), Some(23_000_000 * 1024));
        assert_eq!(available_bytes("MemTotal: 1 kB"), None);
        assert_eq!(available_bytes("MemAvailable: many"), None);
        assert_eq!(kilobytes("RssFile:\t 9 kB\nRssAnon:\t    5 kB\n", "RssAnon:"), Some(5 * 1024));
    }

    #[test]
    fn each_chunk_is_read_once_until_reading_stops() {
        let counts: Vec<_> = (0..100).map(AtomicUsize::new).collect();
        by_readers(
            &counts,
            || false,
            |count| {
                count.fetch_add(1000, Ordering::Relaxed);
            },
        );
        assert!(counts.into_iter().map(AtomicUsize::into_inner).eq(1000..1100));
        let done = AtomicUsize::new(0);
        let stopped = || done.load(Ordering::Relaxed) >= 10;
        by_readers(&[(); 100], stopped, |()| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert!((10..10 + READERS).contains(&done.into_inner()));
    }

    #[test]
    fn what_cannot_be_locked_is_refused_with_what_to_do() {
        check_lock_limit(1 << 40, None).unwrap();
        check_lock_limit(5, Some(5)).unwrap();
        if !may_lock_anything() {
            assert!(check_lock_limit(6, Some(5)).is_err());
        }
        let error = refusal(12_000_000_000, &io::Error::from(ErrorKind::OutOfMemory)).to_string();
        assert!(error.starts_with("--mlock: ") && error.contains("12.00 GB"), "{error}");
        assert_eq!(error.contains("ulimit -l unlimited"), lock_limit().is_some());
    }
}
