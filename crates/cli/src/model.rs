//! A checkpoint that is ready for the stages: its place, its configuration, its headers, its weights.

use crate::{
    args::ModelArgs,
    embedded,
    output::note,
    progress::{Progress, Unit},
};
use anyhow::{Context, Result, bail};
use dsv3_deepseek::{HfConfig, Model, ModelWeights};
use dsv3_mesh::MeshShape;
use dsv3_runtime::{
    Checkpoint, Converted, Error, Fingerprint, Module, Prefix, Source, Weight, WeightCache, WeightPath,
};
use indicatif::DecimalBytes;
use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// The configuration's file in a checkpoint.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// More weights than any checkpoint has: DeepSeek-V3 has 46 thousand, Kimi-K2 70 thousand. The list of weights is
/// made from the configuration before the checkpoint is asked for any of them.
const MOST_WEIGHTS: usize = 1 << 20;

/// Where a model and its cache lie.
#[derive(Clone, Debug)]
pub(crate) struct ModelPlace {
    /// The checkpoint's directory.
    pub(crate) dir: PathBuf,
    /// The directory of all caches.
    pub(crate) cache: PathBuf,
}

impl ModelPlace {
    /// The model that is asked for, or the embedded one, unpacked.
    pub(crate) fn resolve(args: &ModelArgs) -> Result<Self> {
        let cache = cache_dir(args.cache.as_deref())?;
        let dir = match &args.model {
            // Caches note where their checkpoint lies: that must not depend on where the user stands.
            Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| dir.clone()),
            None => embedded::unpack(&cache)?,
        };
        Ok(Self { dir, cache })
    }
}

/// The directory of all caches: as given, or this program's in the user's.
pub(crate) fn cache_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        return Ok(dir.to_owned());
    }
    let dir = dirs::cache_dir().context("this system names no cache directory: give one with --cache DIR")?;
    Ok(dir.join("dsv3"))
}

/// An open checkpoint of a model.
pub(crate) struct OpenModel {
    /// Its configuration; without the MTP layer where the checkpoint has none.
    pub(crate) hf: HfConfig,
    /// Its tensors.
    pub(crate) checkpoint: Checkpoint,
    fingerprint: Fingerprint,
    cache: PathBuf,
}

impl OpenModel {
    /// Reads the configuration and the headers.
    ///
    /// # Errors
    /// A configuration or a checkpoint that cannot be used.
    pub(crate) fn open(place: &ModelPlace) -> Result<Self> {
        let path = place.dir.join(CONFIG_FILE);
        let mut hf = HfConfig::from_file(&path)?;
        check_size(&path, &hf)?;
        let config_json = fs::read(&path).map_err(Error::io(&path))?;
        let checkpoint = Checkpoint::open(&place.dir)?;
        if lacks_mtp(&hf, &checkpoint) {
            hf.mtp_layers = 0;
        }
        let fingerprint = Fingerprint::of(&checkpoint, &config_json);
        Ok(Self { hf, checkpoint, fingerprint, cache: place.cache.clone() })
    }

