//! The attention's operations in decode.

use super::chain::{Chain, Tensor};
use crate::{
    plan::{PlanError, modules::mla::MlaDecodeConfig, request::Dimensions, tensor::TensorSpec},
    types::DataType,
};

/// The rotations of a step: cosines, sines and the matrix that swaps pairs.
pub(super) struct Rotations {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    pub(super) transformation: Tensor,
}

/// From the normed input to a column's part of the residual stream.
pub(super) fn forward_decode(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &MlaDecodeConfig,
    x: &Tensor,
    rotations: &Rotations,
) -> Result<Tensor, PlanError> {
    let step = Decode {
        dimensions,
        config,
        rotations,
        cache: Tensor::new(config.kv_cache.cache()),
        page_table: Tensor::new(config.kv_cache.page_table()),
        positions: Tensor::new(TensorSpec::rows(&[dimensions.local_users()], DataType::Int32)),
    };
    let (queries, latent, key) = step.latents(chain, x)?;
    step.fill_cache(chain, &latent, &key)?;
    let queries = step.queries(chain, &queries)?;
    let values = step.attend(chain, &queries)?;
    step.output(chain, &values)
}

struct Decode<'a> {
    dimensions: &'a Dimensions,
    config: &'a MlaDecodeConfig,
    rotations: &'a Rotations,
    cache: Tensor,
    page_table: Tensor,
    positions: Tensor,
}

