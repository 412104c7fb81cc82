//! GGUF files, the form of llama.cpp's models: read as a checkpoint whose tensors have other names.
//!
//! The form is that of `docs/gguf.md` in ggml's repository, versions 2 and 3. Tensors are used where they lie, in the
//! formats that kernels read, or decoded (`checkpoint::ggml`); the model's author says what each is called in a checkpoint
//! of Hugging Face.

mod reader;
#[cfg(test)]
mod tests;

pub use reader::GgufValue;

use super::{Checkpoint, Dtype, MappedFile, Part, ShardFile, TensorInfo};
use crate::Error;
use reader::Reader;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a GGUF file begins with.
const MAGIC: &[u8; 4] = b"GGUF";
/// Tensors start at multiples of this where the file does not say otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open GGUF model of one file or several: its metadata, and where its tensors lie.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, GgufValue>,
    files: Vec<Arc<MappedFile>>,
    tensors: Vec<TensorInfo>,
}

/// What a tensor of a GGUF file is called in a checkpoint of Hugging Face.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GgufName {
    /// One tensor.
    Whole(String),
    /// Several, stacked: one for each slice of the outermost dimension.
    Stacked(Vec<String>),
    /// Not a weight of the model.
    Ignored,
}

impl Gguf {
    /// Whether a file begins as a GGUF file does.
    pub fn is_gguf(path: &Path) -> bool {
        let mut magic = [0; MAGIC.len()];
        let read =
            std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
        read.is_ok() && magic == *MAGIC
    }

    /// Opens a GGUF file, and with the first of several (`-00001-of-00003.gguf`) the others beside it.
    ///
    /// # Errors
    /// A file that is missing, truncated or malformed, or a tensor that does not lie in its file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut metadata = BTreeMap::new();
        let (mut files, mut tensors) = (Vec::new(), Vec::<TensorInfo>::new());
        for path in parts(path) {
            let file = MappedFile::open(&path)?;
            let head =
                Head::read(file.bytes(), files.len()).map_err(|message| Error::Format { path, message })?;
            metadata.extend(head.metadata.into_iter().filter(|_| files.is_empty()));
            tensors.extend(head.tensors);
            files.push(Arc::new(file));
        }
        Ok(Self { path: path.to_owned(), metadata, files, tensors })
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// The tensors as they are called here, shapes outermost first.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The model as a checkpoint: tensors by the names that `rename` gives, and those that lie in parts.
    ///
    /// # Errors
    /// A tensor that cannot be cut into as many as it has names, or a name that occurs twice.
    pub fn into_checkpoint(
        self,
        rename: impl Fn(&TensorInfo) -> GgufName,
        joins: BTreeMap<String, Vec<Part>>,
    ) -> Result<Checkpoint, Error> {
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for info in self.tensors {
            match rename(&info) {
                GgufName::Ignored => {}
                GgufName::Whole(name) => tensors.push(TensorInfo { name, ..info }),
                GgufName::Stacked(names) => tensors.extend(slices(&info, names)?),
            }
        }
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        let name =
            |file: &MappedFile| file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shards = self.files.into_iter().map(|file| ShardFile { name: name(&file), file }).collect();
        let checkpoint = Checkpoint { dir: self.path, shards, tensors, unindexed: Vec::new(), joins };
        checkpoint.check_unique()?;
        Ok(checkpoint)
    }
}

/// The slices of a stacked tensor; the first ones of one in a type that is not known.
fn slices(info: &TensorInfo, names: Vec<String>) -> Result<Vec<TensorInfo>, Error> {
    let [count, inner @ ..] = &info.shape[..] else {
        return Err(info.error(format!("expected {} slices, got a number", names.len())));
    };
    if *count != names.len() && info.length > 0 {
        return Err(info.error(format!("expected {} slices, got shape {:?}", names.len(), info.shape)));
    }
    let length = info.length / (*count as u64).max(1); // whole rows, so whole blocks
    let slice = |(index, name): (usize, String)| TensorInfo {
        name,
        shape: inner.to_vec(),
        offset: info.offset + index as u64 * length,
        length,
        ..info.clone()
    };
    Ok(names.into_iter().enumerate().map(slice).collect())
}

