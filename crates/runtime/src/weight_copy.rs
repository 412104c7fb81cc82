//! Weights in memory of their own instead of in mapped files: in pages as large as the system gives, and near to the
//! threads that copy them.

use crate::{Bytes, Device, Weight, zeros_in_large_pages};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// Where a copy begins: no two weights share a line of the caches.
const ALIGNMENT: usize = 64;
/// Bytes that a thread copies at once; a whole number of large pages.
const CHUNK: usize = 4 << 20;

/// What is to be copied, all into one piece of memory.
#[derive(Debug, Default)]
pub struct WeightCopy {
    /// In order of their places.
    sources: Vec<(usize, Bytes)>,
    /// The place of what begins at an address and has a length: a weight with two uses is copied once.
    places: HashMap<(usize, usize), usize>,
    length: usize,
}

impl WeightCopy {
    /// Takes in what a weight reads of files.
    pub fn add(&mut self, weight: &Weight) {
        for bytes in weight.storage() {
            let place = self.length;
            if *self.places.entry(key(bytes)).or_insert(place) == place {
                self.sources.push((place, bytes.clone()));
                self.length = (place + bytes.len()).next_multiple_of(ALIGNMENT);
            }
        }
    }

    /// Bytes of memory that the copies take.
    pub fn bytes(&self) -> u64 {
        self.length as u64
    }

    /// Copies with all threads of the device, which so come to have the memory near to them where that makes a
    /// difference. `progress` is told the bytes that are done, from any of them.
    pub fn run(self, device: &Device, progress: impl Fn(u64) + Sync) -> CopiedWeights {
        let mut memory = zeros_in_large_pages(self.length);
        let done = AtomicU64::new(0);
        device.for_each_chunk(&mut memory, CHUNK, |number, chunk| {
            self.fill(number * CHUNK, chunk);
            progress(done.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64);
        });
        CopiedWeights { memory: memory.into(), places: self.places }
    }

    /// Copies what lies at `start` and after it.
    fn fill(&self, start: usize, chunk: &mut [u8]) {
        let end = start + chunk.len();
        let first = self.sources.partition_point(|(place, bytes)| place + bytes.len() <= start);
        for (place, bytes) in self.sources[first..].iter().take_while(|(place, _)| *place < end) {
            let (from, to) = (start.max(*place), end.min(place + bytes.len()));
            chunk[from - start..to - start].copy_from_slice(&bytes.as_slice()[from - place..to - place]);
        }
    }
}

/// The copies.
#[derive(Debug)]
pub struct CopiedWeights {
    memory: Bytes,
    places: HashMap<(usize, usize), usize>,
}

impl CopiedWeights {
    /// A weight over its copy.
    ///
    /// # Panics
    /// If it was not copied.
    pub fn of(&self, weight: &Weight) -> Weight {
        weight.over(|bytes| {
            let start = *self.places.get(&key(bytes)).expect("all weights were copied");
            self.memory.slice(start..start + bytes.len())
        })
    }
}

fn key(bytes: &Bytes) -> (usize, usize) {
    (bytes.as_slice().as_ptr().addr(), bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Extent, Location, SavedWeight};
    use dsv3_kernels::Format;

    fn weight(bytes: &Bytes, rows: usize, cols: usize) -> Weight {
        let data =
            Extent { location: Location::Cache, file: "file".into(), offset: 0, length: bytes.len() as u64 };
        let (source, shape) = ("w".to_owned(), vec![rows, cols]);
        let saved = SavedWeight { source, format: Format::F32, shape, data, scales: None };
        Weight::new(&saved, bytes.clone(), None)
    }

    #[test]
    fn copies_hold_what_was_there_and_doubles_share_one() {
        let rows = CHUNK / 4 + 3;
        let all = Bytes::from((0..4 * (rows + 2)).map(|byte| byte as u8).collect::<Vec<_>>());
        let weights = [
            weight(&all.slice(0..4), 1, 1),
            weight(&all.slice(4..4 + 4 * rows), rows, 1),
            weight(&all.slice(0..4), 1, 1),
            weight(&all.slice(4 + 4 * rows..8 + 4 * rows), 1, 1),
        ];
        let mut copy = WeightCopy::default();
        weights.iter().for_each(|weight| copy.add(weight));
        assert_eq!(copy.bytes() as usize, ALIGNMENT + (4 * rows).next_multiple_of(ALIGNMENT) + ALIGNMENT);
        let total = copy.bytes();
        let most = AtomicU64::new(0);
        let copied = copy.run(&Device::single(2).unwrap(), |done| {
            most.fetch_max(done, Ordering::Relaxed);
        });
        assert_eq!(most.into_inner(), total);
        for weight in &weights {
            let copy = copied.of(weight);
            let bytes = |weight: &Weight| weight.storage().next().unwrap().as_slice().to_vec();
            assert_eq!(bytes(&copy), bytes(weight));
            assert!(copy.storage().all(|bytes| bytes.mapped().is_none()));
            assert_ne!(key(copy.storage().next().unwrap()), key(weight.storage().next().unwrap()));
        }
    }
}
