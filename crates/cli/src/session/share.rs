//! One rank's share of a model: its weights, its state, its device.

use super::Room;
use crate::{
    args::LoadArgs,
    load::{self, ReadAhead},
    model::OpenModel,
    operator_configs::OperatorConfigs,
};
use anyhow::Result;
use dsv3_deepseek::{Model, ModelState, ModelWeights};
use dsv3_engine::{ChosenExperts, LanguageModel, ModelLimits};
use dsv3_mesh::{Axis, Layout};
use dsv3_runtime::{
    DecodeStep, Device, Error, Module, PageId, PrefillStep, RunConfig, Tensor, TokenId, Weight,
};

/// What one rank runs.
pub(crate) struct Share {
    run: RunConfig<Model>,
    state: ModelState,
    limits: ModelLimits,
    read_ahead: ReadAhead,
}

impl Share {
    /// Brings the stages together: the weights (converted first where there is no cache), the operator configs, and
    /// state for as many sequences as there is to be room for.
    ///
    /// # Errors
    /// Weights that cannot be used, or state that does not fit into memory.
    pub(super) fn open(
        model: &OpenModel,
        layout: Layout,
        configs: OperatorConfigs,
        room: Room,
        device: Device,
        load: LoadArgs,
    ) -> Result<Self> {
        let hf = &model.hf;
        room.check_memory(hf)?;
        let weights: ModelWeights<Weight> = model.load(layout, device.mesh().rank())?;
        let limits = room.limits(hf);
        let state = ModelState::new(hf, layout, &room.capacity(), room.cache)?;
        let (weights, read_ahead) = load::load(weights, load, &device)?;
        let run = RunConfig::new(configs.prefill, configs.decode, weights, device);
        Ok(Self { run, state, limits, read_ahead })
    }

    /// The weights.
    pub(super) fn weights(&self) -> &ModelWeights<Weight> {
        self.run.weights()
    }

    /// The threads and the kernels it runs on.
    pub(super) fn device(&self) -> &Device {
        self.run.device()
    }
}

impl LanguageModel for Share {
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

    fn copy_page(&mut self, row: usize, from: PageId, to: PageId) -> Result<(), Error> {
        let mesh = self.run.device().mesh();
        if mesh.shape().coordinate(mesh.rank(), Axis::Rows) != row {
            return Ok(());
        }
        self.state.caches().try_for_each(|cache| cache.copy_page(from, to))
    }

    fn take_chosen_experts(&mut self) -> Option<ChosenExperts> {
        let (first_layer, counts) = self.state.take_chosen_experts();
        (!counts.is_empty()).then_some(ChosenExperts { first_layer, counts })
    }

    fn page_bytes(&self) -> Option<usize> {
        Some(self.state.page_bytes())
    }

    fn read_page(&mut self, page: PageId, out: &mut Vec<u8>) -> Result<(), Error> {
        self.state.caches().try_for_each(|cache| cache.read_page(page, out))
    }

    fn write_page(&mut self, page: PageId, mut bytes: &[u8]) -> Result<(), Error> {
        self.state.caches().try_for_each(|cache| cache.write_page(page, &mut bytes))
    }
}
