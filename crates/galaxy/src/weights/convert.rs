//! Stage 1: writes the files of a cache, each on all cores, and sends one to the disk while the next is made.

use super::{
    CacheFile, Error, WeightCache, WeightFile,
    config::{self, weight_config},
    journal::{Distrust, Journal, Origin, Record},
    values::{Packer, Scratch},
};
use crate::{block_float::Rounding, tensorbin::Writer};
use dsv3_runtime::{Checkpoint, Dtype, Source, WeightSpec};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// The file that keeps a second process away.
const LOCK_FILE: &str = ".dsv3-convert.lock";
/// Files that may wait for the disk.
const WAITING_FILES: usize = 2;
/// Files that may be unfinished at a time: those that wait, one that is made, and one that is sent to the disk.
const UNFINISHED_FILES: usize = WAITING_FILES + 2;
/// Bytes after which a file is sent to the disk while it is being made: the disk is to write all the time.
const FLUSHED: u64 = 256 << 20;

/// How a cache is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConvertOptions {
    /// How values are rounded.
    pub rounding: Rounding,
    /// Whether what is asked for is made anew, whatever is there.
    pub force: bool,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file that is being made.
    pub file: &'a str,
    /// Bytes of files that are made, in this run.
    pub bytes: u64,
    /// Bytes of files that this run makes.
    pub total: u64,
}

/// What a conversion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that it wrote, and their bytes.
    pub written: (usize, u64),
    /// Files that were there from an earlier run, and their bytes.
    pub present: (usize, u64),
    /// Bytes of the checkpoint that were read.
    pub read: u64,
    /// Files of the cache that are not there yet; without any, config.json is.
    pub missing: usize,
}

impl WeightCache {
    /// Makes the files that are asked for and are not there, and config.json once all of the cache are.
    ///
    /// What is whole stays whatever happens, and the next run goes on with the rest.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen, of an unsupported type, or not finite; a cache that was made from something
    /// else; too little room; a failing write.
    pub fn convert(
        &self,
        source: &Source<'_>,
        options: ConvertOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Report, Error> {
        self.check_sources(source.checkpoint)?;
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let _lock = self.lock()?;
        let config = self.config_path();
        let origin = Origin::new(source.checkpoint.dir(), source.fingerprint.clone(), options.rounding);
        let record = self.record(&origin, options)?;
        let mut report = Report::default();
        let mut missing = Vec::new();
        for file in self.wanted() {
            match record.has(&file.file.path, self.length(file)) {
                true => add(&mut report.present, file.bytes()),
                false => missing.push(file),
            }
        }
        // What is there stays as it is, and is known, until it is sure that there is room for all.
        self.prepare(&missing)?;
        let mut journal = record.open(&origin)?;
        if !missing.is_empty() {
            // A tree that is being made anew is not to be read meanwhile.
            remove(&config)?;
        }
        let job = Job { cache: self, checkpoint: source.checkpoint, rounding: options.rounding };
        job.run(&missing, &mut journal, &mut report, progress)?;
        report.missing = self.files.iter().filter(|file| !self.is_whole(file, &journal)).count();
        if report.missing == 0 {
            let files: Vec<WeightFile> = self.files.iter().map(|file| file.file.clone()).collect();
            config::write_if_other(&self.dir, &weight_config(&files))?;
        }
        Ok(report)
    }

    /// The files that are asked for.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &CacheFile> {
        self.files.iter().filter(|file| file.is_wanted)
    }

    /// Looks up the tensors of what is asked for, before anything is written.
    pub(super) fn check_sources(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.wanted().flat_map(|file| &file.file.sources).try_for_each(|spec| check_source(spec, checkpoint))
    }

