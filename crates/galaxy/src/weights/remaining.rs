//! What a conversion still has to do, and how long that would take. Writes nothing.

use super::{
    CacheFile, ConvertOptions, Error, WeightCache,
    journal::Origin,
    values::{Packer, Scratch},
};
use crate::block_float::Rounding;
use dsv3_runtime::{Checkpoint, Source};
use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long a measurement takes, and most of what it reads for the first time: a fifth of it comes before.
const MEASURED: Duration = Duration::from_secs(1);
const WARMED: Duration = Duration::from_millis(200);

/// What is left of what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// For each file that is asked for, in order, whether it is still to be made.
    pub is_left: Vec<bool>,
    /// Bytes of those that are.
    pub bytes: u64,
}

impl Remaining {
    /// How many files are left.
    pub fn files(&self) -> usize {
        self.is_left.iter().filter(|is_left| **is_left).count()
    }
}

/// How fast this machine makes files, without the disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured<'a> {
    /// Bytes of files that all threads together make in a second.
    pub bytes_per_second: f64,
    /// How many they are.
    pub threads: usize,
    /// The file that it was measured on: the largest that is left.
    pub file: &'a str,
}

impl WeightCache {
    /// What [`convert`](Self::convert) would make: files that are whole already are not.
    ///
    /// # Errors
    /// As [`convert`](Self::convert): a tensor that is missing or cannot be used, a cache of something else.
    pub fn remaining(&self, source: &Source<'_>, options: ConvertOptions) -> Result<Remaining, Error> {
        self.check_sources(source.checkpoint)?;
        let origin = Origin::new(source.checkpoint.dir(), source.fingerprint.clone(), options.rounding);
        let record = self.record(&origin, options)?;
        let is_left = |file: &CacheFile| !record.has(&file.file.path, self.length(file));
        let left = self.wanted().filter(|file| is_left(file)).map(CacheFile::bytes);
        Ok(Remaining { bytes: left.sum(), is_left: self.wanted().map(is_left).collect() })
    }

    /// Measures how fast all threads pack parts of the largest file that is left, one part after the other, as
    /// [`convert`](Self::convert) does, but writes none; none where nothing is left.
    ///
    /// # Errors
    /// As [`convert`](Self::convert), of a tensor.
    pub fn measure(
        &self,
        checkpoint: &Checkpoint,
        remaining: &Remaining,
        rounding: Rounding,
    ) -> Result<Option<Measured<'_>>, Error> {
        let left = self.wanted().zip(&remaining.is_left).filter(|(_, is_left)| **is_left);
        let Some(CacheFile { file, header, .. }) = left.map(|(file, _)| file).max_by_key(|file| file.bytes())
        else {
            return Ok(None);
        };
        let packer = Packer::new(file, header, self.mesh, checkpoint, rounding)?;
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let next = AtomicUsize::new(0);
        let pack_for = |time: Duration, scratch: &mut Scratch| -> Result<(u64, Duration), Error> {
            let (start, mut bytes) = (Instant::now(), 0);
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed) % packer.tasks();
                bytes += packer.pack(task, scratch)?.bytes.len() as u64;
                let elapsed = start.elapsed();
                if elapsed >= time {
                    return Ok((bytes, elapsed));
                }
            }
        };
        let work = || {
            let mut scratch = Scratch::default();
            pack_for(WARMED, &mut scratch)?;
            let (bytes, time) = pack_for(MEASURED - WARMED, &mut scratch)?;
            Ok(bytes as f64 / time.as_secs_f64())
        };
        let rates: Result<Vec<f64>, Error> = thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            all.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        Ok(Some(Measured { bytes_per_second: rates?.iter().sum(), threads, file: &file.path }))
    }
}
