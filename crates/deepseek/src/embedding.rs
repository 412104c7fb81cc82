//! Token embedding, the hidden dimension split over the columns.

use crate::{hf::HfConfig, kinds, spec};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, DecodeRun, DecodeStep, Error, Leaf, LeafFn, Module, PrefillRun, PrefillStep, Prefix, Run,
    Tensor, TokenId, WeightPath, WeightSpec, WeightTree, ops, weight_tree,
};

/// The table of token embeddings.
pub enum Embedding {}

weight_tree! {
    /// Weights of [`Embedding`].
    pub struct EmbeddingWeights<W> {
        /// `[vocab, hidden]`.
        weight: Leaf<W>,
    }
}

impl Module for Embedding {
    type Hf = HfConfig;
    type Weights<W> = EmbeddingWeights<W>;
    type PrefillConfig = ops::EmbeddingConfig;
    type DecodeConfig = ops::EmbeddingConfig;
    type State = ();
    type Input<'a> = &'a [TokenId];
    type Output = Tensor;

    fn weight_specs(hf: &HfConfig, at: &Prefix, _: Layout) -> EmbeddingWeights<WeightSpec> {
        EmbeddingWeights {
            weight: spec::matrix(hf, kinds::EMBEDDING, at, [hf.vocab_size, hf.hidden_size], spec::BY_INPUT),
        }
    }

    fn try_map<A, B, E>(
        weights: EmbeddingWeights<A>,
        path: &mut WeightPath,
        f: LeafFn<'_, A, B, E>,
    ) -> Result<EmbeddingWeights<B>, E> {
        weights.try_map(path, f)
    }

    fn prefill_model_config(hf: &HfConfig, layout: Layout) -> Result<ops::EmbeddingConfig, Error> {
        let features = spec::over_columns("hidden_size", hf.hidden_size, layout)?;
        Ok(ops::EmbeddingConfig { vocab_size: hf.vocab_size, features })
    }

    fn decode_model_config(hf: &HfConfig, layout: Layout) -> Result<ops::EmbeddingConfig, Error> {
        Self::prefill_model_config(hf, layout)
    }

    fn create_state(_: &HfConfig, _: Layout, _: &Capacity) -> Result<(), Error> {
        Ok(())
    }

    /// # Shapes
    /// `[tokens]` to `[tokens, hidden / columns]`.
    fn forward_prefill(
        tokens: &[TokenId],
        _: &PrefillStep<'_>,
        Run { cfg, w, device, .. }: PrefillRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        ops::embedding(tokens, &w.weight, cfg, device)
    }

    /// # Shapes
    /// `[users]` to `[users, hidden / columns]`.
    fn forward_decode(
        tokens: &[TokenId],
        _: &DecodeStep<'_>,
        Run { cfg, w, device, .. }: DecodeRun<'_, Self>,
    ) -> Result<Tensor, Error> {
        ops::embedding(tokens, &w.weight, cfg, device)
    }
}