    /// The record of what is whole, without what is to be made anew. Writes nothing.
    ///
    /// # Errors
    /// A cache that was made from something else, and is not to be replaced whole.
    pub(super) fn record(&self, origin: &Origin, options: ConvertOptions) -> Result<Record, Error> {
        let distrust = match (options.force, self.files.iter().all(|file| file.is_wanted)) {
            (false, _) => Distrust::Nothing,
            (true, false) => Distrust::Some,
            (true, true) => Distrust::All,
        };
        if self.config_path().exists() && !Journal::exists(&self.dir) && distrust != Distrust::All {
            let (path, other) =
                (self.dir.clone(), "something else: its config.json is not of this program".to_owned());
            return Err(match distrust {
                Distrust::Some => Error::Mixed { path, other },
                _ => Error::Origin { path, other },
            });
        }
        let mut record = Record::read(&self.dir, origin, distrust)?;
        if options.force {
            self.wanted().for_each(|file| record.forget(&file.file.path));
        }
        Ok(record)
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.dir.join(LOCK_FILE);
        let file = File::create(&path).map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: self.dir.clone() }),
            Err(TryLockError::Error(error)) => Err(Error::io(path)(error)),
        }
    }

    fn is_whole(&self, file: &CacheFile, journal: &Journal) -> bool {
        journal.has(&file.file.path, self.length(file))
    }

    /// Bytes of what is there under a file's name.
    pub(super) fn length(&self, CacheFile { file, .. }: &CacheFile) -> u64 {
        fs::metadata(self.dir.join(&file.path)).map_or(0, |metadata| metadata.len())
    }

    /// Makes directories, removes what an interrupted run left unfinished, and looks whether there is room.
    fn prepare(&self, missing: &[&CacheFile]) -> Result<(), Error> {
        let dirs: BTreeSet<&Path> =
            missing.iter().filter_map(|file| Path::new(&file.file.path).parent()).collect();
        for dir in dirs {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
            for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
                let entry = entry.map_err(Error::io(&dir))?;
                if entry.file_name().to_str().is_some_and(Writer::is_temporary) {
                    fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
                }
            }
        }
        let needed = self.needed(missing);
        match free_bytes(&self.dir).map_err(Error::io(&self.dir))? {
            Some(free) if free < needed => Err(Error::NoRoom { path: self.dir.clone(), needed, free }),
            _ => Ok(()),
        }
    }

    /// The most bytes that these files take, at any time, beyond what is there now: one that is replaced keeps its place
    /// until the new one is finished.
    fn needed(&self, missing: &[&CacheFile]) -> u64 {
        let (mut written, mut replaced, mut most) = (0, 0, 0);
        for (index, file) in missing.iter().enumerate() {
            if let Some(finished) = index.checked_sub(UNFINISHED_FILES) {
                replaced += self.length(missing[finished]);
            }
            written += file.bytes();
            most = most.max(u64::saturating_sub(written, replaced));
        }
        most
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// What all files of a run have in common.
struct Job<'a> {
    cache: &'a WeightCache,
    checkpoint: &'a Checkpoint,
    rounding: Rounding,
}

