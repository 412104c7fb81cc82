//! What this machine can do at best, measured now: other loads and other hours give other numbers.

use super::digits;
use dsv3_runtime::{Device, Kernels, zeros_in_large_pages};
use serde::{Deserialize, Serialize};
use std::{fmt, hint::black_box, time::Instant};

/// Bytes to read, far more than caches hold.
const READ_BYTES: usize = 256 << 20;
/// Rounds of products: about 20 ms.
const ROUNDS: usize = 10_000_000;
/// Times that each is tried. The best counts: a ceiling is what nothing disturbs.
const TRIES: usize = 6;

/// The ceilings of a number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// Threads that worked at once.
    pub(crate) threads: usize,
    /// Bytes in a second, read from memory.
    pub(crate) read: f64,
    /// f32 operations in a second, a multiply-add being two.
    pub(crate) flops: f64,
    /// Operations in a second on 8-bit integers that are added up to 32 bits, a multiply-add being two.
    pub(crate) int8: f64,
}

impl Ceilings {
    /// Measures all threads of a device.
    pub(crate) fn measure(device: &Device) -> Self {
        // Written once, so that it has memory of its own and not one page of zeros everywhere.
        let mut memory = zeros_in_large_pages(READ_BYTES);
        memory.fill(1);
        let share = READ_BYTES.div_ceil(device.threads());
        let (kernels, threads) = (device.kernels(), device.threads());
        let mut rate = |operations: usize, f: &(dyn Fn(&[u8]) + Sync)| {
            let seconds = (0..TRIES).map(|_| {
                let start = Instant::now();
                device.for_each_chunk(&mut memory, share, |_, part| f(part));
                start.elapsed().as_secs_f64()
            });
            operations as f64 / seconds.fold(f64::INFINITY, f64::min)
        };
        Self {
            threads,
            read: rate(READ_BYTES, &|part| {
                black_box(kernels.xor_words(part));
            }),
            flops: rate(threads * ROUNDS * Kernels::FMA_OPERATIONS, &|_| {
                black_box(kernels.fma_rounds(ROUNDS));
            }),
            int8: rate(threads * ROUNDS * Kernels::INT8_OPERATIONS, &|_| {
                black_box(kernels.int8_rounds(ROUNDS));
            }),
        }
    }

    /// Seconds that so many bytes and f32 operations take at least, where one hides behind the other.
    pub(crate) fn floor(&self, bytes: f64, flops: f64) -> f64 {
        (bytes / self.read).max(flops / self.flops)
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} thread{}: memory {} GB/s, f32 {} GFLOP/s, int8 {} GOP/s",
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            digits(self.read / 1e9),
            digits(self.flops / 1e9),
            digits(self.int8 / 1e9)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_slower_of_both() {
        let ceilings = Ceilings { threads: 2, read: 10.0, flops: 100.0, int8: 200.0 };
        assert_eq!(ceilings.floor(50.0, 100.0), 5.0);
        assert_eq!(ceilings.floor(5.0, 100.0), 1.0);
        let text = Ceilings { read: 30e9, flops: 204.2e9, int8: 392e9, ..ceilings }.to_string();
        assert_eq!(text, "2 threads: memory 30.0 GB/s, f32 204 GFLOP/s, int8 392 GOP/s");
    }
}
