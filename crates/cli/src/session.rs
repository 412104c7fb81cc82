//! Stage 3: a model with its weights and its state, ready to run, as the engine knows it.

use crate::{
    args::LoadArgs,
    load::{self, ReadAhead},
    model::OpenModel,
    operator_configs::OperatorConfigs,
};
use anyhow::{Result, bail};
use dsv3_deepseek::{HfConfig, Model, ModelState, ModelWeights, decode_bytes};
use dsv3_engine::{LanguageModel, ModelLimits};
use dsv3_mesh::Layout;
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

/// How much state to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Tokens that one sequence may have.
    pub(crate) context: usize,
    /// Sequences of that length at once.
    pub(crate) sequences: usize,
    /// How they are cached.
    pub(crate) cache: CacheFormat,
}

impl Room {
    /// For one sequence, cached exactly.
    pub(crate) fn one(context: usize) -> Self {
        Self { context, sequences: 1, cache: CacheFormat::F32 }
    }

    fn pages(self) -> usize {
        self.context.div_ceil(PAGE_SIZE).saturating_mul(self.sequences)
    }
}

/// A model that runs on one device.
pub(crate) struct Session {
    run: RunConfig<Model>,
    state: ModelState,
    limits: ModelLimits,
    decode_bytes: u64,
    cache: CacheFormat,
    read_ahead: ReadAhead,
}

impl Session {
    /// Brings the stages together: the weights (converted first where there is no cache), the operator configs, and
    /// state for as many sequences as there is to be room for.
    ///
    /// # Errors
    /// Weights that cannot be used, or state that does not fit into memory.
    pub(crate) fn open(
        model: &OpenModel,
        configs: OperatorConfigs,
        room: Room,
        threads: Option<u16>,
        load: LoadArgs,
    ) -> Result<Self> {
        let hf = &model.hf;
        check_memory(hf, room)?;
        let weights: ModelWeights<Weight> = model.weights()?;
        let decode_bytes = decode_bytes(hf, &weights);
        let device = Device::single(threads.map_or(0, usize::from))?;
        let limits = ModelLimits { page_count: room.pages(), ..limits(hf, room.context) };
        let capacity = Capacity { max_context: room.context, page_size: PAGE_SIZE, pages: limits.page_count };
        let state = ModelState::new(hf, Layout::SINGLE, &capacity, room.cache)?;
        let read_ahead = load::load(&weights, load, &device)?;
        let run = RunConfig::new(configs.prefill, configs.decode, weights, device);
        Ok(Self { run, state, limits, decode_bytes, cache: room.cache, read_ahead })
    }

    /// The weights.
    pub(crate) fn weights(&self) -> &ModelWeights<Weight> {
        self.run.weights()
    }

    /// The threads and the kernels it runs on.
    pub(crate) fn on(&self) -> &Device {
        self.run.device()
    }

    /// Bytes that all layers' caches hold of `positions` tokens.
    pub(crate) fn cached_bytes(&self, hf: &HfConfig, positions: usize) -> u64 {
        cached_bytes(hf, positions, self.cache)
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
        if output.logits.rows() > 0 {
            // Text may follow now, and a bar would stand in it.
            self.read_ahead.hide();
        }
        Ok(output.logits)
    }

    fn forward_decode(&mut self, tokens: &[TokenId], step: &DecodeStep<'_>) -> Result<Tensor, Error> {
        let Self { run, state, .. } = self;
        let output = Model::forward_decode(tokens, step, run.decode(state))?;
        Ok(output.logits)
    }
}

/// Bytes that all layers' caches hold of `positions` tokens.
fn cached_bytes(hf: &HfConfig, positions: usize, cache: CacheFormat) -> u64 {
    let layers = (hf.num_hidden_layers + hf.mtp_layers) as u64;
    let per_token = LatentCache::bytes_per_token(hf.attention.latent_shape(), cache) as u64;
    (positions as u64).saturating_mul(layers).saturating_mul(per_token)
}

/// Asks the system for the memory of all layers' latent caches at once, and gives it back: what it refuses now would
/// end the program later.
fn check_memory(hf: &HfConfig, room: Room) -> Result<()> {
    let bytes = cached_bytes(hf, room.pages().saturating_mul(PAGE_SIZE), room.cache);
    let mut memory = Vec::<u8>::new();
    let fits = usize::try_from(bytes).is_ok_and(|bytes| memory.try_reserve_exact(bytes).is_ok());
    // Without a use, the allocation could be optimised away, and with it the question.
    std::hint::black_box(&mut memory);
    if !fits {
        let Room { context, sequences, .. } = room;
        let several = if sequences == 1 { String::new() } else { format!("{sequences} times ") };
        bail!(
            "the cache of {several}a context of {context} tokens takes {}, more than this system gives: choose a \
             smaller --context",
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
        check_memory(&hf, Room::one(2048)).unwrap();
        let error = check_memory(&hf, Room::one(1 << 60)).unwrap_err().to_string();
        assert!(error.contains("1152921504606846976 tokens") && error.contains("--context"), "{error}");
        let error =
            check_memory(&hf, Room { sequences: 1 << 50, ..Room::one(2048) }).unwrap_err().to_string();
        assert!(error.contains("1125899906842624 times a context of 2048"), "{error}");
    }
}
