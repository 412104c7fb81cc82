//! What each device and each host will hold, beside what is free.

use super::predict::LaidOut;
use crate::session::{PREFILL_CHUNK, Room, cached_bytes};
use dsv3_deepseek::{HeldWeights, scratch_bytes};
use dsv3_mesh::{Axis, Rank};
use dsv3_runtime::{self as runtime, ops::CacheFormat};
use serde::Serialize;
use std::collections::BTreeSet;

/// What devices hold that hold the same.
#[derive(Clone, Serialize)]
pub(super) struct Device {
    /// Their numbers.
    pub(super) ranks: Vec<usize>,
    pub(super) weights: Vec<Weights>,
    pub(super) weight_bytes: u64,
    pub(super) cache_bytes: u64,
    pub(super) scratch_bytes: u64,
    /// All together.
    pub(super) bytes: u64,
}

/// Weights of a kind in a format.
#[derive(Clone, Serialize)]
pub(super) struct Weights {
    pub(super) kind: &'static str,
    pub(super) format: String,
    pub(super) tensors: usize,
    pub(super) bytes: u64,
}

/// The latent cache.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Cache {
    pub(super) format: CacheFormat,
    /// Of one sequence, all layers.
    pub(super) bytes_per_1000_tokens: u64,
    /// Tokens of each sequence.
    pub(super) context: usize,
    /// Sequences of all rows together.
    pub(super) sequences: usize,
}

/// The host that holds most.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Host {
    pub(super) host: usize,
    pub(super) devices: usize,
    /// Weights that several of its devices hold alike are there once.
    pub(super) bytes: u64,
    /// None where the system does not tell.
    pub(super) free: Option<u64>,
    pub(super) fits: Option<bool>,
}

impl Weights {
    fn of(held: &HeldWeights) -> Self {
        let HeldWeights { kind, format, tensors, bytes } = *held;
        Self {
            kind: kind.map_or("norms, biases, gates", |kind| kind.0),
            format: format.to_string(),
            tensors,
            bytes,
        }
    }
}

impl Cache {
    pub(super) fn of(laid: &LaidOut<'_>, context: usize, sequences: usize) -> Self {
        let bytes_per_1000_tokens = cached_bytes(&laid.subject.hf, 1000, laid.cache);
        Self { format: laid.cache, bytes_per_1000_tokens, context, sequences }
    }

    /// On each device: its row's sequences, in whole pages.
    fn bytes(self, laid: &LaidOut<'_>) -> u64 {
        let rows = laid.layout.mesh.size(Axis::Rows);
        let room = Room { context: self.context, sequences: self.sequences, rows, cache: self.format };
        cached_bytes(&laid.subject.hf, room.positions(), self.format)
    }
}

/// What all devices hold; devices that hold as much are together.
pub(super) fn devices(laid: &LaidOut<'_>, cache: Cache, hosts: usize) -> Vec<Device> {
    let cache_bytes = cache.bytes(laid);
    let layout = laid.layout;
    // On a mesh the buffers of what is received are kept, too; taken to be shared evenly, as by devices of one process.
    let kept = runtime::Device::MOST_KEPT_BYTES * hosts as u64 / layout.mesh.devices() as u64;
    let kept = if layout.mesh.devices() > 1 { kept } else { 0 };
    let scratch_bytes = scratch(laid, cache).max(kept);
    let devices = laid.holders.iter().map(|holders| {
        let of = |rank: &Rank| holders.weight_ranks.contains(&layout.weight_rank(*rank));
        Device {
            ranks: (0..layout.mesh.devices()).map(Rank).filter(of).map(|rank| rank.0).collect(),
            weights: holders.held.iter().map(Weights::of).collect(),
            weight_bytes: holders.bytes,
            cache_bytes,
            scratch_bytes,
            bytes: holders.bytes + cache_bytes + scratch_bytes,
        }
    });
    devices.collect()
}

/// In a chunk of a prompt, or in a step of all sequences, if these are more.
fn scratch(laid: &LaidOut<'_>, cache: Cache) -> u64 {
    let hf = &laid.subject.hf;
    let rows = laid.layout.mesh.size(Axis::Rows);
    let chunk = PREFILL_CHUNK.min(cache.context);
    let tokens = chunk.max(cache.sequences).div_ceil(rows);
    let scratch = scratch_bytes(hf, &laid.configs.prefill, tokens, cache.sequences.div_ceil(rows));
    // Of a sequence that another row caches, one layer's latents.
    let copy = if rows > 1 { cached_bytes(hf, cache.context, cache.format) / layers(laid) } else { 0 };
    scratch + copy
}

fn layers(laid: &LaidOut<'_>) -> u64 {
    (laid.subject.hf.num_hidden_layers + laid.subject.hf.mtp_layers) as u64
}

/// The host that holds most, and whether that fits.
pub(super) fn fullest_host(laid: &LaidOut<'_>, devices: &[Device], hosts: usize, free: Option<u64>) -> Host {
    let layout = laid.layout;
    let each = layout.mesh.devices() / hosts;
    let of = |rank: usize| devices.iter().find(|device| device.ranks.binary_search(&rank).is_ok());
    let bytes = |host: usize| {
        let ranks = host * each..(host + 1) * each;
        let weights: BTreeSet<_> = ranks.clone().map(|rank| layout.weight_rank(Rank(rank))).collect();
        let weights = weights.iter().filter_map(|rank| of(rank.0)).map(|device| device.weight_bytes);
        let others = ranks.filter_map(of).map(|device| device.cache_bytes + device.scratch_bytes);
        weights.sum::<u64>() + others.sum::<u64>()
    };
    let (host, bytes) = (0..hosts)
        .map(|host| (host, bytes(host)))
        .max_by_key(|&(host, bytes)| (bytes, hosts - host))
        .unwrap_or((0, 0));
    Host { host, devices: each, bytes, free, fits: free.map(|free| bytes <= free) }
}
