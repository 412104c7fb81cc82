//! The cache that stage 1 leaves: a WeightConfig, and the bytes that had to be written. Whole or absent, never torn.

mod loader;

use crate::{
    Checkpoint, ConvertProgress, ConvertReport, Error, Formats, Module, Prefix, SavedWeight, Weight,
    WeightOutput, WeightPath, WeightSpec,
    convert::{Journal, Origin, WEIGHTS_FILE},
};
use dsv3_mesh::{Layout, Rank};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use sha2::{Digest, Sha256};
use std::{
    convert::Infallible,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

pub use loader::WeightLoader;

/// Version of the cache's form. A cache of another version is refused, not guessed at.
const FORMAT_VERSION: u32 = 3;
/// What the weights are laid out for.
const TARGET: &str = "cpu";
/// The WeightConfig's file.
pub const WEIGHT_CONFIG_FILE: &str = "weight_config.json";

/// What a cache was made from: a hash over config.json, the index, and the name, size and time of
/// every shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of a checkpoint as it lies there now. Reads no weights.
    pub fn of(checkpoint: &Checkpoint, config_json: &[u8]) -> Self {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // The length keeps neighbours apart.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(config_json);
        for shard in checkpoint.shards() {
            let modified = shard.modified().duration_since(UNIX_EPOCH).unwrap_or_default();
            part(shard.name().as_bytes());
            part(&shard.size().to_le_bytes());
            part(&modified.as_nanos().to_le_bytes());
        }
        // What the index says, as far as the files bear it out: opening has checked that.
        for tensor in checkpoint.tensors() {
            part(tensor.name.as_bytes());
            part(&(tensor.shard as u64).to_le_bytes());
            part(&tensor.offset.to_le_bytes());
        }
        Self(hex(&hash.finalize()))
    }
}

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

/// A checkpoint's cache for one mesh.
#[derive(Clone, Debug)]
pub struct WeightCache {
    dir: PathBuf,
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
    /// The place of a checkpoint's cache under `root`: `NAME-HASH/cpu-RxC`, by the checkpoint's name and path.
    pub fn locate(root: &Path, checkpoint: &Checkpoint, layout: Layout) -> Self {
        let dir = fs::canonicalize(checkpoint.dir()).unwrap_or_else(|_| checkpoint.dir().to_owned());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let hash = hex(&Sha256::digest(dir.as_os_str().as_encoded_bytes())[..4]);
        let cache = root.join(format!("{name}-{hash}")).join(format!("{TARGET}-{layout}"));
        Self { dir: cache, formats: Formats::default(), checkpoint: Some(checkpoint.dir().to_owned()) }
    }

    /// The cache of the same checkpoint in these formats, which lies beside: `cpu-RxC-FORMATS`.
    #[must_use]
    pub fn with_formats(self, formats: Formats) -> Self {
        let dir = match &formats.name[..] {
            "" => self.dir,
            name => {
                let mut file = self.dir.file_name().unwrap_or_default().to_owned();
                file.push(format!("-{name}"));
                self.dir.with_file_name(file)
            }
        };
        Self { dir, formats, ..self }
    }

