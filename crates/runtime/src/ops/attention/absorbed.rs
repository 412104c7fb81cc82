//! Absorbed attention: keys and values are the latents themselves, all heads share them, and a strip is sixteen heads
//! of one token.

use super::{
    AttentionConfig,
    segments::{Segments, merge},
};
use crate::{
    DecodeStep, Device, Error, PageId, Tensor,
    ops::LatentCache,
    scratch::{take_lines, with_lines},
};
use dsv3_kernels::{AttentionState, KeyValues, LANES, Lanes, MatrixMut, MatrixRef, Queries as PackedQueries};
use std::{cmp::Reverse, ops::Range};

/// Positions that are brought into f32 at a time: 150 kB where a position has 576 features, which stay in the second
/// cache beside a strip's queries and sums (70 kB).
const BLOCK: usize = 64;
/// Segments of a context, at most: enough for the threads of a processor, few enough that merging them costs nothing.
const SEGMENTS: usize = 8;
/// Positions of a segment, at least: tens of microseconds of work.
const SEGMENT: usize = 2 * BLOCK;
/// Strips that a task takes through a block, at most.
const STRIPS: usize = 2;
/// Lines of queries and states that are held at once, 16 MB: tokens beyond wait for those before.
const LINES: usize = 1 << 18;

/// Each user's query against that user's cached latents.
///
/// # Shapes
/// `queries` `[users, heads * (kv_lora_rank + rope)]`, absorbed and rotated; gives `[users, heads * kv_lora_rank]`.
///
/// # Errors
/// Pages that do not cover a position.
pub fn paged_attention_decode(
    queries: &Tensor,
    cache: &LatentCache,
    step: &DecodeStep<'_>,
    config: &AttentionConfig,
    device: &Device,
) -> Result<Tensor, Error> {
    let contexts = step.pages.iter().zip(step.positions);
    let contexts = contexts.map(|(pages, &position)| Context { pages, length: position + 1 }).collect();
    Absorbed { queries, cache, config, device, contexts }.attend()
}

/// The tokens of a chunk that starts at position `start`, each against the latents up to its own, which the cache
/// already holds.
///
/// # Shapes
/// `queries` `[tokens, heads * (kv_lora_rank + rope)]`, absorbed and rotated; gives `[tokens, heads * kv_lora_rank]`.
///
/// # Errors
/// Pages that do not cover the chunk.
pub fn paged_attention_absorbed(
    queries: &Tensor,
    start: usize,
    cache: &LatentCache,
    pages: &[PageId],
    config: &AttentionConfig,
    device: &Device,
) -> Result<Tensor, Error> {
    let contexts = (0..queries.rows()).map(|token| Context { pages, length: start + token + 1 }).collect();
    Absorbed { queries, cache, config, device, contexts }.attend()
}

/// What a token sees.
#[derive(Clone, Copy)]
struct Context<'a> {
    pages: &'a [PageId],
    length: usize,
}

impl Context<'_> {
    fn segments(self) -> Segments {
        Segments::new(self.length, SEGMENTS.min(self.length / SEGMENT), BLOCK)
    }
}

struct Absorbed<'a> {
    queries: &'a Tensor,
    cache: &'a LatentCache,
    config: &'a AttentionConfig,
    device: &'a Device,
    /// One for each row of the queries.
    contexts: Vec<Context<'a>>,
}

/// Some strips of a token against a segment of its context.
struct Task<'a> {
    token: usize,
    positions: Range<usize>,
    /// `[strips, features]`.
    queries: &'a [Lanes],
    /// `[strips, AttentionState::lines(kv_lora_rank)]`.
    states: &'a mut [Lanes],
}

