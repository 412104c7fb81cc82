//! The cache that stage 1 leaves: a WeightConfig, and the bytes that had to be written. Whole or absent, never torn.

mod fingerprint;
mod loader;
mod writer;

use crate::{
    Checkpoint, ConvertReport, Error, Formats, Module, Prefix, SavedWeight, Weight, WeightPath, WeightSpec,
    convert::WEIGHTS_FILE,
};
use dsv3_mesh::{ExpertSharding, Layout, MeshShape, Rank};
use fingerprint::hex;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use sha2::{Digest, Sha256};
use std::{
    convert::Infallible,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

pub use fingerprint::Fingerprint;
pub use loader::WeightLoader;

/// Version of the cache's form. A cache of another version is refused, not guessed at.
const FORMAT_VERSION: u32 = 3;
/// What the weights are laid out for.
const TARGET: &str = "cpu";
/// What the directory of a rank's cache begins with.
const RANK_DIR: &str = "rank-";
/// The WeightConfig's file.
pub const WEIGHT_CONFIG_FILE: &str = "weight_config.json";

/// What stands before the weights in a WeightConfig file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightConfigHeader {
    /// Version of the file's form.
    pub format_version: u32,
    /// What the weights are for.
    pub target: String,
    /// The mesh that the weights are for, and how they lie on it.
    pub layout: Layout,
    /// The rank that they are for, the first of those that hold the same ([`Layout::weight_rank`]).
    pub rank: Rank,
    /// The formats that were asked for.
    pub formats: Formats,
    /// The checkpoint's directory.
    pub checkpoint: PathBuf,
    /// What the checkpoint was then.
    pub fingerprint: Fingerprint,
    /// Bytes in the cache's own weight file.
    pub written_bytes: u64,
}

/// The file: a header, then the weight tree.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightConfigFile<T> {
    header: WeightConfigHeader,
    weights: T,
}

/// The version alone, so that a file of another form still tells which.
#[derive(Deserialize)]
struct VersionOnly {
    header: Version,
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// A checkpoint's cache for one rank of a mesh.
#[derive(Clone, Debug)]
pub struct WeightCache {
    /// The directory of the caches of all ranks, which the formats are a part of the name of.
    mesh_dir: PathBuf,
    dir: PathBuf,
    layout: Layout,
    /// The first rank that holds the same weights.
    rank: Rank,
    formats: Formats,
    /// What it is a cache of, where that is known.
    checkpoint: Option<PathBuf>,
}

/// What [`WeightCache::convert`] did.
#[derive(Debug)]
pub enum Converted {
    /// It made the cache.
    Made(ConvertReport),
    /// A valid cache was there.
    Present,
}

impl WeightCache {
    /// The place of a checkpoint's cache under `root`, for rank 0: `NAME-HASH/cpu-1x1`, by the checkpoint's name and
    /// path; of a mesh of several devices `NAME-HASH/cpu-RxC/rank-0`.
    pub fn locate(root: &Path, checkpoint: &Checkpoint, layout: Layout) -> Self {
        let dir = fs::canonicalize(checkpoint.dir()).unwrap_or_else(|_| checkpoint.dir().to_owned());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let hash = hex(&Sha256::digest(dir.as_os_str().as_encoded_bytes())[..4]);
        let mesh_dir = root.join(format!("{name}-{hash}")).join(format!("{TARGET}-{layout}"));
        Self::new(mesh_dir, layout, Rank(0), Formats::default(), Some(checkpoint.dir().to_owned()))
    }

    fn new(
        mesh_dir: PathBuf,
        layout: Layout,
        rank: Rank,
        formats: Formats,
        checkpoint: Option<PathBuf>,
    ) -> Self {
        let rank = layout.weight_rank(rank);
        let dir = match layout.mesh.devices() {
            1 => mesh_dir.clone(),
            _ => mesh_dir.join(format!("{RANK_DIR}{}", rank.0)),
        };
        Self { mesh_dir, dir, layout, rank, formats, checkpoint }
    }

    /// The cache of the same checkpoint in these formats, which lies beside: `cpu-RxC-FORMATS`.
    #[must_use]
    pub fn with_formats(self, formats: Formats) -> Self {
        let dir = match &formats.name[..] {
            "" => self.mesh_dir,
            name => {
                let mut file = self.mesh_dir.file_name().unwrap_or_default().to_owned();
                file.push(format!("-{name}"));
                self.mesh_dir.with_file_name(file)
            }
        };
        Self::new(dir, self.layout, self.rank, formats, self.checkpoint)
    }

    /// The cache of another rank. Ranks whose weights are the same have the same one.
    ///
    /// # Panics
    /// If the mesh has no such rank.
    #[must_use]
    pub fn of_rank(&self, rank: Rank) -> Self {
        let Self { mesh_dir, formats, checkpoint, .. } = self.clone();
        Self::new(mesh_dir, self.layout, rank, formats, checkpoint)
    }

