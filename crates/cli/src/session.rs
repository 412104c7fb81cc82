//! Stage 3: a model with its weights and its state, ready to run, as the engine knows it.

use crate::{model::OpenModel, operator_configs::OperatorConfigs};
use anyhow::{Result, bail};
use dsv3_deepseek::{HfConfig, Model, ModelState, ModelWeights, decode_bytes};
use dsv3_engine::{LanguageModel, ModelLimits};
use dsv3_mesh::MeshShape;
use dsv3_runtime::{
    Capacity, DecodeStep, Device, Error, Module, PrefillStep, RunConfig, Tensor, TokenId, Weight,
    ops::{CacheFormat, LatentCache},
};
use indicatif::DecimalBytes;

/// Tokens of a prompt that run at once: enough that each routed expert gets several, few enough that their
/// activations stay in megabytes.
pub(crate) const PREFILL_CHUNK: usize = 512;
/// Tokens in a page of the latent cache.
const PAGE_SIZE: usize = 64;

/// A model that runs on one device.
pub(crate) struct Session {
    run: RunConfig<Model>,
    state: ModelState,
    limits: ModelLimits,
    decode_bytes: u64,
}

impl Session {
    /// Brings the stages together: the weights (converted first where there is no cache), the operator configs, and
    /// state for one sequence of `context` tokens, cached in the format `cache`.
    ///
    /// # Errors
    /// Weights that cannot be used, or a context that does not fit into memory.
    pub(crate) fn open(
        model: &OpenModel,
        configs: OperatorConfigs,
        context: usize,
        threads: Option<u16>,
        cache: CacheFormat,
    ) -> Result<Self> {
        let hf = &model.hf;
        check_memory(hf, context, cache)?;
        let weights: ModelWeights<Weight> = model.weights()?;
        let decode_bytes = decode_bytes(hf, &weights);
        let device = Device::single(threads.map_or(0, usize::from))?;
        let limits = limits(hf, context);
        let capacity = Capacity { max_context: context, page_size: PAGE_SIZE, pages: limits.page_count };
        let state = ModelState::new(hf, MeshShape::SINGLE, &capacity, cache)?;
        let run = RunConfig::new(configs.prefill, configs.decode, weights, device);
        Ok(Self { run, state, limits, decode_bytes })
    }

    /// Bytes of weights that one decoded token reads.
    pub(crate) fn decode_bytes(&self) -> u64 {
        self.decode_bytes
    }

    /// Where it runs, for the user: `2 threads (AVX2)`.
    pub(crate) fn device(&self) -> String {
        let device = self.run.device();
        let threads = device.threads();
        format!("{threads} thread{} ({})", if threads == 1 { "" } else { "s" }, device.kernels().isa())
    }
}

/// What a session of one sequence of `context` tokens will be able to run. Known before it is opened, so that prompts
/// are refused before weights are read.
pub(crate) fn limits(hf: &HfConfig, context: usize) -> ModelLimits {
    ModelLimits {
        vocab_size: hf.vocab_size,
        max_context: context,
        page_size: PAGE_SIZE,
        page_count: context.div_ceil(PAGE_SIZE),
    }
}

impl LanguageModel for Session {
    fn limits(&self) -> ModelLimits {
        self.limits
    }

    fn forward_prefill(&mut self, tokens: &[TokenId], step: &PrefillStep<'_>) -> Result<Tensor, Error> {
        let Self { run, state, .. } = self;
        let output = Model::forward_prefill(tokens, step, run.prefill(state))?;
        Ok(output.logits)
    }

    fn forward_decode(&mut self, tokens: &[TokenId], step: &DecodeStep<'_>) -> Result<Tensor, Error> {
        let Self { run, state, .. } = self;
        let output = Model::forward_decode(tokens, step, run.decode(state))?;
        Ok(output.logits)
    }
}

/// Asks the system for the memory of all layers' latent caches at once, and gives it back: what it refuses now would
/// end the program later.
fn check_memory(hf: &HfConfig, context: usize, cache: CacheFormat) -> Result<()> {
    let positions = context.next_multiple_of(PAGE_SIZE) as u64;
    let layers = (hf.num_hidden_layers + hf.mtp_layers) as u64;
    let per_token = LatentCache::bytes_per_token(hf.attention.latent_shape(), cache) as u64;
    let bytes = positions.saturating_mul(layers).saturating_mul(per_token);
    let mut memory = Vec::<u8>::new();
    let fits = usize::try_from(bytes).is_ok_and(|bytes| memory.try_reserve_exact(bytes).is_ok());
    // Without a use, the allocation could be optimised away, and with it the question.
    std::hint::black_box(&mut memory);
    if !fits {
        bail!(
            "the cache of a context of {context} tokens takes {}, more than this system gives: choose a smaller \
             --context",
            DecimalBytes(bytes)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded;
    use std::path::Path;

    #[test]
    fn a_context_beyond_memory_is_refused() {
        let hf = HfConfig::from_json(Path::new("config.json"), embedded::CONFIG_JSON).unwrap();
        check_memory(&hf, 2048, CacheFormat::F32).unwrap();
        let error = check_memory(&hf, 1 << 60, CacheFormat::Q8).unwrap_err().to_string();
        assert!(error.contains("1152921504606846976 tokens") && error.contains("--context"), "{error}");
    }
}
