//! Multi-head latent attention in prefill. Every row of the mesh computes all positions of a chunk, each column with its
//! part of the heads; only the device that owns the user fills its cache, and only it can read a later chunk's.

use super::{
    kv_cache::{self, KvCacheConfig},
    mla::{self, attention_program, key_chunk, query_chunk, sum_of_columns},
    rms_norm,
    rope::{self, PrefillRopeConfig},
};
use crate::{
    hardware::TILE,
    plan::{
        PlanError,
        operators::{
            AllGatherAsyncConfig, AllReduceConfig, ChunkedFlashMLAPrefillConfig, ConcatConfig,
            FastReduceNCConfig, FlashMLAPrefillConfig, LinearConfig, MulConfig, PagedFillCacheConfig,
            PermuteConfig, RMSNormConfig, ReduceScatterAsyncMinimalConfig, RotaryConfig, ScaleConfig,
            SliceConfig, TypecastConfig,
        },
        request::Dimensions,
        rules::{chunks::PrefillChunkSizes, collectives, grids, kernels},
    },
    types::MemoryConfig,
};
use serde::{Deserialize, Serialize};

/// Operators of the attention in prefill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaPrefillConfig {
    /// Positions that are taken at a time.
    pub chunk_sizes: PrefillChunkSizes,
    /// The cache.
    pub kv_cache: KvCacheConfig,
    /// The tables of rotations.
    pub rope_tables: PrefillRopeConfig,
    /// The positions of all rows of the mesh.
    pub all_gather: AllGatherAsyncConfig,
    /// Parts of a chunk, a latent or a head.
    pub slice: SliceConfig,
    /// Queries' latent, keys' latent and key, of a column's part of the input: a part of the sum.
    pub wq_kv_a: LinearConfig,
    /// The parts of all columns.
    pub wq_kv_a_ag_prefill: AllGatherAsyncConfig,
    /// Their sum.
    pub wq_kv_a_r_prefill: FastReduceNCConfig,
    /// The latent's norm.
    pub kv_norm: RMSNormConfig,
    /// Rotations of key and queries.
    pub rope: RotaryConfig,
    /// Latent and key as they are cached; what is rotated and what is not, of queries.
    pub concat: ConcatConfig,
    /// To the cache's type.
    pub kvpe_typecast: TypecastConfig,
    /// Into the cache.
    pub paged_fill_cache: PagedFillCacheConfig,
    /// The queries' norm.
    pub q_norm: RMSNormConfig,
    /// A column's heads.
    pub wq_b: LinearConfig,
    /// By head, and back.
    pub permute: PermuteConfig,
    /// Into the latent space.
    pub wkv_b1: LinearConfig,
    /// The attention of the first chunk, over itself.
    pub flash_mla: FlashMLAPrefillConfig,
    /// That of later chunks; absent where there is one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later_chunks: Option<LaterChunks>,
    /// The heads of all columns.
    pub wkv_b2_ag_prefill: AllGatherAsyncConfig,
    /// Out of the latent space.
    pub wkv_b2: LinearConfig,
    /// A column's part of the residual stream.
    pub wo: LinearConfig,
    /// Parts of a chunk after one another.
    pub chunk_concat: ConcatConfig,
    /// Each row's own positions. It is the sum of equal copies.
    pub reduce_scatter: ReduceScatterAsyncMinimalConfig,
    /// Divides that sum by the number of copies.
    pub reduce_scatter_scale: ScaleConfig,
}

/// Attention of a chunk that reads those before it from the cache of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaterChunks {
    /// The heads of all columns, since one device has the cache.
    pub q_ag_prefill: AllGatherAsyncConfig,
    /// The attention; only what the owner computes has a meaning.
    pub flash_mla: ChunkedFlashMLAPrefillConfig,
    /// Nothing but the owner's.
    pub owner_mask: MulConfig,
    /// From the owner to its row.
    pub all_reduce_columns: AllReduceConfig,
    /// From its row to all.
    pub all_reduce_rows: AllReduceConfig,
}

/// Columns and rows of cores for the first product at most: more of them at once draw so much current that some machines
/// hang (#42008, cured in #41501 by this grid).
const FEW_CORES: [u32; 2] = [6, 6];

