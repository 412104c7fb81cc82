//! What is asked of the planner, and the dimensions that follow from it.

use super::{
    PlanError,
    rules::chunks::{self, Chunks},
};
use crate::hardware::TILE;
use dsv3_deepseek::hf::{AttentionShape, HfConfig, MoeConfig};
use dsv3_mesh::{Axis, MeshShape};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The way in which a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Many positions of one user, cut over the rows of the mesh.
    Prefill,
    /// One position of each of many users, dealt to the rows of the mesh.
    Decode,
}

/// How the chips of a row and of a column are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fabric {
    /// From one end to the other.
    #[default]
    Line,
    /// The ends are connected too.
    Ring,
}

/// What to plan for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Rows and columns of chips. Columns share the matrices and heads, rows the users or positions, and all of them
    /// the experts.
    pub mesh: MeshShape,
    /// Prefill or decode.
    pub mode: Mode,
    /// Users of a row of the mesh, whose caches its devices share.
    pub users_per_row: u32,
    /// Prefill: tokens of the prompt. Decode: positions that a user has at most.
    pub sequence_length: u32,
    /// Positions of the longest sequence that is served (upstream's `max_seq_len`): what a user's cache has room for, and
    /// what the chunk sizes of every prefill follow. Not less than `sequence_length`.
    pub max_sequence_length: u32,
    /// How the chips are connected.
    pub fabric: Fabric,
}

/// Users of a row where nothing else is asked for: a tile of them (upstream's `USERS_PER_ROW`).
pub const USERS_PER_ROW: u32 = TILE;
/// Positions where nothing else is asked for (upstream's `DEFAULT_MAX_SEQ_LEN`).
pub const SEQUENCE_LENGTH: u32 = 2048;

/// What a device holds and computes, from the model and the request. All of it divides.
#[derive(Clone, Debug)]
pub struct Dimensions {
    /// What was asked for.
    pub request: Request,
    /// Rows of the mesh.
    pub rows: u32,
    /// Columns of the mesh.
    pub columns: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// A column's part of it.
    pub local_hidden: u32,
    /// A device's part of an embedding.
    pub embedding_part: u32,
    /// Rows of the embedding.
    pub vocabulary: u32,
    /// A column's part of the head's rows.
    pub local_vocabulary: u32,
    /// A column's part of a dense layer's MLP; 0 where there is no dense layer.
    pub local_dense: u32,
    /// The attention.
    pub attention: LocalAttention,
    /// The experts, where there are any.
    pub experts: Option<LocalExperts>,
    /// Epsilon of the norms outside of the attention.
    pub epsilon: f32,
    /// Dense layers.
    pub dense_layers: u32,
    /// Layers with experts, without the one for multi-token prediction.
    pub moe_layers: u32,
    /// Whether there is a layer for multi-token prediction.
    pub has_mtp: bool,
    /// Rows of activations between the blocks, on each device: users, or its part of a chunk of the prompt.
    pub tokens: u32,
    /// Prefill: positions of a chunk on all rows together.
    pub chunks: chunks::PrefillChunkSizes,
    /// Prefill: the prompt's length with what it is filled up with to whole chunks.
    pub padded_length: u32,
    /// Prefill: why chunks are small, where they are.
    pub chunks_reason: Option<String>,
}

/// The attention's dimensions.
#[derive(Clone, Debug)]
pub struct LocalAttention {
    /// Query heads.
    pub heads: u32,
    /// A column's part of them.
    pub local_heads: u32,
    /// Width of the queries' latent.
    pub query_rank: u32,
    /// Width of the latent from which keys and values are expanded.
    pub latent_rank: u32,
    /// Features of a head that carry no position.
    pub nope: u32,
    /// Features of a head that are rotated.
    pub rope: u32,
    /// Features of a value head.
    pub value: u32,
    /// Factor on the scores.
    pub scale: f32,
}

/// The experts' dimensions.
#[derive(Clone, Debug)]
pub struct LocalExperts {
    /// Routed experts.
    pub routed: u32,
    /// A device's part of them.
    pub local: u32,
    /// Those that a token visits.
    pub per_token: u32,
    /// Width of one.
    pub width: u32,
    /// A column's part of the shared experts' width.
    pub local_shared: u32,
    /// Factor on the weights of those that a token visits.
    pub scale: f32,
}

/// What the fused gate is made for, whatever it is given: DeepSeek-V3's own numbers.
const GATE: [(&str, usize); 4] =
    [("n_routed_experts", 256), ("n_group", 8), ("topk_group", 4), ("num_experts_per_tok", 8)];
/// Rows and columns that may be asked for: four Galaxies are 16x8. A collective needs a neighbour.
const SIDES: [(&str, usize, usize); 2] = [("rows", 2, 16), ("columns", 2, 8)];

