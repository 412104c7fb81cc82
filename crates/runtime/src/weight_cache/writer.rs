//! Stage 1 into caches: under their locks, into temporary directories, which are renamed when they are whole.

use super::{
    Converted, FORMAT_VERSION, Fingerprint, Source, TARGET, WEIGHT_CONFIG_FILE, WeightCache,
    WeightConfigFile, WeightConfigHeader,
};
use crate::{
    Checkpoint, ConvertProgress, ConvertReport, Error, Module, Prefix, SavedWeight, WeightOutput,
    convert::{Journal, Origin, WEIGHTS_FILE, Workshop},
};
use dsv3_mesh::{Layout, Rank};
use serde::Serialize;
use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    rc::Rc,
};

impl WeightCache {
    /// Stage 1 into this cache. Where a valid one is there already it is left alone, unless `force` asks for a new one.
    ///
    /// # Errors
    /// As [`convert_ranks`](Self::convert_ranks).
    pub fn convert<M: Module>(
        &self,
        hf: &M::Hf,
        source: &Source<'_>,
        force: bool,
        progress: &mut dyn FnMut(ConvertProgress<'_>),
    ) -> Result<Converted, Error>
    where
        M::Weights<SavedWeight>: Serialize,
    {
        let mut converted = self.convert_ranks::<M>(&[self.rank], hf, source, force, progress)?;
        Ok(converted.pop().expect("one rank has one cache").1)
    }

    /// Stage 1 for several ranks of the mesh, each into its cache, all at a time: what they cut from one tensor is read
    /// once. Gives what became of each cache, by its rank; ranks whose weights are the same share one. Several threads
    /// and processes may do so at the same time: of those that want the same caches one makes them.
    ///
    /// # Errors
    /// A model that does not divide over the mesh, or a tensor that is missing or of a type that no weight may have, before
    /// anything is written; a cache of something else is there and
    /// `force` is not given; an unusable checkpoint; a failing write.
    pub fn convert_ranks<M: Module>(
        &self,
        ranks: &[Rank],
        hf: &M::Hf,
        source: &Source<'_>,
        force: bool,
        progress: &mut dyn FnMut(ConvertProgress<'_>),
    ) -> Result<Vec<(Rank, Converted)>, Error>
    where
        M::Weights<SavedWeight>: Serialize,
    {
        check_division::<M>(hf, self.layout)?;
        let mut ranks: Vec<Rank> = ranks.iter().map(|&rank| self.layout.weight_rank(rank)).collect();
        ranks.sort();
        ranks.dedup();
        let caches: Vec<Self> = ranks.iter().map(|&rank| self.of_rank(rank)).collect();
        // Everyone locks in this order, so that no two wait for each other.
        let _locks = caches.iter().map(Self::lock).collect::<Result<Vec<File>, _>>()?;
        let mut missing = Vec::new();
        for cache in &caches {
            if force || !cache.exists() {
                missing.push(cache);
            } else {
                cache.check_origin(&cache.read_header()?, source)?;
            }
        }
        if !missing.is_empty() {
            check_types::<M>(hf, self.layout, source.checkpoint)?;
        }
        let mut reports = make::<M>(&missing, hf, source, force, progress)?.into_iter();
        let converted = |cache: &Self| {
            let is_made = missing.iter().any(|made| made.rank == cache.rank);
            let report = if is_made { reports.next() } else { None };
            (cache.rank, report.map_or(Converted::Present, Converted::Made))
        };
        Ok(caches.iter().map(converted).collect())
    }

    /// Whether an interrupted conversion has left weights that the next one will go on with.
    pub fn is_begun(&self) -> bool {
        Journal::has_entries(&self.sibling("tmp"))
    }

    /// What a conversion is made from and for, to the last detail that its bytes depend on.
    fn origin(&self, source: &Source<'_>) -> Origin {
        let formats = serde_json::to_string(&self.formats).expect("a map of names is JSON");
        let (layout, Rank(rank)) = (self.layout, self.rank);
        let Fingerprint(fingerprint) = &source.fingerprint;
        Origin(format!("{FORMAT_VERSION} {TARGET}-{layout} rank {rank} {formats} {fingerprint}"))
    }

    /// The directory that the cache is made in. What an interrupted run left is gone on with, or begun anew where it is
    /// of something else or distrusted.
    fn prepare(&self, force: bool) -> Result<PathBuf, Error> {
        let temporary = self.sibling("tmp");
        if force {
            remove_dir(&temporary)?;
        }
        fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
        Ok(temporary)
    }

    /// Ends a conversion into `dir`: makes everything durable and writes the WeightConfig.
    fn finish(
        &self,
        dir: &Path,
        source: &Source<'_>,
        weights: impl Serialize,
        out: WeightOutput<'_>,
    ) -> Result<ConvertReport, Error> {
        let header = WeightConfigHeader {
            format_version: FORMAT_VERSION,
            target: TARGET.to_owned(),
            layout: self.layout,
            rank: self.rank,
            formats: self.formats.clone(),
            checkpoint: source.checkpoint.dir().to_owned(),
            fingerprint: source.fingerprint.clone(),
            written_bytes: out.written(),
        };
        let report = out.finish()?;
        if header.written_bytes == 0 {
            let path = dir.join(WEIGHTS_FILE);
            fs::remove_file(&path).map_err(Error::io(path))?;
        }
        let path = dir.join(WEIGHT_CONFIG_FILE);
        let mut json = serde_json::to_vec_pretty(&WeightConfigFile { header, weights })
            .expect("a weight tree is made of strings, numbers and lists");
        json.push(b'\n');
        let mut file = File::create(&path).map_err(Error::io(&path))?;
        file.write_all(&json).and_then(|()| file.sync_all()).map_err(Error::io(&path))?;
        Journal::remove(dir)?;
        Ok(report)
    }

    /// Puts a whole directory in the cache's place.
    fn publish(&self, temporary: &Path) -> Result<(), Error> {
        let old = self.sibling("old");
        remove_dir(&old)?;
        if self.dir.exists() {
            fs::rename(&self.dir, &old).map_err(Error::io(&self.dir))?;
        }
        fs::rename(temporary, &self.dir).map_err(Error::io(&self.dir))?;
        // The cache is in place; what cannot be removed now is removed by the next writer.
        let _ = remove_dir(&old);
        Ok(())
    }

    /// Waits until no other process writes this cache. The lock goes with the returned file.
    fn lock(&self) -> Result<File, Error> {
        let parent = self.dir.parent().expect("a cache lies in its model's directory");
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let path = self.sibling("lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(&path))?;
        Ok(file)
    }

    /// A path beside the cache.
    pub(super) fn sibling(&self, extension: &str) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{extension}"));
        self.dir.with_file_name(name)
    }
}

/// Makes caches. Where that fails what is whole of each stays.
fn make<M: Module>(
    caches: &[&WeightCache],
    hf: &M::Hf,
    source: &Source<'_>,
    force: bool,
    progress: &mut dyn FnMut(ConvertProgress<'_>),
) -> Result<Vec<ConvertReport>, Error>
where
    M::Weights<SavedWeight>: Serialize,
{
    let dirs = caches.iter().map(|cache| cache.prepare(force)).collect::<Result<Vec<_>, _>>()?;
    let made = write::<M>(caches, &dirs, hf, source, progress);
    if made.is_err() {
        for dir in dirs.iter().filter(|dir| !Journal::has_entries(dir)) {
            // The error that counts is the first one.
            let _ = fs::remove_dir_all(dir);
        }
    }
    made
}

fn write<M: Module>(
    caches: &[&WeightCache],
    dirs: &[PathBuf],
    hf: &M::Hf,
    source: &Source<'_>,
    progress: &mut dyn FnMut(ConvertProgress<'_>),
) -> Result<Vec<ConvertReport>, Error>
where
    M::Weights<SavedWeight>: Serialize,
{
    if caches.is_empty() {
        return Ok(Vec::new());
    }
    let all = RefCell::new(AllProgress { done: vec![0; caches.len()], progress });
    let mut each: Vec<_> = (0..caches.len())
        .map(|index| {
            let all = &all;
            move |at: ConvertProgress<'_>| all.borrow_mut().update(index, at)
        })
        .collect();
    let workshop = Rc::<RefCell<Workshop>>::default();
    let mut outs = Vec::with_capacity(caches.len());
    for ((cache, dir), progress) in caches.iter().zip(dirs).zip(&mut each) {
        let out = WeightOutput::new(dir, cache.layout, cache.rank, progress);
        let out = out.with_formats(cache.formats.clone()).with_workshop(&workshop);
        outs.push(out.resume(&cache.origin(source))?);
    }
    let trees = M::convert_weights_of_ranks(hf, &Prefix::root(), source.checkpoint, &mut outs)?;
    let parts = caches.iter().zip(dirs).zip(trees).zip(outs);
    let finish = |(((cache, dir), weights), out): (((&&WeightCache, &PathBuf), _), _)| {
        let report = cache.finish(dir, source, weights, out)?;
        cache.publish(dir).map(|()| report)
    };
    parts.map(finish).collect()
}

/// How far several outputs are together: as far as they are on average.
struct AllProgress<'a> {
    done: Vec<u64>,
    progress: &'a mut dyn FnMut(ConvertProgress<'_>),
}

impl AllProgress<'_> {
    fn update(&mut self, index: usize, at: ConvertProgress<'_>) {
        self.done[index] = at.bytes;
        let bytes = self.done.iter().sum::<u64>() / self.done.len() as u64;
        (self.progress)(ConvertProgress { bytes, ..at });
    }
}

/// Refuses a model that does not divide over a mesh: a dimension that a module splits, or a tensor.
fn check_division<M: Module>(hf: &M::Hf, layout: Layout) -> Result<(), Error> {
    M::prefill_model_config(hf, layout).map_err(|error| error.on(layout))?;
    for (_, spec) in super::list_specs::<M>(hf, layout) {
        spec.local_range(layout, Rank(0))?;
    }
    Ok(())
}

/// Whether all tensors are there and of types that weights may have: by the headers, for the conversion takes hours.
fn check_types<M: Module>(hf: &M::Hf, layout: Layout, checkpoint: &Checkpoint) -> Result<(), Error> {
    for (_, spec) in super::list_specs::<M>(hf, layout) {
        spec.stored_format(checkpoint, layout, Rank(0))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(dir)(error)),
        _ => Ok(()),
    }
}
