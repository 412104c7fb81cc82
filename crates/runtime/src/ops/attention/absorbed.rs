//! Absorbed attention: keys and values are the latents themselves, all heads share them, and a strip is sixteen heads
//! of one token.

use super::{
    AttentionConfig,
    segments::{Segments, merge},
};
use crate::{DecodeStep, Device, Error, PageId, Tensor, buffer::Buffer, ops::LatentCache};
use dsv3_kernels::{
    AttentionState, Chunks, Cuts, KeyValues, LANES, Lanes, MatrixMut, MatrixRef, Parts,
    Queries as PackedQueries, Queue,
};
use std::{cmp::Reverse, mem, ops::Range};

/// Positions that are attended to at a time: of 576 features 150 kB in f32, which stay in the second cache beside a strip's
/// queries and sums (70 kB).
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
    let contexts = Contexts::Users(step);
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
    let contexts = Contexts::Chunk { pages, start };
    Absorbed { queries, cache, config, device, contexts }.attend()
}

/// What the tokens see.
enum Contexts<'a> {
    /// Each user its own latents.
    Users(&'a DecodeStep<'a>),
    /// All the same ones, each up to its own.
    Chunk { pages: &'a [PageId], start: usize },
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
    /// For each row of the queries.
    contexts: Contexts<'a>,
}

/// Some strips of a token against a segment of its context.
struct Task {
    token: usize,
    positions: Range<usize>,
    strips: Range<usize>,
}

