//! A cache that stage 1 made: its header, and how much of the weights it holds itself.

use super::line;
use crate::{model::CONFIG_FILE, output::count};
use anyhow::Result;
use dsv3_deepseek::{HfConfig, Model};
use dsv3_runtime::{
    Checkpoint, Fingerprint, Location, Module, SavedWeight, WeightCache, WeightConfigHeader, WeightPath,
};
use indicatif::DecimalBytes;
use serde::Serialize;
use std::{
    collections::HashSet,
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
};

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
    pub(super) fn read(path: &Path) -> Result<Self> {
        let cache = WeightCache::at(path.to_owned());
        let header = cache.read_header()?;
        let weights = cache.read_weights::<Model>()?;
        let (mut in_place, mut written) = (Tally::default(), Tally::default());
        // A tensor of two uses, as a head that is the embedding, stands in the tree twice and lies there once.
        let mut seen = HashSet::new();
        let count = &mut |_: &WeightPath, weight: SavedWeight| {
            let data = &weight.data;
            match data.location {
                _ if !seen.insert((data.location, data.file.clone(), data.offset)) => {}
                Location::Checkpoint => in_place.add(&weight),
                Location::Cache => written.add(&weight),
            }
            Ok::<_, Infallible>(())
        };
        let Ok(_) = Model::try_map(weights, &mut WeightPath::default(), count);
        let checkpoint_state = State::of(&header);
        Ok(Self { path: path.to_owned(), header, in_place, written, checkpoint_state })
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
        let scales = weight.scales.as_ref().map_or(0, |scales| scales.data.length);
        self.bytes = self.bytes.saturating_add(weight.data.length).saturating_add(scales);
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
                let mesh = header.layout.mesh;
                format!(
                    "changed since: make the cache anew with `dsv3 convert --force --model {checkpoint} --mesh \
                     {mesh}{formats}`"
                )
            }
            State::Unreadable => "cannot be read there now".to_owned(),
        };
        line(f, "checkpoint", format_args!("{checkpoint} ({state})"))?;
        line(f, "used in place", self.in_place)?;
        line(f, "written", self.written)
    }
}
