//! Stage 3: a model with its weights and its state, ready to run, as the engine knows it.

mod ranks;
mod share;

use crate::{args::DeviceArgs, model::OpenModel, operator_configs::OperatorConfigs};
use anyhow::{Result, bail};
use dsv3_deepseek::{HfConfig, ModelWeights, counts, decode_bytes};
use dsv3_engine::{ChosenExperts, LanguageModel, Leader, ModelLimits};
use dsv3_mesh::{Axis, MeshShape, Moved};
use dsv3_runtime::{
    Capacity, DecodeStep, Device, Error, Kernels, PageId, PrefillStep, Tensor, TokenId, Weight,
    ops::CacheFormat,
};
use indicatif::DecimalBytes;
use ranks::{Followers, Orders};
pub(crate) use ranks::{follow_launched, is_launched};
use serde::{Deserialize, Serialize};
use share::Share;

/// Tokens of a prompt that run at once: enough that each routed expert gets several, few enough that their
/// activations stay in megabytes.
pub(crate) const PREFILL_CHUNK: usize = 512;
/// Tokens in a page of the latent cache.
pub(crate) const PAGE_SIZE: usize = 64;

/// How much state to make.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Room {
    /// Tokens that one sequence may have.
    pub(crate) context: usize,
    /// Sequences of that length at once, on all rows together.
    pub(crate) sequences: usize,
    /// Rows of the mesh, which share the sequences.
    pub(crate) rows: usize,
    /// How they are cached.
    pub(crate) cache: CacheFormat,
}

impl Room {
    /// For one sequence, cached exactly.
    pub(crate) fn one(context: usize) -> Self {
        Self { context, sequences: 1, rows: 1, cache: CacheFormat::F32 }
    }

    /// Pages of each row.
    fn pages(self) -> usize {
        self.context.div_ceil(PAGE_SIZE).saturating_mul(self.sequences.div_ceil(self.rows))
    }

    /// Tokens that each device can cache.
    pub(crate) fn positions(self) -> usize {
        self.pages().saturating_mul(PAGE_SIZE)
    }

    /// The caches' size on each device.
    fn capacity(self) -> Capacity {
        Capacity { max_context: self.context, page_size: PAGE_SIZE, pages: self.pages() }
    }

    fn limits(self, hf: &HfConfig) -> ModelLimits {
        ModelLimits { page_count: self.pages(), rows: self.rows, ..limits(hf, self.context) }
    }

    /// Asks the system for the memory of all layers' latent caches at once, and gives it back: what it refuses now would
    /// end the program later.
    fn check_memory(self, hf: &HfConfig) -> Result<()> {
        let bytes = cached_bytes(hf, self.positions(), self.cache);
        let mut memory = Vec::<u8>::new();
        let fits = usize::try_from(bytes).is_ok_and(|bytes| memory.try_reserve_exact(bytes).is_ok());
        // Without a use, the allocation could be optimised away, and with it the question.
        std::hint::black_box(&mut memory);
        if !fits {
            let Self { context, sequences, .. } = self;
            let several = if sequences == 1 { String::new() } else { format!("{sequences} times ") };
            bail!(
                "the cache of {several}a context of {context} tokens takes {}, more than this system gives: choose \
                 a smaller --context",
                DecimalBytes(bytes)
            );
        }
        Ok(())
    }
}

/// A model that runs, on one device or on all of a mesh.
pub(crate) struct Session {
    leader: Leader<Share>,
    decode_bytes: u64,
    cache: CacheFormat,
    // Dropped last: it waits for threads that end when the leader does.
    _followers: Followers,
}