impl Request {
    /// Checks the options against one another.
    ///
    /// # Errors
    /// One that makes no sense.
    pub fn check(&self) -> Result<(), PlanError> {
        let refuse = |option, expected: String, got: &dyn fmt::Display| {
            Err(PlanError::Request { option, expected, got: got.to_string() })
        };
        for ((side, least, most), axis) in SIDES.into_iter().zip([Axis::Rows, Axis::Columns]) {
            if !(least..=most).contains(&self.mesh.size(axis)) {
                return refuse("--mesh", format!("{least} to {most} {side}"), &self.mesh);
            }
        }
        let columns = self.mesh.size(Axis::Columns) as u32;
        if self.users_per_row == 0 || self.users_per_row > TILE || !self.users_per_row.is_multiple_of(columns)
        {
            let expected = format!("a multiple of the mesh's {columns} columns, at most {TILE}");
            return refuse("--users-per-row", expected, &self.users_per_row);
        }
        let longest = self.max_sequence_length;
        if longest < self.sequence_length || !longest.is_multiple_of(TILE) {
            let least = self.sequence_length;
            let expected = format!("a multiple of a cache block's {TILE} positions, at least {least}");
            return refuse("--max-sequence-length", expected, &longest);
        }
        let step = self.length_step();
        if self.sequence_length == 0 || !self.sequence_length.is_multiple_of(step) {
            let expected = match self.mode {
                Mode::Decode => format!("a multiple of a cache block's {step} positions"),
                Mode::Prefill => {
                    format!("a multiple of {step}: a tile of {TILE} positions for each row of the mesh")
                }
            };
            return refuse("--sequence-length", expected, &self.sequence_length);
        }
        Ok(())
    }

    /// What a sequence's length must be a multiple of. A cache block is a tile of positions, and each row of the mesh
    /// takes whole tiles of a prompt.
    fn length_step(&self) -> u32 {
        match self.mode {
            Mode::Decode => TILE,
            Mode::Prefill => TILE * self.mesh.size(Axis::Rows) as u32,
        }
    }
}

impl Dimensions {
    /// The dimensions of a model on a mesh.
    ///
    /// # Errors
    /// Options that make no sense, a model that upstream's modules do not compute, a dimension that does not divide.
    pub fn new(model: &HfConfig, request: Request) -> Result<Self, PlanError> {
        request.check()?;
        check_model(model, request)?;
        let (rows, columns) = (request.mesh.size(Axis::Rows), request.mesh.size(Axis::Columns));
        let over_columns = |what, size| divide(what, size, columns, "the mesh's columns");
        let dense_layers = model.first_k_dense_replace as u32;
        let Chunks { sizes: chunks, padded_length, reason } = chunks::of(&request);
        let tokens = match request.mode {
            Mode::Decode => request.users_per_row,
            Mode::Prefill => chunks.model_chunk / rows as u32,
        };
        Ok(Self {
            request,
            rows: rows as u32,
            columns: columns as u32,
            hidden: model.hidden_size as u32,
            local_hidden: over_columns("hidden_size", model.hidden_size)?,
            embedding_part: embedding_part(model.hidden_size, rows * columns)?,
            vocabulary: model.vocab_size as u32,
            local_vocabulary: over_columns("vocab_size", model.vocab_size)?,
            local_dense: if dense_layers > 0 {
                over_columns("intermediate_size", model.intermediate_size)?
            } else {
                0
            },
            attention: LocalAttention::new(&model.attention, columns, model.softmax_scale())?,
            experts: match &model.moe {
                Some(moe) => Some(LocalExperts::new(moe, rows, columns)?),
                None => None,
            },
            epsilon: model.rms_norm_eps,
            dense_layers,
            moe_layers: model.num_hidden_layers as u32 - dense_layers,
            has_mtp: model.mtp_layers > 0,
            tokens,
            chunks,
            padded_length,
            chunks_reason: reason,
        })
    }

    /// Users whose caches a device holds.
    pub fn local_users(&self) -> u32 {
        self.request.users_per_row / self.columns
    }

    /// Devices of the mesh.
    pub fn devices(&self) -> u32 {
        self.rows * self.columns
    }

    /// Devices along an axis: 0 is from row to row, 1 from column to column.
    pub fn along(&self, cluster_axis: u32) -> u32 {
        if cluster_axis == 0 { self.rows } else { self.columns }
    }
}

impl LocalAttention {
    fn new(shape: &AttentionShape, columns: usize, scale: f32) -> Result<Self, PlanError> {
        let local_heads = divide_into("num_attention_heads", shape.heads, columns, 1, "the mesh's columns")?;
        Ok(Self {
            heads: shape.heads as u32,
            local_heads,
            query_rank: shape.q_lora_rank.expect("checked before") as u32,
            latent_rank: shape.kv_lora_rank as u32,
            nope: shape.qk_nope_head_dim as u32,
            rope: shape.qk_rope_head_dim as u32,
            value: shape.v_head_dim as u32,
            scale,
        })
    }

    /// Width of a query or key head.
    pub fn query_key(&self) -> u32 {
        self.nope + self.rope
    }

    /// Width of what is cached for a position: the latent, then the rotated key.
    pub fn cached(&self) -> u32 {
        self.latent_rank + self.rope
    }

