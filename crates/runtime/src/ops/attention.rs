//! Attention over the paged latents: absorbed for decode, expanded for prefill. Both walk the context page by page
//! with a running softmax (Milakov and Gimelshein 2018), so that scores of a whole context never exist at once.

use super::LatentCache;
use crate::{DecodeStep, Device, Error, PageId, Tensor, Weight, device::column_tasks};
use dsv3_kernels::{Kernels, MatrixMut, MatrixRef, MatrixView};
use serde::{Deserialize, Serialize};

/// Heads that one task of a decode step takes: together they read each latent once.
const HEADS_PER_TASK: usize = 8;

/// Config of attention, for this device's heads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Heads on this device.
    pub heads: usize,
    /// Features of a latent: the rank of the compressed keys and values.
    pub kv_lora_rank: usize,
    /// Features of a query or key head that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Features of a query or key head that are rotated.
    pub qk_rope_head_dim: usize,
    /// Features of a value head.
    pub v_head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
}

/// The queries of one prefill chunk.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[tokens, heads * (nope + rope)]`, rotated.
    pub values: &'a Tensor,
    /// Position of the first token.
    pub start: usize,
}

/// What turns latents into keys and values: `kv_b_proj`, `[heads * (nope + v), kv_lora_rank]`.
#[derive(Clone, Copy, Debug)]
pub struct Expansion<'a> {
    /// The weight.
    pub wkv_b: &'a Weight,
}

/// Each user's query against that user's cached latents: keys and values are the latents themselves.
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
    let (rank, width) = (config.kv_lora_rank, cache.features());
    for (pages, &position) in step.pages.iter().zip(step.positions) {
        cache.check(pages, position + 1)?;
    }
    let mut out = Tensor::zeros(queries.rows(), config.heads * rank);
    let row = config.heads * rank;
    let tasks: Vec<_> = out
        .values_mut()
        .chunks_mut(row)
        .enumerate()
        .flat_map(|(user, out)| {
            out.chunks_mut(HEADS_PER_TASK * rank).enumerate().map(move |task| (user, task))
        })
        .collect();
    device.for_each(tasks, |(user, (group, out))| {
        let heads = out.len() / rank;
        let query = &queries.row(user)[group * HEADS_PER_TASK * width..][..heads * width];
        let query = MatrixRef::new(query, heads, width);
        let mut softmax = RunningSoftmax::new(heads, device.kernels());
        let mut out = MatrixMut::new(out, heads, rank);
        let mut scores = vec![0.0; heads * cache.page_size()];
        for (positions, latents) in cache.blocks(step.pages[user], step.positions[user] + 1) {
            let keys = positions.len();
            let scores = &mut scores[..heads * keys];
            let block = MatrixView::f32(latents, keys, width);
            device.kernels().matmul(&block, query, MatrixMut::new(scores, heads, keys));
            device.kernels().scale(scores, config.scale);
            softmax.update(0, scores, &MatrixView::f32_strided(latents, keys, rank, width), out.reborrow());
        }
        softmax.finish(out);
    });
    Ok(out)
}

/// A chunk's queries against the cached latents up to each token, which are expanded to keys and values page by page.
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
    let length = queries.start + queries.values.rows();
    cache.check(pages, length)?;
    let mut out = Tensor::zeros(queries.values.rows(), config.heads * config.v_head_dim);
    let tasks = column_tasks(out.as_mut(), config.v_head_dim);
    device.for_each(tasks, |(column, out)| {
        let head = column / config.v_head_dim;
        PrefillHead { head, queries, config, kernels: device.kernels() }
            .attend(&expansion, cache, pages, out);
    });
    Ok(out)
}

/// One head of a prefill chunk.
struct PrefillHead<'a> {
    head: usize,
    queries: Queries<'a>,
    config: &'a AttentionConfig,
    kernels: &'static Kernels,
}

