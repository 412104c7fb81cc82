//! Stage 1 held to the plain way: each tensor dequantised whole, turned and cut as upstream describes it, and packed.

#[path = "support/model.rs"]
mod model;

use dsv3_deepseek::HfConfig;
use dsv3_galaxy::{
    block_float::Rounding,
    shard::{Order, ShardLayout},
    tensorbin::TensorBin,
    tile::Tile,
    types::DataType,
    weights::{CONFIG_FILE, ConvertOptions, Report, WeightCache},
};
use dsv3_runtime::{Checkpoint, Fingerprint, Source};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A tensor, plainly.
#[derive(Clone)]
struct Plain {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Plain {
    fn at(&self, index: &[usize]) -> f32 {
        let place = index.iter().zip(&self.shape).fold(0, |place, (at, side)| place * side + at);
        self.values[place]
    }

    fn make(shape: &[usize], value: impl Fn(&[usize]) -> f32) -> Self {
        let mut index = vec![0; shape.len()];
        let mut next = || {
            let made = value(&index);
            for (at, side) in index.iter_mut().zip(shape).rev() {
                *at += 1;
                if *at < *side {
                    break;
                }
                *at = 0;
            }
            made
        };
        let values = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
        Self { shape: shape.to_vec(), values }
    }

    fn turned(&self) -> Self {
        let [rows, columns] = self.shape[..] else { panic!("a matrix") };
        Self::make(&[columns, rows], |at| self.at(&[at[1], at[0]]))
    }

    /// The part `index` of `count` along a dimension.
    fn part(&self, dimension: usize, index: usize, count: usize) -> Self {
        let mut shape = self.shape.clone();
        assert!(shape[dimension].is_multiple_of(count));
        shape[dimension] /= count;
        let run: usize = shape[dimension..].iter().product();
        let values = self.values.chunks_exact(run).skip(index).step_by(count).flatten().copied().collect();
        Self { shape, values }
    }

    fn reshaped(self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.values.len());
        Self { shape: shape.to_vec(), ..self }
    }
}

/// The model under test, and what upstream makes of it.
struct Subject {
    _dir: TempDir,
    model: PathBuf,
    hf: HfConfig,
    checkpoint: Checkpoint,
    /// Tensors that were dequantised.
    known: RefCell<HashMap<String, Plain>>,
}