    /// The checkpoint's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.checkpoint.dir()
    }

    /// The cache of the weights for a mesh.
    pub(crate) fn cache(&self, mesh: MeshShape) -> WeightCache {
        WeightCache::locate(&self.cache, &self.checkpoint, mesh)
    }

    /// Stage 1, with progress.
    ///
    /// # Errors
    /// As [`WeightCache::convert`].
    pub(crate) fn convert(&self, mesh: MeshShape, force: bool) -> Result<Converted> {
        let mut progress = Progress::new("converting", Unit::Bytes);
        let mut update = |at: dsv3_runtime::ConvertProgress<'_>| progress.update(at.bytes, at.total);
        let converted = self.cache(mesh).convert::<Model>(&self.hf, &self.source(), mesh, force, &mut update);
        converted.map_err(|error| match &error {
            Error::Io { path, .. } if path.starts_with(&self.cache) => {
                anyhow::Error::from(error).context(embedded::unwritable(&self.cache))
            }
            _ => error.into(),
        })
    }

    /// The weights for one device, mapped. Runs stage 1 where there is no cache, and says so.
    ///
    /// # Errors
    /// As [`convert`](Self::convert) and [`WeightCache::load`].
    pub(crate) fn weights(&self) -> Result<ModelWeights<Weight>> {
        let cache = self.cache(MeshShape::SINGLE);
        if !cache.exists() {
            let start = Instant::now();
            if let Converted::Made(report) = self.convert(MeshShape::SINGLE, false)? {
                note(format_args!(
                    "prepared the weights in {:.1} s: {} used in place, {} written ({})",
                    start.elapsed().as_secs_f64(),
                    report.in_place.tensors,
                    report.widened.tensors,
                    DecimalBytes(report.widened.bytes)
                ));
            }
        }
        let weights = cache.load::<Model>(&self.source())?;
        check_shapes(cache.dir(), &self.hf, &weights)?;
        Ok(weights)
    }

    fn source(&self) -> Source<'_> {
        Source { checkpoint: &self.checkpoint, fingerprint: self.fingerprint.clone() }
    }
}

/// Checks that a cache has the weights of a configuration in their shapes. One that `convert` made has; the forward
/// passes rely on it.
///
/// # Errors
/// Names the first weight that differs.
fn check_shapes(cache: &Path, hf: &HfConfig, weights: &ModelWeights<Weight>) -> Result<()> {
    let mut expected = Vec::new();
    let specs = Model::weight_specs(hf, &Prefix::root());
    let Ok(_) = Model::try_map(specs, &mut WeightPath::default(), &mut |path, spec| {
        expected.push((path.to_string(), spec.shape));
        Ok::<_, Infallible>(())
    });
    let mut expected = expected.into_iter();
    let described = |weight: &Option<(String, Vec<usize>)>| match weight {
        Some((path, shape)) => format!("{path} {shape:?}"),
        None => "no more weights".to_owned(),
    };
    let mut check = |got: Option<(String, Vec<usize>)>| {
        let expected = expected.next();
        if got == expected {
            return Ok(());
        }
        bail!(
            "cache {}: expected {}, as config.json says, got {}; make it anew with `dsv3 convert --force`",
            cache.display(),
            described(&expected),
            described(&got)
        )
    };
    // Cloning a tree clones handles, not bytes.
    Model::try_map(weights.clone(), &mut WeightPath::default(), &mut |path, weight| {
        let shape = match &weight {
            Weight::Vector(values) => vec![values.len()],
            Weight::Matrix(_) => vec![weight.matrix().rows(), weight.matrix().cols()],
        };
        check(Some((path.to_string(), shape)))
    })?;
    check(None)
}

/// Whether the configuration promises an MTP layer that the checkpoint does not have. Many that were derived from
/// DeepSeek-V3 left it out and kept the configuration.
pub(crate) fn lacks_mtp(hf: &HfConfig, checkpoint: &Checkpoint) -> bool {
    let layer = hf.num_hidden_layers;
    hf.mtp_layers > 0 && checkpoint.get(&format!("model.layers.{layer}.eh_proj.weight")).is_none()
}

/// Refuses a configuration of more weights than can be listed.
///
/// # Errors
/// Names the file.
pub(crate) fn check_size(path: &Path, hf: &HfConfig) -> Result<()> {
    // A bound from above: each layer has some twenty weights beside its experts.
    let experts = hf.moe.as_ref().map_or(0, |moe| 3 * moe.routed_experts);
    let weights = (hf.num_hidden_layers + hf.mtp_layers) * (experts + 20);
    if weights > MOST_WEIGHTS {
        bail!(
            "{}: num_hidden_layers: expected a model of at most {MOST_WEIGHTS} tensors, got about {weights}",
            path.display()
        );
    }
    Ok(())
}
