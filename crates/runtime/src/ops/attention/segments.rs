//! The split of a context, and the merge of what its segments give.

use dsv3_kernels::{AttentionState, Kernels, Lanes, MatrixMut};
use std::ops::Range;

/// A context `0..length` in segments of one size, the last of which may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    length: usize,
    size: usize,
}

impl Segments {
    /// At most `count` segments of at least `block` positions: whole blocks, but for the last one.
    pub(super) fn new(length: usize, count: usize, block: usize) -> Self {
        Self { length, size: length.div_ceil(count.max(1)).next_multiple_of(block).max(block) }
    }

    pub(super) fn count(self) -> usize {
        self.length.div_ceil(self.size)
    }

    pub(super) fn positions(self, segment: usize) -> Range<usize> {
        segment * self.size..self.length.min((segment + 1) * self.size)
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
