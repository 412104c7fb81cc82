//! Rotary position embedding over interleaved pairs.

use crate::{Device, Error};
use dsv3_kernels::MatrixMut;
use serde::{Deserialize, Serialize};

/// Config of [`rope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeConfig {
    /// Features that are rotated, two to a pair: the last ones of each head.
    pub features: usize,
}

/// Cosines and sines of every position, `[positions, pairs]` each, already times the attention factor.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// The table of `positions` positions: pair `i` turns by `position * frequencies[i]` radians.
    ///
    /// The angle is rounded to f32 before the cosine is taken, as transformers does: at large positions the model
    /// has learned with the rounded angle.
    pub fn new(positions: usize, frequencies: &[f32], factor: f32) -> Self {
        let angles =
            || (0..positions).flat_map(|position| frequencies.iter().map(move |&f| position as f32 * f));
        Self {
            pairs: frequencies.len(),
            cos: angles().map(|angle| angle.cos() * factor).collect(),
            sin: angles().map(|angle| angle.sin() * factor).collect(),
        }
    }

    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.pairs.max(1)
    }

    /// Cosines and sines of one position, `[pairs]` each.
    ///
    /// # Errors
    /// A position beyond the table.
    pub fn at(&self, position: usize) -> Result<(&[f32], &[f32]), Error> {
        let row = position * self.pairs..(position + 1) * self.pairs;
        match (self.cos.get(row.clone()), self.sin.get(row)) {
            (Some(cos), Some(sin)) => Ok((cos, sin)),
            _ => Err(Error::Request(format!(
                "position {position} is beyond the context of {} positions",
                self.positions()
            ))),
        }
    }
}

/// Rotates the last `features` columns of each head, in place.
///
/// # Shapes
/// `x` `[tokens, heads * width of a head]`, `positions` `[tokens]`.
///
/// # Errors
/// A position beyond the table.
pub fn rope(
    mut x: MatrixMut<'_>,
    heads: usize,
    positions: impl IntoIterator<Item = usize>,
    table: &RopeTable,
    config: &RopeConfig,
    device: &Device,
) -> Result<(), Error> {
    let width = x.cols() / heads;
    for (row, position) in (0..x.rows()).zip(positions) {
        let (cos, sin) = table.at(position)?;
        for head in x.row_mut(row).chunks_exact_mut(width) {
            device.kernels().rope_interleaved(&mut head[width - config.features..], cos, sin);
        }
    }
    Ok(())
}
