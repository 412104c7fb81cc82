//! The checkpoint reader: a directory of `.safetensors` files as Hugging Face lays it out.
//!
//! Opening maps the files and reads their headers, nothing else: 163 shards of 700 GB open in a fraction of a second,
//! and all that can be known without reading weights is checked by then. A tensor's bytes are used where they lie
//! ([`Bytes`]).
//!
//! `model.safetensors.index.json` decides which files belong to the checkpoint, if it exists; else a lone
//! `model.safetensors` does; else every `*.safetensors` belongs. Symbolic links are followed, since that is what the
//! Hugging Face cache consists of.

mod bytes;
mod dtype;
mod fp8;
mod ggml;
mod gguf;
mod header;
mod index;
#[allow(unsafe_code)]
mod map;
mod prefix;
mod raw;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use bytes::Bytes;
pub use dtype::Dtype;
pub use fp8::validate_scales;
pub use ggml::GgmlBlocks;
pub use gguf::{Gguf, GgufName, GgufValue};
pub use map::{MappedFile, lock_limit, zeros_in_large_pages};
pub use prefix::{Cursor, Prefix};
pub use raw::{RawTensor, TensorInfo};

use crate::Error;
use index::{INDEX_NAME, Layout};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// An open checkpoint: headers in memory, weights mapped.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<ShardFile>,
    /// Sorted by name.
    tensors: Vec<TensorInfo>,
    unindexed: Vec<String>,
    /// Tensors that lie in parts, by name.
    joins: BTreeMap<String, Vec<Part>>,
}

/// A part of a tensor that a file holds in several: rows that follow those of the part before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The tensor that holds it.
    pub tensor: String,
    /// Whether its rows are that tensor's columns.
    pub is_transposed: bool,
}

impl Part {
    /// The shape of the rows that it adds, unless the tensor is no matrix.
    pub fn shape(&self, tensor: &TensorInfo) -> Option<[usize; 2]> {
        match (&tensor.shape[..], self.is_transposed) {
            (&[rows, cols], false) | (&[cols, rows], true) => Some([rows, cols]),
            _ => None,
        }
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug)]
pub struct ShardFile {
    name: String,
    file: Arc<MappedFile>,
}

