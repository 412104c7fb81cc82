//! A cache that stage 1 made: its header, and how much of the weights it holds itself.

use super::line;
use crate::{model::CONFIG_FILE, output::count};
use anyhow::Result;
use dsv3_deepseek::{HfConfig, Model};
use dsv3_mesh::{ExpertSharding, Layout, Rank};
use dsv3_runtime::{
    Checkpoint, Fingerprint, Location, SavedWeight, WeightCache, WeightConfigHeader, WeightTree,
};
use indicatif::DecimalBytes;
use serde::Serialize;
use std::{collections::HashSet, fmt, path::PathBuf};

/// Ranks that are looked for: a damaged header may name a mesh of any size.
const MOST_RANKS: usize = 1024;

/// A cache.
#[derive(Serialize)]
pub(super) struct CacheContents {
    path: PathBuf,
    header: WeightConfigHeader,
    in_place: Tally,
    written: Tally,
    checkpoint_state: State,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Tally {
    weights: u64,
    bytes: u64,
}

/// What became of the checkpoint since the cache was made.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Unchanged,
    Changed,
    Unreadable,
}

impl CacheContents {
    /// Of the cache in a directory.
    ///
    /// # Errors
    /// A WeightConfig that cannot be read, or is none of this model or version.
    pub(super) fn read(cache: &WeightCache) -> Result<Self> {
        let header = cache.read_header()?;
        let weights = cache.read_weights::<Model>()?;
        let (mut in_place, mut written) = (Tally::default(), Tally::default());
        // A tensor of two uses, as a head that is the embedding, stands in the tree twice and lies there once.
        let mut seen = HashSet::new();
        weights.for_each(|_, weight| {
            let data = &weight.data;
            match data.location {
                // On another device.
                _ if data.length == 0 => {}
                _ if !seen.insert((data.location, data.file.clone(), data.offset)) => {}
                Location::Checkpoint => in_place.add(&weight),
                Location::Cache => written.add(&weight),
            }
        });
        let checkpoint_state = State::of(&header);
        Ok(Self { path: cache.dir().to_owned(), header, in_place, written, checkpoint_state })
    }
}

impl State {
    fn of(header: &WeightConfigHeader) -> Self {
        let dir = &header.checkpoint;
        let (Ok(checkpoint), Ok(config)) =
            (Checkpoint::open(dir), HfConfig::read_text(&dir.join(CONFIG_FILE)))
        else {
            return Self::Unreadable;
        };
        let same = Fingerprint::of(&checkpoint, config.as_bytes()) == header.fingerprint;
        if same { Self::Unchanged } else { Self::Changed }
    }
}

impl Tally {
    fn add(&mut self, weight: &SavedWeight) {
        self.weights += 1;
        self.bytes = self.bytes.saturating_add(weight.bytes());
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", count(self.weights, "weight"), DecimalBytes(self.bytes))
    }
}

impl fmt::Display for CacheContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        self.describe_header(f)?;
        line(f, "used in place", self.in_place)?;
        line(f, "written", self.written)
    }
}

impl CacheContents {
    /// What ranks of one mesh have in common.
    fn describe_header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.header;
        line(f, "format version", header.format_version)?;
        line(f, "target", &header.target)?;
        line(f, "mesh", header.layout)?;
        if !header.formats.name.is_empty() {
            line(f, "formats", &header.formats.name)?;
        }
        let checkpoint = header.checkpoint.display();
        let state = match self.checkpoint_state {
            State::Unchanged => "unchanged since".to_owned(),
            State::Changed => {
                let formats = match &header.formats.name[..] {
                    "" => String::new(),
                    name => format!(" --format {name}"),
                };
                let Layout { mesh, experts } = header.layout;
                let experts = match experts {
                    ExpertSharding::Tensor => String::new(),
                    ExpertSharding::Expert => format!(" --experts {experts}"),
                };
                format!(
                    "changed since: make the cache anew with `dsv3 convert --force --model {checkpoint} --mesh \
                     {mesh}{experts}{formats}`"
                )
            }
            State::Unreadable => "cannot be read there now".to_owned(),
        };
        line(f, "checkpoint", format_args!("{checkpoint} ({state})"))
    }
}

/// The caches of a mesh's ranks, in one directory.
#[derive(Serialize)]
pub(super) struct MeshContents {
    path: PathBuf,
    /// Those that are there, in order; one at least.
    caches: Vec<CacheContents>,
    /// Ranks whose cache is not there: of a mesh over several hosts each has some.
    missing: Vec<Rank>,
}

impl MeshContents {
    /// Of the caches that lie in a directory.
    ///
    /// # Errors
    /// As [`CacheContents::read`].
    pub(super) fn read(path: PathBuf, caches: &[WeightCache]) -> Result<Self> {
        let caches = caches.iter().map(CacheContents::read).collect::<Result<Vec<_>>>()?;
        let of_layout = caches.iter().flat_map(|cache| cache.header.layout.weight_ranks().take(MOST_RANKS));
        let mut missing: Vec<Rank> = of_layout.collect();
        missing.sort();
        missing.dedup();
        missing.retain(|rank| caches.iter().all(|cache| cache.header.rank != *rank));
        Ok(Self { path, caches, missing })
    }
}

impl fmt::Display for MeshContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        for (index, cache) in self.caches.iter().enumerate() {
            // Each is made by itself, and may be of another time than the one before.
            let is_alike = |before: &CacheContents| {
                let (before, header) = (&before.header, &cache.header);
                (before.layout, &before.fingerprint, &before.formats)
                    == (header.layout, &header.fingerprint, &header.formats)
            };
            if index == 0 || !is_alike(&self.caches[index - 1]) {
                cache.describe_header(f)?;
            }
            let Rank(rank) = cache.header.rank;
            let (in_place, written) = (cache.in_place, cache.written);
            line(f, format!("rank {rank}"), format_args!("used in place: {in_place}; written: {written}"))?;
        }
        if self.missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = self.missing.iter().map(|rank| rank.0.to_string()).collect();
        line(f, "not here", format_args!("rank {}", missing.join(", ")))
    }
}
