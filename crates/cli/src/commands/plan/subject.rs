//! The model of a plan: a checkpoint's headers, or a config.json alone.

use crate::{
    args::ModelArgs,
    model::{ModelPlace, OpenModel},
    output::note,
};
use anyhow::{Context, Result};
use dsv3_deepseek::{
    HeldWeights, HfConfig, ModelWeights, PlannedWeight, held_weights, plan_weights, usual_format,
};
use dsv3_mesh::{Layout, Rank};
use dsv3_runtime::{Checkpoint, Formats, Gguf, WeightSpec};
use std::{fs, path::Path};

/// A model whose weights need not be there.
pub(super) struct Subject {
    /// Its path, for the user.
    pub(super) name: String,
    /// Its configuration.
    pub(super) hf: HfConfig,
    checkpoint: Option<Checkpoint>,
    formats: Formats,
}

/// Devices that hold the same.
pub(super) struct Holders {
    /// The first of the ranks whose weights these are: ranks of one host that have one share the memory, too.
    pub(super) weight_ranks: Vec<Rank>,
    /// Each weight.
    pub(super) plan: ModelWeights<PlannedWeight>,
    /// By kind and format.
    pub(super) held: Vec<HeldWeights>,
    /// Of all weights.
    pub(super) bytes: u64,
}

impl Subject {
    /// Reads headers, or a config.json where there are none.
    ///
    /// # Errors
    /// A configuration or a checkpoint that cannot be used.
    pub(super) fn open(args: &ModelArgs) -> Result<Self> {
        let formats = args.format.clone();
        if let Some(path) = args.model.as_deref().filter(|path| is_config_alone(path)) {
            let hf = crate::commands::config::read_config(Some(path))?;
            note(format_args!(
                "{}: no weights: planned with the formats that DeepSeek's checkpoints have",
                path.display()
            ));
            return Ok(Self { name: path.display().to_string(), hf, checkpoint: None, formats });
        }
        let place = ModelPlace::resolve(args)?;
        let model = OpenModel::open(&place)?;
        let name = match &args.model {
            Some(path) => path.display().to_string(),
            None => "the model inside this binary".to_owned(),
        };
        Ok(Self { name, hf: model.hf, checkpoint: Some(model.checkpoint), formats })
    }

    /// What the devices of a mesh hold. Those that hold as much of everything are together, in order of rank.
    ///
    /// # Errors
    /// A model that does not divide over the mesh.
    pub(super) fn holders(&self, layout: Layout) -> Result<Vec<Holders>> {
        let mut all: Vec<Holders> = Vec::new();
        for rank in layout.weight_ranks() {
            let stored = |spec: &WeightSpec| match &self.checkpoint {
                Some(checkpoint) => spec.stored_format(checkpoint, layout, rank),
                None => Ok(usual_format(spec)),
            };
            let plan = plan_weights(&self.hf, (layout, rank), &self.formats, &stored)?;
            let mut held = held_weights(&plan);
            held.sort_by_key(|held| {
                dsv3_deepseek::kinds::ALL
                    .iter()
                    .position(|&kind| Some(kind) == held.kind)
                    .unwrap_or(usize::MAX)
            });
            match all.iter_mut().find(|known| known.held == held) {
                Some(known) => known.weight_ranks.push(rank),
                None => {
                    let bytes = held.iter().map(|held| held.bytes).sum();
                    all.push(Holders { weight_ranks: vec![rank], plan, held, bytes });
                }
            }
        }
        Ok(all)
    }
}

/// Whether it is a config.json, or a directory that holds no weights beside one.
fn is_config_alone(path: &Path) -> bool {
    if !path.is_dir() {
        return path.is_file() && !Gguf::is_gguf(path);
    }
    let Ok(entries) = fs::read_dir(path) else { return false };
    let is_of_weights =
        |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let mut names = entries.flatten().map(|entry| entry.file_name());
    path.join(crate::model::CONFIG_FILE).is_file()
        && !names.any(|name| is_of_weights(&name.to_string_lossy()))
}

/// The devices that hold the weights of a rank.
///
/// # Panics
/// If none does.
pub(super) fn holders_of(all: &[Holders], layout: Layout, rank: Rank) -> &Holders {
    let rank = layout.weight_rank(rank);
    let found = all.iter().find(|holders| holders.weight_ranks.contains(&rank));
    found.context("every rank holds weights").expect("all weight ranks were planned")
}