impl Decode<'_> {
    fn rotate(&self, chain: &mut Chain, name: &str, x: &Tensor) -> Result<Tensor, PlanError> {
        let Rotations { cos, sin, transformation } = self.rotations;
        chain.step(name, &self.config.rope, &[x]).weight(cos).weight(sin).weight(transformation).put()
    }

    /// The normed latent of the queries, that of the keys, and the key that all heads share.
    fn latents(&self, chain: &mut Chain, x: &Tensor) -> Result<(Tensor, Tensor, Tensor), PlanError> {
        let (config, attention) = (self.config, &self.dimensions.attention);
        let x = chain.step("wq_kv_a", &config.wq_kv_a, &[x]).put()?;
        let x = chain.step("wq_kv_a_ag_decode", &config.wq_kv_a_ag_decode, &[&x]).put()?;
        let x = chain.step("wq_kv_a_r_decode", &config.wq_kv_a_r_decode, &[&x]).put()?;
        let tokens = self.dimensions.tokens;
        let (first, second, third) = (
            attention.query_rank,
            attention.query_rank + attention.latent_rank,
            attention.query_and_cached(),
        );
        let q = chain.slice("q_slice", &config.q_slice, &x, [&[0, 0, 0, 0], &[1, 1, tokens, first]])?;
        let part = [&[0, 0, 0, first][..], &[1, 1, tokens, second]];
        let latent = chain.slice("kv_nope_slice", &config.kv_nope_slice, &x, part)?;
        let part = [&[0, 0, 0, second][..], &[1, 1, tokens, third]];
        let key = chain.slice("kv_rope_slice", &config.kv_rope_slice, &x, part)?;
        let q = chain.step("q_norm", &config.q_norm, &[&q]).put()?;
        let latent = chain.step("kv_norm", &config.kv_norm, &[&latent]).put()?;
        Ok((q, latent, key))
    }

    /// Every column keeps its own users.
    fn fill_cache(&self, chain: &mut Chain, latent: &Tensor, key: &Tensor) -> Result<(), PlanError> {
        let config = self.config;
        let key = chain.step("kv_rope_permute", &config.kv_rope_permute, &[key]).put()?;
        let key = self.rotate(chain, "kv_rope", &key)?;
        let key = chain.step("kv_rope_out_permute", &config.kv_rope_out_permute, &[&key]).put()?;
        let latent = chain.step("kv_nope_reshard", &config.kv_nope_reshard, &[latent]).put()?;
        let entry = chain.step("kvpe_concat", &config.kvpe_concat, &[&latent, &key]).put()?;
        let entry = chain.step("kvpe_permute", &config.kvpe_permute, &[&entry]).put()?;
        let entry = chain.step("kvpe_partition", &config.kvpe_partition, &[&entry]).put()?;
        let inputs = [&self.cache, &entry, &self.positions, &self.page_table];
        chain.step("paged_update_cache", &config.paged_update_cache, &inputs).put()?;
        Ok(())
    }

    /// A column's heads for all users, the part without position in the latent space.
    fn queries(&self, chain: &mut Chain, q: &Tensor) -> Result<Tensor, PlanError> {
        let (config, attention) = (self.config, &self.dimensions.attention);
        let (users, heads) = (self.dimensions.tokens, attention.local_heads);
        let (nope, whole) = (attention.nope, attention.query_key());
        let q = chain.step("wq_b", &config.wq_b, &[q]).put()?;
        let q = chain.step("q_untilize", &config.q_untilize, &[&q]).put()?;
        let q = chain.reshape("q_heads", "view", &q, &[1, users, heads, whole])?;
        let q = chain.step("q_reshard", &config.q_reshard, &[&q]).put()?;
        let q = chain.step("q_tilize", &config.q_tilize, &[&q]).put()?;
        let part = [&[0, 0, 0, 0][..], &[1, users, heads, nope]];
        let latent = chain.slice("q_nope_slice", &config.q_nope_slice, &q, part)?;
        let part = [&[0, 0, 0, nope][..], &[1, users, heads, whole]];
        let rotated = chain.slice("q_rope_slice", &config.q_rope_slice, &q, part)?;
        let latent = chain.step("q_nope_permute", &config.q_nope_permute, &[&latent]).put()?;
        let latent = chain.step("wkv_b1", &config.wkv_b1, &[&latent]).put()?;
        let latent = chain.step("q_nope_out_permute", &config.q_nope_out_permute, &[&latent]).put()?;
        let rotated = self.rotate(chain, "q_rope", &rotated)?;
        let rotated = chain.step("q_rope_out_reshard", &config.q_rope_out_reshard, &[&rotated]).put()?;
        chain.step("q_concat", &config.q_concat, &[&latent, &rotated]).put()
    }

    /// All heads of a column's users over their caches, and out of the latent space.
    fn attend(&self, chain: &mut Chain, q: &Tensor) -> Result<Tensor, PlanError> {
        let config = self.config;
        let q = chain.step("wq_a2a_decode", &config.wq_a2a_decode, &[q]).put()?;
        let inputs = [&q, &self.cache, &self.page_table, &self.positions];
        let y = chain.step("flash_mla", &config.flash_mla, &inputs).put()?;
        let y = chain.step("flash_mla_out_permute", &config.flash_mla_out_permute, &[&y]).put()?;
        chain.step("wkv_b2", &config.wkv_b2, &[&y]).put()
    }

    /// The values of all users, and a column's part of the residual stream.
    fn output(&self, chain: &mut Chain, values: &Tensor) -> Result<Tensor, PlanError> {
        let config = self.config;
        let y = chain.step("v_permute", &config.v_permute, &[values]).put()?;
        let y = chain.step("v_untilize", &config.v_untilize, &[&y]).put()?;
        let y = chain.step("v_reshard", &config.v_reshard, &[&y]).put()?;
        let flat = [1, 1, self.dimensions.local_users(), self.dimensions.attention.values()];
        let y = chain.reshape("v_flat", "view", &y, &flat)?;
        let y = chain.step("wo_ag_decode", &config.wo_ag_decode, &[&y]).put()?;
        let y = chain.step("v_tilize", &config.v_tilize, &[&y]).put()?;
        let y = chain.step("wo_reshard", &config.wo_reshard, &[&y]).put()?;
        chain.step("wo", &config.wo, &[&y]).put()
    }
}
