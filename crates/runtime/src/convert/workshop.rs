//! The threads and the memory that weights are written with; several outputs share them, one after another.

use crate::{Device, Error};
use dsv3_kernels::{Chunks, Cuts, Kernels, Queue};
use std::{ops::Range, sync::Mutex, sync::PoisonError};

/// Threads, which come when they are needed first, and a buffer.
#[derive(Default)]
pub(crate) struct Workshop {
    device: Option<Device>,
    buffer: Vec<u8>,
}

impl Workshop {
    /// Fills the buffer with some pieces of rows, on all cores, and gives it; or the first place, by row and column, that
    /// `encode` says no row can be made of.
    ///
    /// # Errors
    /// Threads that the system does not give.
    pub(super) fn fill(
        &mut self,
        pieces: &[Range<usize>],
        row_bytes: usize,
        encode: impl Fn(Range<usize>, &Kernels, &mut [u8]) -> Result<(), [usize; 2]> + Sync,
    ) -> Result<Result<&[u8], [usize; 2]>, Error> {
        let device = match &mut self.device {
            Some(device) => device,
            none => none.insert(Device::single(0)?),
        };
        let all: usize = pieces.iter().map(ExactSizeIterator::len).sum();
        self.buffer.resize(all * row_bytes, 0);
        let ends = pieces.iter().scan(0, |end, piece| {
            *end += piece.len() * row_bytes;
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        let chunks = Queue::new(Chunks::new(&mut self.buffer, Cuts::Ends(&ends)));
        let (kernels, bad) = (device.kernels(), Mutex::new(None::<[usize; 2]>));
        device.for_each(&chunks, |(number, out)| {
            if let Err(place) = encode(pieces[number].clone(), kernels, out) {
                let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                *bad = Some(bad.map_or(place, |known| known.min(place)));
            }
        });
        Ok(match bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(place) => Err(place),
            None => Ok(&self.buffer),
        })
    }
}
