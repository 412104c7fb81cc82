//! Multi-head latent attention in decode. Each column has a part of the heads for all users of its row, until the heads'
//! queries go to the columns that hold their users' caches.

use super::{
    kv_cache::{self, KvCacheConfig},
    linear::{DramWeight, HeadWeights},
    rms_norm,
};
use crate::{
    hardware::{CORE_GRID, TILE},
    plan::{
        PlanError,
        operators::{
            AllGatherAsyncConfig, AllToAllAsyncGenericConfig, ConcatConfig, FastReduceNCConfig,
            FlashMLADecodeConfig, LinearConfig, MeshPartitionConfig, PagedUpdateCacheConfig, RMSNormConfig,
            ReshardConfig, RotaryConfig, SliceConfig, TilizeConfig, TransposeConfig, UntilizeConfig,
        },
        request::{Dimensions, LocalAttention},
        rules::{
            collectives,
            grids::{self, Rectangle},
            kernels, largest_divisor,
            placement::{self, Placement},
        },
    },
    types::{CoreCoord, MemoryConfig, ProgramConfig, SDPAProgramConfig},
};
use serde::{Deserialize, Serialize};

/// Operators of the attention in decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaDecodeConfig {
    /// Where the input lies.
    pub input_memory_config: Placement,
    /// The cache.
    pub kv_cache: KvCacheConfig,
    /// Queries' latent, keys' latent and key, of a column's part of the input: a part of the sum.
    pub wq_kv_a: LinearConfig,
    /// The parts of all columns.
    pub wq_kv_a_ag_decode: AllGatherAsyncConfig,
    /// Their sum. (There is no reduce-scatter of parts of a tile.)
    pub wq_kv_a_r_decode: FastReduceNCConfig,
    /// The queries' latent, where its norm is.
    pub q_slice: SliceConfig,
    /// The keys' latent, where its norm is.
    pub kv_nope_slice: SliceConfig,
    /// The key that all heads share.
    pub kv_rope_slice: SliceConfig,
    /// The queries' norm. Both norms run at once: their cores are others.
    pub q_norm: RMSNormConfig,
    /// The latent's norm.
    pub kv_norm: RMSNormConfig,
    /// The key, each user's to the core with its rotation.
    pub kv_rope_permute: TransposeConfig,
    /// Rotations of key and queries.
    pub rope: RotaryConfig,
    /// The key back.
    pub kv_rope_out_permute: TransposeConfig,
    /// The latent beside it.
    pub kv_nope_reshard: ReshardConfig,
    /// Latent and key as they are cached.
    pub kvpe_concat: ConcatConfig,
    /// By user.
    pub kvpe_permute: TransposeConfig,
    /// A column's own users.
    pub kvpe_partition: MeshPartitionConfig,
    /// Into the cache.
    pub paged_update_cache: PagedUpdateCacheConfig,
    /// A column's heads.
    pub wq_b: LinearConfig,
    /// In rows, each user's on a core, so that heads become a dimension.
    pub q_untilize: UntilizeConfig,
    /// From there.
    pub q_reshard: ReshardConfig,
    /// In tiles of heads.
    pub q_tilize: TilizeConfig,
    /// What carries no position.
    pub q_nope_slice: SliceConfig,
    /// What is rotated.
    pub q_rope_slice: SliceConfig,
    /// By head, beside the weights.
    pub q_nope_permute: TransposeConfig,
    /// Into the latent space.
    pub wkv_b1: LinearConfig,
    /// By user again.
    pub q_nope_out_permute: TransposeConfig,
    /// The rotated part beside it.
    pub q_rope_out_reshard: ReshardConfig,
    /// Both.
    pub q_concat: ConcatConfig,
    /// From all users with some heads to some users with all heads.
    pub wq_a2a_decode: AllToAllAsyncGenericConfig,
    /// The attention.
    pub flash_mla: FlashMLADecodeConfig,
    /// By head, beside the weights.
    pub flash_mla_out_permute: TransposeConfig,
    /// Out of the latent space.
    pub wkv_b2: LinearConfig,
    /// By user again.
    pub v_permute: TransposeConfig,
    /// In rows, so that heads become columns.
    pub v_untilize: UntilizeConfig,
    /// From there.
    pub v_reshard: ReshardConfig,
    /// The users of all columns.
    pub wo_ag_decode: AllGatherAsyncConfig,
    /// In tiles of users.
    pub v_tilize: TilizeConfig,
    /// Where the last weight is multiplied.
    pub wo_reshard: ReshardConfig,
    /// A column's part of the residual stream.
    pub wo: LinearConfig,
}

