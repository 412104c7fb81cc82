//! Where a model's weights lie in mapped files: what to read before it is needed.

use crate::{Error, MappedFile, Weight};
use std::{io, ops::Range, sync::Arc};

/// Bytes that are asked of the system at once: long enough for a disk's full speed, short enough to show progress and
/// to be shared by threads.
const CHUNK: usize = 16 << 20;
/// What lies between two weights is read along where it is shorter than this, as systems read ahead. It is no more: what
/// lies between may be another device's.
const GAP: usize = 128 << 10;

/// The parts of mapped files that weights lie in.
#[derive(Debug, Default)]
pub struct MappedWeights {
    files: Vec<(Arc<MappedFile>, Vec<Range<usize>>)>,
}

/// A part of a mapped file.
#[derive(Clone, Debug)]
pub struct MappedChunk {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl MappedWeights {
    /// Takes in what a weight reads of files.
    pub fn add(&mut self, weight: &Weight) {
        for (file, range) in weight.storage().filter_map(crate::Bytes::mapped) {
            // Neighbours lie in one file: the last one is the likeliest.
            match self.files.iter_mut().rev().find(|(known, _)| Arc::ptr_eq(known, file)) {
                Some((_, ranges)) => ranges.push(range),
                None => self.files.push((Arc::clone(file), vec![range])),
            }
        }
    }

    /// All parts in chunks of some megabytes, file by file and in order of place, as disks read fastest.
    pub fn chunks(&self) -> Vec<MappedChunk> {
        let of_file = |(file, ranges): &(Arc<MappedFile>, Vec<Range<usize>>)| {
            let chunks = split(merge(ranges.clone()));
            let file = Arc::clone(file);
            chunks.into_iter().map(move |range| MappedChunk { file: Arc::clone(&file), range })
        };
        self.files.iter().flat_map(of_file).collect()
    }

    /// Keeps all parts in memory, which reads what is not there yet.
    ///
    /// # Errors
    /// What the system says where it refuses.
    pub fn lock(&self) -> io::Result<()> {
        self.chunks().into_iter().try_for_each(|MappedChunk { file, range }| file.lock(range))
    }

    /// Bytes of all parts, with what is read along between them.
    pub fn bytes(&self) -> u64 {
        self.chunks().iter().map(MappedChunk::bytes).sum()
    }
}

impl MappedChunk {
    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.range.len() as u64
    }

    /// Whether a part of it is not in memory, as far as the system tells.
    pub fn is_missing(&self) -> bool {
        self.file.resident_bytes(self.range.clone()).is_some_and(|resident| resident < self.range.len())
    }

    /// Reads it into memory, and waits until that is done.
    ///
    /// # Errors
    /// If it cannot be read, or the system lacks memory for it.
    pub fn populate(&self) -> Result<(), Error> {
        self.file.populate(self.range.clone())
    }
}

/// Sorts ranges, and joins those that touch, overlap or lie close together.
fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(GAP) => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn split(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let of = |range: Range<usize>| {
        range.clone().step_by(CHUNK).map(move |start| start..range.end.min(start + CHUNK))
    };
    ranges.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Extent, Location, SavedWeight};
    use dsv3_kernels::Format;

    #[test]
    fn ranges_that_lie_close_together_become_one() {
        let far = 10 * GAP;
        assert_eq!(merge(vec![far..far + 1, 5..9, 0..4, 3..5, 20..30]), [0..30, far..far + 1]);
        assert_eq!(merge(vec![0..50, 10..20, far..far + 1]), [0..50, far..far + 1]);
        assert_eq!(merge(Vec::new()), []);
    }

    #[test]
    fn chunks_cover_every_byte_once() {
        let chunks = split(vec![3..CHUNK + 4, 2 * CHUNK..4 * CHUNK]);
        let last = 3 * CHUNK;
        assert_eq!(chunks, [3..CHUNK + 3, CHUNK + 3..CHUNK + 4, 2 * CHUNK..last, last..4 * CHUNK]);
    }

    #[test]
    fn matrices_count_and_vectors_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [0; 64]).unwrap();
        let file = Bytes::from(Arc::new(MappedFile::open(&path).unwrap()));
        let weight = |shape: &[usize], range: Range<usize>| {
            let data = Extent {
                location: Location::Checkpoint,
                file: "file".into(),
                offset: range.start as u64,
                length: range.len() as u64,
            };
            let saved = SavedWeight {
                source: "w".to_owned(),
                format: Format::F32,
                shape: shape.to_vec(),
                data,
                scales: None,
            };
            Weight::new(&saved, file.slice(range), None)
        };
        let mut mapped = MappedWeights::default();
        mapped.add(&weight(&[4], 0..16));
        assert_eq!((mapped.chunks().len(), mapped.bytes()), (0, 0));
        mapped.add(&weight(&[2, 2], 32..48));
        mapped.add(&weight(&[2, 2], 16..32));
        let chunks = mapped.chunks();
        assert_eq!((chunks.len(), chunks[0].range.clone()), (1, 16..48));
        assert_eq!((chunks[0].bytes(), mapped.bytes()), (32, 32));
        chunks[0].populate().unwrap();
        assert!(!chunks[0].is_missing());
    }
}
