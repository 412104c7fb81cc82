//! Every file of a model's weight cache, as data: what it is made from, how that is turned and cut, and where it goes.

use super::{Error, error::Cause, experts::ring_packing};
use crate::{
    hardware::{TILE, dram_height_sharded, dram_width_sharded},
    plan::request::Fabric,
    ring::RingPacking,
    tensorbin::{EXTENSION, Header, Placement, TensorSpec, TensorTopology},
    types::{DataType, MemoryConfig},
};
use dsv3_deepseek::{
    DecoderBlockWeights, HfConfig, MlaWeights, MlpWeights, Model, ModelWeights, MoeWeights, MtpWeights,
    RmsNormWeights,
};
use dsv3_mesh::{Axis, Layout, MeshShape};
use dsv3_runtime::{Leaf, Module, Prefix, WeightSpec};
use std::ops::Range;

/// Experts that the fused gate on the chip chooses from: a tile face of 16x16.
const GATE_EXPERTS: usize = 256;
/// The side of that face.
const GATE_SIDE: u32 = 16;

/// A file of the cache: one weight of one layer, on all devices.
#[derive(Clone, Debug)]
pub struct WeightFile {
    /// Its path in the cache, as in `mlp_decoder_block_0/mla/wq_b.input_tensor_b.tensorbin`.
    pub path: String,
    /// Where config.json's tree has it: names and, in lists, numbers. The embedding and the head have two places where
    /// there is an MTP layer, which reads the same.
    pub keys: Vec<String>,
    /// The decoder layer that it belongs to. The embedding goes with the first layer, the last norm and the head with the
    /// last one; the MTP layer is the one after it.
    pub layer: usize,
    /// The tensors of the checkpoint that it is made from.
    pub sources: Vec<WeightSpec>,
    /// How their values become the matrices of a shard.
    pub form: Form,
    /// Which device holds which part.
    pub split: Split,
    /// What all shards have in common.
    pub spec: TensorSpec,
}

/// How the values of sources become the matrices of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Rows as they are, `[out, in]`: what is multiplied with `transpose_b`.
    Rows,
    /// `[in, out]`; of several sources, the outputs of one after those of the other.
    Turned,
    /// A matrix for each source, `[out, in]`.
    Stacked,
    /// A matrix for each block of a core of the ring ([`RingPacking`]): of gates and ups by turns, or of downs.
    Ring {
        /// The packing.
        packing: RingPacking,
        /// Which of both.
        projection: RingProjection,
    },
    /// A matrix for each head: some of the rows that the source has for it.
    Heads {
        /// Rows of a head in the source.
        of: usize,
        /// Those that are taken.
        rows: Range<usize>,
        /// Whether they become columns.
        turned: bool,
    },
    /// A vector in rows of 32: "sticks" of a tile's width.
    Sticks,
    /// The gate's bias less its mean, as a 16x16 face that is turned, padded to a tile, once for each core.
    GateBias,
}

/// What is packed for the fused operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingProjection {
    /// Gates and ups.
    Up,
    /// Downs.
    Down,
}

/// Which device holds which part. The dimension is that of the shard's shape, from the last, as upstream gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// All hold all.
    Replicated,
    /// Each column of devices holds a part of a dimension.
    Columns(i32),
    /// Each device holds a part of the stack, in row-major order of the devices.
    Devices,
    /// The same of experts in the packing for the fused operators, whose third dimension they are.
    RingDevices,
    /// Each device holds a part of the last dimension, in column-major order of the devices.
    ColumnsThenRows,
}

impl WeightFile {
    /// The header of the file on a mesh.
    ///
    /// # Errors
    /// A shape that has more bytes than this machine can address.
    pub fn header(&self, mesh: MeshShape) -> Result<Header, Error> {
        let [rows, columns] = sides(mesh);
        let topology = self.split.topology(rows, columns);
        Header::new(self.spec.clone(), vec![rows, columns], topology).map_err(|error| Error::Model {
            mesh,
            field: self.path.clone(),
            cause: Cause::Header(error),
        })
    }

