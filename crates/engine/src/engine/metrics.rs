//! What an engine counts.

use std::time::Duration;

use crate::PageUse;

/// How often values fell where, and their sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
    max: f64,
}

impl Histogram {
    /// Without values; `bounds` ascend.
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0, max: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|&bound| bound < value)] += 1;
        self.sum += value;
        self.max = self.max.max(value);
    }

    /// The upper ends of all classes but the last, which has none; in seconds where times are counted.
    pub fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    /// Values in each class, one more than there are bounds.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The largest value; 0 without any.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value that a share of all are not above, read off the classes; 0 without any.
    pub fn quantile(&self, share: f64) -> f64 {
        let target = share * self.count() as f64;
        let (mut passed, mut lower) = (0.0, 0.0);
        let uppers = self.bounds.iter().copied().chain([self.max]);
        for (&count, upper) in self.counts.iter().zip(uppers) {
            let upper = upper.min(self.max);
            if count > 0 && passed + count as f64 >= target {
                return lower + (upper - lower) * ((target - passed) / count as f64).clamp(0.0, 1.0);
            }
            passed += count as f64;
            lower = upper;
        }
        self.max
    }
}

/// Seconds, from a fast model's step to a slow one's prompt.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
    500.0, 1000.0,
];
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// What an engine has counted since its start, and what it does now.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Requests that wait to begin, or, having lost their pages, to go on.
    pub waiting: usize,
    /// Sequences whose prompt is being run.
    pub prefilling: usize,
    /// Sequences that generate.
    pub decoding: usize,
    /// The cache.
    pub pages: PageUse,
    /// Requests that were taken.
    pub submitted: u64,
    /// Requests that were refused because the queue was full.
    pub refused: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests that their caller ended.
    pub cancelled: u64,
    /// Requests that an error ended.
    pub failed: u64,
    /// Tokens of prompts of requests that have begun.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache.
    pub cached_tokens: u64,
    /// Tokens that were generated, the ends of texts included.
    pub generated_tokens: u64,
    /// Sequences that lost their pages to others.
    pub preemptions: u64,
    /// Seconds that requests waited to begin.
    pub queue_time: Histogram,
    /// Seconds from a request to its first token.
    pub time_to_first_token: Histogram,
    /// Seconds from a token to the next of its sequence.
    pub token_gap: Histogram,
    /// Seconds that chunks of prompts took.
    pub chunk_time: Histogram,
    /// Sequences that made one step together.
    pub decode_batch: Histogram,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            waiting: 0,
            prefilling: 0,
            decoding: 0,
            pages: PageUse::default(),
            submitted: 0,
            refused: 0,
            finished: 0,
            cancelled: 0,
            failed: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            preemptions: 0,
            queue_time: Histogram::new(SECONDS),
            time_to_first_token: Histogram::new(SECONDS),
            token_gap: Histogram::new(SECONDS),
            chunk_time: Histogram::new(SECONDS),
            decode_batch: Histogram::new(SEQUENCES),
        }
    }
}

impl Snapshot {
    /// A request has begun, with so many tokens of its prompt cached.
    pub(super) fn begun(&mut self, waited: Duration, prompt: usize, cached: usize) {
        self.queue_time.add(waited.as_secs_f64());
        self.prompt_tokens += prompt as u64;
        self.cached_tokens += cached as u64;
    }

    /// A request has its first token.
    pub(super) fn first_token(&mut self, after: Duration) {
        self.time_to_first_token.add(after.as_secs_f64());
    }

    /// A sequence has another token.
    pub(super) fn next_token(&mut self, after: Duration) {
        self.token_gap.add(after.as_secs_f64());
    }

    /// A chunk has run.
    pub(super) fn chunk(&mut self, time: Duration) {
        self.chunk_time.add(time.as_secs_f64());
    }

    /// A step of this many sequences has run.
    pub(super) fn decoded(&mut self, sequences: usize) {
        self.decode_batch.add(sequences as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_class_that_ends_with_them() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0.0, 0.0));
        for value in [0.5, 1.0, 1.5, 7.0] {
            histogram.add(value);
        }
        assert_eq!(histogram.counts(), [2, 1, 1]);
        assert_eq!((histogram.count(), histogram.sum(), histogram.max()), (4, 10.0, 7.0));
        assert_eq!(histogram.quantile(0.5), 1.0);
        assert_eq!(histogram.quantile(1.0), 7.0);
        assert!((1.0..=2.0).contains(&histogram.quantile(0.7)));
    }
}
