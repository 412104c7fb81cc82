//! `dsv3 inspect`: what a checkpoint, a cache or a file of TT-NN holds. Reads headers only.

mod architecture;
mod cache;
mod contents;
mod tensorbin;

use crate::{
    args::InspectArgs,
    embedded,
    model::{CONFIG_FILE, cache_dir},
    output,
};
use anyhow::{Result, bail};
use architecture::Architecture;
use cache::{CacheContents, MeshContents};
use contents::Contents;
use dsv3_deepseek::{HfConfig, gguf};
use dsv3_galaxy::tensorbin::TensorBin;
use dsv3_runtime::{Checkpoint, Gguf, WeightCache};
use serde::Serialize;
use std::{
    fmt::{self, Display},
    path::PathBuf,
};
use tensorbin::TensorBinContents;

/// What stands in a checkpoint's directory, or in a GGUF file.
#[derive(Serialize)]
struct CheckpointReport {
    path: PathBuf,
    architecture: Architecture,
    /// Absent where only a config.json was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Contents>,
}

/// Runs the command.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let path = match &args.path {
        Some(path) => path.clone(),
        None => embedded::unpack(&cache_dir(args.cache.as_deref())?)?,
    };
    if path.is_dir() {
        match &WeightCache::list(&path)?[..] {
            [] => {}
            [cache] if cache.dir() == path => return print(&CacheContents::read(cache)?, args.json),
            ranks => return print(&MeshContents::read(path, ranks)?, args.json),
        }
    }
    if TensorBin::is_named(&path) && !path.is_dir() {
        return print(&TensorBinContents::read(path)?, args.json);
    }
    let report = CheckpointReport::read(path)?;
    print(&report, args.json)?;
    match report.checkpoint.map_or(0, |contents| contents.problems.len()) {
        0 => Ok(()),
        1 => bail!("{}: the checkpoint has a problem and cannot be used", report.path.display()),
        count => bail!("{}: the checkpoint has {count} problems and cannot be used", report.path.display()),
    }
}

fn print(report: &(impl Serialize + Display), json: bool) -> Result<()> {
    let text = if json { output::pretty_json(report)? } else { report.to_string() };
    output::print(&text)
}

impl CheckpointReport {
    fn read(path: PathBuf) -> Result<Self> {
        let (hf, checkpoint) = if Gguf::is_gguf(&path) {
            let gguf = Gguf::open(&path)?;
            let hf = HfConfig::from_json(&path, &gguf::config_json(&gguf)?)?;
            (hf, Some(gguf::checkpoint(gguf)?))
        } else if path.is_dir() {
            (HfConfig::from_file(&path.join(CONFIG_FILE))?, Some(Checkpoint::open(&path)?))
        } else {
            (HfConfig::from_file(&path)?, None)
        };
        let contents = checkpoint.map(|checkpoint| Contents::of(&checkpoint, &hf));
        Ok(Self { path, architecture: Architecture::of(&hf), checkpoint: contents })
    }
}

impl Display for CheckpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        write!(f, "{}", self.architecture)?;
        self.checkpoint.as_ref().map_or(Ok(()), |contents| write!(f, "\n{contents}"))
    }
}

/// One line of a report: a name, then what is to be said of it.
fn line(f: &mut fmt::Formatter<'_>, name: impl Display, value: impl Display) -> fmt::Result {
    writeln!(f, "  {name:<18}{value}")
}
