//! The three stages of any module, as production runs them: converted into a cache, written and read back as JSON,
//! loaded, bound to a device.

use dsv3_deepseek::HfConfig;
use dsv3_mesh::{ExpertSharding, Layout};
use dsv3_runtime::{
    Capacity, Checkpoint, DecodeStep, Device, Error, LogitRows, Module, PageId, PrefillStep, Prefix,
    RunConfig, SavedWeight, WeightLoader, WeightOutput, WeightPath,
};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;

/// A page size that divides nothing, so that pages and chunks never end together.
pub const PAGE_SIZE: usize = 7;

/// A module after stages 1 and 2, with what stage 3 needs.
pub struct Stages<M: Module> {
    pub run: RunConfig<M>,
    layout: Layout,
    hf: HfConfig,
    capacity: Capacity,
    pages: Vec<PageId>,
}

impl<M: Module<Hf = HfConfig>> Stages<M>
where
    M::Weights<SavedWeight>: Serialize + DeserializeOwned,
{
    /// Runs stage 1 and 2 for the module at `at` in a checkpoint, on one device.
    pub fn new(checkpoint: &Path, hf: &HfConfig, at: &Prefix) -> Self {
        let device = Device::single(2).unwrap();
        Self::on(device, ExpertSharding::Tensor, checkpoint, hf, at).unwrap()
    }

    /// Runs stage 1 and 2 for one rank of a mesh.
    pub fn on(
        device: Device,
        experts: ExpertSharding,
        checkpoint: &Path,
        hf: &HfConfig,
        at: &Prefix,
    ) -> Result<Self, Error> {
        let layout = Layout { mesh: device.mesh().shape(), experts };
        let prefill = through_json(&M::prefill_model_config(hf, layout)?);
        let decode = through_json(&M::decode_model_config(hf, layout)?);
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(checkpoint).unwrap();
        let mut progress = |_: dsv3_runtime::ConvertProgress<'_>| {};
        let mut out = WeightOutput::new(cache.path(), layout, device.mesh().rank(), &mut progress);
        let saved = M::convert_weights(hf, at, &checkpoint, &mut out)?;
        out.finish()?;
        let mut loader = WeightLoader::new(&checkpoint, cache.path());
        let weights = M::try_map(through_json(&saved), &mut WeightPath::default(), &mut |_, saved| {
            loader.load(&saved)
        })?;
        let run = RunConfig::new(prefill, decode, weights, device);
        let max_context = hf.max_position_embeddings;
        let pages = max_context.div_ceil(PAGE_SIZE);
        Ok(Self {
            run,
            layout,
            hf: hf.clone(),
            capacity: Capacity { max_context, page_size: PAGE_SIZE, pages },
            // Backwards, so that no page lies where its positions would suggest.
            pages: (0..pages as u32).rev().map(PageId).collect(),
        })
    }

    /// Fresh state.
    pub fn state(&self) -> M::State {
        M::create_state(&self.hf, self.layout, &self.capacity).unwrap()
    }

    /// The step of a chunk that starts at `start`.
    pub fn prefill_step(&self, start: usize) -> PrefillStep<'_> {
        PrefillStep::new(start, &self.pages, LogitRows::All)
    }

    /// A pass over one chunk.
    pub fn prefill(&self, x: M::Input<'_>, start: usize, state: &mut M::State) -> M::Output {
        M::forward_prefill(x, &self.prefill_step(start), self.run.prefill(state)).unwrap()
    }

    /// A pass over one token of one user.
    pub fn decode(&self, x: M::Input<'_>, position: usize, state: &mut M::State) -> M::Output {
        let (positions, pages) = ([position], [&self.pages[..]]);
        let step = DecodeStep::new(&positions, &pages);
        M::forward_decode(x, &step, self.run.decode(state)).unwrap()
    }
}

fn through_json<T: Serialize + DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}