    /// The row and the column of the first device that holds a buffer, by the buffer's number in the header.
    pub(super) fn place(&self, buffer: usize, mesh: MeshShape) -> [usize; 2] {
        match self.split {
            Split::Replicated => [0, 0],
            Split::Columns(_) => [0, buffer],
            Split::Devices | Split::RingDevices | Split::ColumnsThenRows => {
                let columns = mesh.size(Axis::Columns);
                [buffer / columns, buffer % columns]
            }
        }
    }
}

impl Split {
    /// As TT-NN's mappers record it: `ReplicateTensorToMesh`, `ShardTensor2dMesh`, and `ShardTensorToMesh` over all
    /// devices. Upstream keeps a copy for each row of devices of some weights that are the same in all rows; here those
    /// are replicated, and stored once.
    fn topology(self, rows: u32, columns: u32) -> TensorTopology {
        let mesh = TensorTopology::mesh(rows, columns, [Placement::Replicate; 2]);
        let of_all = |placement| TensorTopology {
            distribution_shape: vec![rows * columns],
            placements: vec![placement],
            mesh_coords: mesh.mesh_coords.clone(),
        };
        match self {
            Self::Replicated => of_all(Placement::Replicate),
            Self::Devices => of_all(Placement::Shard(1)),
            Self::RingDevices => of_all(Placement::Shard(2)),
            Self::Columns(dimension) => {
                TensorTopology::mesh(rows, columns, [Placement::Replicate, Placement::Shard(dimension)])
            }
            // Upstream cuts [vocabulary, columns, rows, rest].
            Self::ColumnsThenRows => {
                TensorTopology::mesh(rows, columns, [Placement::Shard(2), Placement::Shard(1)])
            }
        }
    }
}

/// Rows and columns of devices.
pub(super) fn sides(mesh: MeshShape) -> [u32; 2] {
    [Axis::Rows, Axis::Columns].map(|axis| mesh.size(axis) as u32)
}

/// All files of a model on a mesh, in the order of its layers. Where the fused operators for experts can be taken, which
/// needs rings, their files are among them, beside those that prefill takes.
///
/// # Errors
/// A model that upstream's modules cannot run, or that does not divide over the mesh; names the field of config.json.
pub fn weight_files(hf: &HfConfig, mesh: MeshShape, fabric: Fabric) -> Result<Vec<WeightFile>, Error> {
    let [rows, columns] = sides(mesh).map(|side| side as usize);
    let ring = ring_packing(hf, mesh, fabric);
    let list = FileList { hf, mesh, rows, columns, ring, files: Vec::new() };
    list.check_model()?;
    list.of_model(Model::weight_specs(hf, &Prefix::root(), Layout::SINGLE))
}

/// The list in the making.
pub(super) struct FileList<'a> {
    hf: &'a HfConfig,
    mesh: MeshShape,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// How experts are packed for the fused operators, where they are too.
    pub(super) ring: Option<RingPacking>,
    files: Vec<WeightFile>,
}

/// Where a module is: its directory, its place in the tree, its layer.
#[derive(Clone)]
pub(super) struct At {
    dir: String,
    key: String,
    layer: usize,
}

impl At {
    fn root(layer: usize) -> Self {
        Self { dir: String::new(), key: String::new(), layer }
    }

    pub(super) fn enter(&self, dir: &str, key: &str) -> Self {
        let join = |path: &str, separator: &str, name: &str| match (path, name) {
            ("", name) => name.to_owned(),
            (path, "") => path.to_owned(),
            (path, name) => format!("{path}{separator}{name}"),
        };
        Self { dir: join(&self.dir, "/", dir), key: join(&self.key, ".", key), layer: self.layer }
    }

    /// A part that has the same name in both.
    pub(super) fn part(&self, name: &str) -> Self {
        self.enter(name, name)
    }
}