impl Absorbed<'_> {
    fn attend(&self) -> Result<Tensor, Error> {
        let users = self.queries.rows();
        for token in 0..users {
            let Context { pages, length } = self.context(token);
            self.cache.check(pages, length)?;
        }
        let mut out = Tensor::anything(users, self.config.heads * self.config.kv_lora_rank);
        // What contexts of any length take, so that it is the same in each step.
        let most = self.lines(SEGMENTS);
        let mut lines = Buffer::anything((users * most).min(LINES.max(most)));
        let mut tokens = 0..0;
        while tokens.end < users {
            tokens = tokens.end..tokens.end + 1;
            let mut taken = self.lines_of(tokens.start);
            while tokens.end < users && taken + self.lines_of(tokens.end) <= LINES {
                taken += self.lines_of(tokens.end);
                tokens.end += 1;
            }
            self.attend_some(tokens.clone(), &mut lines[..taken], &mut out);
        }
        Ok(out)
    }

    fn context(&self, token: usize) -> Context<'_> {
        match self.contexts {
            Contexts::Users(step) => Context { pages: step.pages[token], length: step.positions[token] + 1 },
            Contexts::Chunk { pages, start } => Context { pages, length: start + token + 1 },
        }
    }

    fn strips(&self) -> usize {
        self.config.heads.div_ceil(LANES)
    }

    /// Tasks that the strips of a segment make.
    fn tasks(&self) -> usize {
        self.strips().div_ceil(STRIPS)
    }

    fn state_lines(&self) -> usize {
        AttentionState::lines(self.config.kv_lora_rank)
    }

    /// Lines of a task's states. All tasks have as many, though the last of a segment may have fewer strips.
    fn task_lines(&self) -> usize {
        STRIPS.min(self.strips()) * self.state_lines()
    }

    /// Lines of a token's queries.
    fn packed_lines(&self) -> usize {
        self.strips() * self.cache.features()
    }

    /// Lines of the queries and states of a token whose context has this many segments.
    fn lines(&self, segments: usize) -> usize {
        self.packed_lines() + segments * self.tasks() * self.task_lines()
    }

    fn lines_of(&self, token: usize) -> usize {
        self.lines(self.context(token).segments().count())
    }

    /// `lines` are the tokens' queries `[tokens, strips, features]`, then their states
    /// `[tokens, segments, tasks, strips of a task, lines of a state]`.
    fn attend_some(&self, tokens: Range<usize>, lines: &mut [Lanes], out: &mut Tensor) {
        let (packed, states) = lines.split_at_mut(tokens.len() * self.packed_lines());
        self.device.for_each_chunk(packed, self.packed_lines(), |number, packed| {
            self.pack(tokens.start + number, packed);
        });
        // By token, where its states end.
        let (mut ends, mut end) = (Buffer::filled(tokens.len(), 0), 0);
        for (token, place) in tokens.clone().zip(&mut *ends) {
            end += self.lines_of(token) - self.packed_lines();
            *place = end;
        }
        let task = |number| self.task(number, tokens.start, &ends);
        let mut order = Buffer::filled(tokens.len() * SEGMENTS * self.tasks(), 0);
        let order = &mut order[..states.len() / self.task_lines()];
        let tasks = Queue::sorted(Chunks::new(states, Cuts::Every(self.task_lines())), order, |number| {
            let Task { positions, strips, .. } = task(number);
            Reverse(positions.len() * strips.len())
        });
        let panel = self.cache.panel(BLOCK).div_ceil(LANES);
        self.device.for_each_with(&tasks, panel, |(number, states), panel| {
            let task = task(number);
            let packed = &packed[(task.token - tokens.start) * self.packed_lines()..];
            let queries = task.strips.start * self.cache.features()..task.strips.end * self.cache.features();
            self.run(&task, &packed[queries], states, Lanes::flatten_mut(panel));
        });
        let (out, _) = out.as_mut().split_rows_at(tokens.end);
        let (_, out) = out.split_rows_at(tokens.start);
        let rows = Parts::new(out, Cuts::Every(1), Cuts::Whole);
        let merges = Queue::new((rows, Chunks::new(states, Cuts::Ends(&ends))));
        self.device.for_each(&merges, |(mut part, (_, states))| self.merge(part.out.row_mut(0), states));
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

    /// A task by its number among those of the tokens from `first` on, whose states end at `ends`.
    fn task(&self, number: usize, first: usize, ends: &[usize]) -> Task {
        let start = number * self.task_lines();
        let place = ends.partition_point(|&end| end <= start);
        let before = place.checked_sub(1).map_or(0, |before| ends[before] / self.task_lines());
        let (segment, strips) = ((number - before) / self.tasks(), (number - before) % self.tasks() * STRIPS);
        Task {
            token: first + place,
            positions: self.context(first + place).segments().positions(segment),
            strips: strips..self.strips().min(strips + STRIPS),
        }
    }

    /// # Shapes
    /// `queries` `[strips, features]`, `states` `[strips or more, AttentionState::lines(kv_lora_rank)]`, `panel`
    /// `[cache.panel(BLOCK)]`.
    fn run(&self, task: &Task, queries: &[Lanes], states: &mut [Lanes], panel: &mut [f32]) {
        let (width, rank) = (self.cache.features(), self.config.kv_lora_rank);
        let Context { pages, length } = self.context(task.token);
        let kernels = self.device.kernels();
        for state in states.chunks_exact_mut(self.state_lines()) {
            AttentionState::of(state).clear();
        }
        let mut end = task.positions.start;
        while end < task.positions.end {
            let first = end;
            end = task.positions.end.min(self.cache.block_end(first, BLOCK));
            let keys = self.cache.rows(pages, first..end, kernels, panel);
            // Beyond the segment, too: that is likely to be this thread's or its neighbour's next.
            let mut ahead = self.cache.stored(pages, end, length.min(end + BLOCK));
            let strips = queries.chunks_exact(width);
            for (features, state) in strips.zip(states.chunks_exact_mut(self.state_lines())) {
                let block =
                    KeyValues { keys, values: keys.first_columns(rank), ahead: mem::take(&mut ahead) };
                let queries = PackedQueries { features, visible: [BLOCK; LANES] };
                kernels.attend(&block, &queries, AttentionState::of(state));
            }
        }
    }

    /// # Shapes
    /// `out` `[heads, kv_lora_rank]`, `states` `[segments, tasks, strips of a task, lines of a state]`.
    fn merge(&self, out: &mut [f32], states: &mut [Lanes]) {
        let (rank, lines) = (self.config.kv_lora_rank, self.state_lines());
        for (strip, out) in out.chunks_mut(LANES * rank).enumerate() {
            let segments = states.chunks_exact_mut(self.tasks() * self.task_lines());
            let heads = out.len() / rank;
            let out = MatrixMut::new(out, heads, rank);
            merge(segments.map(|states| &mut states[strip * lines..][..lines]), self.device.kernels(), out);
        }
    }
}
