//! From where a weight lies to its mapped bytes.

use crate::{
    Bytes, Checkpoint, Error, Extent, Location, MappedFile, SavedWeight, Weight, checkpoint::SCALES_SUFFIX,
};
use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Turns saved weights into mapped ones. The checkpoint's files are the ones that it has mapped already.
pub struct WeightLoader<'a> {
    checkpoint: &'a Checkpoint,
    cache: &'a Path,
    files: HashMap<(Location, PathBuf), Bytes>,
}

impl<'a> WeightLoader<'a> {
    /// A loader of weights that lie in a checkpoint and a cache.
    pub fn new(checkpoint: &'a Checkpoint, cache: &'a Path) -> Self {
        let shards = checkpoint.shards().iter();
        let files = shards
            .map(|shard| ((Location::Checkpoint, shard.name().into()), Arc::clone(shard.file()).into()))
            .collect();
        Self { checkpoint, cache, files }
    }

    /// One weight.
    ///
    /// # Errors
    /// Bytes that are not there, or not as many as shape and format need.
    pub fn load(&mut self, saved: &SavedWeight) -> Result<Weight, Error> {
        saved.validate()?;
        let bytes = self.bytes(&saved.source, &saved.data)?;
        let scales = match &saved.scales {
            Some(scales) => Some(self.bytes(&format!("{}{SCALES_SUFFIX}", saved.source), &scales.data)?),
            None => None,
        };
        Ok(Weight::new(saved, bytes, scales))
    }

    fn bytes(&mut self, tensor: &str, extent: &Extent) -> Result<Bytes, Error> {
        let fail = |message: String| Error::Tensor { name: tensor.to_owned(), message };
        if !extent.file.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(fail(format!("{} leads out of its directory", extent.file.display())));
        }
        if extent.location == Location::Checkpoint {
            let info = self.checkpoint.tensor(tensor)?.info;
            if (info.offset, info.length) != (extent.offset, extent.length) {
                let Extent { offset, length, .. } = extent;
                return Err(fail(format!(
                    "the cache says {length} bytes at {offset}, the checkpoint {} at {}; make the cache anew with \
                     `dsv3 convert --force`",
                    info.length, info.offset
                )));
            }
        }
        let key = (extent.location, extent.file.clone());
        let file = match (self.files.get(&key), extent.location) {
            (Some(file), _) => file.clone(),
            (None, Location::Cache) => {
                let file = Bytes::from(Arc::new(MappedFile::open(&self.cache.join(&extent.file))?));
                self.files.insert(key, file.clone());
                file
            }
            (None, Location::Checkpoint) => {
                return Err(fail(format!("{} is no file of the checkpoint", extent.file.display())));
            }
        };
        let end = extent.offset.checked_add(extent.length).filter(|&end| end <= file.len() as u64);
        let end = end.ok_or_else(|| {
            let Extent { offset, length, .. } = extent;
            fail(format!(
                "{length} bytes at {offset} lie beyond the {} of {}",
                file.len(),
                extent.file.display()
            ))
        })?;
        Ok(file.slice(extent.offset as usize..end as usize))
    }
}