impl FileList<'_> {
    fn error(&self, field: &str, cause: Cause) -> Error {
        Error::Model { mesh: self.mesh, field: field.to_owned(), cause }
    }

    fn is_multiple(&self, field: &str, got: usize, of: usize) -> Result<(), Error> {
        match got.is_multiple_of(of) && got > 0 {
            true => Ok(()),
            false => Err(self.error(field, Cause::NotMultiple { of, got })),
        }
    }

    /// Refuses what upstream's modules do not have, and what does not divide, by the name of the field.
    fn check_model(&self) -> Result<(), Error> {
        let (hf, shape, tile) = (self.hf, &self.hf.attention, TILE as usize);
        let devices = self.rows * self.columns;
        let needs = |field: &str, expected: &str, got: String| {
            self.error(field, Cause::Unsupported { expected: expected.to_owned(), got })
        };
        if shape.bias {
            return Err(needs("attention_bias", "false", "true".to_owned()));
        }
        let Some(rank) = shape.q_lora_rank else {
            return Err(needs("q_lora_rank", "a number", "null".to_owned()));
        };
        self.is_multiple("hidden_size", hf.hidden_size, tile * self.columns)?;
        self.is_multiple("hidden_size", hf.hidden_size, devices)?;
        self.is_multiple("q_lora_rank", rank, tile)?;
        self.is_multiple("kv_lora_rank", shape.kv_lora_rank, tile)?;
        self.is_multiple("num_attention_heads", shape.heads, self.columns)?;
        self.is_multiple("vocab_size", hf.vocab_size, self.columns)?;
        if hf.first_k_dense_replace > 0 {
            self.is_multiple("intermediate_size", hf.intermediate_size, self.columns)?;
        }
        if hf.first_k_dense_replace < hf.num_hidden_layers + hf.mtp_layers {
            let moe = hf.moe();
            if moe.routed_experts != GATE_EXPERTS {
                let expected = format!("{GATE_EXPERTS}, which the chip's gate is made for");
                return Err(needs("n_routed_experts", &expected, moe.routed_experts.to_string()));
            }
            self.is_multiple("n_routed_experts", moe.routed_experts, devices)?;
            if moe.shared_experts == 0 {
                return Err(needs("n_shared_experts", "1 or more", "0".to_owned()));
            }
            let shared = moe.shared_intermediate_size();
            self.is_multiple("moe_intermediate_size * n_shared_experts", shared, self.columns)?;
        }
        let largest = [hf.hidden_size, hf.vocab_size, hf.intermediate_size, shape.q_dim(), shape.kv_dim()];
        match largest.into_iter().find(|&side| u32::try_from(side).is_err() || side > 1 << 30) {
            Some(side) => Err(needs("config.json", "sizes up to 2^30", side.to_string())),
            None => Ok(()),
        }
    }

    fn of_model(mut self, weights: ModelWeights<WeightSpec>) -> Result<Vec<WeightFile>, Error> {
        let ModelWeights { embedding, mlp_decoder_block, moe_decoder_block, norm, lm_head, mtp } = weights;
        let (hidden, vocab) = (self.hf.hidden_size, self.hf.vocab_size);
        let (first, last) = (At::root(0), At::root(self.hf.num_hidden_layers - 1));
        let part = hidden / (self.rows * self.columns);
        self.add(
            &first.part("embedding").enter("embedding.weight", "embedding.weight"),
            vec![embedding.weight],
            (Form::Rows, Split::ColumnsThenRows),
            TensorSpec::row_major(&shape([1, 1, vocab, part]), DataType::Bfloat16, MemoryConfig::DRAM),
        );
        let dense = mlp_decoder_block.len();
        for (layer, block) in mlp_decoder_block.into_iter().enumerate() {
            let at = At::root(layer)
                .enter(&format!("mlp_decoder_block_{layer}"), &format!("mlp_decoder_block.{layer}"));
            let DecoderBlockWeights { mla_norm, mla, mlp_norm, mlp } = block;
            self.attention(&at, mla_norm, mla, mlp_norm);
            self.mlp(&at.part("mlp"), mlp, self.hf.intermediate_size);
        }
        for (index, block) in moe_decoder_block.into_iter().enumerate() {
            let layer = dense + index;
            let at = At::root(layer)
                .enter(&format!("moe_decoder_block_{layer}"), &format!("moe_decoder_block.{index}"));
            self.moe_block(&at, block);
        }
        self.norm(&last.part("norm"), norm);
        let part = vocab / self.columns;
        self.add(
            &last.part("lm_head").part("linear.input_tensor_b"),
            vec![lm_head.weight],
            (Form::Rows, Split::Columns(-2)),
            TensorSpec::tiled(&shape([1, 1, part, hidden]), DataType::Bfloat8B, MemoryConfig::DRAM),
        );
        if let Some(mtp) = mtp {
            self.mtp(&At::root(self.hf.num_hidden_layers).part("mtp"), mtp);
        }
        Ok(self.files)
    }

    fn moe_block(&mut self, at: &At, block: DecoderBlockWeights<WeightSpec, MoeWeights<WeightSpec>>) {
        let DecoderBlockWeights { mla_norm, mla, mlp_norm, mlp } = block;
        self.attention(at, mla_norm, mla, mlp_norm);
        let MoeWeights { gate, experts, shared_experts } = mlp;
        let at = at.part("mlp");
        if let Some(shared) = shared_experts {
            let width = self.hf.moe().shared_intermediate_size();
            self.mlp(&at.enter("shared_experts", "shared_expert"), shared, width);
        }
        let at = at.part("moe");
        self.gate(&at.part("moe_gate"), gate);
        self.experts(&at.part("moe_experts"), experts);
    }

    fn mtp(&mut self, at: &At, mtp: MtpWeights<WeightSpec>) {
        let MtpWeights { embedding: _, enorm, hnorm, eh_proj, decoder_block, norm, lm_head: _ } = mtp;
        // Upstream reads the base model's embedding and head.
        for (from, to) in [("embedding.", "mtp.embedding."), ("lm_head.", "mtp.head.")] {
            for file in &mut self.files {
                let key = file.keys[0].strip_prefix(from).map(|rest| format!("{to}{rest}"));
                file.keys.extend(key);
            }
        }
        self.norm(&at.part("hidden_norm"), hnorm);
        self.norm(&at.part("token_norm"), enorm);
        let hidden = self.hf.hidden_size;
        self.add(
            &at.part("eh_proj.linear.input_tensor_b"),
            vec![eh_proj],
            (Form::Rows, Split::Columns(-2)),
            TensorSpec::tiled(
                &shape([1, 1, hidden / self.columns, 2 * hidden]),
                DataType::Bfloat8B,
                MemoryConfig::DRAM,
            ),
        );
        self.moe_block(&at.part("decoder_block"), decoder_block);
        self.norm(&at.part("head_norm"), norm);
    }

    fn attention(
        &mut self,
        at: &At,
        mla_norm: RmsNormWeights<WeightSpec>,
        mla: MlaWeights<WeightSpec>,
        mlp_norm: RmsNormWeights<WeightSpec>,
    ) {
        self.norm(&at.part("mla_norm"), mla_norm);
        self.mla(&at.enter("mla", "mla.mla1d"), mla);
        self.norm(&at.part("mlp_norm"), mlp_norm);
    }

    /// A norm over features that lie over the columns.
    fn norm(&mut self, at: &At, norm: RmsNormWeights<WeightSpec>) {
        let sticks = self.hf.hidden_size / TILE as usize / self.columns;
        self.add(
            &at.enter("rmsnorm.weight", "rms_norm_post_all_gather.weight"),
            vec![norm.weight],
            (Form::Sticks, Split::Columns(-2)),
            TensorSpec::row_major(
                &shape([1, 1, sticks, TILE as usize]),
                DataType::Bfloat16,
                MemoryConfig::DRAM,
            ),
        );
    }

    /// A norm over a latent, which all devices have whole.
    fn latent_norm(&mut self, at: &At, norm: Leaf<WeightSpec>) {
        let sticks = norm.shape[0] / TILE as usize;
        self.add(
            &at.enter("rmsnorm.weight", "weight"),
            vec![norm],
            (Form::Sticks, Split::Replicated),
            TensorSpec::row_major(
                &shape([1, 1, sticks, TILE as usize]),
                DataType::Bfloat16,
                MemoryConfig::DRAM,
            ),
        );
    }

    fn mla(&mut self, at: &At, weights: MlaWeights<WeightSpec>) {
        let MlaWeights { wq_a, q_norm, wq_b, wkv_a, kv_norm, wkv_b, wo, .. } = weights;
        let shape = &self.hf.attention;
        let (heads, nope, value, latent) =
            (shape.heads, shape.qk_nope_head_dim, shape.v_head_dim, shape.kv_lora_rank);
        let (hidden, columns, q_dim, o_dim) =
            (self.hf.hidden_size, self.columns, shape.q_dim(), shape.o_dim());
        let (wq_a, q_norm) = (wq_a.expect("checked: a rank"), q_norm.expect("checked: a rank"));
        let rank = wq_a.shape[0];
        self.latent_norm(&at.part("q_norm"), q_norm);
        self.latent_norm(&at.part("kv_norm"), kv_norm);
        let outputs = rank + shape_of(&wkv_a)[0];
        self.projection(&at.part("wq_kv_a"), vec![wq_a, wkv_a], -2, [hidden / columns, outputs]);
        self.projection(&at.part("wq_b"), vec![wq_b], -1, [rank, q_dim / columns]);
        let of = nope + value;
        let keys = Form::Heads { of, rows: 0..nope, turned: false };
        let split = Split::Columns(-3);
        self.heads(&at.part("wkv_b1"), wkv_b.clone(), (keys, split), [heads / columns, nope, latent]);
        let values = Form::Heads { of, rows: nope..of, turned: true };
        self.heads(&at.part("wkv_b2"), wkv_b, (values, Split::Replicated), [heads, latent, value]);
        self.projection(&at.part("wo"), vec![wo], -1, [o_dim, hidden / columns]);
    }

    fn heads(&mut self, at: &At, source: Leaf<WeightSpec>, how: (Form, Split), local: [usize; 3]) {
        let [heads, rows, columns] = local;
        let [batch, height, width] = local.map(|side| side as u32);
        let config = dram_height_sharded(batch, height, width);
        self.add(
            &at.part("input_tensor_b").joined(),
            vec![source],
            how,
            TensorSpec::tiled(&shape([1, heads, rows, columns]), DataType::Bfloat8B, config),
        );
    }

    /// A projection `[in, out]`, cut by columns over the banks; `local` is what a device has of it.
    fn projection(&mut self, at: &At, sources: Vec<Leaf<WeightSpec>>, dimension: i32, local: [usize; 2]) {
        let [rows, columns] = local;
        let config = dram_width_sharded(rows as u32, columns as u32);
        self.add(
            &at.part("input_tensor_b").joined(),
            sources,
            (Form::Turned, Split::Columns(dimension)),
            TensorSpec::tiled(&shape([1, rows, columns]), DataType::Bfloat8B, config),
        );
    }

    fn mlp(&mut self, at: &At, weights: MlpWeights<WeightSpec>, width: usize) {
        let MlpWeights { w1, w2, w3 } = weights;
        let (hidden, part) = (self.hf.hidden_size, width / self.columns);
        // Dimensions counted from the first, as upstream gives them.
        self.projection(&at.part("w1"), vec![w1], 2, [hidden, part]);
        self.projection(&at.part("w2"), vec![w2], 1, [part, hidden]);
        self.projection(&at.part("w3"), vec![w3], 2, [hidden, part]);
    }

    pub(super) fn add(
        &mut self,
        at: &At,
        sources: Vec<Leaf<WeightSpec>>,
        (form, split): (Form, Split),
        spec: TensorSpec,
    ) {
        self.files.push(WeightFile {
            path: format!("{}.{EXTENSION}", at.dir),
            keys: vec![at.key.clone()],
            layer: at.layer,
            sources: sources.into_iter().map(|Leaf(source)| source).collect(),
            form,
            split,
            spec,
        });
    }
}

impl At {
    /// With the last part joined to the name before it by a dot: files of weights are named `OPERATION.ARGUMENT`.
    pub(super) fn joined(&self) -> Self {
        let (before, last) = self.dir.rsplit_once('/').expect("two parts");
        Self { dir: format!("{before}.{last}"), ..self.clone() }
    }
}

pub(super) fn shape_of(spec: &Leaf<WeightSpec>) -> [usize; 2] {
    [spec.shape[0], spec.shape[1]]
}

/// Sizes that were checked to fit.
pub(super) fn shape<const N: usize>(sides: [usize; N]) -> [u32; N] {
    sides.map(|side| u32::try_from(side).expect("checked when the list was begun"))
}

/// The side of the face that a gate's bias makes.
pub(super) const fn gate_side() -> usize {
    GATE_SIDE as usize
}
