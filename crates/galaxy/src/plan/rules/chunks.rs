//! How many positions a prefill takes at a time.

use crate::{
    hardware::TILE,
    plan::request::{Mode, Request},
};
use dsv3_mesh::Axis;
use serde::{Deserialize, Serialize};

/// Positions of a prompt that are taken at a time, on all rows of the mesh together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillChunkSizes {
    /// By the whole model.
    pub model_chunk: u32,
    /// By the attention up to its scores.
    pub mla_chunk: u32,
    /// By the attention's last products, for which the heads of all columns are gathered.
    pub wkv_b2_chunk: u32,
}

/// Rows of an MLP or head that are multiplied at a time: more do not fit L1 (upstream's `SEQ_LEN_CHUNK_SIZE`).
pub const PRODUCT_ROWS: u32 = 1024;
/// Tokens that a device sends to experts at a time: what arrives from all rows is repeated for each local expert
/// (upstream's `PREFILL_BATCH_CHUNK_SIZE`).
pub const DISPATCH_TOKENS: u32 = 256;
/// Tokens of a user group whose caches a prefill in chunks can read: one on each device (upstream refuses others).
const CHUNKED_USERS_PER_DEVICE: u32 = 1;

const K: u32 = 1024;

/// From a length of context on: the chunks with which upstream's full model ran in that mesh's DRAM. Longer contexts leave
/// less of it beside the caches, and deeper attention needs more. Measured, not derived.
fn measured(rows: u32) -> &'static [(u32, [u32; 3])] {
    match rows {
        16.. => &[
            (0, [2 * K, 2 * K, 2 * K]),
            (32 * K, [32 * K, 32 * K, 8 * K]),
            (48 * K, [48 * K, 48 * K, 4 * K]),
            (64 * K, [64 * K, 4 * K, 4 * K]),
            (128 * K, [K, 256, 256]),
        ],
        8..16 => &[
            (0, [2 * K, 2 * K, 2 * K]),
            (8 * K, [8 * K, 8 * K, 2 * K]),
            (16 * K, [16 * K, K, K]),
            (32 * K, [K, 512, 512]),
        ],
        _ => &[(0, [2 * K, 2 * K, 2 * K]), (32 * K, [32 * K, 32 * K, 2 * K])],
    }
}

/// Upstream's chunks for a context on a mesh of so many rows.
pub fn for_context(rows: u32, context: u32) -> PrefillChunkSizes {
    let table = measured(rows);
    let (_, [model_chunk, mla_chunk, wkv_b2_chunk]) =
        table.iter().rev().find(|(from, _)| *from <= context).expect("from 0 on");
    PrefillChunkSizes { model_chunk: *model_chunk, mla_chunk: *mla_chunk, wkv_b2_chunk: *wkv_b2_chunk }
}

/// The chunks of a prompt. Only with one user on each device can later chunks read the cache; with more, the prompt is
/// taken at once.
pub fn of(request: &Request) -> PrefillChunkSizes {
    let length = request.sequence_length;
    if request.mode == Mode::Decode {
        return PrefillChunkSizes { model_chunk: length, mla_chunk: length, wkv_b2_chunk: length };
    }
    let (rows, columns) = (request.mesh.size(Axis::Rows) as u32, request.mesh.size(Axis::Columns) as u32);
    let table = for_context(rows, request.max_sequence_length);
    let is_chunked = request.users_per_row == columns * CHUNKED_USERS_PER_DEVICE;
    let model_chunk = if is_chunked { dividing(length, table.model_chunk, TILE * rows) } else { length };
    let mla_chunk = if is_chunked { dividing(model_chunk, table.mla_chunk, TILE) } else { length };
    // Heads are gathered after the scores, which needs no cache.
    PrefillChunkSizes { model_chunk, mla_chunk, wkv_b2_chunk: dividing(mla_chunk, table.wkv_b2_chunk, TILE) }
}

/// The largest chunk up to a limit that divides a length and is a multiple of `step`; the whole length divides itself.
pub fn dividing(length: u32, limit: u32, step: u32) -> u32 {
    let steps = length / step;
    let most = (limit / step).clamp(1, steps);
    step * super::largest_divisor(steps, most)
}
