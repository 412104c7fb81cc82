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

/// How a prompt is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// How much of it at a time.
    pub sizes: PrefillChunkSizes,
    /// Its length with what it is filled up with to whole chunks. Upstream fills prompts up too, to lengths that it has
    /// prepared for; what is cached of it stands behind the prompt, where generated tokens will.
    pub padded_length: u32,
    /// Why chunks are less than half of what this mesh has memory for, where they are.
    pub reason: Option<String>,
}

impl Chunks {
    fn at_once(length: u32) -> Self {
        let sizes = PrefillChunkSizes { model_chunk: length, mla_chunk: length, wkv_b2_chunk: length };
        Self { sizes, padded_length: length, reason: None }
    }
}

/// The chunks of a prompt. Only with one user on each device can later chunks read the cache; with more, the prompt is
/// taken at once.
pub fn of(request: &Request) -> Chunks {
    let length = request.sequence_length;
    if request.mode == Mode::Decode {
        return Chunks::at_once(length);
    }
    let (rows, columns) = (request.mesh.size(Axis::Rows) as u32, request.mesh.size(Axis::Columns) as u32);
    let table = for_context(rows, request.max_sequence_length);
    let is_chunked = request.users_per_row == columns * CHUNKED_USERS_PER_DEVICE;
    let mut chunks = if is_chunked {
        of_chunked(length, request.max_sequence_length, TILE * rows, table)
    } else {
        Chunks::at_once(length)
    };
    // Heads are gathered after the scores, which needs no cache.
    chunks.sizes.wkv_b2_chunk = evenly(chunks.sizes.mla_chunk, table.wkv_b2_chunk);
    chunks
}

/// Of all chunks that are at least half of the wanted ones and into whole ones of which the prompt can be filled up in the
/// cache, the fewest, and of those the ones with the least filling. Every row of the mesh takes whole tiles of a chunk:
/// `step` is one for each. Chunks must all be of one length, for which their programs are, and the attention's must divide
/// the model's: each reads the cache up to its own start.
fn of_chunked(length: u32, room: u32, step: u32, table: PrefillChunkSizes) -> Chunks {
    let limit = table.model_chunk.min(length);
    let sizes_of = |model_chunk| PrefillChunkSizes {
        model_chunk,
        mla_chunk: dividing(model_chunk, table.mla_chunk, TILE),
        wkv_b2_chunk: table.wkv_b2_chunk,
    };
    let chunks_of = |sizes: PrefillChunkSizes| Chunks {
        sizes,
        padded_length: length.div_ceil(sizes.model_chunk) * sizes.model_chunk,
        reason: None,
    };
    let is_wide = |sizes: PrefillChunkSizes| {
        2 * sizes.model_chunk >= limit && 2 * sizes.mla_chunk >= table.mla_chunk.min(sizes.model_chunk)
    };
    let most = table.model_chunk.min(room) / step;
    let fitting = (1..=most).map(|steps| sizes_of(steps * step)).filter(|sizes| is_wide(*sizes));
    let fitting = fitting.map(chunks_of).filter(|chunks| chunks.padded_length <= room);
    let cost = |Chunks { sizes, padded_length, .. }: &Chunks| {
        (padded_length / sizes.mla_chunk, padded_length / sizes.model_chunk, *padded_length)
    };
    fitting.min_by_key(cost).unwrap_or_else(|| {
        let chunks = chunks_of(sizes_of(dividing(length, table.model_chunk, step)));
        let PrefillChunkSizes { model_chunk, mla_chunk, .. } = chunks.sizes;
        let reason = format!(
            "{length} tokens divide into chunks of {model_chunk} and {mla_chunk} only, and caches of {room} positions have \
             no room to fill them up to chunks of about {} and {}: a longer --max-sequence-length has",
            table.model_chunk, table.mla_chunk
        );
        Chunks { reason: Some(reason), ..chunks }
    })
}

/// The largest chunk up to a limit that divides a length and is a multiple of `step`; the whole length divides itself.
fn dividing(length: u32, limit: u32, step: u32) -> u32 {
    let steps = length / step;
    let most = (limit / step).clamp(1, steps);
    step * super::largest_divisor(steps, most)
}

/// The whole tiles of as few parts up to a limit as a length can be cut into evenly: more than half of the limit, where the
/// length is. The last part is filled up with less than a tile for each part. (Upstream fills up to the limit.)
///
/// # Panics
/// If the length is 0, or the limit less than a tile.
pub fn evenly(length: u32, limit: u32) -> u32 {
    let tiles = length.div_ceil(TILE);
    TILE * tiles.div_ceil(tiles.div_ceil(limit / TILE))
}
