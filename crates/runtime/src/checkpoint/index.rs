//! Which files a checkpoint consists of, and where its index says that tensors lie.

use super::MappedFile;
use crate::Error;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

/// The name of the index of a checkpoint of several files.
pub(super) const INDEX_NAME: &str = "model.safetensors.index.json";
/// The name of the only file of a checkpoint without an index.
pub(super) const SINGLE_NAME: &str = "model.safetensors";

/// The files of a checkpoint.
pub(super) struct Layout {
    /// Names of the shards relative to the checkpoint's directory, sorted.
    pub(super) shards: Vec<String>,
    /// Tensor name to shard name, where there is an index.
    pub(super) weight_map: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Layout {
    /// Finds the files: those of the index, else `model.safetensors`, else every `*.safetensors`.
    ///
    /// # Errors
    /// If the index is malformed or names a file that is missing or outside of `dir`, or if there are no files.
    pub(super) fn find(dir: &Path) -> Result<Self, Error> {
        let index = dir.join(INDEX_NAME);
        if index.try_exists().map_err(Error::io(&index))? {
            return Self::from_index(dir, &index);
        }
        if dir.join(SINGLE_NAME).exists() {
            return Ok(Self { shards: vec![SINGLE_NAME.into()], weight_map: None });
        }
        let mut shards = Vec::new();
        for entry in dir.read_dir().map_err(Error::io(dir))? {
            let name = entry.map_err(Error::io(dir))?.file_name();
            if Path::new(&name).extension().is_some_and(|extension| extension == "safetensors") {
                let name = name.into_string().map_err(|name| {
                    format_error(dir, format!("the file name {} is not UTF-8", name.display()))
                })?;
                shards.push(name);
            }
        }
        shards.sort();
        if shards.is_empty() {
            return Err(format_error(dir, format!("holds no {INDEX_NAME} and no *.safetensors file")));
        }
        Ok(Self { shards, weight_map: None })
    }

    fn from_index(dir: &Path, path: &Path) -> Result<Self, Error> {
        let file = MappedFile::open(path)?;
        let Index { weight_map } = serde_json::from_slice(file.bytes())
            .map_err(|error| format_error(path, format!("malformed index: {error}")))?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        if shards.is_empty() {
            return Err(format_error(path, "its weight_map names no tensor".into()));
        }
        for shard in &shards {
            if !is_inside(shard) {
                let message = format!("names the shard {shard:?}, which is no path inside the directory");
                return Err(format_error(path, message));
            }
        }
        let missing: Vec<_> = shards.iter().filter(|shard| !dir.join(shard).exists()).collect();
        if let [first, others @ ..] = &missing[..] {
            let others =
                if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            let message = format!("of its {} shards, {first}{others} missing", shards.len());
            return Err(format_error(path, message));
        }
        Ok(Self { shards: shards.into_iter().cloned().collect(), weight_map: Some(weight_map) })
    }
}

/// Whether a relative path goes down only.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

fn format_error(path: &Path, message: String) -> Error {
    Error::Format { path: path.into(), message }
}
