//! What `bench run` found.

use super::{ceilings::Ceilings, digits, percent, spread::Spread, table::Table};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole report, as JSON has it. `bench plot` reads it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The checkpoint's directory.
    pub(super) model: String,
    /// Bytes of weights by format, the MTP layer's included.
    pub(super) formats: BTreeMap<String, u64>,
    /// The kernels' instruction set.
    pub(super) kernels: String,
    /// Tokens of a prefill.
    pub(super) prompt: usize,
    /// Tokens of a decode.
    pub(super) generate: usize,
    /// Of the random tokens.
    pub(super) seed: u64,
    /// Bytes of memory that the process held at the end beyond mapped files, where the system tells.
    pub(super) own_memory: Option<u64>,
    /// What the machine could do then, for each number of threads.
    pub(super) ceilings: Vec<Ceilings>,
    /// What was measured.
    pub(super) measurements: Vec<Measurement>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// Tokens of one prompt, in chunks.
    Prefill,
    /// One token after another, of one or more sequences.
    Decode,
}

impl Work {
    /// The name that is printed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What a token costs on the first device: bytes that must come from memory, and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Cost {
    /// Weights, once a chunk or step, and the cached tokens that are attended to.
    pub(super) bytes: f64,
    /// Of them, cached tokens.
    pub(super) cache_bytes: f64,
    /// A multiply-add is two.
    pub(super) flops: f64,
    /// Bytes that the first device of a mesh sent, as counted.
    #[serde(default)]
    pub(super) sent: f64,
    /// Bytes that it received.
    #[serde(default)]
    pub(super) received: f64,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measurement {
    /// What was done.
    pub(super) work: Work,
    /// Threads.
    pub(super) threads: usize,
    /// Sequences.
    pub(super) batch: usize,
    /// Tokens that each had before.
    pub(super) depth: usize,
    /// Tokens in a second, of all sequences together.
    pub(super) tokens_per_second: Spread,
    /// Of each token.
    pub(super) per_token: Cost,
    /// Tokens in a second that the ceilings allow, with all arithmetic in f32.
    pub(super) roofline: f64,
    /// What share of that was reached. Arithmetic on 8-bit integers may exceed it.
    pub(super) share: f64,
}

impl Measurement {
    /// Sets what was measured beside what could have been.
    pub(super) fn new(
        work: Work,
        [batch, depth]: [usize; 2],
        tokens_per_second: Spread,
        per_token: Cost,
        ceilings: &Ceilings,
    ) -> Self {
        let roofline = 1.0 / ceilings.floor(per_token.bytes, per_token.flops);
        let share = tokens_per_second.median / roofline;
        Self { work, threads: ceilings.threads, batch, depth, tokens_per_second, per_token, roofline, share }
    }
}

impl Report {
    /// A line a measurement.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new([
            "work",
            "threads",
            "batch",
            "depth",
            "tokens/s",
            "min",
            "max",
            "MB/token",
            "MFLOP/token",
            "kB sent/token",
            "GB/s",
            "GFLOP/s",
            "roofline",
            "share",
        ]);
        for found in &self.measurements {
            let (speed, cost) = (found.tokens_per_second, found.per_token);
            table.row(vec![
                found.work.name().to_owned(),
                found.threads.to_string(),
                found.batch.to_string(),
                found.depth.to_string(),
                digits(speed.median),
                digits(speed.min),
                digits(speed.max),
                digits(cost.bytes / 1e6),
                digits(cost.flops / 1e6),
                digits(cost.sent / 1e3),
                digits(cost.bytes * speed.median / 1e9),
                digits(cost.flops * speed.median / 1e9),
                digits(found.roofline),
                percent(found.share),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_held_against_the_slower_ceiling() {
        let ceilings = Ceilings { threads: 2, read: 30e9, flops: 200e9, int8: 400e9 };
        let cost = Cost { bytes: 300e6, flops: 600e6, sent: 5e3, ..Cost::default() };
        let speed = Spread::of(vec![80.0]);
        let found = Measurement::new(Work::Decode, [1, 512], speed, cost, &ceilings);
        assert!((found.roofline - 100.0).abs() < 1e-9 && (found.share - 0.8).abs() < 1e-9);
        assert_eq!((found.threads, found.batch, found.depth), (2, 1, 512));
        let report = Report {
            model: "m".to_owned(),
            formats: BTreeMap::new(),
            kernels: "avx2".to_owned(),
            prompt: 512,
            generate: 64,
            seed: 0,
            own_memory: Some(1 << 20),
            ceilings: vec![ceilings],
            measurements: vec![found],
        };
        let values = "decode,2,1,512,80.0,80.0,80.0,300,600,5.00,24.0,48.0,100,80 %";
        assert_eq!(report.table().csv().lines().nth(1), Some(values));
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
