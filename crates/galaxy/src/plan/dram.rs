//! What a device holds in its DRAM: weights, found in the configs, and caches.

use super::{
    PlanError,
    modules::{model::ModelConfig, mtp::MtpConfig},
    operators::FromWeightConfig,
    request::Dimensions,
};
use crate::{
    hardware::DRAM_BYTES,
    tensorbin::TensorSpec,
    types::{BufferType, Layout},
    weights::device_bytes,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of a device's DRAM, without activations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dram {
    /// That there are.
    pub bytes: u64,
    /// Of embedding, head and last norm.
    pub ends: u64,
    /// Of the weights of a layer with a dense MLP.
    pub dense_layer: u64,
    /// Of the weights of a layer with experts.
    pub moe_layer: u64,
    /// Of what the layer for multi-token prediction has more.
    pub mtp: u64,
    /// Of a layer's cache.
    pub kv_cache: u64,
    /// Of all weights and caches of all layers.
    pub model: u64,
    /// How many of the model's first layers fit with the ends; less than it has where a part of it can be run only.
    pub layers_that_fit: u32,
}

/// Counts what the configs name.
///
/// # Errors
/// If not even a layer of each kind fits.
pub(super) fn count(dimensions: &Dimensions, config: &ModelConfig, kv_cache: u64) -> Result<Dram, PlanError> {
    let ends = weights(&config.embedding) + weights(&config.norm) + weights(&config.lm_head.linear);
    let (dense_layer, moe_layer) = (weights(&config.mlp_decoder_block), weights(&config.moe_decoder_block));
    let block = config.mtp.as_ref().map_or(0, |mtp| weights(&mtp.decoder_block));
    let of_mtp = |mtp: &MtpConfig| {
        let norms = [&mtp.hidden_norm, &mtp.token_norm, &mtp.head_norm].map(weights);
        weights(&mtp.eh_proj) + norms.iter().sum::<u64>()
    };
    let mtp = config.mtp.as_ref().map_or(0, of_mtp);
    let dram = Dram {
        bytes: DRAM_BYTES,
        ends,
        dense_layer,
        moe_layer,
        mtp,
        kv_cache,
        model: ends
            + u64::from(dimensions.dense_layers) * (dense_layer + kv_cache)
            + u64::from(dimensions.moe_layers) * (moe_layer + kv_cache)
            + if config.mtp.is_some() { mtp + block + kv_cache } else { 0 },
        layers_that_fit: 0,
    };
    let layers_that_fit = dram.layers(dimensions);
    let least = ends + dense_layer.max(moe_layer) + kv_cache;
    if least > DRAM_BYTES {
        let what = "one layer with its cache, embedding and head".to_owned();
        return Err(PlanError::Dram { what, bytes: least, limit: DRAM_BYTES });
    }
    Ok(Dram { layers_that_fit, ..dram })
}

impl Dram {
    fn layers(&self, dimensions: &Dimensions) -> u32 {
        let mut left = self.bytes.saturating_sub(self.ends);
        let dense = std::iter::repeat_n(self.dense_layer, dimensions.dense_layers as usize);
        let all = dense.chain(std::iter::repeat_n(self.moe_layer, dimensions.moe_layers as usize));
        let fits = |weights: &u64| {
            let rest = left.checked_sub(weights + self.kv_cache);
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        all.take_while(fits).count() as u32
    }
}

/// Bytes of the weights in a part of the tree: of all that is a `FromWeightConfig`.
fn weights(tree: &impl Serialize) -> u64 {
    fn visit(value: &Value) -> u64 {
        match value {
            Value::Object(fields) => match serde_json::from_value::<FromWeightConfig>(value.clone()) {
                Ok(weight) => bytes(&weight),
                Err(_) => fields.values().map(visit).sum(),
            },
            Value::Array(items) => items.iter().map(visit).sum(),
            _ => 0,
        }
    }
    visit(&serde_json::to_value(tree).expect("configs are data"))
}

/// Bytes of a weight as stage 1 counts them, what banks are padded with included.
fn bytes(weight: &FromWeightConfig) -> u64 {
    if weight.memory_config.buffer_type != BufferType::Dram {
        return 0;
    }
    let memory_config =
        weight.memory_config.clone().with_ranges().expect("weights lie on cores that are named");
    let spec = match weight.layout {
        Layout::Tile => TensorSpec::tiled(&weight.shape, weight.dtype, memory_config),
        Layout::RowMajor => TensorSpec::row_major(&weight.shape, weight.dtype, memory_config),
    };
    device_bytes(&spec)
}
