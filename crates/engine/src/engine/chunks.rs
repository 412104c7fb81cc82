//! How many tokens of a prompt run at once.

use std::time::Duration;

/// Sizes of chunks that keep a bound on their time, learned from how long chunks take. A size is the largest one halved
/// some times; how often is known for each doubling of the position, for chunks take longer the more stands before them.
#[derive(Debug)]
pub(super) struct ChunkSizes {
    largest: usize,
    smallest: usize,
    bound: Option<Duration>,
    /// By the position's number of binary digits, the halvings; none where no chunk was measured yet.
    halvings: [Option<u32>; POSITIONS],
}

const POSITIONS: usize = usize::BITS as usize + 1;
/// A chunk that takes less than this share of the bound leaves room for one of twice the size.
const ROOM: f64 = 0.4;

impl ChunkSizes {
    /// Sizes from a page, if that is less, to `largest`.
    pub(super) fn new(largest: usize, page_size: usize, bound: Option<Duration>) -> Self {
        Self { largest, smallest: page_size.min(largest), bound, halvings: [None; POSITIONS] }
    }

    /// The size for a chunk from a position on. Where nobody waits, it is the largest.
    pub(super) fn size(&self, start: usize, somebody_waits: bool) -> usize {
        if !somebody_waits || self.bound.is_none() {
            return self.largest;
        }
        self.halved(self.halvings(start))
    }

    /// Learns from a chunk that has run.
    pub(super) fn measured(&mut self, start: usize, tokens: usize, time: Duration) {
        let Some(bound) = self.bound else { return };
        let halvings = self.halvings(start);
        let size = self.halved(halvings);
        // What this size would have taken: a smaller chunk says little about it, a larger one is proportional at most.
        let time = time.as_secs_f64() * (size as f64 / tokens as f64).min(1.0);
        let now = if time > bound.as_secs_f64() && size > self.smallest {
            halvings + 1
        } else if time < ROOM * bound.as_secs_f64() && 2 * tokens >= size {
            halvings.saturating_sub(1)
        } else {
            halvings
        };
        self.halvings[digits(start)] = Some(now);
    }

    /// As measured there, or nearest before; at first the smallest size.
    fn halvings(&self, start: usize) -> u32 {
        let before = self.halvings[..=digits(start)].iter().rev().find_map(|halvings| *halvings);
        before.unwrap_or_else(|| (self.largest / self.smallest).ilog2())
    }

    fn halved(&self, halvings: u32) -> usize {
        (self.largest >> halvings).max(self.smallest)
    }
}

fn digits(position: usize) -> usize {
    (usize::BITS - position.leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(100);

    /// Runs a prompt of `tokens` on a machine where a chunk takes `time`; the sizes.
    fn run(sizes: &mut ChunkSizes, tokens: usize, time: impl Fn(usize, usize) -> f64) -> Vec<usize> {
        let (mut start, mut taken) = (0, Vec::new());
        while start < tokens {
            let size = sizes.size(start, true);
            sizes.measured(start, size, Duration::from_secs_f64(time(start, size)));
            taken.push(size);
            start += size;
        }
        taken
    }

    #[test]
    fn chunks_grow_to_what_the_bound_allows_and_no_further() {
        let mut sizes = ChunkSizes::new(512, 16, Some(BOUND));
        // A millisecond a token: 64 tokens take 64 ms, 128 would be too long.
        let taken = run(&mut sizes, 4000, |_, size| size as f64 * 1e-3);
        assert_eq!(taken[..3], [16, 32, 64]);
        assert!(taken[2..].iter().all(|&size| size == 64), "{taken:?}");
        assert_eq!(sizes.size(0, false), 512, "nobody waits");
    }

    #[test]
    fn chunks_shrink_where_positions_cost_more_and_stay_large_before() {
        let mut sizes = ChunkSizes::new(256, 16, Some(BOUND));
        let time = |start: usize, size: usize| size as f64 * (2e-4 + start as f64 * 1e-6);
        for _ in 0..2 {
            run(&mut sizes, 10_000, time);
        }
        assert_eq!(sizes.size(100, true), 256);
        assert_eq!(sizes.size(9000, true), 16);
        let taken = run(&mut sizes, 10_000, time);
        let mut start = 0;
        for size in taken {
            // A size holds from one power of two to the next, over which the time may double.
            assert!(time(start, size) <= 2.0 * BOUND.as_secs_f64(), "{size} at {start}");
            start += size;
        }
    }

    #[test]
    fn without_a_bound_or_below_a_page_sizes_are_as_asked_for() {
        let mut sizes = ChunkSizes::new(100, 16, None);
        sizes.measured(0, 100, Duration::from_secs(100));
        assert_eq!(sizes.size(0, true), 100);
        let mut sizes = ChunkSizes::new(5, 16, Some(BOUND));
        sizes.measured(0, 5, Duration::from_secs(100));
        assert_eq!(sizes.size(0, true), 5);
    }
}
