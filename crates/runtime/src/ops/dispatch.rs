//! Tokens on their way to experts that lie whole on other devices, and back.
//!
//! After the features were gathered every device of a row has all tokens of its row. So a token travels along its column
//! only, to those rows whose device in this column holds an expert of it; what the columns compute of a token is added up
//! where features are scattered again.

use super::Routing;
use crate::{Device, Error, Tensor, buffer::Buffer};
use dsv3_mesh::{AllToAllConfig, Axis, MeshShape, Payload, Rank, shard};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Config of [`dispatch`] and [`combine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispatchConfig {
    /// Routed experts, on all devices together.
    pub experts: usize,
    /// Sends tokens along the columns of the mesh, and what became of them back. Exact: the experts' numbers go along.
    pub all_to_all: AllToAllConfig,
}

impl DispatchConfig {
    /// The experts that a rank holds: equally many on each device, in row-major order.
    fn held_by(&self, mesh: MeshShape, rank: Rank) -> Range<usize> {
        shard("n_routed_experts", self.experts, mesh.devices(), rank.0).expect("stage 2 has divided them")
    }

    /// The experts that a device holds.
    pub fn held(&self, device: &Device) -> Range<usize> {
        self.held_by(device.mesh().shape(), device.mesh().rank())
    }
}

/// The tokens that came to this device.
#[derive(Debug)]
pub struct Dispatched {
    /// `[tokens, hidden]`, those of the first row first.
    pub x: Tensor,
    /// Where they go on this device.
    pub routing: Routing,
    /// The tokens that went to each row.
    sent: Vec<Buffer<usize>>,
    /// How many came from each row.
    received: Vec<usize>,
}

/// Sends each token to the devices of this column that hold an expert of it.
///
/// # Shapes
/// `x` `[tokens, hidden]`.
///
/// # Errors
/// If another rank does not come.
pub fn dispatch(
    x: &Tensor,
    routing: &Routing,
    config: &DispatchConfig,
    device: &Device,
) -> Result<Dispatched, Error> {
    assert_eq!(config.all_to_all.payload, Payload::F32, "the numbers of experts travel with the tokens");
    let (shape, rank) = (device.mesh().shape(), device.mesh().rank());
    let (rows, columns) = (shape.size(Axis::Rows), shape.size(Axis::Columns));
    let column = shape.coordinate(rank, Axis::Columns);
    let held = |row: usize| config.held_by(shape, Rank(row * columns + column));
    let sent: Vec<_> = (0..rows).map(|row| visitors(routing, &held(row))).collect();
    let letters = sent.iter().map(|tokens| pack(x, routing, tokens)).collect();
    let letters = device.all_to_all(letters, &config.all_to_all)?;
    let received = letters.iter().map(Tensor::rows).collect();
    let (x, choices) = unpack(&letters, x.cols(), routing.experts_per_token());
    let routing =
        Routing::new(config.experts, routing.experts_per_token(), choices).held_by(config.held(device));
    Ok(Dispatched { x, routing, sent, received })
}

/// Sends what the experts made of the tokens back to where these came from, and adds it to `out`, in order of row.
///
/// # Shapes
/// `sums` `[tokens that came, hidden]`, `out` `[tokens, hidden]`.
///
/// # Errors
/// If another rank does not come.
pub fn combine(
    sums: &Tensor,
    Dispatched { sent, received, .. }: &Dispatched,
    out: &mut Tensor,
    config: &DispatchConfig,
    device: &Device,
) -> Result<(), Error> {
    let mut next = 0;
    let letters = received.iter().map(|&count| {
        let rows = next..next + count;
        next = rows.end;
        Tensor::from_rows(sums.cols(), rows.map(|row| sums.row(row)))
    });
    let letters = device.all_to_all(letters.collect(), &config.all_to_all)?;
    for (tokens, letter) in sent.iter().zip(&letters) {
        for (row, &token) in tokens.iter().enumerate() {
            device.kernels().add(out.row_mut(token), letter.row(row));
        }
    }
    Ok(())
}

/// The tokens that chose one of these experts.
fn visitors(routing: &Routing, experts: &Range<usize>) -> Buffer<usize> {
    let mut tokens = Buffer::with_capacity(routing.tokens());
    let chosen = |&token: &usize| routing.token(token).iter().any(|(expert, _)| experts.contains(expert));
    tokens.extend((0..routing.tokens()).filter(chosen));
    tokens
}

/// Each token's features, then its experts, then their weights. The number of an expert is small enough to be exact.
fn pack(x: &Tensor, routing: &Routing, tokens: &[usize]) -> Tensor {
    let mut letter = Tensor::zeros(tokens.len(), x.cols() + 2 * routing.experts_per_token());
    for (row, &token) in tokens.iter().enumerate() {
        let (features, choices) = letter.row_mut(row).split_at_mut(x.cols());
        let (experts, weights) = choices.split_at_mut(routing.experts_per_token());
        features.copy_from_slice(x.row(token));
        for ((expert, weight), &choice) in experts.iter_mut().zip(weights).zip(routing.token(token)) {
            (*expert, *weight) = (choice.0 as f32, choice.1);
        }
    }
    letter
}

fn unpack(letters: &[Tensor], features: usize, experts_per_token: usize) -> (Tensor, Buffer<(usize, f32)>) {
    let rows = || letters.iter().flat_map(|letter| (0..letter.rows()).map(|row| letter.row(row)));
    let x = Tensor::from_rows(features, rows().map(|row| &row[..features]));
    let mut choices = Buffer::with_capacity(x.rows() * experts_per_token);
    for row in rows() {
        let (experts, weights) = row[features..].split_at(experts_per_token);
        choices.extend(experts.iter().zip(weights).map(|(&expert, &weight)| (expert as usize, weight)));
    }
    (x, choices)
}
