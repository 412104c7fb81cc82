//! Expanded attention: the latents are turned into each head's keys and values, and a strip is sixteen tokens of one
//! head.

use super::{
    AttentionConfig,
    segments::{Segments, merge},
};
use crate::{
    Device, Error, PageId, Tensor, Weight,
    buffer::Buffer,
    ops::{LatentCache, cache::panel_stride},
};
use dsv3_kernels::{
    AttentionState, Chunks, Cuts, Kernels, KeyRows, KeyValues, LANES, Lanes, MatrixMut, MatrixRef,
    MatrixView, Parts, Queries as PackedQueries, Queue,
};
use std::{cmp::Reverse, ops::Range};

/// Positions that are expanded at a time: latents of 576 features and a head's keys and values of 192 and 128 take
/// 240 kB, which stay in the second cache while all rows of `wkv_b`, and then all strips of tokens, go by.
const BLOCK: usize = 64;
/// Tasks of a chunk, where the context is long enough: enough that threads end together.
const TASKS: usize = 32;
/// Positions of a segment, at least: a head's rows of `wkv_b` are unpacked once for each.
const SEGMENT: usize = 16 * BLOCK;

/// The queries of one prefill chunk.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[tokens, heads * (nope + rope)]`, rotated.
    pub values: &'a Tensor,
    /// Position of the first token.
    pub start: usize,
    /// Whether a token's result is the same in a chunk of any length: the context is not cut into segments then, and only
    /// heads are shared among threads.
    pub any_chunk: bool,
}

/// What turns latents into keys and values: `kv_b_proj`, `[heads * (nope + v), kv_lora_rank]`.
#[derive(Clone, Copy, Debug)]
pub struct Expansion<'a> {
    /// The weight.
    pub wkv_b: &'a Weight,
}

/// A chunk's queries against the cached latents up to each token, which are expanded to keys and values.
///
/// # Shapes
/// Gives `[tokens, heads * v]`.
///
/// # Errors
/// Pages that do not cover the chunk.
pub fn paged_attention_prefill(
    queries: Queries<'_>,
    expansion: Expansion<'_>,
    cache: &LatentCache,
    pages: &[PageId],
    config: &AttentionConfig,
    device: &Device,
) -> Result<Tensor, Error> {
    let tokens = queries.values.rows();
    cache.check(pages, queries.start + tokens)?;
    let mut out = Tensor::anything(tokens, config.heads * config.v_head_dim);
    if tokens > 0 {
        Expanded { queries, expansion, cache, pages, config, device }.attend(out.as_mut());
    }
    Ok(out)
}

struct Expanded<'a> {
    queries: Queries<'a>,
    expansion: Expansion<'a>,
    cache: &'a LatentCache,
    pages: &'a [PageId],
    config: &'a AttentionConfig,
    device: &'a Device,
}

/// All tokens of a head against a segment of the context.
struct Task {
    head: usize,
    positions: Range<usize>,
}