/// Of decode.
///
/// # Errors
/// A product that does not fit L1, more heads or users than can be rotated at a time.
pub fn decode_model_config(dimensions: &Dimensions) -> Result<MlaDecodeConfig, PlanError> {
    let attention = &dimensions.attention;
    if attention.local_heads > TILE {
        let expected = format!("at most {TILE} heads on a column: a user's are rotated as one tile");
        let got = attention.local_heads.to_string();
        return Err(PlanError::Model { field: "num_attention_heads", expected, got });
    }
    let latents = Latents::of(dimensions);
    let flat = Flat::of(dimensions);
    let l1 = || MemoryConfig::L1;
    let by_user = |width| placement::by_token(dimensions.tokens, TILE, width);
    let transpose = |memory_config| TransposeConfig { dim1: 1, dim2: 2, memory_config };
    let weights = Weights::of(dimensions, latents.queries.cores())?;
    let wide = attention.local_queries();
    let kvpe_local = placement::by_token(dimensions.local_users(), TILE, attention.cached());
    let gather = |dim, config| collectives::all_gather(dimensions, dim, collectives::COLUMNS, config);
    Ok(MlaDecodeConfig {
        input_memory_config: placement::factor(dimensions.local_hidden),
        kv_cache: kv_cache::model_config(dimensions),
        wq_kv_a: weights.wq_kv_a,
        wq_kv_a_ag_decode: AllGatherAsyncConfig { num_workers_per_link: Some(1), ..gather(1, l1()) },
        wq_kv_a_r_decode: sum_of_columns(l1()),
        q_slice: SliceConfig { memory_config: placement::by_columns(attention.query_rank, latents.queries) },
        kv_nope_slice: SliceConfig {
            memory_config: placement::by_columns(attention.latent_rank, latents.keys),
        },
        kv_rope_slice: SliceConfig { memory_config: l1() },
        q_norm: rms_norm::decode_model_config(dimensions, attention.query_rank, latents.queries),
        kv_norm: rms_norm::decode_model_config(dimensions, attention.latent_rank, latents.keys),
        kv_rope_permute: transpose(by_user(attention.rope)),
        rope: RotaryConfig { is_decode_mode: true },
        kv_rope_out_permute: transpose(l1()),
        kv_nope_reshard: ReshardConfig { memory_config: l1() },
        kvpe_concat: ConcatConfig { dim: -1, memory_config: l1() },
        kvpe_permute: transpose(l1()),
        kvpe_partition: MeshPartitionConfig {
            dim: 1,
            cluster_axis: collectives::COLUMNS,
            memory_config: kvpe_local,
        },
        paged_update_cache: PagedUpdateCacheConfig { mesh_coords: all_devices(dimensions) },
        wq_b: weights.wq_b,
        q_untilize: UntilizeConfig { memory_config: placement::by_token(dimensions.tokens, 1, wide) },
        q_reshard: ReshardConfig { memory_config: l1() },
        q_tilize: TilizeConfig { memory_config: l1() },
        q_nope_slice: SliceConfig { memory_config: l1() },
        q_rope_slice: SliceConfig { memory_config: by_user(attention.rope) },
        q_nope_permute: transpose(placement::beside_banks(attention.local_heads, attention.nope)),
        wkv_b1: weights.wkv_b1,
        q_nope_out_permute: transpose(l1()),
        q_rope_out_reshard: ReshardConfig { memory_config: l1() },
        q_concat: ConcatConfig { dim: -1, memory_config: l1() },
        wq_a2a_decode: collectives::heads_to_users(dimensions, flat.place(attention.cached())),
        flash_mla: FlashMLADecodeConfig {
            head_dim_v: attention.latent_rank,
            scale: attention.scale,
            program_config: attention_program(0, key_chunk(dimensions.request.max_sequence_length)),
            compute_kernel_config: kernels::ATTENTION,
            memory_config: flat.place(attention.latent_rank),
        },
        flash_mla_out_permute: transpose(placement::beside_banks(attention.heads, attention.latent_rank)),
        wkv_b2: weights.wkv_b2,
        v_permute: transpose(heads_by_user(dimensions)),
        v_untilize: UntilizeConfig { memory_config: l1() },
        v_reshard: ReshardConfig { memory_config: l1() },
        // All at once: a user's row is no whole tile, along which parts could be passed on.
        wo_ag_decode: AllGatherAsyncConfig { use_broadcast: Some(true), ..gather(2, l1()) },
        v_tilize: TilizeConfig { memory_config: l1() },
        wo_reshard: ReshardConfig { memory_config: placement::factor(attention.values()) },
        wo: weights.wo,
    })
}

/// The attention's five weights and their products in decode.
struct Weights {
    wq_kv_a: LinearConfig,
    wq_b: LinearConfig,
    wkv_b1: LinearConfig,
    wkv_b2: LinearConfig,
    wo: LinearConfig,
}