/// The grid of the first product.
fn few_cores(columns: u32, rows: u32) -> [u32; 2] {
    [grids::dealing(columns.div_ceil(TILE), FEW_CORES[0]), grids::dealing(rows.div_ceil(TILE), FEW_CORES[1])]
}

/// Of prefill.
///
/// # Errors
/// A product that does not fit L1.
pub fn prefill_model_config(dimensions: &Dimensions) -> Result<MlaPrefillConfig, PlanError> {
    let attention = &dimensions.attention;
    let chunks = dimensions.chunks;
    let (chunk, part) = (chunks.mla_chunk, chunks.wkv_b2_chunk);
    let dram = || MemoryConfig::DRAM;
    let gather = |dim, axis| collectives::all_gather(dimensions, dim, axis, dram());
    Ok(MlaPrefillConfig {
        chunk_sizes: chunks,
        kv_cache: kv_cache::model_config(dimensions),
        rope_tables: rope::prefill_model_config(dimensions),
        all_gather: gather(2, collectives::ROWS),
        slice: SliceConfig { memory_config: dram() },
        wq_kv_a: mla::wq_kv_a(dimensions).prefill(
            dimensions,
            chunk,
            Some(few_cores(attention.query_and_cached(), chunk)),
        )?,
        wq_kv_a_ag_prefill: gather(1, collectives::COLUMNS),
        wq_kv_a_r_prefill: sum_of_columns(dram()),
        kv_norm: rms_norm::prefill_model_config(dimensions, attention.latent_rank),
        rope: RotaryConfig { is_decode_mode: false },
        concat: ConcatConfig { dim: -1, memory_config: dram() },
        kvpe_typecast: TypecastConfig {
            dtype: kv_cache::model_config(dimensions).dtype,
            memory_config: dram(),
        },
        paged_fill_cache: PagedFillCacheConfig { batch_idx: 0, mesh_coords: vec![[0, 0]] },
        q_norm: rms_norm::prefill_model_config(dimensions, attention.query_rank),
        wq_b: mla::wq_b(attention).prefill(dimensions, chunk, None)?,
        permute: PermuteConfig { dims: vec![0, 2, 1, 3], memory_config: dram() },
        wkv_b1: mla::wkv_b1(attention).prefill(dimensions, chunk)?,
        flash_mla: FlashMLAPrefillConfig {
            head_dim_v: attention.latent_rank,
            scale: attention.scale,
            is_causal: true,
            program_config: attention_program(query_chunk(chunk), key_chunk(chunk)),
            compute_kernel_config: kernels::ATTENTION,
            memory_config: dram(),
        },
        later_chunks: (dimensions.padded_length > chunk).then(|| later_chunks(dimensions)),
        wkv_b2_ag_prefill: gather(1, collectives::COLUMNS),
        wkv_b2: mla::wkv_b2(attention).prefill(dimensions, part)?,
        wo: mla::wo(dimensions).prefill(dimensions, part, None)?,
        chunk_concat: ConcatConfig { dim: 2, memory_config: dram() },
        reduce_scatter: collectives::reduce_scatter(dimensions, 2, collectives::ROWS, dram()),
        reduce_scatter_scale: ScaleConfig {
            input_tensor_b: 1.0 / dimensions.rows as f32,
            memory_config: dram(),
        },
    })
}

fn later_chunks(dimensions: &Dimensions) -> LaterChunks {
    let attention = &dimensions.attention;
    let chunk = dimensions.chunks.mla_chunk;
    let topology = collectives::topology(dimensions);
    let reduce = |cluster_axis| AllReduceConfig { cluster_axis, topology, memory_config: MemoryConfig::DRAM };
    LaterChunks {
        q_ag_prefill: collectives::all_gather(dimensions, 1, collectives::COLUMNS, MemoryConfig::DRAM),
        flash_mla: ChunkedFlashMLAPrefillConfig {
            head_dim_v: attention.latent_rank,
            scale: attention.scale,
            program_config: attention_program(query_chunk(chunk), key_chunk(chunk)),
            compute_kernel_config: kernels::ATTENTION,
            memory_config: MemoryConfig::DRAM,
        },
        owner_mask: MulConfig { memory_config: MemoryConfig::DRAM, input_tensor_a_activations: Vec::new() },
        all_reduce_columns: reduce(collectives::COLUMNS),
        all_reduce_rows: reduce(collectives::ROWS),
    }
}
