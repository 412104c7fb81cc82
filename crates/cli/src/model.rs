//! A checkpoint that is ready for the stages: its place, its configuration, its headers, its weights.

use crate::{
    args::ModelArgs,
    embedded,
    output::note,
    progress::{Progress, Unit},
};
use anyhow::{Context, Result, bail};
use dsv3_deepseek::{HfConfig, Model, ModelWeights, gguf};
use dsv3_engine::{GgufTokenizer, write_json};
use dsv3_mesh::{Layout, Rank};
use dsv3_runtime::{
    Checkpoint, ConvertReport, Converted, Error, Fingerprint, Formats, Gguf, Source, Weight, WeightCache,
};
use indicatif::DecimalBytes;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// The configuration's file in a checkpoint.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// Where a model and its cache lie.
#[derive(Clone, Debug)]
pub(crate) struct ModelPlace {
    /// The checkpoint's directory.
    pub(crate) dir: PathBuf,
    /// The directory of all caches.
    pub(crate) cache: PathBuf,
    /// The formats that the weights are to have.
    pub(crate) formats: Formats,
}

impl ModelPlace {
    /// The model that is asked for, or the embedded one, unpacked.
    pub(crate) fn resolve(args: &ModelArgs) -> Result<Self> {
        let cache = cache_dir(args.cache.as_deref())?;
        let dir = match &args.model {
            Some(dir) => absolute(dir),
            None => embedded::unpack(&cache)?,
        };
        Ok(Self { dir, cache, formats: args.format.clone() })
    }
}

/// Caches note where their checkpoint lies, the embedded one's in the cache itself: that must not depend on where the
/// user stands.
fn absolute(dir: &Path) -> PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())
}

/// The directory of all caches: as given, or this program's in the user's.
pub(crate) fn cache_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(absolute(dir));
    }
    let dir = dirs::cache_dir().context("this system names no cache directory: give one with --cache DIR")?;
    Ok(dir.join("dsv3"))
}

/// An open checkpoint of a model.
#[derive(Clone)]
pub(crate) struct OpenModel {
    /// Its configuration; without the MTP layer where the checkpoint has none.
    pub(crate) hf: HfConfig,
    /// Whether config.json promises an MTP layer that the checkpoint does not have.
    pub(crate) lacks_mtp: bool,
    /// Its tensors.
    pub(crate) checkpoint: Checkpoint,
    dir: PathBuf,
    fingerprint: Fingerprint,
    /// What all copies of this checkpoint have in common.
    copies: Fingerprint,
    cache: PathBuf,
    formats: Formats,
}

impl OpenModel {
    /// Reads the configuration and the headers.
    ///
    /// # Errors
    /// A configuration or a checkpoint that cannot be used.
    pub(crate) fn open(place: &ModelPlace) -> Result<Self> {
        if Gguf::is_gguf(&place.dir) {
            return Self::open_gguf(place);
        }
        if place.dir.is_file() {
            bail!(
                "{}: expected a checkpoint's directory or a GGUF file, got another file",
                place.dir.display()
            );
        }
        let path = place.dir.join(CONFIG_FILE);
        let config_json = HfConfig::read_text(&path)?;
        let mut hf = HfConfig::from_json(&path, &config_json)?;
        let checkpoint = Checkpoint::open(&place.dir)?;
        let lacks_mtp = lacks_mtp(&hf, &checkpoint);
        if lacks_mtp {
            hf.mtp_layers = 0;
        }
        let fingerprint = Fingerprint::of(&checkpoint, config_json.as_bytes());
        Ok(Self {
            hf,
            lacks_mtp,
            dir: checkpoint.dir().to_owned(),
            fingerprint,
            copies: Fingerprint::of_copies(&checkpoint, config_json.as_bytes()),
            checkpoint,
            cache: place.cache.clone(),
            formats: place.formats.clone(),
        })
    }

    /// Reads the head of a GGUF file, and writes the small files that a checkpoint's directory would have beside the
    /// weights into the file's cache.
    fn open_gguf(place: &ModelPlace) -> Result<Self> {
        let gguf = Gguf::open(&place.dir)?;
        let config_json = gguf::config_json(&gguf)?;
        let hf = HfConfig::from_json(&place.dir, &config_json)?;
        let tokenizer = GgufTokenizer::new(gguf.metadata());
        let checkpoint = gguf::checkpoint(gguf)?;
        let fingerprint = Fingerprint::of(&checkpoint, config_json.as_bytes());
        let copies = Fingerprint::of_copies(&checkpoint, config_json.as_bytes());
        let cache = WeightCache::locate(&place.cache, &checkpoint, Layout::SINGLE);
        let dir = cache.dir().with_file_name("files");
        let files = [
            (CONFIG_FILE, Some(serde_json::from_str(&config_json)?)),
            ("tokenizer.json", tokenizer.tokenizer_json),
            ("tokenizer_config.json", Some(tokenizer.tokenizer_config_json)),
        ];
        write_files(&dir, files).map_err(|error| error.context(embedded::unwritable(&place.cache)))?;
        let (cache, formats) = (place.cache.clone(), place.formats.clone());
        Ok(Self { hf, lacks_mtp: false, checkpoint, dir, fingerprint, copies, cache, formats })
    }

