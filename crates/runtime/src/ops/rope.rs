//! Rotary position embedding over interleaved pairs.

use crate::{Device, Error, device::rows_per_task};
use dsv3_kernels::{Cuts, MatrixMut, Parts, Queue};
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
        let mut table = Self { pairs: frequencies.len(), cos: Vec::new(), sin: Vec::new() };
        table.cos.reserve_exact(positions * frequencies.len());
        table.sin.reserve_exact(positions * frequencies.len());
        for position in 0..positions {
            for frequency in frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                table.cos.push(cos as f32 * factor);
                table.sin.push(sin as f32 * factor);
            }
        }
        table
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
/// `x` `[tokens, heads * width of a head]`; `positions` gives each token's.
///
/// # Errors
/// A position beyond the table.
pub fn rope(
    x: MatrixMut<'_>,
    heads: usize,
    positions: impl Fn(usize) -> usize + Sync,
    table: &RopeTable,
    config: &RopeConfig,
    device: &Device,
) -> Result<(), Error> {
    let width = x.cols() / heads;
    for token in 0..x.rows() {
        table.at(positions(token))?;
    }
    let parts = Queue::new(Parts::new(x, Cuts::Every(rows_per_task(heads * width)), Cuts::Whole));
    device.for_each(&parts, |mut part| {
        for (row, token) in part.rows.enumerate() {
            let (cos, sin) = table.at(positions(token)).expect("every position was looked up");
            for head in part.out.row_mut(row).chunks_exact_mut(width) {
                device.kernels().rope_interleaved(&mut head[width - config.features..], cos, sin);
            }
        }
    });
    Ok(())
}
