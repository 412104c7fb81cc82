//! How operators are laid over cores: the program configs. Fields are TT-NN's, in tiles where they count elements.
//!
//! What an operator has a default for is optional, and not written where it is not given.

// Many of TT-NN's switches are fields of one config.
#![allow(clippy::struct_excessive_bools)]

use super::{CoreCoord, CoreGrid, MathFidelity};
use serde::{Deserialize, Deserializer, Serialize, de, de::value::MapAccessDeserializer};
use std::fmt;

/// A program config. JSON names its class in the field `type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ProgramConfig {
    /// Each core computes blocks of its own, and nothing is sent.
    MatmulMultiCoreReuseProgramConfig(MatmulMultiCoreReuseProgramConfig),
    /// Rows of the left and columns of the right factor are sent over a grid of cores.
    MatmulMultiCoreReuseMultiCastProgramConfig(MatmulMultiCoreReuseMultiCastProgramConfig),
    /// One factor is sent to all cores, the other lies with them.
    MatmulMultiCoreReuseMultiCast1DProgramConfig(MatmulMultiCoreReuseMultiCast1DProgramConfig),
    /// The weight lies in columns over the banks of DRAM, and the cores next to them read it.
    MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig(
        MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig,
    ),
    /// The same with a weight for each of a batch.
    MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig(
        MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig,
    ),
    /// A norm over what is not sharded.
    LayerNormDefaultProgramConfig(LayerNormDefaultProgramConfig),
    /// A norm over cores that hold parts of each row.
    LayerNormShardedMultiCoreProgramConfig(LayerNormShardedMultiCoreProgramConfig),
    /// Attention.
    SDPAProgramConfig(SDPAProgramConfig),
}

/// An operation on single elements, fused into another: its name in capitals, and its parameters if it has any.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum UnaryWithParam {
    /// Without parameters: `"SILU"`.
    Plain(String),
    /// `{"op": "GELU", "params": [1.0]}`.
    With(UnaryObject),
}

/// An operation with parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnaryObject {
    /// Its name.
    pub op: String,
    /// Its parameters.
    #[serde(default)]
    pub params: Vec<f32>,
}

impl<'de> Deserialize<'de> for UnaryWithParam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = UnaryWithParam;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an operation, or an object with op and params")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<UnaryWithParam, E> {
                Ok(UnaryWithParam::Plain(name.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<UnaryWithParam, A::Error> {
                Deserialize::deserialize(MapAccessDeserializer::new(map)).map(UnaryWithParam::With)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// See [`ProgramConfig::MatmulMultiCoreReuseProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulMultiCoreReuseProgramConfig {
    /// Columns and rows of cores.
    pub compute_with_storage_grid_size: CoreCoord,
    /// Tiles of the inner dimension that are taken at a time.
    pub in0_block_w: u32,
    /// Rows of tiles that the registers hold.
    pub out_subblock_h: u32,
    /// Columns of tiles that the registers hold.
    pub out_subblock_w: u32,
    /// Rows of tiles of a core.
    #[serde(rename = "per_core_M")]
    pub per_core_m: u32,
    /// Columns of tiles of a core.
    #[serde(rename = "per_core_N")]
    pub per_core_n: u32,
    /// The cores that may be used; all of the grid where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_worker_cores: Option<CoreGrid>,
}

/// See [`ProgramConfig::MatmulMultiCoreReuseMultiCastProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulMultiCoreReuseMultiCastProgramConfig {
    /// Columns and rows of cores.
    pub compute_with_storage_grid_size: CoreCoord,
    /// Tiles of the inner dimension that are taken at a time.
    pub in0_block_w: u32,
    /// Rows of tiles that the registers hold.
    pub out_subblock_h: u32,
    /// Columns of tiles that the registers hold.
    pub out_subblock_w: u32,
    /// Rows of tiles that L1 holds of the result; all of a core's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_block_h: Option<u32>,
    /// Columns of tiles that L1 holds of the result; all of a core's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_block_w: Option<u32>,
    /// Rows of tiles of a core.
    #[serde(rename = "per_core_M")]
    pub per_core_m: u32,
    /// Columns of tiles of a core.
    #[serde(rename = "per_core_N")]
    pub per_core_n: u32,
    /// Whether rows of the result lie over columns of cores.
    pub transpose_mcast: bool,
    /// What is done to the result as it is packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_activation: Option<UnaryWithParam>,
    /// Whether a batch counts as more rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuse_batch: Option<bool>,
    /// The cores that may be used; all of the grid where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_worker_cores: Option<CoreGrid>,
}

/// See [`ProgramConfig::MatmulMultiCoreReuseMultiCast1DProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulMultiCoreReuseMultiCast1DProgramConfig {
    /// Columns and rows of cores.
    pub compute_with_storage_grid_size: CoreCoord,
    /// Tiles of the inner dimension that are taken at a time.
    pub in0_block_w: u32,
    /// Rows of tiles that the registers hold.
    pub out_subblock_h: u32,
    /// Columns of tiles that the registers hold.
    pub out_subblock_w: u32,
    /// Rows of tiles that L1 holds of the result; all of a core's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_block_h: Option<u32>,
    /// Columns of tiles that L1 holds of the result; all of a core's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_block_w: Option<u32>,
    /// Rows of tiles of a core.
    #[serde(rename = "per_core_M")]
    pub per_core_m: u32,
    /// Columns of tiles of a core.
    #[serde(rename = "per_core_N")]
    pub per_core_n: u32,
    /// Whether a batch counts as more rows.
    pub fuse_batch: bool,
    /// What is done to the result as it is packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_activation: Option<UnaryWithParam>,
    /// Whether it is the left factor that is sent.
    pub mcast_in0: bool,
    /// Whether the left factor goes round a ring of cores instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gather_in0: Option<bool>,
    /// Cores that only pass the ring's data on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop_cores: Option<CoreGrid>,
    /// Receivers of each sender of a global circular buffer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_global_cb_receivers: Option<u32>,
    /// Whether the result is written in rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untilize_out: Option<bool>,
    /// The cores that may be used; all of the grid where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_worker_cores: Option<CoreGrid>,
    /// Whether the right factor is read as it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_in1: Option<bool>,
}

