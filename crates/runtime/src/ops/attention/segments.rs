//! The split of a context, and the merge of what its segments give.

use dsv3_kernels::{AttentionState, Kernels, Lanes, MatrixMut};
use std::ops::Range;

/// A context `0..length` in segments of whole blocks, but for the last one, that differ by a block at most: threads that
/// share them end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    length: usize,
    count: usize,
    block: usize,
}

impl Segments {
    /// At most `count` segments of at least `block` positions.
    pub(super) fn new(length: usize, count: usize, block: usize) -> Self {
        Self { length, count: count.min(length.div_ceil(block)).max(1), block }
    }

    pub(super) fn count(self) -> usize {
        self.count
    }

    pub(super) fn positions(self, segment: usize) -> Range<usize> {
        self.end(segment)..self.end(segment + 1)
    }

    /// Where the first `segments` end.
    fn end(self, segments: usize) -> usize {
        let blocks = self.length.div_ceil(self.block) * segments / self.count;
        self.length.min(blocks * self.block)
    }
}

/// Merges the states of a strip's segments into the first, in their order, and writes the attention of each lane as a
/// row of `out`.
///
/// # Shapes
/// `segments` of `[AttentionState::lines(v)]`, `out` `[at most LANES, v]`.
pub(super) fn merge<'a>(
    mut segments: impl Iterator<Item = &'a mut [Lanes]>,
    kernels: &Kernels,
    out: MatrixMut<'_>,
) {
    let mut state = AttentionState::of(segments.next().expect("a context has a position"));
    for other in segments {
        kernels.merge_attention(&mut state, &AttentionState::of(other));
    }
    kernels.finish_attention(&state, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_context_in_order() {
        for length in 1..700 {
            for (count, block) in [(1, 64), (3, 64), (16, 7), (0, 5)] {
                let segments = Segments::new(length, count, block);
                assert!(segments.count() <= count.max(1));
                let mut next = 0;
                for segment in 0..segments.count() {
                    let positions = segments.positions(segment);
                    assert_eq!(positions.start, next);
                    assert!(!positions.is_empty() && positions.start.is_multiple_of(block));
                    next = positions.end;
                }
                assert_eq!(next, length);
            }
        }
    }
}