impl Subject {
    fn new(changes: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        model::write(&model, &model::config(changes), 7);
        let hf = HfConfig::from_file(&model.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(&model).unwrap();
        Self { _dir: dir, model, hf, checkpoint, known: RefCell::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.model.with_file_name(name)
    }

    fn cache(&self, mesh: &str, layers: Option<&BTreeSet<usize>>) -> WeightCache {
        WeightCache::new(&self.path("cache"), &self.hf, mesh.parse().unwrap(), layers).unwrap()
    }

    fn convert(&self, cache: &WeightCache, rounding: Rounding) -> Report {
        let fingerprint = Fingerprint::of(&self.checkpoint, b"");
        let source = Source { checkpoint: &self.checkpoint, fingerprint };
        let (mut done, mut total) = (0, 0);
        let report = cache
            .convert(&source, ConvertOptions { rounding, force: false }, &mut |at| {
                assert!(at.bytes > done, "progress goes forth");
                (done, total) = (at.bytes, at.total);
            })
            .unwrap();
        assert_eq!(done, total);
        report
    }

    fn tensor(&self, name: &str) -> Plain {
        let make = || {
            let (shape, values) = self.checkpoint.dequantized(name, [128, 128]).unwrap();
            Plain { shape, values }
        };
        self.known.borrow_mut().entry(name.to_owned()).or_insert_with(make).clone()
    }

    /// A shard as upstream makes it: its type, whether it lies in rows, its values.
    fn expected(
        &self,
        path: &str,
        [rows, columns]: [usize; 2],
        [row, column]: [usize; 2],
    ) -> (DataType, bool, Plain) {
        let path = path.strip_suffix(".tensorbin").unwrap();
        let (dir, name) = path.rsplit_once('/').unwrap();
        let hidden = self.hf.hidden_size;
        let over_columns = |plain: Plain, dimension| plain.part(dimension, column, columns);
        if let Some(norm) = norm_source(dir, self.hf.num_hidden_layers) {
            let weight = self.tensor(&norm);
            let length = weight.values.len();
            let sticks = weight.reshaped(&[1, 1, length / 32, 32]);
            let is_local = dir.ends_with("q_norm") || dir.ends_with("kv_norm");
            return (DataType::Bfloat16, true, if is_local { sticks } else { over_columns(sticks, 2) });
        }
        match path {
            "embedding/embedding.weight" => {
                let vocab = self.hf.vocab_size;
                let part = hidden / (rows * columns);
                let weight = self.tensor("model.embed_tokens.weight").reshaped(&[vocab, columns, rows, part]);
                let part = weight.part(1, column, columns).part(2, row, rows).reshaped(&[1, 1, vocab, part]);
                return (DataType::Bfloat16, true, part);
            }
            "lm_head/linear.input_tensor_b" => {
                let part = over_columns(self.tensor("lm_head.weight"), 0);
                let shape = [1, 1, part.shape[0], hidden];
                return (DataType::Bfloat8B, false, part.reshaped(&shape));
            }
            "mtp/eh_proj.linear.input_tensor_b" => {
                let name = format!("model.layers.{}.eh_proj.weight", self.hf.num_hidden_layers);
                let part = over_columns(self.tensor(&name), 0);
                return (DataType::Bfloat8B, false, part.reshaped(&[1, 1, hidden / columns, 2 * hidden]));
            }
            _ => {}
        }
        let at = layer_source(dir, self.hf.num_hidden_layers);
        let weight = |name: &str| self.tensor(&format!("{at}.{name}.weight"));
        let matrix = |plain: Plain| {
            let shape = [1, plain.shape[0], plain.shape[1]];
            (DataType::Bfloat8B, false, plain.reshaped(&shape))
        };
        let mla = &self.hf.attention;
        let (heads, nope, latent) = (mla.heads, mla.qk_nope_head_dim, mla.kv_lora_rank);
        let of = nope + mla.v_head_dim;
        match name.strip_suffix(".input_tensor_b").unwrap() {
            "wq_kv_a" => {
                let [q, kv] =
                    ["q_a_proj", "kv_a_proj_with_mqa"].map(|name| weight(&format!("self_attn.{name}")));
                let both = Plain {
                    shape: vec![q.shape[0] + kv.shape[0], hidden],
                    values: [q.values, kv.values].concat(),
                };
                matrix(over_columns(both.turned(), 0))
            }
            "wq_b" => matrix(over_columns(weight("self_attn.q_b_proj").turned(), 1)),
            "wo" => matrix(over_columns(weight("self_attn.o_proj").turned(), 1)),
            "wkv_b1" => {
                let both = weight("self_attn.kv_b_proj").reshaped(&[heads, of, latent]);
                let keys = Plain::make(&[1, heads, nope, latent], |at| both.at(&at[1..]));
                (DataType::Bfloat8B, false, over_columns(keys, 1))
            }
            "wkv_b2" => {
                let both = weight("self_attn.kv_b_proj").reshaped(&[heads, of, latent]);
                let values =
                    Plain::make(&[1, heads, latent, of - nope], |at| both.at(&[at[1], nope + at[3], at[2]]));
                (DataType::Bfloat8B, false, values)
            }
            name @ ("w1" | "w2" | "w3") => {
                let (source, dimension) = mlp_source(name);
                let module = if dir.ends_with("shared_experts") { "mlp.shared_experts" } else { "mlp" };
                matrix(over_columns(weight(&format!("{module}.{source}")).turned(), dimension))
            }
            "gate_proj" => {
                let gate = weight("mlp.gate");
                let shape = [1, 1, gate.shape[0], hidden];
                (DataType::Bfloat16, false, gate.reshaped(&shape))
            }
            "e_score_correction_bias" => {
                let bias = self.tensor(&format!("{at}.mlp.gate.e_score_correction_bias"));
                let mean = bias.values.iter().map(|&value| f64::from(value)).sum::<f64>() / 256.0;
                let face = bias.reshaped(&[16, 16]).turned();
                let value = |at: &[usize]| match at[1] < 16 && at[2] < 16 {
                    true => face.at(&at[1..]) - mean as f32,
                    false => 0.0,
                };
                (DataType::Bfloat16, false, Plain::make(&[72, 32, 32], value))
            }
            name => {
                let (source, _) = mlp_source(name.strip_suffix("_experts").unwrap());
                let local = 256 / (rows * columns);
                let first = (row * columns + column) * local;
                let experts = (first..first + local)
                    .map(|expert| weight(&format!("mlp.experts.{expert}.{source}")))
                    .collect::<Vec<_>>();
                let shape = [1, local, experts[0].shape[0], experts[0].shape[1]];
                let values = experts.into_iter().flat_map(|expert| expert.values).collect();
                let data_type = if name == "w2_experts" { DataType::Bfloat8B } else { DataType::Bfloat4B };
                (data_type, false, Plain { shape: shape.to_vec(), values })
            }
        }
    }

    /// Compares every shard of every file with what is expected.
    fn check(&self, cache: &WeightCache, mesh: [usize; 2], rounding: Rounding) {
        let files = tensorbins(cache.dir());
        assert!(!files.is_empty());
        for path in files {
            let mut file = TensorBin::open(&cache.dir().join(&path)).unwrap();
            let header = file.header().clone();
            assert_eq!(header.mesh_shape, mesh.map(|side| side as u32), "{path}");
            assert_eq!(header.shards.len(), mesh[0] * mesh[1], "{path}");
            let mut known = BTreeMap::new();
            for (index, shard) in header.shards.iter().enumerate() {
                let device = [shard.coordinate[0] as usize, shard.coordinate[1] as usize];
                let (data_type, is_in_rows, plain) = self.expected(&path, mesh, device);
                // What lies at one place was made from one part.
                let plain_bits: Vec<u32> = plain.values.iter().map(|value| value.to_bits()).collect();
                if known.get(&shard.span) == Some(&plain_bits) {
                    continue;
                }
                assert!(known.insert(shard.span, plain_bits).is_none(), "{path}: {device:?} shares a buffer");
                let shape: Vec<u32> = plain.shape.iter().map(|&side| side as u32).collect();
                assert_eq!((&header.spec.shape, header.spec.data_type), (&shape, data_type), "{path}");
                let order = if is_in_rows { Order::Rows { multiple: 1 } } else { Order::Tiles(Tile::SQUARE) };
                let layout = ShardLayout::new(&shape, data_type, order).unwrap();
                let bytes = file.read_shard(index).unwrap();
                assert!(bytes == layout.pack(&plain.values, rounding), "{path}: the bytes of {device:?}");
            }
        }
    }
}

fn mlp_source(name: &str) -> (&'static str, usize) {
    match name {
        "w1" => ("gate_proj", 1),
        "w2" => ("down_proj", 0),
        "w3" => ("up_proj", 1),
        other => panic!("{other}"),
    }
}

/// The layer in the checkpoint of a directory of the cache.
fn layer_source(dir: &str, layers: usize) -> String {
    let block = dir.split('/').next().unwrap();
    let number = match block.strip_prefix("mlp_decoder_block_").or(block.strip_prefix("moe_decoder_block_")) {
        Some(number) => number.parse().unwrap(),
        None => layers,
    };
    format!("model.layers.{number}")
}

/// The norm that a directory holds, if it does.
fn norm_source(dir: &str, layers: usize) -> Option<String> {
    let at = layer_source(dir, layers);
    Some(match dir.rsplit('/').next().unwrap() {
        "mla_norm" => format!("{at}.input_layernorm.weight"),
        "mlp_norm" => format!("{at}.post_attention_layernorm.weight"),
        "q_norm" => format!("{at}.self_attn.q_a_layernorm.weight"),
        "kv_norm" => format!("{at}.self_attn.kv_a_layernorm.weight"),
        "norm" => "model.norm.weight".to_owned(),
        "hidden_norm" => format!("{at}.hnorm.weight"),
        "token_norm" => format!("{at}.enorm.weight"),
        "head_norm" => format!("{at}.shared_head.norm.weight"),
        _ => return None,
    })
}

/// The files in a directory, by their paths in it.
fn tensorbins(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            found.extend(tensorbins(&path).into_iter().map(|below| format!("{name}/{below}")));
        } else if name.ends_with(".tensorbin") {
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn every_shard_of_every_weight_is_what_the_plain_way_makes() {
    let subject = Subject::new(&json!({}));
    for (mesh, sides) in [("1x1", [1, 1]), ("4x8", [4, 8])] {
        let cache = subject.cache(mesh, None);
        let report = subject.convert(&cache, Rounding::Host);
        assert_eq!((report.missing, report.present.0, report.written.0), (0, 0, cache.files().len()));
        let listed: BTreeSet<String> = cache.files().iter().map(|file| file.file.path.clone()).collect();
        assert_eq!(tensorbins(cache.dir()), listed);
        for file in cache.files() {
            let length = fs::metadata(cache.dir().join(&file.file.path)).unwrap().len();
            assert_eq!(length, file.bytes(), "{}: its size was known", file.file.path);
        }
        subject.check(&cache, sides, Rounding::Host);
        fs::remove_dir_all(cache.dir()).unwrap();
    }
}

#[test]
fn the_chips_rounding_is_applied_everywhere_and_long_rows_come_in_parts() {
    let long = json!({ "num_nextn_predict_layers": 0, "hidden_size": 1152, "moe_intermediate_size": 8 });
    let subject = Subject::new(&long);
    let cache = subject.cache("2x4", None);
    assert!(cache.dir().ends_with("2_layers/mesh_2x4"), "{cache:?}");
    subject.convert(&cache, Rounding::Device);
    subject.check(&cache, [2, 4], Rounding::Device);
}

#[test]
fn parts_come_together_and_config_json_comes_last() {
    let subject = Subject::new(&json!({}));
    let layers = |layers: &[usize]| layers.iter().copied().collect::<BTreeSet<_>>();
    let cache = subject.cache("2x4", Some(&layers(&[1])));
    let report = subject.convert(&cache, Rounding::Host);
    assert!(report.missing > 0 && !cache.dir().join(CONFIG_FILE).exists());
    assert!(tensorbins(cache.dir()).contains("lm_head/linear.input_tensor_b.tensorbin"));
    let cache = subject.cache("2x4", Some(&layers(&[0, 2])));
    let report = subject.convert(&cache, Rounding::Host);
    assert_eq!((report.missing, report.present.0), (0, 0));
    assert!(cache.dir().ends_with("2_layers_mtp/mesh_2x4") && cache.dir().join(CONFIG_FILE).exists());
    subject.check(&cache, [2, 4], Rounding::Host);
    // And once more there is nothing to do.
    let report = subject.convert(&subject.cache("2x4", None), Rounding::Host);
    assert_eq!((report.missing, report.written), (0, (0, 0)));
}