/// See [`ProgramConfig::MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig {
    /// Tiles of the inner dimension that are taken at a time.
    pub in0_block_w: u32,
    /// Rows of tiles of a core.
    #[serde(rename = "per_core_M")]
    pub per_core_m: u32,
    /// Columns of tiles of a core of the result.
    #[serde(rename = "per_core_N")]
    pub per_core_n: u32,
    /// What is done to the result as it is packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_activation: Option<UnaryWithParam>,
    /// Cores that read one bank of DRAM; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_workers_per_dram_bank: Option<u32>,
}

/// See [`ProgramConfig::MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulMultiCoreReuseMultiCastBatchedDRAMShardedProgramConfig {
    /// Tiles of the inner dimension that are taken at a time.
    pub in0_block_w: u32,
    /// Rows of tiles of a product.
    #[serde(rename = "per_core_M")]
    pub per_core_m: u32,
    /// Columns of tiles of a product.
    #[serde(rename = "per_core_N")]
    pub per_core_n: u32,
    /// What is done to the result as it is packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fused_activation: Option<UnaryWithParam>,
}

/// See [`ProgramConfig::LayerNormDefaultProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNormDefaultProgramConfig {
    /// Whether sums go the older, less precise way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub legacy_reduction: Option<bool>,
    /// Whether mean and variance are found in one pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_welford: Option<bool>,
}

/// See [`ProgramConfig::LayerNormShardedMultiCoreProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNormShardedMultiCoreProgramConfig {
    /// Columns and rows of cores.
    pub compute_with_storage_grid_size: CoreCoord,
    /// Columns of tiles that the registers hold.
    pub subblock_w: u32,
    /// Rows of tiles of a core.
    pub block_h: u32,
    /// Columns of tiles of a core.
    pub block_w: u32,
    /// Whether the result takes the place of the input.
    pub inplace: bool,
    /// Whether sums go the older, less precise way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub legacy_reduction: Option<bool>,
    /// Whether mean and variance are found in one pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_welford: Option<bool>,
}

/// See [`ProgramConfig::SDPAProgramConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SDPAProgramConfig {
    /// Columns and rows of cores.
    pub compute_with_storage_grid_size: CoreCoord,
    /// Those of them that are used; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_core_grids: Option<CoreGrid>,
    /// Queries that are taken at a time; 0 in decode, which has one for each user.
    pub q_chunk_size: u32,
    /// Keys that are taken at a time.
    pub k_chunk_size: u32,
    /// Whether exponentials may be approximate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp_approx_mode: Option<bool>,
    /// The most cores that share a head of one user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cores_per_head_batch: Option<u32>,
    /// The most parts into which keys are split; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_k_splits: Option<u32>,
    /// Passes of the products; the compute kernel config's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matmul_math_fidelity: Option<MathFidelity>,
    /// Whether sums are kept for segments of keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmented_accumulation: Option<bool>,
}