impl Weights {
    fn of(dimensions: &Dimensions, query_cores: u32) -> Result<Self, PlanError> {
        let attention = &dimensions.attention;
        let cores = |width| placement::factor_cores(width).cores();
        let (tokens, users) = (dimensions.tokens, dimensions.local_users());
        Ok(Self {
            wq_kv_a: wq_kv_a(dimensions).decode(dimensions, cores(dimensions.local_hidden))?,
            wq_b: wq_b(attention).decode(dimensions, query_cores)?,
            wkv_b1: wkv_b1(attention).decode(dimensions, tokens)?,
            wkv_b2: wkv_b2(attention).decode(dimensions, users)?,
            wo: wo(dimensions).decode(dimensions, cores(attention.values()))?,
        })
    }
}

/// The cores of the two norms: rows of the grid for each, so that they can run at the same time.
struct Latents {
    queries: Rectangle,
    keys: Rectangle,
}

impl Latents {
    fn of(dimensions: &Dimensions) -> Self {
        let attention = &dimensions.attention;
        let (queries, keys) = (attention.query_rank / TILE, attention.latent_rank / TILE);
        let middle = CORE_GRID[1] / 2;
        let of_queries = grids::sharing(queries, 1, [0, middle]);
        Self { queries: of_queries, keys: grids::sharing(keys, 1, [middle, CORE_GRID[1]]) }
    }
}

/// All heads of a device's users as rows, whole tiles of them over as few cores as hold them evenly.
struct Flat {
    rows: u32,
    per_core: u32,
}

impl Flat {
    fn of(dimensions: &Dimensions) -> Self {
        let rows = dimensions.local_users() * dimensions.attention.heads.next_multiple_of(TILE);
        Self { rows, per_core: rows.div_ceil(grids::CORES).next_multiple_of(TILE) }
    }

    fn place(&self, width: u32) -> Placement {
        placement::by_rows(self.rows, self.per_core, width)
    }
}

fn heads_by_user(dimensions: &Dimensions) -> Placement {
    let attention = &dimensions.attention;
    placement::by_token(dimensions.local_users(), attention.heads.next_multiple_of(TILE), attention.value)
}

pub(super) fn wq_kv_a(dimensions: &Dimensions) -> DramWeight<'static> {
    DramWeight {
        what: "wq_kv_a",
        inner: dimensions.local_hidden,
        columns: dimensions.attention.query_and_cached(),
        compute: kernels::ATTENTION_PRODUCT,
    }
}

pub(super) fn wq_b(attention: &LocalAttention) -> DramWeight<'static> {
    DramWeight {
        what: "wq_b",
        inner: attention.query_rank,
        columns: attention.local_queries(),
        compute: kernels::ATTENTION_PRODUCT,
    }
}

pub(super) fn wkv_b1(attention: &LocalAttention) -> HeadWeights<'static> {
    HeadWeights {
        what: "wkv_b1",
        heads: attention.local_heads,
        inner: attention.nope,
        columns: attention.latent_rank,
        compute: kernels::ATTENTION_PRODUCT,
    }
}

pub(super) fn wkv_b2(attention: &LocalAttention) -> HeadWeights<'static> {
    HeadWeights {
        what: "wkv_b2",
        heads: attention.heads,
        inner: attention.latent_rank,
        columns: attention.value,
        compute: kernels::ATTENTION_PRODUCT,
    }
}

pub(super) fn wo(dimensions: &Dimensions) -> DramWeight<'static> {
    DramWeight {
        what: "wo",
        inner: dimensions.attention.values(),
        columns: dimensions.local_hidden,
        compute: kernels::ATTENTION_PRODUCT,
    }
}

/// The sum of what the columns' parts of an inner dimension gave.
pub(super) fn sum_of_columns(memory_config: Placement) -> FastReduceNCConfig {
    FastReduceNCConfig { dims: vec![1], memory_config, compute_kernel_config: kernels::SUM }
}

/// Every device of the mesh.
fn all_devices(dimensions: &Dimensions) -> Vec<[u32; 2]> {
    (0..dimensions.rows).flat_map(|row| (0..dimensions.columns).map(move |column| [row, column])).collect()
}

/// Positions of keys that are taken at a time: two tiles, or one where a length has an odd number, since a chunk that reads
/// beyond the end gave garbage (#42791).
pub(super) fn key_chunk(length: u32) -> u32 {
    TILE * largest_divisor(length.div_ceil(TILE), 2)
}

/// Positions of queries that are taken at a time: four tiles of them, or as many as divide a length.
pub(super) fn query_chunk(length: u32) -> u32 {
    TILE * largest_divisor(length.div_ceil(TILE), 4)
}

/// Attention over all cores.
pub(super) fn attention_program(q_chunk_size: u32, k_chunk_size: u32) -> ProgramConfig {
    ProgramConfig::SDPAProgramConfig(SDPAProgramConfig {
        compute_with_storage_grid_size: CoreCoord::new(CORE_GRID[0], CORE_GRID[1]),
        sub_core_grids: None,
        q_chunk_size,
        k_chunk_size,
        exp_approx_mode: Some(false),
        max_cores_per_head_batch: None,
        max_k_splits: None,
        matmul_math_fidelity: None,
        segmented_accumulation: None,
    })
}
