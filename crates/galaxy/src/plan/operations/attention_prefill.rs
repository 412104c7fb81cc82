//! The attention's operations in prefill.

use super::chain::{Chain, Tensor};
use crate::{
    plan::{
        PlanError,
        modules::mla_prefill::{LaterChunks, MlaPrefillConfig},
        request::Dimensions,
        tensor::TensorSpec,
    },
    types::{DataType, MemoryConfig},
};

/// Which of a prompt's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The first one, which needs no cache.
    First,
    /// One that stands behind so many positions.
    Behind(u32),
}

/// From a row's normed positions to its part of the residual stream.
pub(super) fn forward_prefill(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &MlaPrefillConfig,
    x: &Tensor,
    chunk: Chunk,
) -> Result<Tensor, PlanError> {
    let chunks = config.chunk_sizes;
    let step = Prefill {
        dimensions,
        config,
        cache: Tensor::new(config.kv_cache.cache()),
        page_table: Tensor::new(TensorSpec::rows(&[1, config.kv_cache.page_table_shape[1]], DataType::Int32)),
    };
    let x = chain.step("all_gather", &config.all_gather, &[x]).put()?;
    let parts = chunks.model_chunk / chunks.mla_chunk;
    let mut y = step.chunk(chain, &x, (0, parts), chunk)?;
    if parts > 1 {
        let later = match chunk {
            Chunk::First => Chunk::Behind(chunks.mla_chunk),
            Chunk::Behind(before) => Chunk::Behind(before + chunks.mla_chunk),
        };
        let second = chain.within("next", |chain| step.chunk(chain, &x, (1, parts), later))?;
        let all: Vec<&Tensor> =
            std::iter::once(&y).chain(std::iter::repeat_n(&second, parts as usize - 1)).collect();
        y = chain.step("chunk_concat", &config.chunk_concat, &all).note(same_parts(parts)).put()?;
    }
    let y = chain.step("reduce_scatter", &config.reduce_scatter, &[&y]).put()?;
    chain.step("reduce_scatter_scale", &config.reduce_scatter_scale, &[&y]).put()
}

/// What a list says that leaves out operations which are equal to those it has.
pub(super) fn same_parts(parts: u32) -> String {
    format!("{parts} parts; those that are not in this list are as the last one that is")
}

struct Prefill<'a> {
    dimensions: &'a Dimensions,
    config: &'a MlaPrefillConfig,
    cache: Tensor,
    page_table: Tensor,
}