impl Absorbed<'_> {
    fn attend(&self) -> Result<Tensor, Error> {
        for context in &self.contexts {
            self.cache.check(context.pages, context.length)?;
        }
        let mut out = Tensor::zeros(self.contexts.len(), self.config.heads * self.config.kv_lora_rank);
        let mut tokens = 0..0;
        while tokens.end < self.contexts.len() {
            tokens = tokens.end..tokens.end + 1;
            let mut lines = self.lines(tokens.start);
            while tokens.end < self.contexts.len() && lines + self.lines(tokens.end) <= LINES {
                lines += self.lines(tokens.end);
                tokens.end += 1;
            }
            with_lines(lines, |lines| self.attend_some(tokens.clone(), lines, &mut out));
        }
        Ok(out)
    }

    fn strips(&self) -> usize {
        self.config.heads.div_ceil(LANES)
    }

    fn state_lines(&self) -> usize {
        AttentionState::lines(self.config.kv_lora_rank)
    }

    /// Lines of a token's queries and states.
    fn lines(&self, token: usize) -> usize {
        let segments = self.contexts[token].segments().count();
        self.strips() * (self.cache.features() + segments * self.state_lines())
    }

    fn attend_some(&self, tokens: Range<usize>, lines: &mut [Lanes], out: &mut Tensor) {
        let (packed, states) = lines.split_at_mut(tokens.len() * self.strips() * self.cache.features());
        let packing = packed.chunks_mut(self.strips() * self.cache.features()).zip(tokens.clone()).collect();
        self.device.for_each(packing, |(packed, token)| self.pack(token, packed));
        let mut tasks = self.tasks(tokens.clone(), packed, states);
        tasks.sort_by_key(|task| Reverse(task.positions.len() * task.queries.len()));
        self.device.for_each(tasks, |mut task| self.run(&mut task));
        self.merge(tokens, states, out);
    }

    /// A token's queries as strips, `[strips, features]`, times the scale.
    fn pack(&self, token: usize, packed: &mut [Lanes]) {
        let width = self.cache.features();
        let heads = self.queries.row(token).chunks(LANES * width);
        for (heads, packed) in heads.zip(packed.chunks_exact_mut(width)) {
            let heads = MatrixRef::new(heads, heads.len() / width, width);
            self.device.kernels().pack_lanes(heads, self.config.scale, packed);
        }
    }

    /// `packed` `[tokens, strips, features]`, `states` `[tokens, segments, strips, lines of a state]`.
    fn tasks<'a>(
        &self,
        tokens: Range<usize>,
        packed: &'a [Lanes],
        mut states: &'a mut [Lanes],
    ) -> Vec<Task<'a>> {
        let (strips, width) = (self.strips(), self.cache.features());
        let mut tasks = Vec::new();
        for (token, packed) in tokens.zip(packed.chunks_exact(strips * width)) {
            let segments = self.contexts[token].segments();
            for segment in 0..segments.count() {
                for queries in packed.chunks(STRIPS * width) {
                    let states = take_lines(&mut states, queries.len() / width * self.state_lines());
                    tasks.push(Task { token, positions: segments.positions(segment), queries, states });
                }
            }
        }
        tasks
    }

    fn run(&self, task: &mut Task<'_>) {
        let (width, rank) = (self.cache.features(), self.config.kv_lora_rank);
        let stride = self.cache.panel_stride();
        let pages = self.contexts[task.token].pages;
        let kernels = self.device.kernels();
        for state in task.states.chunks_exact_mut(self.state_lines()) {
            AttentionState::of(state).clear();
        }
        with_lines((BLOCK * stride).div_ceil(LANES), |panel| {
            let panel = Lanes::flatten_mut(panel);
            for first in task.positions.clone().step_by(BLOCK) {
                let end = task.positions.end.min(first + BLOCK);
                self.cache.read(pages, first..end, kernels, &mut panel[..(end - first) * stride]);
                // Beyond the segment, too: that is likely to be this thread's or its neighbour's next.
                let length = self.contexts[task.token].length;
                let mut ahead = self.cache.stored(pages, end, length.min(end + BLOCK));
                let strips = task.queries.chunks_exact(width);
                for (features, state) in strips.zip(task.states.chunks_exact_mut(self.state_lines())) {
                    let block = KeyValues {
                        keys: MatrixRef::strided(panel, end - first, width, stride),
                        values: MatrixRef::strided(panel, end - first, rank, stride),
                        ahead: std::mem::take(&mut ahead),
                    };
                    let queries = PackedQueries { features, visible: [BLOCK; LANES] };
                    kernels.attend(&block, &queries, AttentionState::of(state));
                }
            }
        });
    }

    /// `states` as [`tasks`](Self::tasks) cuts them.
    fn merge(&self, tokens: Range<usize>, mut states: &mut [Lanes], out: &mut Tensor) {
        let (rank, strips) = (self.config.kv_lora_rank, self.strips());
        let rows = out.values_mut().chunks_exact_mut(self.config.heads * rank);
        let merges = rows.skip(tokens.start).zip(tokens).map(|(out, token)| {
            let segments = self.contexts[token].segments().count();
            (out, take_lines(&mut states, segments * strips * self.state_lines()))
        });
        self.device.for_each(merges.collect(), |(out, states)| {
            let lines = self.state_lines();
            for (strip, out) in out.chunks_mut(LANES * rank).enumerate() {
                let segments = states.chunks_exact_mut(strips * lines);
                let heads = out.len() / rank;
                let out = MatrixMut::new(out, heads, rank);
                merge(
                    segments.map(|states| &mut states[strip * lines..][..lines]),
                    self.device.kernels(),
                    out,
                );
            }
        });
    }
}
