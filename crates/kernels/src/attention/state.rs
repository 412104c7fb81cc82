//! What the attention kernels read and write.

use crate::{KeyRows, LANES, Lanes};

/// A block of keys and their values.
#[derive(Clone, Copy, Debug)]
pub struct KeyValues<'a> {
    /// `[keys, features]`.
    pub keys: KeyRows<'a>,
    /// `[keys, v]`, stored as the keys are. They may lie within the keys.
    pub values: KeyRows<'a>,
    /// What the caller will read next: it is asked for from memory while the block is worked on. May be empty.
    pub ahead: &'a [u8],
}

/// A strip of queries.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[features]`, times the scale of the scores.
    pub features: &'a [Lanes],
    /// How many keys of the block each query sees, from the first on; more than there are is all.
    pub visible: [usize; LANES],
}

/// What a strip has seen so far, for each query: `sums[c] / sum` is the attention over all blocks.
#[derive(Debug)]
pub struct AttentionState<'a> {
    /// The largest score; finite, so that a query may see none of a block.
    pub max: &'a mut Lanes,
    /// The sum of `exp(score - max)`.
    pub sum: &'a mut Lanes,
    /// `[v]`: the sums of the values times `exp(score - max)`.
    pub sums: &'a mut [Lanes],
}

impl<'a> AttentionState<'a> {
    /// Lines that the state of `v` values takes.
    pub const fn lines(v: usize) -> usize {
        v + 2
    }

    /// The state that lies in `lines`, `[lines(v)]`.
    ///
    /// # Panics
    /// If there are fewer than two.
    pub fn of(lines: &'a mut [Lanes]) -> Self {
        let ([max, sum], sums) = lines.split_first_chunk_mut().expect("a state has a maximum and a sum");
        Self { max, sum, sums }
    }

    /// Nothing seen yet.
    pub fn clear(&mut self) {
        *self.max = Lanes([f32::MIN; LANES]);
        *self.sum = Lanes::ZERO;
        self.sums.fill(Lanes::ZERO);
    }
}