    /// The directory of the tokenizer and the other small files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What ranks that run one model together must have in common, each with a name for the user.
    pub(crate) fn facts(&self) -> [(&'static str, String); 3] {
        [
            ("the checkpoint", self.copies.to_string()),
            ("--format", if self.formats.name.is_empty() { "keep" } else { &self.formats.name }.to_owned()),
            ("the number of MTP layers", self.hf.mtp_layers.to_string()),
        ]
    }

    /// What it is at this moment, with the times of its files: unlike its [facts](Self::facts), this tells it from another
    /// checkpoint of the same shape.
    pub(crate) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The cache of the weights for rank 0 of a mesh.
    pub(crate) fn cache(&self, layout: Layout) -> WeightCache {
        WeightCache::locate(&self.cache, &self.checkpoint, layout).with_formats(self.formats.clone())
    }

    /// Stage 1 for these ranks of a mesh, with progress. Ranks whose weights are the same have one cache.
    ///
    /// # Errors
    /// As [`WeightCache::convert_ranks`].
    pub(crate) fn convert(
        &self,
        layout: Layout,
        ranks: &[Rank],
        force: bool,
    ) -> Result<Vec<(Rank, Converted)>> {
        let mut progress = Progress::new("converting", Unit::Bytes);
        let mut update = |at: dsv3_runtime::ConvertProgress<'_>| progress.update(at.bytes, at.total);
        let cache = self.cache(layout);
        let is_begun = || ranks.iter().any(|&rank| cache.of_rank(rank).is_begun());
        if is_begun() {
            note(format_args!("an interrupted conversion is there: going on with it"));
        }
        let converted = cache.convert_ranks::<Model>(ranks, &self.hf, &self.source(), force, &mut update);
        converted.map_err(|error| match &error {
            Error::Io { path, .. } if path.starts_with(&self.cache) && is_begun() => {
                anyhow::Error::from(error).context("what is done is kept, and the next run goes on with it")
            }
            Error::Io { path, .. } if path.starts_with(&self.cache) => {
                anyhow::Error::from(error).context(embedded::unwritable(&self.cache))
            }
            _ => error.into(),
        })
    }

    /// The weights for one device, mapped. Runs stage 1 where there is no cache, and says so.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare) and [`load`](Self::load).
    pub(crate) fn weights(&self) -> Result<ModelWeights<Weight>> {
        self.prepare(Layout::SINGLE, &[Rank(0)])?;
        self.load(Layout::SINGLE, Rank(0))
    }

    /// Runs stage 1 for those of these ranks of a mesh that have no cache, and says so.
    ///
    /// # Errors
    /// As [`convert`](Self::convert).
    pub(crate) fn prepare(&self, layout: Layout, ranks: &[Rank]) -> Result<()> {
        let cache = self.cache(layout);
        let missing: Vec<Rank> =
            ranks.iter().copied().filter(|&rank| !cache.of_rank(rank).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let converted = self.convert(layout, &missing, false)?;
        if let Some(report) = sum(&converted) {
            let seconds = start.elapsed().as_secs_f64();
            note(format_args!("prepared the weights in {seconds:.1} s: {}", summary(&report)));
        }
        Ok(())
    }

    /// The weights of a rank whose cache is there, mapped.
    ///
    /// # Errors
    /// As [`WeightCache::load`].
    pub(crate) fn load(&self, layout: Layout, rank: Rank) -> Result<ModelWeights<Weight>> {
        Ok(self.cache(layout).of_rank(rank).load::<Model>(&self.hf, &self.source())?)
    }

    /// The checkpoint, and what it is at the moment.
    pub(crate) fn source(&self) -> Source<'_> {
        Source { checkpoint: &self.checkpoint, fingerprint: self.fingerprint.clone() }
    }
}

/// What was done for all ranks together; none where their caches were there.
pub(crate) fn sum(converted: &[(Rank, Converted)]) -> Option<ConvertReport> {
    let mut reports = converted.iter().filter_map(|(_, converted)| match converted {
        Converted::Made(report) => Some(report),
        Converted::Present => None,
    });
    let mut sum = reports.next()?.clone();
    reports.for_each(|report| sum.add(report));
    Some(sum)
}

/// Writes those of the small files that are not there as they should be.
fn write_files<const N: usize>(dir: &Path, files: [(&str, Option<Value>); N]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    for (name, value) in files {
        let path = dir.join(name);
        let Some(value) = value else { continue };
        if fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) != Some(value.clone()) {
            write_json(&path, &value)?;
        }
    }
    Ok(())
}

/// `85 used in place`, and what was written.
fn summary(report: &ConvertReport) -> String {
    let ConvertReport { in_place, widened, cut, decoded, converted, .. } = report;
    let mut text = format!("{} used in place", in_place.tensors);
    if cut.tensors > 0 {
        text += &format!(", {} cut by columns ({})", cut.tensors, DecimalBytes(cut.bytes));
    }
    for ((from, to), tally) in decoded {
        text += &format!(", {} from {from} to {to} ({})", tally.tensors, DecimalBytes(tally.bytes));
    }
    for (format, tally) in converted {
        text += &format!(", {} converted to {format} ({})", tally.tensors, DecimalBytes(tally.bytes));
    }
    if widened.tensors > 0 {
        text += &format!(", {} widened to F32 ({})", widened.tensors, DecimalBytes(widened.bytes));
    }
    text
}

/// Whether the configuration promises an MTP layer that the checkpoint does not have. Many that were derived from
/// DeepSeek-V3 left it out and kept the configuration.
pub(crate) fn lacks_mtp(hf: &HfConfig, checkpoint: &Checkpoint) -> bool {
    let layer = hf.num_hidden_layers;
    hf.mtp_layers > 0 && checkpoint.get(&format!("model.layers.{layer}.eh_proj.weight")).is_none()
}
