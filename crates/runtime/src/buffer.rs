//! Memory that is used again. What a forward pass frees it takes again in the next layer and the next step, so that
//! after the first steps no activations are allocated, and pages of large ones are not zeroed by the system each time.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// Buffers of one type that a thread keeps.
const MOST_BUFFERS: usize = 64;
/// Bytes of one type that a thread keeps: what a prefill chunk's activations take.
const MOST_BYTES: usize = 64 << 20;

/// The buffers of one thread that nobody uses, and their bytes.
pub(crate) struct FreeList<T> {
    buffers: Vec<Vec<T>>,
    bytes: usize,
}

impl<T> FreeList<T> {
    const fn new() -> Self {
        Self { buffers: Vec::new(), bytes: 0 }
    }

    /// The smallest that holds `length`.
    fn take(&mut self, length: usize) -> Option<Vec<T>> {
        let fitting = self.buffers.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= length);
        let (index, _) = fitting.min_by_key(|(_, buffer)| buffer.capacity())?;
        let buffer = self.buffers.swap_remove(index);
        self.bytes -= buffer.capacity() * size_of::<T>();
        Some(buffer)
    }

    fn give(&mut self, buffer: Vec<T>) {
        let bytes = buffer.capacity() * size_of::<T>();
        if bytes > 0 && self.buffers.len() < MOST_BUFFERS && self.bytes + bytes <= MOST_BYTES {
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }
}

/// What buffers hold. Each thread has a list of free buffers of each such type.
pub(crate) trait Element: Copy + Default + 'static {
    /// Runs `f` on this thread's list; does nothing where the thread is ending.
    fn free_list<R>(f: impl FnOnce(&mut FreeList<Self>) -> R) -> Option<R>;
}

macro_rules! elements {
    ($($element:ty),*) => {$(
        impl Element for $element {
            fn free_list<R>(f: impl FnOnce(&mut FreeList<Self>) -> R) -> Option<R> {
                thread_local! {
                    static FREE: RefCell<FreeList<$element>> = const { RefCell::new(FreeList::new()) };
                }
                FREE.try_with(|free| f(&mut free.borrow_mut())).ok()
            }
        }
    )*};
}

elements!(f32, usize, (usize, f32));

/// A vector whose memory goes back to the thread's free list.
#[derive(Debug, PartialEq)]
pub(crate) struct Buffer<T: Element>(Vec<T>);

impl<T: Element> Buffer<T> {
    /// An empty one that holds `capacity` values before it must grow.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let free = T::free_list(|list| list.take(capacity)).flatten();
        let mut values = free.unwrap_or_else(|| Vec::with_capacity(capacity));
        values.clear();
        Self(values)
    }

    /// `length` times `value`.
    pub(crate) fn filled(length: usize, value: T) -> Self {
        let mut buffer = Self::with_capacity(length);
        buffer.0.resize(length, value);
        buffer
    }

    /// One that takes over the vector.
    pub(crate) fn from_vec(values: Vec<T>) -> Self {
        Self(values)
    }

    /// The vector, which does not come back.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
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
        T::free_list(|list| list.give(std::mem::take(&mut self.0)));
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
    fn memory_comes_back_clean_and_the_smallest_that_fits_is_taken() {
        let (small, large) = (Buffer::filled(10, 1.0_f32), Buffer::filled(1000, 2.0));
        let addresses = [small.as_ptr(), large.as_ptr()];
        drop((small, large));
        let again = Buffer::filled(8, 0.0_f32);
        assert_eq!((again.as_ptr(), &again[..]), (addresses[0], &[0.0; 8][..]));
        assert_eq!(Buffer::<f32>::with_capacity(500).as_ptr(), addresses[1]);
    }

    #[test]
    fn a_thread_keeps_no_more_than_the_limit() {
        let many: Vec<_> = (0..2 * MOST_BUFFERS).map(|_| Buffer::filled(1, 0_usize)).collect();
        drop(many);
        assert_eq!(usize::free_list(|list| list.buffers.len()), Some(MOST_BUFFERS));
        drop(Buffer::<usize>::with_capacity(MOST_BYTES));
        assert!(usize::free_list(|list| list.bytes <= MOST_BYTES).unwrap());
    }
}