impl ShardFile {
    /// Its path relative to the checkpoint's directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.file.len() as u64
    }

    /// When it was last written.
    pub fn modified(&self) -> SystemTime {
        self.file.modified()
    }

    /// The mapped file.
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`.
    ///
    /// # Errors
    /// If there is no checkpoint, a file of it is missing, truncated or malformed, a tensor's place, shape and type
    /// contradict each other, a name occurs twice, or the index places a tensor where it is not.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let layout = Layout::find(dir)?;
        let mut shards = Vec::with_capacity(layout.shards.len());
        let mut tensors = Vec::new();
        for name in layout.shards {
            let path = dir.join(&name);
            let file = MappedFile::open(&path)?;
            let header = header::read_header(file.bytes(), shards.len())
                .map_err(|message| Error::Format { path, message })?;
            tensors.extend(header);
            shards.push(ShardFile { name, file: Arc::new(file) });
        }
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        let mut checkpoint =
            Self { dir: dir.into(), shards, tensors, unindexed: Vec::new(), joins: BTreeMap::new() };
        checkpoint.check_unique()?;
        if let Some(weight_map) = layout.weight_map {
            checkpoint.check_index(&weight_map)?;
            let names = checkpoint.names().filter(|&name| !weight_map.contains_key(name));
            checkpoint.unindexed = names.map(str::to_owned).collect();
        }
        Ok(checkpoint)
    }

    fn check_unique(&self) -> Result<(), Error> {
        for pair in self.tensors.windows(2) {
            if pair[0].name == pair[1].name {
                let [first, second] = [0, 1].map(|each| self.shard(&pair[each]).name());
                return Err(pair[0].error(format!("occurs twice, in {first} and in {second}")));
            }
        }
        Ok(())
    }

    fn check_index(&self, weight_map: &BTreeMap<String, String>) -> Result<(), Error> {
        for (name, shard) in weight_map {
            let problem = match self.get(name) {
                None => "it lies in no shard".to_owned(),
                Some(info) if self.shard(info).name != *shard => {
                    format!("it lies in {}", self.shard(info).name)
                }
                Some(_) => continue,
            };
            let message = format!("{INDEX_NAME} places it in {shard}, but {problem}");
            return Err(Error::Tensor { name: name.clone(), message });
        }
        Ok(())
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files, sorted by name. Their sizes and times tell one checkpoint from another without reading it.
    pub fn shards(&self) -> &[ShardFile] {
        &self.shards
    }

    /// The file that a tensor lies in.
    ///
    /// # Panics
    /// If the tensor is of another checkpoint, one with more files.
    pub fn shard(&self, info: &TensorInfo) -> &ShardFile {
        &self.shards[info.shard]
    }

    /// All tensors, also those of types that no weight may have, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|info| info.name.as_str())
    }

    /// Tensors that lie in a shard without being in the index, sorted. They can be used like any other.
    pub fn unindexed(&self) -> &[String] {
        &self.unindexed
    }

    /// The bytes of all tensors together, headers not counted.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|info| info.length).sum()
    }

    /// A tensor by its header.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let index = self.tensors.binary_search_by(|info| info.name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[index])
    }

    /// The parts of a tensor that lies in parts.
    pub fn join(&self, name: &str) -> Option<&[Part]> {
        self.joins.get(name).map(Vec::as_slice)
    }

    /// Whether there is a tensor of this name, whole or in parts.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some() || self.joins.contains_key(name)
    }

    /// A tensor, to be used as a weight. Reads nothing yet.
    ///
    /// # Errors
    /// If it is absent (says what is there instead) or of a type that no weight may have.
    pub fn tensor(&self, name: &str) -> Result<RawTensor, Error> {
        let info = self.get(name).ok_or_else(|| self.absent(name))?;
        if !info.dtype.is_weight() {
            let known = match info.dtype {
                Dtype::UnsupportedGgml(_) => {
                    let blocks = GgmlBlocks::ALL.map(GgmlBlocks::name).join(", ");
                    format!("F32, F16, BF16, {blocks}, q4_K or q8_0")
                }
                _ => "F32, F16, BF16 or F8_E4M3".to_owned(),
            };
            return Err(info.error(format!("expected {known}, got {}", info.dtype)));
        }
        // The header was checked against the file: the range lies within it.
        let (start, length) = (info.offset as usize, info.length as usize);
        let bytes = Bytes::from(Arc::clone(&self.shard(info).file)).slice(start..start + length);
        Ok(RawTensor { info: info.clone(), bytes })
    }

    /// A cursor at the root.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor::new(self)
    }

    /// The error for an absent tensor: what lies under the longest part of its path that exists.
    fn absent(&self, name: &str) -> Error {
        let mut path = name;
        let (path, parts) = loop {
            path = path.rsplit_once('.').map_or("", |(parent, _)| parent);
            let parts = self.parts(path);
            if !parts.is_empty() || path.is_empty() {
                break (path, parts);
            }
        };
        const SHOWN: usize = 8;
        let mut shown = parts.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        if parts.len() > SHOWN {
            shown.push_str(", ...");
        }
        let place = if path.is_empty() { "its root".to_owned() } else { format!("its {path}") };
        let message = format!("is not in the checkpoint {}; {place} holds: {shown}", self.dir.display());
        Error::Tensor { name: name.into(), message }
    }

    /// The next parts of all names under `path`.
    fn parts(&self, path: &str) -> BTreeSet<&str> {
        let path = if path.is_empty() { String::new() } else { format!("{path}.") };
        let first = self.tensors.partition_point(|info| info.name < path);
        let below = self.tensors[first..].iter().map_while(|info| info.name.strip_prefix(&path));
        below.map(|rest| rest.split_once('.').map_or(rest, |(part, _)| part)).collect()
    }
}