impl Job<'_> {
    fn run(
        &self,
        files: &[&CacheFile],
        journal: &mut Journal,
        report: &mut Report,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Error> {
        let total = files.iter().map(|file| file.data_bytes()).sum();
        let mut done = 0;
        let failed = AtomicBool::new(false);
        thread::scope(|scope| {
            let (to_disk, made) = mpsc::sync_channel::<(Writer, &CacheFile, u64)>(WAITING_FILES);
            let failed = &failed;
            let finisher = scope.spawn(move || {
                let result = made.iter().try_for_each(|(writer, file, read)| {
                    writer.finish()?;
                    journal.add(&file.file.path, file.bytes())?;
                    add(&mut report.written, file.bytes());
                    report.read += read;
                    Ok(())
                });
                failed.store(result.is_err(), Ordering::Relaxed);
                result
            });
            let mut write = |file: &CacheFile| {
                let mut advance = |bytes| {
                    done += bytes;
                    progress(Progress { file: &file.file.path, bytes: done, total });
                };
                self.write(file, failed, &mut advance)
            };
            let mut result = Ok(());
            for file in files {
                let is_sent = match write(file) {
                    Ok(Some((writer, read))) => to_disk.send((writer, file, read)).is_ok(),
                    // The other thread has failed, and tells why.
                    Ok(None) => false,
                    Err(error) => {
                        result = Err(error);
                        false
                    }
                };
                if !is_sent {
                    break;
                }
            }
            drop(to_disk);
            finisher.join().expect("it does not panic").and(result)
        })
    }

    /// Makes a file on all cores: gives it without its name yet, and how much of the checkpoint was read. None where the
    /// run has failed meanwhile.
    fn write(
        &self,
        CacheFile { file, header, .. }: &CacheFile,
        failed: &AtomicBool,
        advance: &mut dyn FnMut(u64),
    ) -> Result<Option<(Writer, u64)>, Error> {
        let packer = Packer::new(file, header, self.cache.mesh, self.checkpoint, self.rounding)?;
        let writer = Writer::create(&self.cache.dir.join(&file.path), header)?;
        let (tasks, next, error) = (packer.tasks(), AtomicUsize::new(0), Mutex::new(None));
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(tasks);
        let fail = |first: Error| {
            error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(first);
            next.store(tasks, Ordering::Relaxed);
        };
        let work = |progress: &mpsc::Sender<u64>| {
            let mut scratch = Scratch::default();
            while !failed.load(Ordering::Relaxed) {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                let written = packer.pack(task, &mut scratch).and_then(|packed| {
                    writer.write(packed.buffer, packed.offset, packed.bytes)?;
                    Ok(packed.bytes.len() as u64)
                });
                match written {
                    // Who reads waits until all have ended.
                    Ok(bytes) => drop(progress.send(bytes)),
                    Err(first) => fail(first),
                }
            }
        };
        thread::scope(|scope| {
            let (progress, made) = mpsc::channel();
            for _ in 0..threads {
                let (progress, work) = (progress.clone(), &work);
                scope.spawn(move || work(&progress));
            }
            drop(progress);
            let mut unsent = 0;
            for bytes in made {
                advance(bytes);
                unsent += bytes;
                if unsent >= FLUSHED {
                    unsent = 0;
                    if let Err(first) = writer.flush() {
                        fail(first.into());
                    }
                }
            }
        });
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None if failed.load(Ordering::Relaxed) => Ok(None),
            None => Ok(Some((writer, packer.source_bytes()))),
        }
    }
}

fn add((count, sum): &mut (usize, u64), bytes: u64) {
    *count += 1;
    *sum += bytes;
}

/// Refuses a tensor that is missing, misshapen or of an unsupported type, or lacks its scales, before anything is written.
fn check_source(spec: &WeightSpec, checkpoint: &Checkpoint) -> Result<(), Error> {
    let tensor = checkpoint.tensor(&spec.source)?;
    let refuse =
        |message| Err(Error::Checkpoint(dsv3_runtime::Error::Tensor { name: spec.source.clone(), message }));
    if tensor.info.shape != spec.shape {
        return refuse(format!(
            "expected shape {:?}, as config.json says, got {:?}",
            spec.shape, tensor.info.shape
        ));
    }
    match (tensor.info.dtype, spec.scale_block) {
        (Dtype::F8E4M3, Some(block)) => checkpoint.scales(&spec.source, block).map(drop)?,
        (dtype, _) if !dtype.is_weight() => {
            return refuse(format!("expected a type that a weight may have, got {dtype}"));
        }
        _ => {}
    }
    Ok(())
}

/// Bytes that may be written where a directory is; none where the system does not tell.
fn free_bytes(dir: &Path) -> io::Result<Option<u64>> {
    #[cfg(unix)]
    {
        let space = rustix::fs::statvfs(dir)?;
        Ok(Some(space.f_bavail.saturating_mul(space.f_frsize)))
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        Ok(None)
    }
}