    /// Width of the first product's result: the queries' latent, then what is cached.
    pub fn query_and_cached(&self) -> u32 {
        self.query_rank + self.cached()
    }

    /// Width of a column's query heads.
    pub fn local_queries(&self) -> u32 {
        self.local_heads * self.query_key()
    }

    /// Width of all value heads.
    pub fn values(&self) -> u32 {
        self.heads * self.value
    }
}

impl LocalExperts {
    fn new(moe: &MoeConfig, rows: usize, columns: usize) -> Result<Self, PlanError> {
        let shared = moe.shared_intermediate_size();
        whole_tiles("moe_intermediate_size", moe.intermediate_size)?;
        Ok(Self {
            routed: moe.routed_experts as u32,
            local: divide_into(
                "n_routed_experts",
                moe.routed_experts,
                rows * columns,
                1,
                "the mesh's devices",
            )?,
            per_token: moe.experts_per_token as u32,
            width: moe.intermediate_size as u32,
            local_shared: divide(
                "moe_intermediate_size * n_shared_experts",
                shared,
                columns,
                "the mesh's columns",
            )?,
            scale: moe.routed_scaling_factor,
        })
    }
}

/// Refuses what upstream's modules do not compute.
fn check_model(model: &HfConfig, request: Request) -> Result<(), PlanError> {
    let refuse = |field, expected: &str, got: &dyn fmt::Display| {
        Err(PlanError::Model { field, expected: expected.to_owned(), got: got.to_string() })
    };
    let attention = &model.attention;
    if attention.q_lora_rank.is_none() {
        return refuse("q_lora_rank", "queries of low rank", &"none");
    }
    if attention.bias {
        return refuse("attention_bias", "products without biases", &"them");
    }
    if model.tie_word_embeddings {
        return refuse("tie_word_embeddings", "a head of its own", &"the embedding's");
    }
    for (option, length) in [
        ("--sequence-length", request.sequence_length),
        ("--max-sequence-length", request.max_sequence_length),
    ] {
        if length as usize > model.max_position_embeddings {
            let expected =
                format!("at most the model's max_position_embeddings, {}", model.max_position_embeddings);
            return Err(PlanError::Request { option, expected, got: length.to_string() });
        }
    }
    for (what, size) in [
        ("q_lora_rank", attention.q_lora_rank.unwrap_or_default()),
        ("kv_lora_rank", attention.kv_lora_rank),
        ("qk_nope_head_dim", attention.qk_nope_head_dim),
        ("qk_rope_head_dim", attention.qk_rope_head_dim),
        ("v_head_dim", attention.v_head_dim),
    ] {
        whole_tiles(what, size)?;
    }
    let Some(moe) = &model.moe else { return Ok(()) };
    let has = [moe.routed_experts, moe.groups, moe.topk_groups, moe.experts_per_token];
    for ((field, needed), got) in GATE.into_iter().zip(has) {
        if got != needed {
            return refuse(field, &format!("{needed}, which the fused gate is made for"), &got);
        }
    }
    if !moe.norm_topk_prob {
        return refuse("norm_topk_prob", "true, which the fused gate is made for", &false);
    }
    if !(moe.routed_scaling_factor.is_finite() && moe.routed_scaling_factor > 0.0) {
        return refuse("routed_scaling_factor", "a finite number above 0", &moe.routed_scaling_factor);
    }
    if moe.shared_experts == 0 {
        return refuse("n_shared_experts", "one at least", &0);
    }
    Ok(())
}

/// A part of a dimension, in whole tiles: what is computed with lies in tiles.
fn divide(what: &'static str, size: usize, parts: usize, by: &str) -> Result<u32, PlanError> {
    divide_into(what, size, parts, TILE as usize, by)
}

fn divide_into(
    what: &'static str,
    size: usize,
    parts: usize,
    unit: usize,
    by: &str,
) -> Result<u32, PlanError> {
    if size == 0 || !size.is_multiple_of(parts * unit) || size > u32::MAX as usize {
        let unit = if unit == 1 { "ones" } else { "tiles of 32" };
        return Err(PlanError::Indivisible { what, size, parts, unit, by: by.to_owned() });
    }
    Ok((size / parts) as u32)
}

fn whole_tiles(what: &'static str, size: usize) -> Result<u32, PlanError> {
    divide(what, size, 1, "the device computes in tiles")
}

/// A device's part of an embedding. It is looked up in rows, and need not be whole tiles; but pages of DRAM are read in
/// multiples of 16 bytes.
fn embedding_part(hidden: usize, devices: usize) -> Result<u32, PlanError> {
    divide_into("hidden_size", hidden, devices, 8, "the mesh's devices share an embedding")
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

impl FromStr for Fabric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "line" => Ok(Self::Line),
            "ring" => Ok(Self::Ring),
            _ => Err("expected line or ring".to_owned()),
        }
    }
}

impl fmt::Display for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::Ring => "ring",
        })
    }
}