    /// The cache that lies in this directory.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir, formats: Formats::default(), checkpoint: None }
    }

    /// The cache's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether there is one, valid or not.
    pub fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// Stage 1 into this cache: under a lock, into a temporary directory, which is renamed when it is whole. Where a
    /// valid cache is there already it is left alone, unless `force` asks for a new one.
    ///
    /// # Errors
    /// A cache of something else is there and `force` is not given; an unusable checkpoint; a failing write.
    pub fn convert<M: Module>(
        &self,
        hf: &M::Hf,
        source: &Source<'_>,
        layout: Layout,
        force: bool,
        progress: &mut dyn FnMut(ConvertProgress<'_>),
    ) -> Result<Converted, Error>
    where
        M::Weights<SavedWeight>: Serialize,
    {
        let parent = self.dir.parent().expect("a cache lies in its model's directory");
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let _lock = self.lock()?;
        if !force && self.exists() {
            return self.check_origin(&self.read_header()?, source, layout).map(|()| Converted::Present);
        }
        // What an interrupted run left is gone on with, or begun anew where it is of something else or distrusted.
        let temporary = self.sibling("tmp");
        if force {
            remove_dir(&temporary)?;
        }
        fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
        let made = self
            .write::<M>(&temporary, hf, source, layout, progress)
            .and_then(|report| self.publish(&temporary).map(|()| Converted::Made(report)));
        if made.is_err() && !Journal::has_entries(&temporary) {
            // The error that counts is the first one.
            let _ = fs::remove_dir_all(&temporary);
        }
        made
    }

    /// Whether an interrupted conversion has left weights that the next one will go on with.
    pub fn is_begun(&self) -> bool {
        Journal::has_entries(&self.sibling("tmp"))
    }

    /// What a conversion is made from and for, to the last detail that its bytes depend on.
    fn origin(&self, source: &Source<'_>, layout: Layout) -> Origin {
        let formats = serde_json::to_string(&self.formats).expect("a map of names is JSON");
        let Fingerprint(fingerprint) = &source.fingerprint;
        Origin(format!("{FORMAT_VERSION} {TARGET}-{layout} {formats} {fingerprint}"))
    }

    fn write<M: Module>(
        &self,
        dir: &Path,
        hf: &M::Hf,
        source: &Source<'_>,
        layout: Layout,
        progress: &mut dyn FnMut(ConvertProgress<'_>),
    ) -> Result<ConvertReport, Error>
    where
        M::Weights<SavedWeight>: Serialize,
    {
        let out = WeightOutput::new(dir, layout, Rank(0), progress).with_formats(self.formats.clone());
        let mut out = out.resume(&self.origin(source, layout))?;
        let weights = M::convert_weights(hf, &Prefix::root(), source.checkpoint, &mut out)?;
        let header = WeightConfigHeader {
            format_version: FORMAT_VERSION,
            target: TARGET.to_owned(),
            layout,
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
        if self.exists() {
            fs::rename(&self.dir, &old).map_err(Error::io(&self.dir))?;
        }
        fs::rename(temporary, &self.dir).map_err(Error::io(&self.dir))?;
        // The cache is in place; what cannot be removed now is removed by the next writer.
        let _ = remove_dir(&old);
        Ok(())
    }

    /// Waits until no other process writes this cache. The lock goes with the returned file.
    fn lock(&self) -> Result<File, Error> {
        let path = self.sibling("lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(&path))?;
        Ok(file)
    }

    /// Keeps writers away while a reader is at it. Where the lock cannot be had, as in a cache that is read-only, there
    /// are no writers either.
    fn lock_shared(&self) -> Option<File> {
        let file = File::open(self.sibling("lock")).ok()?;
        file.lock_shared().ok().map(|()| file)
    }

    fn sibling(&self, extension: &str) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{extension}"));
        self.dir.with_file_name(name)
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

    /// Stage 3: maps every weight.
    ///
    /// # Errors
    /// A cache that is torn, of another version, or made from something else; weights that are not those of this
    /// model; weights that do not lie where the WeightConfig says. The message says what to do.
    pub fn load<M: Module>(
        &self,
        hf: &M::Hf,
        source: &Source<'_>,
        layout: Layout,
    ) -> Result<M::Weights<Weight>, Error>
    where
        M::Weights<SavedWeight>: DeserializeOwned,
    {
        let _lock = self.lock_shared();
        let WeightConfigFile { header, weights: saved } = self.parse::<M::Weights<SavedWeight>>()?;
        self.check_origin(&header, source, layout)?;
        let mut specs = list_specs::<M>(hf, layout).into_iter();
        let mut loader = WeightLoader::new(source.checkpoint, &self.dir);
        let weights = M::try_map(saved, &mut WeightPath::default(), &mut |path, saved| {
            let (expected, spec) = specs.next().unzip();
            let shape = spec
                .map(|spec| spec.placement.local_shape(&spec.source, &spec.shape, layout.mesh, Rank(0)))
                .transpose()?;
            if expected != Some(path.to_string()) || shape.as_ref() != Some(&saved.shape) {
                return Err(self.torn(&format!(
                    "expected {} {:?}, as config.json says, got {path} {:?}",
                    expected.as_deref().unwrap_or("no more weights"),
                    shape.unwrap_or_default(),
                    saved.shape
                )));
            }
            loader.load(&saved)
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
    fn check_origin(
        &self,
        header: &WeightConfigHeader,
        source: &Source<'_>,
        layout: Layout,
    ) -> Result<(), Error> {
        if header.target != TARGET || header.layout != layout {
            let (target, made_for) = (&header.target, header.layout);
            let message = format!("was made for {target} {made_for}, expected {TARGET} {layout}");
            return Err(self.refuse(&message));
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
        let message =
            format!("{what}; make it anew with `dsv3 convert --force{}{formats}`", model.unwrap_or_default());
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

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir)(error)),
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