impl PrefillHead<'_> {
    /// # Shapes
    /// `out` `[tokens, v]`.
    fn attend(
        &self,
        expansion: &Expansion<'_>,
        cache: &LatentCache,
        pages: &[PageId],
        mut out: MatrixMut<'_>,
    ) {
        let AttentionConfig { kv_lora_rank: rank, qk_nope_head_dim: nope, v_head_dim: v, .. } = *self.config;
        let (tokens, width) = (out.rows(), cache.features());
        let wkv_b = expansion.wkv_b.matrix().row_range(self.head * (nope + v)..(self.head + 1) * (nope + v));
        let mut softmax = RunningSoftmax::new(tokens, self.kernels);
        let mut expanded = vec![0.0; cache.page_size() * (nope + v)];
        let mut scores = vec![0.0; tokens * cache.page_size()];
        for (positions, latents) in cache.blocks(pages, self.queries.start + tokens) {
            let keys = positions.len();
            // Earlier tokens than this page's first position see none of it.
            let first = positions.start.saturating_sub(self.queries.start);
            let expanded = &mut expanded[..keys * (nope + v)];
            let x = MatrixRef::strided(latents, keys, rank, width);
            self.kernels.matmul(&wkv_b, x, MatrixMut::new(expanded, keys, nope + v));
            let scores = &mut scores[..(tokens - first) * keys];
            self.score(
                first,
                &MatrixView::f32_strided(expanded, keys, nope, nope + v),
                &latents[rank..],
                scores,
            );
            self.mask(first, positions.start, keys, scores);
            let values = MatrixView::f32_strided(&expanded[nope..], keys, v, nope + v);
            let (_, rows) = out.reborrow().split_rows_at(first);
            softmax.update(first, scores, &values, rows);
        }
        softmax.finish(out);
    }

    /// Scaled scores of the tokens from `first` on: the head's own part of the key, plus the part all heads share.
    ///
    /// # Shapes
    /// `nope_keys` `[keys, nope]`, `rope_keys` the rotated part of each cached token; `scores` `[tokens - first, keys]`.
    fn score(&self, first: usize, nope_keys: &MatrixView<'_>, rope_keys: &[f32], scores: &mut [f32]) {
        let AttentionConfig { kv_lora_rank: rank, qk_nope_head_dim: nope, qk_rope_head_dim: rope, .. } =
            *self.config;
        let queries = self.queries.values;
        let rows = first..queries.rows();
        let column = self.head * (nope + rope);
        let keys = nope_keys.rows();
        let mut out = MatrixMut::new(scores, rows.len(), keys);
        self.kernels.matmul(nope_keys, queries.columns(column, nope).row_range(rows.clone()), out.reborrow());
        let rope_keys = MatrixView::f32_strided(rope_keys, keys, rope, rank + rope);
        self.kernels.matmul_add(&rope_keys, queries.columns(column + nope, rope).row_range(rows), out);
        self.kernels.scale(scores, self.config.scale);
    }

    /// No token sees a later one: `scores` `[tokens - first, keys]` of the keys from position `key` on.
    fn mask(&self, first: usize, key: usize, keys: usize, scores: &mut [f32]) {
        for (token, scores) in (first..).zip(scores.chunks_exact_mut(keys)) {
            let visible = (self.queries.start + token + 1).saturating_sub(key).min(keys);
            scores[visible..].fill(f32::NEG_INFINITY);
        }
    }
}

/// A softmax over blocks of keys as they come: the largest score so far and the sum of exponentials below it.
struct RunningSoftmax {
    kernels: &'static Kernels,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl RunningSoftmax {
    fn new(queries: usize, kernels: &'static Kernels) -> Self {
        Self { kernels, max: vec![f32::NEG_INFINITY; queries], sum: vec![0.0; queries] }
    }

    /// Takes in a block of keys for the queries from `first` on. Each must see at least one key of the block.
    ///
    /// # Shapes
    /// `scores` `[queries - first, keys]`, `values` `[keys, v]`, `out` `[queries - first, v]`.
    fn update(&mut self, first: usize, scores: &mut [f32], values: &MatrixView<'_>, mut out: MatrixMut<'_>) {
        let keys = values.rows();
        for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let (max, sum) = (&mut self.max[first + row], &mut self.sum[first + row]);
            let new_max = max.max(self.kernels.max(scores));
            if new_max > *max {
                let shrink = (*max - new_max).exp();
                *sum *= shrink;
                self.kernels.scale(out.row_mut(row), shrink);
                *max = new_max;
            }
            *sum += self.kernels.exp_sum(scores, new_max);
        }
        let weights = MatrixRef::new(scores, scores.len() / keys, keys);
        self.kernels.matmul_transposed_add(values, weights, out);
    }

    /// Divides by the sums. `out` `[queries, v]`.
    fn finish(&self, mut out: MatrixMut<'_>) {
        for (row, sum) in self.sum.iter().enumerate() {
            self.kernels.scale(out.row_mut(row), 1.0 / sum);
        }
    }
}