    /// The cache that lies in this directory, to be read whatever it was made for.
    pub fn at(dir: PathBuf) -> Self {
        Self::new(dir, Layout::SINGLE, Rank(0), Formats::default(), None)
    }

    /// The caches that lie in this directory: the one that it is, or those of a mesh's ranks that are there, in order.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn list(dir: &Path) -> Result<Vec<Self>, Error> {
        if dir.join(WEIGHT_CONFIG_FILE).exists() {
            return Ok(vec![Self::at(dir.to_owned())]);
        }
        let mut ranks = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
            let name = entry.map_err(Error::io(dir))?.file_name();
            let rank = name.to_str().and_then(|name| name.strip_prefix(RANK_DIR)?.parse::<usize>().ok());
            ranks.extend(rank.filter(|_| dir.join(&name).join(WEIGHT_CONFIG_FILE).exists()));
        }
        ranks.sort_unstable();
        Ok(ranks.into_iter().map(|rank| Self::at(dir.join(format!("{RANK_DIR}{rank}")))).collect())
    }

    /// The cache's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of the caches of all ranks; of a mesh of one device the cache's.
    pub fn mesh_dir(&self) -> &Path {
        &self.mesh_dir
    }

    /// The rank that the cache is for, the first of those that share it.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Whether there is one, valid or not. One of an older version that says where weights lie and holds none itself
    /// counts as none, for it is made anew in a moment.
    pub fn exists(&self) -> bool {
        let is_outdated = || self.peek_version().is_some_and(|version| version < FORMAT_VERSION);
        self.dir.exists() && (self.dir.join(WEIGHTS_FILE).exists() || !is_outdated())
    }

    /// The version, from the first bytes of the WeightConfig: of a large model it has tens of megabytes.
    fn peek_version(&self) -> Option<u32> {
        let mut head = Vec::new();
        let file = File::open(self.dir.join(WEIGHT_CONFIG_FILE)).ok()?;
        file.take(256).read_to_end(&mut head).ok()?;
        let head = String::from_utf8_lossy(&head);
        let (_, version) = head.split_once("\"format_version\":")?;
        version.split(',').next()?.trim().parse().ok()
    }

    /// Keeps writers away while a reader is at it. Where the lock cannot be had, as in a cache that is read-only, there
    /// are no writers either.
    fn lock_shared(&self) -> Option<File> {
        let file = File::open(self.sibling("lock")).ok()?;
        file.lock_shared().ok().map(|()| file)
    }

    /// Reads the header of the WeightConfig, whatever it was made from.
    ///
    /// # Errors
    /// A cache that is torn or of another version; the message says what to do.
    pub fn read_header(&self) -> Result<WeightConfigHeader, Error> {
        Ok(self.parse::<IgnoredAny>()?.header)
    }

    /// Reads the weights of the WeightConfig, whatever it was made from.
    ///
    /// # Errors
    /// As [`read_header`](Self::read_header), and weights that are not a module's.
    pub fn read_weights<M: Module>(&self) -> Result<M::Weights<SavedWeight>, Error>
    where
        M::Weights<SavedWeight>: DeserializeOwned,
    {
        Ok(self.parse::<M::Weights<SavedWeight>>()?.weights)
    }

    /// Stage 3: maps every weight of the rank.
    ///
    /// # Errors
    /// A cache that is torn, of another version, or made from something else; weights that are not those of this
    /// model and rank; weights that do not lie where the WeightConfig says. The message says what to do.
    pub fn load<M: Module>(&self, hf: &M::Hf, source: &Source<'_>) -> Result<M::Weights<Weight>, Error>
    where
        M::Weights<SavedWeight>: DeserializeOwned,
    {
        let _lock = self.lock_shared();
        let WeightConfigFile { header, weights: saved } = self.parse::<M::Weights<SavedWeight>>()?;
        self.check_origin(&header, source)?;
        let mut specs = list_specs::<M>(hf, self.layout).into_iter();
        let mut loader = WeightLoader::new(source.checkpoint, &self.dir);
        let weights = M::try_map(saved, &mut WeightPath::default(), &mut |path, saved| {
            let (expected, spec) =
                specs.next().ok_or_else(|| self.torn(&format!("expected no more weights, got {path}")))?;
            let shape = spec.local_shape(self.layout, self.rank)?;
            if expected != path.to_string() || shape != saved.shape {
                let got = &saved.shape;
                return Err(self.torn(&format!(
                    "expected {expected} {shape:?}, as config.json says, got {path} {got:?}"
                )));
            }
            let part = spec.local_range(self.layout, self.rank)?;
            let first = part.filter(|(dim, _)| *dim == 0).map_or(0, |(_, rows)| rows.start);
            loader.load_from(&saved, &spec, first).map_err(|error| match error {
                Error::Tensor { .. } => self.torn(&error.to_string()),
                other => other,
            })
        })?;
        match specs.next() {
            Some((expected, _)) => Err(self.torn(&format!("{expected} is missing"))),
            None => Ok(weights),
        }
    }

    /// Reads the file once, for it has tens of thousands of weights. Only where that fails, it is asked for its
    /// version: another one explains the failure.
    fn parse<T: DeserializeOwned>(&self) -> Result<WeightConfigFile<T>, Error> {
        let text = self.read()?;
        let file =
            serde_json::from_slice::<WeightConfigFile<T>>(&text).map_err(
                |error| match serde_json::from_slice::<VersionOnly>(&text) {
                    Ok(VersionOnly { header: Version { format_version } })
                        if format_version != FORMAT_VERSION =>
                    {
                        self.other_version(format_version)
                    }
                    _ => self.torn(&format!("{WEIGHT_CONFIG_FILE}: {error}")),
                },
            )?;
        self.check_header(&file.header)?;
        Ok(file)
    }

    /// Checks the version, and that the bytes that were written are there.
    fn check_header(&self, header: &WeightConfigHeader) -> Result<(), Error> {
        if header.format_version != FORMAT_VERSION {
            return Err(self.other_version(header.format_version));
        }
        if header.written_bytes > 0 {
            let path = self.dir.join(WEIGHTS_FILE);
            let size = fs::metadata(&path).map_err(Error::io(&path))?.len();
            if size != header.written_bytes {
                let expected = header.written_bytes;
                return Err(self.torn(&format!("{WEIGHTS_FILE} has {size} bytes, expected {expected}")));
            }
        }
        Ok(())
    }

    fn other_version(&self, version: u32) -> Error {
        self.refuse(&format!("has format version {version}, this program reads {FORMAT_VERSION}"))
    }

    /// Checks that a cache was made from this checkpoint as it is now, for this mesh.
    fn check_origin(&self, header: &WeightConfigHeader, source: &Source<'_>) -> Result<(), Error> {
        let WeightConfigHeader { target, layout, rank, .. } = header;
        if target != TARGET || *layout != self.layout {
            let expected = self.layout;
            return Err(self.refuse(&format!("was made for {target} {layout}, expected {TARGET} {expected}")));
        }
        if *rank != self.rank {
            let expected = self.rank.0;
            return Err(self.refuse(&format!("was made for rank {}, expected rank {expected}", rank.0)));
        }
        if header.formats.kinds != self.formats.kinds {
            return Err(self.refuse("was made for other formats"));
        }
        if header.fingerprint != source.fingerprint {
            let made_of = header.checkpoint.display();
            let message = format!("was made from {made_of} in another state: a file of it has changed since");
            return Err(self.refuse(&message));
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        let path = self.dir.join(WEIGHT_CONFIG_FILE);
        fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => self.torn(&format!("it has no {WEIGHT_CONFIG_FILE}")),
            _ => Error::io(path)(error),
        })
    }

    fn torn(&self, what: &str) -> Error {
        self.refuse(&format!("is damaged ({what})"))
    }

    /// The error of a cache that cannot be used, with what to do about it.
    fn refuse(&self, what: &str) -> Error {
        let model = self.checkpoint.as_ref().map(|dir| format!(" --model {}", dir.display()));
        let formats = match &self.formats.name[..] {
            "" => String::new(),
            name => format!(" --format {name}"),
        };
        let mesh = mesh_options(self.layout);
        let message = format!(
            "{what}; make it anew with `dsv3 convert --force{}{mesh}{formats}`",
            model.unwrap_or_default()
        );
        Error::Cache { path: self.dir.clone(), message }
    }
}

/// A checkpoint and what it is at the moment.
pub struct Source<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// The options that ask for a layout; nothing for one device.
fn mesh_options(Layout { mesh, experts }: Layout) -> String {
    let expert =
        if experts == ExpertSharding::default() { String::new() } else { format!(" --experts {experts}") };
    if mesh == MeshShape::SINGLE { expert } else { format!(" --mesh {mesh}{expert}") }
}

/// The specs of a model's weights, in the order of its tree.
fn list_specs<M: Module>(hf: &M::Hf, layout: Layout) -> Vec<(String, WeightSpec)> {
    let mut specs = Vec::new();
    let Ok(_) = M::try_map(
        M::weight_specs(hf, &Prefix::root(), layout),
        &mut WeightPath::default(),
        &mut |path, spec| {
            specs.push((path.to_string(), spec));
            Ok::<_, Infallible>(())
        },
    );
    specs
}

#[cfg(test)]
mod tests;
