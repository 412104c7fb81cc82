//! What stage 1 did, and how far it is.

use crate::WeightKind;
use dsv3_kernels::Format;
use std::collections::BTreeMap;

/// A count of tensors and their bytes, scales included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tensors.
    pub tensors: usize,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.tensors += 1;
        self.bytes += bytes;
    }

    fn add_all(&mut self, other: Self) {
        self.tensors += other.tensors;
        self.bytes += other.bytes;
    }
}

/// What stage 1 did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Weights used in place, where the checkpoint has them.
    pub in_place: Tally,
    /// Weights written to the cache because no kernel reads F16: widened to f32, without loss.
    pub widened: Tally,
    /// Weights written to the cache because a device's part of them is columns, which lie apart in the checkpoint.
    pub cut: Tally,
    /// Weights written to the cache because no kernel reads the blocks of ggml's that they, or parts of them, lie in; by
    /// the names of the types that they have and of the format that they get.
    pub decoded: BTreeMap<(String, &'static str), Tally>,
    /// Weights written to the cache in a format that was asked for, or put together from parts; by the format's name.
    pub converted: BTreeMap<&'static str, Tally>,
    /// Weights that could not have the format that was asked for.
    pub fallbacks: Vec<Fallback>,
    /// Of the weights written: those that an earlier, interrupted run had left.
    pub resumed: Tally,
}

/// Weights of one kind that could not have the format that was asked for, and what they have instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Their kind.
    pub kind: WeightKind,
    /// What was asked for.
    pub asked: Format,
    /// What they have; F16 is widened.
    pub got: Format,
    /// How many.
    pub tensors: usize,
    /// The first of them.
    pub first: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl ConvertReport {
    /// Adds what was done for another rank. Weights that several ranks have count for each; those that could not have
    /// their format for one could not for the others.
    pub fn add(&mut self, other: &Self) {
        self.in_place.add_all(other.in_place);
        self.widened.add_all(other.widened);
        self.cut.add_all(other.cut);
        self.resumed.add_all(other.resumed);
        for (names, tally) in &other.decoded {
            self.decoded.entry(names.clone()).or_default().add_all(*tally);
        }
        for (format, tally) in &other.converted {
            self.converted.entry(format).or_default().add_all(*tally);
        }
        if self.fallbacks.is_empty() {
            self.fallbacks.clone_from(&other.fallbacks);
        }
    }

    /// Bytes that were written.
    pub fn written_bytes(&self) -> u64 {
        let written = self.converted.values().chain(self.decoded.values());
        let converted: u64 = written.map(|tally| tally.bytes).sum();
        self.widened.bytes + self.cut.bytes + converted
    }

    pub(super) fn add_fallback(&mut self, fallback: Fallback) {
        let same = |other: &&mut Fallback| {
            (other.kind, other.asked, other.got) == (fallback.kind, fallback.asked, fallback.got)
        };
        match self.fallbacks.iter_mut().find(same) {
            Some(known) => known.tensors += 1,
            None => self.fallbacks.push(fallback),
        }
    }
}

/// How far stage 1 is.
#[derive(Clone, Copy, Debug)]
pub struct ConvertProgress<'a> {
    /// The weight that is being done.
    pub tensor: &'a str,
    /// Bytes of the checkpoint that are done, its scales included.
    pub bytes: u64,
    /// Bytes of the checkpoint.
    pub total: u64,
}
