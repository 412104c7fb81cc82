//! Attention of one layer: absorbed for a step of so many sequences, expanded for a chunk of so many tokens.

use super::{Bench, DECODE_ROWS, Measurement, Work, values};
use crate::session::PAGE_SIZE;
use anyhow::Result;
use dsv3_deepseek::{
    HfConfig, Mla, ModelWeights,
    counts::{self, AttentionCount, attention_pairs},
};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, DecodeStep, Module, PageId, Weight,
    ops::{self, Arithmetic, AttentionConfig, CacheFormat, LatentCache},
};
use std::hint::black_box;

/// What is attended to, and by whom.
pub(super) struct Attention<'a> {
    config: AttentionConfig,
    count: AttentionCount,
    wkv_b: &'a Weight,
    position_bytes: u64,
    cache: LatentCache,
    /// Those of each sequence.
    pages: Vec<Vec<PageId>>,
    lengths: Lengths,
}

/// How long things are.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Positions of a sequence before its tokens.
    pub(super) depth: usize,
    /// One of each sequence, or, where they are more than [`DECODE_ROWS`], the chunk of one.
    pub(super) tokens: usize,
}

impl Lengths {
    fn is_chunk(self) -> bool {
        self.tokens > DECODE_ROWS
    }
}

impl<'a> Attention<'a> {
    /// Of the model's first layer.
    pub(super) fn new(
        hf: &HfConfig,
        weights: &'a ModelWeights<Weight>,
        format: CacheFormat,
        lengths: Lengths,
    ) -> Result<Self> {
        let Lengths { depth, tokens } = lengths;
        let config = Mla::decode_model_config(hf, Layout::SINGLE)?.attention;
        let dense = weights.mlp_decoder_block.iter().map(|block| &block.mla);
        let mut layers = dense.chain(weights.moe_decoder_block.iter().map(|block| &block.mla));
        let wkv_b = &layers.next().expect("a model has a layer").wkv_b;
        let (sequences, own) = if lengths.is_chunk() { (1, tokens) } else { (tokens, 1) };
        let of_each = (depth + own).div_ceil(PAGE_SIZE);
        let capacity =
            Capacity { max_context: depth + own, page_size: PAGE_SIZE, pages: sequences * of_each };
        let mut cache = LatentCache::new(&capacity, hf.attention.latent_shape(), format)?;
        let all: Vec<PageId> = (0..).take(capacity.pages).map(PageId).collect();
        let pages: Vec<Vec<PageId>> = all.chunks(of_each).map(<[PageId]>::to_vec).collect();
        let features = hf.attention.latent_dim();
        let latents = values(depth + own, features);
        for pages in &pages {
            ops::paged_fill_cache(&mut cache, &latents, 0, pages, &ops::PagedCacheConfig { features })?;
        }
        let count = AttentionCount::of(&hf.attention);
        let position_bytes = counts::cached_bytes(hf, 1, 1, format);
        Ok(Self { config, count, wkv_b, position_bytes, cache, pages, lengths })
    }

    fn work(&self) -> Work {
        let (depth, tokens) = (self.lengths.depth as u64, self.lengths.tokens as u64);
        let (name, positions, flops, weight_bytes) = if self.lengths.is_chunk() {
            let pairs = attention_pairs(self.lengths.depth, self.lengths.tokens);
            let flops = pairs * self.count.expanded + (depth + tokens) * self.count.expansion;
            ("expanded", depth + tokens, flops, self.wkv_b.bytes())
        } else {
            ("absorbed", tokens * (depth + 1), tokens * (depth + 1) * self.count.absorbed, 0)
        };
        Work {
            names: vec![format!("attention, {name}")],
            rows: self.config.heads,
            cols: self.count.cached as usize,
            format: self.cache.format().to_string(),
            arithmetic: Arithmetic::Float,
            depth: Some(self.lengths.depth),
            tokens: self.lengths.tokens,
            bytes: positions * self.position_bytes + weight_bytes,
            operations: flops as f64,
        }
    }
}

impl Bench {
    /// Attends once a measurement.
    pub(super) fn attend(&self, attention: &Attention<'_>) -> Result<Measurement> {
        let Attention { config, cache, pages, lengths, .. } = attention;
        let Lengths { depth, tokens } = *lengths;
        let width = if lengths.is_chunk() {
            config.qk_nope_head_dim + config.qk_rope_head_dim
        } else {
            config.kv_lora_rank + config.qk_rope_head_dim
        };
        let queries = values(tokens, config.heads * width);
        let positions = vec![depth; tokens];
        let tables: Vec<&[PageId]> = pages.iter().map(Vec::as_slice).collect();
        let run = || {
            if lengths.is_chunk() {
                let queries = ops::Queries { values: &queries, start: depth, any_chunk: false };
                let expansion = ops::Expansion { wkv_b: attention.wkv_b };
                ops::paged_attention_prefill(queries, expansion, cache, tables[0], config, &self.device)
            } else {
                let step = DecodeStep::new(&positions, &tables);
                ops::paged_attention_decode(&queries, cache, &step, config, &self.device)
            }
        };
        run()?; // that it can, and what is not in the page cache comes now
        let seconds = self.time(|| drop(black_box(run())), 1);
        Ok(self.measurement(attention.work(), seconds))
    }
}