impl Expanded<'_> {
    /// # Shapes
    /// `out` `[tokens, heads * v]`.
    fn attend(&self, out: MatrixMut<'_>) {
        let heads = self.config.heads;
        let length = self.queries.start + out.rows();
        let count = if self.queries.any_chunk { 1 } else { (TASKS / heads).min(length / SEGMENT).max(1) };
        let segments = Segments::new(length, count, BLOCK);
        let per_segment = self.strips() * self.state_lines();
        // [heads, segments, strips, lines of a state]
        let mut states = Buffer::anything(heads * segments.count() * per_segment);
        let mut order = Buffer::filled(heads * segments.count(), 0);
        let task = |number: usize| Task {
            head: number / segments.count(),
            positions: segments.positions(number % segments.count()),
        };
        let tasks = Queue::sorted(Chunks::new(&mut states, Cuts::Every(per_segment)), &mut order, |number| {
            Reverse(self.products(&task(number).positions))
        });
        let sizes = Sizes::new(self.config, self.cache, self.strips());
        self.device.for_each_with(&tasks, sizes.total(), |(number, states), lines| {
            self.run(&task(number), states, &sizes, lines);
        });
        let of_heads = Parts::new(out, Cuts::Whole, Cuts::Every(self.config.v_head_dim));
        let states = Chunks::new(&mut states, Cuts::Every(segments.count() * per_segment));
        self.device.for_each(&Queue::new((of_heads, states)), |(part, (_, states))| {
            self.merge(states, part.out);
        });
    }

    fn strips(&self) -> usize {
        self.queries.values.rows().div_ceil(LANES)
    }

    fn state_lines(&self) -> usize {
        AttentionState::lines(self.config.v_head_dim)
    }

    /// How many pairs of a token and a position of `positions` there are.
    fn products(&self, positions: &Range<usize>) -> usize {
        let (start, tokens) = (self.queries.start, self.queries.values.rows());
        let seen = |token: usize| (start + token + 1).clamp(positions.start, positions.end) - positions.start;
        (0..tokens).map(seen).sum()
    }

    /// # Shapes
    /// `states` `[segments, strips, lines of a state]`, `out` `[tokens, v]`.
    fn merge(&self, states: &mut [Lanes], mut out: MatrixMut<'_>) {
        let lines = self.state_lines();
        for strip in 0..self.strips() {
            let tokens = LANES.min(out.rows());
            let (rows, rest) = out.split_rows_at(tokens);
            let segments = states.chunks_exact_mut(self.strips() * lines);
            merge(segments.map(|states| &mut states[strip * lines..][..lines]), self.device.kernels(), rows);
            out = rest;
        }
    }

    /// # Shapes
    /// `states` `[strips, AttentionState::lines(v)]`, `lines` `[sizes.total()]`.
    fn run(&self, task: &Task, states: &mut [Lanes], sizes: &Sizes, mut lines: &mut [Lanes]) {
        for state in states.chunks_exact_mut(self.state_lines()) {
            AttentionState::of(state).clear();
        }
        let rows = Lanes::flatten_mut(take_lines(&mut lines, sizes.rows));
        let mut head = Head {
            weights: take_lines(&mut lines, sizes.weights),
            queries: take_lines(&mut lines, sizes.queries),
            latents: Lanes::flatten_mut(take_lines(&mut lines, sizes.latents)),
            keys: Lanes::flatten_mut(take_lines(&mut lines, sizes.keys)),
            values: Lanes::flatten_mut(take_lines(&mut lines, sizes.values)),
            config: self.config,
            kernels: self.device.kernels(),
        };
        head.pack_weights(&self.expansion.wkv_b.matrix(), task.head, rows);
        head.pack_queries(self.queries.values, task.head);
        for first in task.positions.clone().step_by(BLOCK) {
            let positions = first..task.positions.end.min(first + BLOCK);
            let rows = positions.len() * self.cache.panel_stride();
            self.cache.read(self.pages, positions.clone(), head.kernels, &mut head.latents[..rows]);
            head.expand(positions.len(), self.cache.panel_stride());
            head.attend(positions, self.queries.start, states);
        }
    }
}

/// Cuts the first `lines` lines off what is left.
fn take_lines<'a>(rest: &mut &'a mut [Lanes], lines: usize) -> &'a mut [Lanes] {
    rest.split_off_mut(..lines).expect("memory for all sizes")
}

/// Lines that a head needs to work in.
struct Sizes {
    rows: usize,
    weights: usize,
    queries: usize,
    latents: usize,
    keys: usize,
    values: usize,
}

impl Sizes {
    fn new(config: &AttentionConfig, cache: &LatentCache, strips: usize) -> Self {
        let &AttentionConfig { kv_lora_rank: rank, qk_nope_head_dim: nope, v_head_dim: v, .. } = config;
        let key = nope + config.qk_rope_head_dim;
        Self {
            rows: rank,
            weights: (nope.div_ceil(LANES) + v.div_ceil(LANES)) * rank,
            queries: strips * key,
            latents: BLOCK * cache.panel_stride() / LANES,
            keys: BLOCK * panel_stride(key) / LANES,
            values: BLOCK * panel_stride(v) / LANES,
        }
    }

    fn total(&self) -> usize {
        self.rows + self.weights + self.queries + self.latents + self.keys + self.values
    }
}

/// What a task knows of its head, and a block of the context as the head sees it.
struct Head<'a> {
    /// Sixteen rows of `wkv_b` side by side, `[strips of nope and of v, kv_lora_rank]`.
    weights: &'a mut [Lanes],
    /// `[strips, nope + rope]`.
    queries: &'a mut [Lanes],
    /// `[BLOCK, kv_lora_rank + rope]`, strided.
    latents: &'a mut [f32],
    /// `[BLOCK, nope + rope]`, strided.
    keys: &'a mut [f32],
    /// `[BLOCK, v]`, strided.
    values: &'a mut [f32],
    config: &'a AttentionConfig,
    kernels: &'static Kernels,
}