/// The files of a model, by the name of the first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let split = name.strip_suffix(".gguf").and_then(|name| name.rsplit_once("-of-"));
    let stem_and_count = split.and_then(|(first, count)| {
        let stem = first.strip_suffix("-00001")?;
        let is_count = count.len() == 5 && count.bytes().all(|byte| byte.is_ascii_digit());
        Some((stem, is_count.then(|| count.parse::<usize>().ok())??))
    });
    match stem_and_count {
        Some((stem, count)) => (1..=count)
            .map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf")))
            .collect(),
        None => vec![path.to_owned()],
    }
}

/// What stands before the tensors of one file.
pub(super) struct Head {
    pub(super) metadata: BTreeMap<String, GgufValue>,
    pub(super) tensors: Vec<TensorInfo>,
}

impl Head {
    /// Reads the head of `file`, the whole file's bytes. Every tensor of a type that a weight may have lies within it.
    ///
    /// # Errors
    /// A message that says what is wrong, expected and got; the caller knows the file's name.
    pub(super) fn read(file: &[u8], shard: usize) -> Result<Self, String> {
        let mut reader = Reader::new(file);
        if reader.bytes(4)? != MAGIC {
            return Err("is no GGUF file".to_owned());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("has GGUF version {version}, expected 2 or 3"));
        }
        let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = reader.string()?;
            let value = reader.value().map_err(|message| format!("{key}: {message}"))?;
            metadata.insert(key, value);
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 30)
                .ok_or_else(|| format!("general.alignment: expected a power of two, got {value:?}"))?,
        };
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(tensor(&mut reader, shard)?);
        }
        let start = (reader.position() as u64).next_multiple_of(alignment);
        for tensor in &mut tensors {
            place(tensor, start, file.len() as u64)
                .map_err(|message| format!("tensor {}: {message}", tensor.name))?;
        }
        Ok(Self { metadata, tensors })
    }
}

/// One tensor's line of the head; its offset counts from the start of the data still.
fn tensor(reader: &mut Reader<'_>, shard: usize) -> Result<TensorInfo, String> {
    /// Dimensions that ggml has.
    const MOST_DIMENSIONS: u32 = 4;
    let name = reader.string()?;
    let dimensions = reader.u32()?;
    if dimensions > MOST_DIMENSIONS {
        return Err(format!(
            "tensor {name}: expected {MOST_DIMENSIONS} dimensions at most, got {dimensions}"
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let side = reader.u64()?;
        shape.push(usize::try_from(side).map_err(|_| format!("tensor {name}: has a side of {side}"))?);
    }
    shape.reverse(); // ggml's first dimension is the innermost
    let dtype = Dtype::from_ggml(reader.u32()?);
    Ok(TensorInfo { name, dtype, shape, shard, offset: reader.u64()?, length: 0 })
}

/// Sets a tensor's place in its file. The length of one in another type is not known, and nobody asks for it.
fn place(tensor: &mut TensorInfo, start: u64, file: u64) -> Result<(), String> {
    tensor.offset = tensor.offset.checked_add(start).ok_or("lies beyond any file")?;
    if tensor.shape.contains(&0) {
        return Err(format!("{:?} has no elements", tensor.shape));
    }
    let Some(format) = tensor.dtype.block() else { return Ok(()) };
    let (cols, bytes) = format;
    let (inner, outer) = tensor.shape.split_last().map_or((1, &[][..]), |(inner, outer)| (*inner, outer));
    if !inner.is_multiple_of(cols) {
        return Err(format!("{:?} in {} has no whole blocks", tensor.shape, tensor.dtype));
    }
    let rows = outer.iter().try_fold(1_u64, |rows, &side| rows.checked_mul(side as u64));
    let length = rows.and_then(|rows| rows.checked_mul((inner / cols) as u64)?.checked_mul(bytes));
    let end = length.and_then(|length| tensor.offset.checked_add(length)).filter(|&end| end <= file);
    let (Some(length), Some(_)) = (length, end) else {
        return Err(format!(
            "{:?} in {} at {} ends past the file's {file} bytes",
            tensor.shape, tensor.dtype, tensor.offset
        ));
    };
    tensor.length = length;
    Ok(())
}