impl Prefill<'_> {
    fn rotate(&self, chain: &mut Chain, name: &str, x: &Tensor) -> Result<Tensor, PlanError> {
        let table = Tensor::new(self.config.rope_tables.table.clone());
        let swap = Tensor::new(self.config.rope_tables.transformation.clone());
        chain.step(name, &self.config.rope, &[x]).weight(&table).weight(&table).weight(&swap).put()
    }

    /// A part of the positions through the whole attention.
    fn chunk(
        &self,
        chain: &mut Chain,
        x: &Tensor,
        (index, parts): (u32, u32),
        chunk: Chunk,
    ) -> Result<Tensor, PlanError> {
        let (config, length) = (self.config, self.config.chunk_sizes.mla_chunk);
        let width = self.dimensions.local_hidden;
        let part = if parts > 1 {
            let from = index * length;
            chain.slice("slice", &config.slice, x, [&[0, 0, from, 0], &[1, 1, from + length, width]])?
        } else {
            x.clone()
        };
        let (queries, entry) = self.latents(chain, &part)?;
        let queries = self.queries(chain, &queries)?;
        match (chunk, &config.later_chunks) {
            (Chunk::Behind(before), Some(later)) => {
                let y = self.attend_to_cache(chain, later, &queries, before)?;
                let y = self.output(chain, &y)?;
                chain.step("all_reduce_rows", &later.all_reduce_rows, &[&y]).put()
            }
            _ => {
                let y = chain.step("flash_mla", &config.flash_mla, &[&queries, &entry]).put()?;
                self.output(chain, &y)
            }
        }
    }

    /// The normed latent of the queries, and what is cached, which goes into the cache.
    fn latents(&self, chain: &mut Chain, x: &Tensor) -> Result<(Tensor, Tensor), PlanError> {
        let (config, attention) = (self.config, &self.dimensions.attention);
        let length = config.chunk_sizes.mla_chunk;
        let x = chain.step("wq_kv_a", &config.wq_kv_a, &[x]).put()?;
        let x = chain.step("wq_kv_a_ag_prefill", &config.wq_kv_a_ag_prefill, &[&x]).put()?;
        let x = chain.step("wq_kv_a_r_prefill", &config.wq_kv_a_r_prefill, &[&x]).put()?;
        let (first, second, third) = (
            attention.query_rank,
            attention.query_rank + attention.latent_rank,
            attention.query_and_cached(),
        );
        let mut part = |name: &str, from, to| {
            chain.slice(name, &config.slice, &x, [&[0, 0, 0, from], &[1, 1, length, to]])
        };
        let (q, latent, key) = (
            part("q_slice", 0, first)?,
            part("kv_nope_slice", first, second)?,
            part("kv_rope_slice", second, third)?,
        );
        let latent = chain.step("kv_norm", &config.kv_norm, &[&latent]).put()?;
        let key = self.rotate(chain, "kv_rope", &key)?;
        let entry = chain.step("kvpe_concat", &config.concat, &[&latent, &key]).put()?;
        let entry = chain.step("kvpe_typecast", &config.kvpe_typecast, &[&entry]).put()?;
        let inputs = [&self.cache, &entry, &self.page_table];
        chain.step("paged_fill_cache", &config.paged_fill_cache, &inputs).put()?;
        Ok((chain.step("q_norm", &config.q_norm, &[&q]).put()?, entry))
    }

    /// A column's heads, the part without position in the latent space.
    fn queries(&self, chain: &mut Chain, q: &Tensor) -> Result<Tensor, PlanError> {
        let (config, attention) = (self.config, &self.dimensions.attention);
        let (length, heads) = (config.chunk_sizes.mla_chunk, attention.local_heads);
        let (nope, whole) = (attention.nope, attention.query_key());
        let q = chain.step("wq_b", &config.wq_b, &[q]).put()?;
        let q = chain.reshape("q_heads", "reshape", &q, &[1, length, heads, whole])?;
        let q = chain.step("q_permute", &config.permute, &[&q]).put()?;
        let part = [&[0, 0, 0, 0][..], &[1, heads, length, nope]];
        let latent = chain.slice("q_nope_slice", &config.slice, &q, part)?;
        let part = [&[0, 0, 0, nope][..], &[1, heads, length, whole]];
        let rotated = chain.slice("q_rope_slice", &config.slice, &q, part)?;
        let latent = chain.step("wkv_b1", &config.wkv_b1, &[&latent]).put()?;
        let rotated = self.rotate(chain, "q_rope", &rotated)?;
        chain.step("q_concat", &config.concat, &[&latent, &rotated]).put()
    }

    /// All heads over the cache of the device that owns the user, and a column's heads back from it.
    fn attend_to_cache(
        &self,
        chain: &mut Chain,
        later: &LaterChunks,
        queries: &Tensor,
        before: u32,
    ) -> Result<Tensor, PlanError> {
        let q = chain.step("q_ag_prefill", &later.q_ag_prefill, &[queries]).put()?;
        let inputs = [&q, &self.cache, &self.page_table];
        let y = chain
            .step("chunked_flash_mla", &later.flash_mla, &inputs)
            .with("chunk_start_idx", before)
            .put()?;
        let mask = Tensor::new(TensorSpec::tiles(&[1, 1, 1, 1], MemoryConfig::DRAM));
        let y = chain.step("owner_mask", &later.owner_mask, &[&y, &mask]).put()?;
        chain.step("all_reduce_columns", &later.all_reduce_columns, &[&y]).put()
    }

    /// Out of the latent space and to a column's part of the residual stream, some positions at a time. `y` has a column's
    /// heads, or all of them where they came from the cache's owner.
    fn output(&self, chain: &mut Chain, y: &Tensor) -> Result<Tensor, PlanError> {
        let config = self.config;
        let (length, at_a_time) = (config.chunk_sizes.mla_chunk, config.chunk_sizes.wkv_b2_chunk);
        let parts = length.div_ceil(at_a_time);
        if parts == 1 {
            return self.output_part(chain, y);
        }
        let (heads, width) = (y.shape()[1], y.shape()[3]);
        let y = chain.pad_rows("wkv_b2_pad", y, parts * at_a_time)?;
        let part =
            chain.slice("wkv_b2_slice", &config.slice, &y, [&[0, 0, 0, 0], &[1, heads, at_a_time, width]])?;
        let part = self.output_part(chain, &part)?;
        let all = vec![&part; parts as usize];
        let y = chain.step("wkv_b2_concat", &config.chunk_concat, &all).note(same_parts(parts)).put()?;
        chain.first_rows("wkv_b2_unpad", &y, length)
    }

    fn output_part(&self, chain: &mut Chain, y: &Tensor) -> Result<Tensor, PlanError> {
        let (config, attention) = (self.config, &self.dimensions.attention);
        let y = if y.shape()[1] == attention.heads {
            y.clone()
        } else {
            chain.step("wkv_b2_ag_prefill", &config.wkv_b2_ag_prefill, &[y]).put()?
        };
        let length = y.shape()[2];
        let y = chain.step("wkv_b2", &config.wkv_b2, &[&y]).put()?;
        let y = chain.step("v_permute", &config.permute, &[&y]).put()?;
        let y = chain.reshape("v_flat", "reshape", &y, &[1, 1, length, attention.values()])?;
        chain.step("wo", &config.wo, &[&y]).put()
    }
}