impl Head<'_> {
    /// The rows of the head, first those of the keys, then those of the values; strips of sixteen do not mix them.
    /// `rows` `[LANES, kv_lora_rank]` is memory for a strip of them.
    fn pack_weights(&mut self, wkv_b: &MatrixView<'_>, head: usize, rows: &mut [f32]) {
        let AttentionConfig { kv_lora_rank: rank, qk_nope_head_dim: nope, v_head_dim: v, .. } = *self.config;
        let first = head * (nope + v);
        let mut weights = self.weights.chunks_exact_mut(rank);
        for part in [first..first + nope, first + nope..first + nope + v] {
            for start in part.clone().step_by(LANES) {
                let count = LANES.min(part.end - start);
                let rows = &mut rows[..count * rank];
                let strip = wkv_b.row_range(start..start + count);
                self.kernels.dequantize(&strip, MatrixMut::new(rows, count, rank));
                let rows = MatrixRef::new(rows, count, rank);
                let strip = weights.next().expect("a strip for each sixteen rows");
                self.kernels.pack_lanes(rows, 1.0, strip);
            }
        }
    }

    /// # Shapes
    /// `queries` `[tokens, heads * (nope + rope)]`.
    fn pack_queries(&mut self, queries: &Tensor, head: usize) {
        let width = self.config.qk_nope_head_dim + self.config.qk_rope_head_dim;
        let queries = queries.columns(head * width, width);
        for (strip, packed) in self.queries.chunks_exact_mut(width).enumerate() {
            let tokens = strip * LANES..queries.rows().min((strip + 1) * LANES);
            self.kernels.pack_lanes(queries.row_range(tokens), self.config.scale, packed);
        }
    }

    /// Keys and values of the latents, `[count, kv_lora_rank + rope]` by `stride`.
    fn expand(&mut self, count: usize, stride: usize) {
        let AttentionConfig {
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: v,
            ..
        } = *self.config;
        let latents = MatrixRef::strided(self.latents, count, rank, stride);
        let (of_keys, of_values) = self.weights.split_at(nope.div_ceil(LANES) * rank);
        let key_stride = panel_stride(nope + rope);
        let parts = [
            (of_keys, &mut *self.keys, nope, key_stride),
            (of_values, &mut *self.values, v, panel_stride(v)),
        ];
        for (weights, out, features, out_stride) in parts {
            for (strip, weights) in weights.chunks_exact(rank).enumerate() {
                let first = strip * LANES;
                let cols = LANES.min(features - first);
                let out = MatrixMut::strided(&mut out[first..], count, cols, out_stride);
                self.kernels.matmul_lanes(latents, weights, out);
            }
        }
        let rotated = self.latents.chunks_exact(stride).map(|latent| &latent[rank..rank + rope]);
        for (key, rotated) in self.keys.chunks_exact_mut(key_stride).zip(rotated).take(count) {
            key[nope..nope + rope].copy_from_slice(rotated);
        }
    }

    /// The strips of tokens that see something of a block. `start` is the position of the first token.
    fn attend(&self, positions: Range<usize>, start: usize, states: &mut [Lanes]) {
        let AttentionConfig { qk_nope_head_dim: nope, qk_rope_head_dim: rope, v_head_dim: v, .. } =
            *self.config;
        let strips = self.queries.chunks_exact(nope + rope);
        let states = states.chunks_exact_mut(AttentionState::lines(v));
        for (strip, (features, state)) in strips.zip(states).enumerate() {
            // Lanes beyond the last token see what they like.
            let visible: [usize; LANES] = std::array::from_fn(|lane| {
                (start + strip * LANES + lane + 1).saturating_sub(positions.start)
            });
            let keys = positions.len().min(visible[LANES - 1]);
            if keys > 0 {
                let panel = |rows, cols| MatrixRef::strided(rows, keys, cols, panel_stride(cols));
                let block = KeyValues {
                    keys: KeyRows::f32(panel(&*self.keys, nope + rope)),
                    values: KeyRows::f32(panel(&*self.values, v)),
                    ahead: &[],
                };
                self.kernels.attend(&block, &PackedQueries { features, visible }, AttentionState::of(state));
            }
        }
    }
}
