//! Memory that is used again. What a forward pass gives back it takes again in the next layer and the next step, so that
//! after the first step nothing is allocated, and pages of large buffers are not zeroed by the system each time.
//!
//! There is one list of free buffers for each type, whatever thread gives and takes. Within an operator only the caller
//! takes buffers, for its threads too ([`Device::section_with`](crate::Device)): what a step needs does not depend on
//! which thread did what.

use dsv3_kernels::Lanes;
use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Bytes of one type that are kept: what a prefill chunk's activations take.
pub(crate) const MOST_BYTES: usize = 256 << 20;
/// Bits of a length that tell sizes apart, below its highest: four sizes for each power of two, so that a buffer has room
/// for a quarter more than it is asked for at most.
const STEPS: usize = 4;
/// Sizes, up to any length.
const SIZES: usize = STEPS * usize::BITS as usize;
/// The length of the smallest buffers.
const SMALLEST: usize = 8;

/// The number of the smallest size that holds `length`.
fn size_for(length: usize) -> usize {
    let last = length.max(SMALLEST) - 1;
    let octave = last.ilog2() as usize;
    STEPS * octave + (last >> (octave - 2)) - STEPS
}

/// The length of a size; none where it is beyond a `usize`.
fn length_of(size: usize) -> Option<usize> {
    (STEPS + size % STEPS + 1).checked_mul(1_usize.checked_shl((size / STEPS - 2) as u32)?)
}

/// Buffers that nobody uses, by size, and their bytes.
pub(crate) struct FreeList<T> {
    buffers: [Vec<Vec<T>>; SIZES],
    bytes: usize,
}

impl<T> FreeList<T> {
    const fn new() -> Self {
        Self { buffers: [const { Vec::new() }; SIZES], bytes: 0 }
    }

    /// One that holds `length`, with what it held before.
    fn take(&mut self, length: usize) -> Option<Vec<T>> {
        let buffer = self.buffers[size_for(length)].pop()?;
        self.bytes -= buffer.capacity() * size_of::<T>();
        Some(buffer)
    }

    /// Keeps a buffer. Where there are too many the largest go, which others want again least often.
    fn give(&mut self, buffer: Vec<T>) {
        let capacity = buffer.capacity();
        if capacity < SMALLEST {
            return;
        }
        // One that comes from elsewhere may lie between two sizes.
        let fits = size_for(capacity);
        let size = if length_of(fits) == Some(capacity) { fits } else { fits - 1 };
        self.bytes += capacity * size_of::<T>();
        self.buffers[size].push(buffer);
        while self.bytes > MOST_BYTES {
            let largest = self.buffers.iter_mut().rev().find_map(Vec::pop).expect("bytes are of buffers");
            self.bytes -= largest.capacity() * size_of::<T>();
        }
    }
}

/// What buffers hold.
pub(crate) trait Element: Copy + Default + 'static {
    /// The list of this type's free buffers.
    fn free_list() -> MutexGuard<'static, FreeList<Self>>;
}

macro_rules! elements {
    ($($element:ty),*) => {$(
        impl Element for $element {
            fn free_list() -> MutexGuard<'static, FreeList<Self>> {
                static FREE: Mutex<FreeList<$element>> = Mutex::new(FreeList::new());
                FREE.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }
    )*};
}

elements!(f32, usize, (usize, f32), Lanes);

/// A vector whose memory goes back to the free list.
#[derive(Debug, PartialEq)]
pub(crate) struct Buffer<T: Element>(Vec<T>);

impl<T: Element> Buffer<T> {
    /// An empty one that holds `capacity` values before it must grow.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut buffer = Self::taken(capacity);
        buffer.0.clear();
        buffer
    }

    /// `length` times `value`.
    pub(crate) fn filled(length: usize, value: T) -> Self {
        let mut buffer = Self::with_capacity(length);
        buffer.0.resize(length, value);
        buffer
    }

    /// `length` values, whatever they are.
    pub(crate) fn anything(length: usize) -> Self {
        let mut buffer = Self::taken(length);
        buffer.0.resize(length, T::default());
        buffer
    }

    /// One that holds `capacity` values before it must grow, with what it held before.
    fn taken(capacity: usize) -> Self {
        if capacity == 0 {
            return Self(Vec::new());
        }
        let free = T::free_list().take(capacity);
        let length = length_of(size_for(capacity)).unwrap_or(capacity);
        Self(free.unwrap_or_else(|| Vec::with_capacity(length)))
    }

    /// One that takes over the vector.
    pub(crate) fn from_vec(values: Vec<T>) -> Self {
        Self(values)
    }

    /// The vector, which does not come back.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        mem::take(&mut self.0)
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut clone = Self::with_capacity(self.0.len());
        clone.0.extend_from_slice(&self.0);
        clone
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.0.capacity() > 0 {
            T::free_list().give(mem::take(&mut self.0));
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_hold_their_lengths_with_a_quarter_to_spare_at_most() {
        for length in (1..5000).chain([1 << 20, (1 << 20) + 1, usize::MAX / 2]) {
            let size = size_for(length);
            let room = length_of(size).unwrap();
            assert!(room >= length && (room == SMALLEST || room - length <= length / 4), "{length}: {room}");
            assert_eq!(size_for(room), size);
            assert!(room == SMALLEST || length_of(size - 1).unwrap() < length);
        }
        assert!(length_of(size_for(usize::MAX)).is_none_or(|room| room == usize::MAX));
    }

    #[test]
    fn the_memory_of_a_size_comes_back() {
        let mut list = FreeList::new();
        list.give(vec![1_u8; 1000]);
        list.give(vec![2_u8; 12]);
        assert_eq!(list.take(500), None, "a small one would lie in it");
        assert_eq!(list.take(11), Some(vec![2; 12]));
        assert_eq!(list.take(12), None, "it was taken");
        // 1000 is no size of its own: 896 is the next one below.
        assert_eq!(list.take(900), None);
        assert_eq!(list.take(890), Some(vec![1; 1000]));
        assert_eq!(list.bytes, 0);
    }

    #[test]
    fn beyond_the_limit_the_largest_go() {
        let mut list = FreeList::new();
        list.give(Vec::<u8>::with_capacity(100));
        list.give(Vec::with_capacity(MOST_BYTES / 2));
        list.give(Vec::with_capacity(MOST_BYTES * 3 / 4));
        assert!(list.bytes <= MOST_BYTES);
        assert!(list.take(MOST_BYTES * 3 / 4).is_none());
        assert!(list.take(MOST_BYTES / 2).is_some() && list.take(96).is_some());
    }

    #[test]
    fn a_filled_buffer_is_clean_wherever_it_comes_from() {
        drop(Buffer::filled(777, (1_usize, 1.0)));
        assert_eq!(Buffer::filled(776, (0, 0.0))[..], [(0, 0.0); 776]);
        assert_eq!(Buffer::<(usize, f32)>::anything(780).len(), 780);
        assert_eq!(Buffer::<f32>::anything(0).capacity(), 0);
    }
}
