//! The operations of a step of the whole model. Layers of a kind are put down once.

use super::{
    attention::{self, Rotations},
    attention_prefill::{self, Chunk},
    chain::{Chain, Tensor},
    ends, experts, feed_forward,
};
use crate::plan::{
    PlanError,
    modules::{
        decoder_block::{DecoderBlockConfig, MlaConfig},
        embedding::EmbeddingModuleConfig,
        model::ModelConfig,
        mtp::MtpConfig,
    },
    request::{Dimensions, Mode},
};

/// A step of decode, or a prefill: its first chunk, and one more where it has several.
pub(in crate::plan) fn forward(
    chain: &mut Chain,
    dimensions: &Dimensions,
    config: &ModelConfig,
) -> Result<(), PlanError> {
    let rope = config.rope.as_ref();
    let rotations = rope
        .map(|rope| chain.within("rope", |chain| ends::rotations(chain, dimensions, rope)))
        .transpose()?;
    let pass = Pass { dimensions, config, rotations: rotations.as_ref(), chunk: Chunk::First };
    pass.forward(chain)?;
    let chunk = dimensions.chunks.model_chunk;
    if dimensions.request.mode == Mode::Prefill && dimensions.padded_length > chunk {
        let later = Pass { chunk: Chunk::Behind(chunk), ..pass };
        chain.within("later_chunk", |chain| later.forward(chain))?;
    }
    Ok(())
}

struct Pass<'a> {
    dimensions: &'a Dimensions,
    config: &'a ModelConfig,
    rotations: Option<&'a Rotations>,
    chunk: Chunk,
}

impl Pass<'_> {
    fn forward(&self, chain: &mut Chain) -> Result<(), PlanError> {
        let (dimensions, config) = (self.dimensions, self.config);
        let mut x = self.embedding(chain, &config.embedding)?;
        for block in &config.mlp_decoder_block {
            x = chain.within("mlp_decoder_block", |chain| {
                self.block(chain, block, &x, |chain, x| feed_forward::mlp(chain, &block.mlp, x))
            })?;
        }
        for block in &config.moe_decoder_block {
            x = chain.within("moe_decoder_block", |chain| {
                self.block(chain, block, &x, |chain, x| experts::block(chain, &block.mlp, x))
            })?;
        }
        ends::head(chain, dimensions, config, &x)?;
        match &config.mtp {
            Some(mtp) => chain.within("mtp", |chain| self.mtp(chain, mtp, &x)),
            None => Ok(()),
        }
    }

    fn embedding(&self, chain: &mut Chain, config: &EmbeddingModuleConfig) -> Result<Tensor, PlanError> {
        let reshard = &self.config.embedding_reshard;
        chain.within("embedding", |chain| {
            let x = ends::embedding(chain, self.dimensions, config)?;
            chain.step("reshard", reshard, &[&x]).put()
        })
    }

    /// `x += MLA(norm(x)); x += MLP(norm(x))`.
    fn block<M>(
        &self,
        chain: &mut Chain,
        config: &DecoderBlockConfig<M>,
        x: &Tensor,
        mlp: impl FnOnce(&mut Chain, &Tensor) -> Result<Tensor, PlanError>,
    ) -> Result<Tensor, PlanError> {
        let y = feed_forward::norm(chain, "mla_norm", &config.mla_norm, x)?;
        let y = chain.step("mla_norm_reshard", &config.mla_norm_reshard, &[&y]).put()?;
        let y = chain.within("mla", |chain| match &config.mla.mla1d {
            MlaConfig::Decode(mla) => {
                let rotations = self.rotations.expect("decode has them");
                attention::forward_decode(chain, self.dimensions, mla, &y, rotations)
            }
            MlaConfig::Prefill(mla) => {
                attention_prefill::forward_prefill(chain, self.dimensions, mla, &y, self.chunk)
            }
        })?;
        let y = chain.step("mla_reshard", &config.mla_reshard, &[&y]).put()?;
        let x = chain.step("mla_residual", &config.residual, &[x, &y]).put()?;
        let y = feed_forward::norm(chain, "mlp_norm", &config.mlp_norm, &x)?;
        let y = chain.step("mlp_norm_reshard", &config.mlp_norm_reshard, &[&y]).put()?;
        let y = chain.within("mlp", |chain| mlp(chain, &y))?;
        let y = chain.step("mlp_reshard", &config.mlp_reshard, &[&y]).put()?;
        chain.step("mlp_residual", &config.residual, &[&x, &y]).put()
    }

    /// The layer for multi-token prediction on the model's last hidden state.
    fn mtp(&self, chain: &mut Chain, config: &MtpConfig, hidden: &Tensor) -> Result<(), PlanError> {
        let token = self.embedding(chain, &config.embedding)?;
        let token = feed_forward::norm(chain, "token_norm", &config.token_norm, &token)?;
        let hidden = feed_forward::norm(chain, "hidden_norm", &config.hidden_norm, hidden)?;
        let token = chain.step("token_all_gather", &config.all_gather, &[&token]).put()?;
        let hidden = chain.step("hidden_all_gather", &config.all_gather, &[&hidden]).put()?;
        let x = chain.step("concat", &config.concat, &[&token, &hidden]).put()?;
        let x = feed_forward::rows(chain, "eh_proj", &config.eh_proj.linear, config.eh_proj.max_rows, &x)?;
        let x = chain.step("eh_proj_reshard", &config.eh_proj_reshard, &[&x]).put()?;
        let block = &config.decoder_block;
        let x = chain.within("decoder_block", |chain| {
            self.block(chain, block, &x, |chain, x| experts::block(chain, &block.mlp, x))
        })?;
        let x = feed_forward::norm(chain, "head_norm", &config.head_norm, &x)?;
        let x = chain.step("norm_reshard", &self.config.norm_reshard, &[&x]).put()?;
        chain.within("lm_head", |chain| match self.dimensions.request.mode {
            Mode::Decode => ends::logits(chain, &config.head, &x),
            Mode::Prefill => ends::logits_of_all(chain, &config.head, &x),
        })?;
        Ok(())
    }
}
