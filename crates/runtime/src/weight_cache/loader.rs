//! From where a weight lies to its mapped bytes.

use crate::{
    Bytes, Checkpoint, Error, Extent, Location, MappedFile, SavedScales, SavedWeight, TensorInfo, Weight,
    WeightSpec,
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

    /// One weight, or the part of one that a device holds. In the checkpoint it must be whole rows of the tensor.
    ///
    /// # Errors
    /// Bytes that are not there, or not as many as shape and format need.
    pub fn load(&mut self, saved: &SavedWeight) -> Result<Weight, Error> {
        saved.validate()?;
        let in_checkpoint = saved.data.location == Location::Checkpoint;
        if let Some(scales) =
            saved.scales.as_ref().filter(|scales| scales.data.location != saved.data.location)
        {
            let (scales, data) = (scales.data.file.display(), saved.data.file.display());
            return Err(error(saved, format!("its scales lie in {scales}, its elements in {data}")));
        }
        if in_checkpoint {
            self.check_scales(saved, self.first_row(saved)?)?;
        }
        let bytes = self.bytes(saved, &saved.data)?;
        let scales = saved.scales.as_ref().map(|scales| self.bytes(saved, &scales.data)).transpose()?;
        Ok(Weight::new(saved, bytes, scales))
    }

    /// As [`load`](Self::load), of the part of a tensor that begins at the row `first` (of a vector: the element).
    ///
    /// # Errors
    /// As [`load`](Self::load), and bytes in the checkpoint that are not those of the spec.
    pub(super) fn load_from(
        &mut self,
        saved: &SavedWeight,
        spec: &WeightSpec,
        first: usize,
    ) -> Result<Weight, Error> {
        let weight = self.load(saved)?;
        if saved.data.location == Location::Checkpoint {
            let (expected, block) = (&spec.source, spec.scale_block);
            let got = self.first_row(saved)?;
            if saved.source != *expected || got != first {
                return Err(error(
                    saved,
                    format!("expected {expected} from row {first} on, got row {got} on"),
                ));
            }
            let got = saved.scales.as_ref().map(|scales| scales.block);
            if got.is_some() && got != block {
                return Err(error(saved, format!("expected blocks of {block:?}, got {got:?}")));
            }
        }
        Ok(weight)
    }

    /// The row of a tensor of the checkpoint (of a vector: the element) that a part begins at, whose bytes must be whole
    /// rows of it.
    fn first_row(&self, saved: &SavedWeight) -> Result<usize, Error> {
        let info = self.checkpoint.tensor(&saved.source)?.info;
        let cols = |shape: &[usize]| shape.get(1).copied().unwrap_or(1);
        let is_alike = info.dtype.format() == Some(saved.format)
            && info.shape.len() == saved.shape.len()
            && cols(&info.shape) == cols(&saved.shape);
        if !is_alike {
            let (format, shape) = (saved.format, &saved.shape);
            let got = format!("rows of {format} {shape:?} of {} {:?}", info.dtype, info.shape);
            return Err(error(saved, format!("cannot be used in place as {got}")));
        }
        let Extent { file, offset, length, .. } = &saved.data;
        let row_bytes = saved.format.bytes(cols(&saved.shape)) as u64;
        let skipped = offset.checked_sub(info.offset).filter(|skipped| {
            let end = skipped.checked_add(*length);
            skipped.checked_rem(row_bytes).unwrap_or(*skipped) == 0
                && end.is_some_and(|end| end <= info.length)
        });
        let is_there = file == Path::new(self.checkpoint.shard(&info).name());
        match skipped.filter(|_| is_there) {
            Some(skipped) => Ok(skipped.checked_div(row_bytes).unwrap_or(0) as usize),
            None => Err(error(saved, misplaced(&saved.data, self.checkpoint.shard(&info).name(), &info))),
        }
    }

    /// Checks that scales in the checkpoint are those of the rows from `first` on.
    fn check_scales(&self, saved: &SavedWeight, first: usize) -> Result<(), Error> {
        let Some(SavedScales { block, first_row, data }) = &saved.scales else { return Ok(()) };
        let scales = self.checkpoint.scales(&saved.source, *block)?.info;
        let row_bytes = (scales.shape[1] * size_of::<f32>()) as u64;
        let offset = scales.offset + (first / block[0]) as u64 * row_bytes;
        let file = self.checkpoint.shard(&scales).name();
        if data.offset != offset || *first_row != first % block[0] || data.file != Path::new(file) {
            return Err(error(saved, misplaced(data, file, &scales)));
        }
        Ok(())
    }

    fn bytes(&mut self, saved: &SavedWeight, extent: &Extent) -> Result<Bytes, Error> {
        if !extent.file.components().all(|part| matches!(part, Component::Normal(_))) {
            let message = format!("{} leads out of its directory", extent.file.display());
            return Err(error(saved, message));
        }
        // A weight that lies on another device, in a cache that may have no file.
        if extent.length == 0 {
            return Ok(Bytes::from(Vec::new()));
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
                let message = format!("{} is no file of the checkpoint", extent.file.display());
                return Err(error(saved, message));
            }
        };
        let end = extent.offset.checked_add(extent.length).filter(|&end| end <= file.len() as u64);
        let end = end.ok_or_else(|| {
            let Extent { offset, length, file: name, .. } = extent;
            let message =
                format!("{length} bytes at {offset} lie beyond the {} of {}", file.len(), name.display());
            error(saved, message)
        })?;
        Ok(file.slice(extent.offset as usize..end as usize))
    }
}

fn error(saved: &SavedWeight, message: String) -> Error {
    Error::Tensor { name: saved.source.clone(), message }
}

/// What is said of bytes that are not a tensor's.
fn misplaced(extent: &Extent, file: &str, info: &TensorInfo) -> String {
    let Extent { file: said, offset, length, .. } = extent;
    let (said, TensorInfo { name, offset: start, length: all, .. }) = (said.display(), info);
    format!(
        "the cache says {length} bytes at {offset} of {said}, which are no rows of the checkpoint's {name}, {all} at \
         {start} of {file}"
    )
}