impl Session {
    /// Brings the stages together on every device.
    ///
    /// # Errors
    /// Weights that cannot be used, or state that does not fit into memory, on any of the devices.
    pub(crate) fn open(
        model: &OpenModel,
        configs: OperatorConfigs,
        room: Room,
        args: DeviceArgs,
    ) -> Result<Self> {
        let room = Room { rows: args.mesh.layout.layout().mesh.size(Axis::Rows), ..room };
        let cache = room.cache;
        let (leader, followers) = ranks::lead(model, Orders { configs, room }, args)?;
        let decode_bytes = decode_bytes(&model.hf, leader.model().weights());
        Ok(Self { leader, decode_bytes, cache, _followers: followers })
    }

    /// The first device's weights.
    pub(crate) fn weights(&self) -> &ModelWeights<Weight> {
        self.leader.model().weights()
    }

    /// The first device's threads and kernels.
    pub(crate) fn on(&self) -> &Device {
        self.leader.model().device()
    }

    /// Bytes that all layers' caches hold of `positions` tokens.
    pub(crate) fn cached_bytes(&self, hf: &HfConfig, positions: usize) -> u64 {
        cached_bytes(hf, positions, self.cache)
    }

    /// Bytes of weights that one decoded token reads on the first device.
    pub(crate) fn decode_bytes(&self) -> u64 {
        self.decode_bytes
    }

    /// What the first device has sent and received so far.
    pub(crate) fn moved(&self) -> Moved {
        self.leader.mesh().traffic().total()
    }

    /// Where it runs, for the user: `2 threads (AVX2)`, `1x2 devices of 1 thread (AVX2)`.
    pub(crate) fn device(&self) -> String {
        let device = self.on();
        let threads = device.threads();
        let text =
            format!("{threads} thread{} ({})", if threads == 1 { "" } else { "s" }, device.kernels().isa());
        match device.mesh().shape() {
            MeshShape::SINGLE => text,
            mesh => format!("{mesh} devices of {text}"),
        }
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
        rows: 1,
    }
}

impl LanguageModel for Session {
    fn limits(&self) -> ModelLimits {
        self.leader.limits()
    }

    fn forward_prefill(&mut self, tokens: &[TokenId], step: &PrefillStep<'_>) -> Result<Tensor, Error> {
        self.leader.forward_prefill(tokens, step)
    }

    fn forward_decode(&mut self, tokens: &[TokenId], step: &DecodeStep<'_>) -> Result<Tensor, Error> {
        self.leader.forward_decode(tokens, step)
    }

    fn copy_page(&mut self, row: usize, from: PageId, to: PageId) -> Result<(), Error> {
        self.leader.copy_page(row, from, to)
    }

    fn take_chosen_experts(&mut self) -> Option<ChosenExperts> {
        self.leader.take_chosen_experts()
    }

    fn page_bytes(&self) -> Option<usize> {
        self.leader.page_bytes()
    }

    fn read_page(&mut self, page: PageId, out: &mut Vec<u8>) -> Result<(), Error> {
        self.leader.read_page(page, out)
    }

    fn write_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), Error> {
        self.leader.write_page(page, bytes)
    }
}

/// All that decides which bytes the cache holds for given tokens: the checkpoint as it lies there now, how it is run, and
/// by which kernels of which version.
pub(crate) fn cache_fingerprint(
    model: &OpenModel,
    configs: &OperatorConfigs,
    cache: CacheFormat,
) -> Result<String> {
    let configs = serde_json::to_string(configs)?;
    let facts: Vec<_> = model.facts().iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let checkpoint = serde_json::to_string(model.fingerprint())?;
    let (isa, version) = (Kernels::best().isa(), env!("CARGO_PKG_VERSION"));
    let facts = facts.join("\n");
    Ok(format!("{facts}\n{checkpoint}\ncached in {cache}\n{configs}\n{isa} of dsv3 {version}"))
}

/// Bytes that all layers' caches hold of `positions` tokens, the MTP layer's, too.
pub(crate) fn cached_bytes(hf: &HfConfig, positions: usize, cache: CacheFormat) -> u64 {
    counts::cached_bytes(hf, hf.num_hidden_layers + hf.mtp_layers, positions, cache)
}

#[cfg(test)]
mod tests;
