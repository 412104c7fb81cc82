use super::{
    values::{Packer, Scratch},
    *,
};
use crate::{
    block_float::Rounding,
    hardware::DRAM_BYTES,
    plan::request::Fabric,
    ring::{self, RingPacking},
    tensorbin::TensorSpec,
    types::{BufferType, DataType, MemoryLayout},
};
use dsv3_deepseek::HfConfig;
use dsv3_mesh::MeshShape;
use dsv3_runtime::{Checkpoint, WeightSpec};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

fn mesh(text: &str) -> MeshShape {
    text.parse().unwrap()
}

/// DeepSeek-V3's own configuration, with some fields changed.
fn hf(changes: &Value) -> HfConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs/deepseek-v3-671b.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    HfConfig::from_json(&path, &config.to_string()).unwrap()
}

/// Shape, type and, where it is cut over banks or cores, the shape of a part.
type Shard<S, T> = (S, T, Option<[u32; 2]>);

/// Those of all files, by path.
fn shapes(mesh_text: &str) -> BTreeMap<String, Shard<Vec<u32>, String>> {
    let files = weight_files(&hf(&json!({})), mesh(mesh_text), Fabric::Line).unwrap();
    let of_file = |file: WeightFile| {
        let part = file.spec.memory_config.shard_spec.map(|spec| spec.shape);
        (file.path, (file.spec.shape, file.spec.data_type.to_string(), part))
    };
    files.into_iter().map(of_file).collect()
}

#[test]
fn shards_of_the_full_model_have_upstreams_shapes() {
    // Upstream's table, for 8 columns; experts and the embedding lie over all devices.
    let per_column: [(&str, Shard<&[u32], &str>); 22] = [
        ("mlp_decoder_block_0/mla_norm/rmsnorm.weight", (&[1, 1, 28, 32], "bfloat16", None)),
        ("mlp_decoder_block_0/mla/q_norm/rmsnorm.weight", (&[1, 1, 48, 32], "bfloat16", None)),
        ("mlp_decoder_block_0/mla/kv_norm/rmsnorm.weight", (&[1, 1, 16, 32], "bfloat16", None)),
        ("mlp_decoder_block_0/mla/wq_kv_a.input_tensor_b", (&[1, 896, 2112], "bfloat8_b", Some([896, 192]))),
        ("mlp_decoder_block_0/mla/wq_b.input_tensor_b", (&[1, 1536, 3072], "bfloat8_b", Some([1536, 256]))),
        (
            "mlp_decoder_block_0/mla/wkv_b1.input_tensor_b",
            (&[1, 16, 128, 512], "bfloat8_b", Some([256, 512])),
        ),
        (
            "mlp_decoder_block_0/mla/wkv_b2.input_tensor_b",
            (&[1, 128, 512, 128], "bfloat8_b", Some([5632, 128])),
        ),
        ("mlp_decoder_block_0/mla/wo.input_tensor_b", (&[1, 16384, 896], "bfloat8_b", Some([16384, 96]))),
        ("mlp_decoder_block_0/mlp_norm/rmsnorm.weight", (&[1, 1, 28, 32], "bfloat16", None)),
        ("mlp_decoder_block_2/mlp/w1.input_tensor_b", (&[1, 7168, 2304], "bfloat8_b", Some([7168, 192]))),
        ("mlp_decoder_block_2/mlp/w2.input_tensor_b", (&[1, 2304, 7168], "bfloat8_b", Some([2304, 608]))),
        ("mlp_decoder_block_2/mlp/w3.input_tensor_b", (&[1, 7168, 2304], "bfloat8_b", Some([7168, 192]))),
        (
            "moe_decoder_block_3/mlp/shared_experts/w1.input_tensor_b",
            (&[1, 7168, 256], "bfloat8_b", Some([7168, 32])),
        ),
        (
            "moe_decoder_block_60/mlp/shared_experts/w2.input_tensor_b",
            (&[1, 256, 7168], "bfloat8_b", Some([256, 608])),
        ),
        (
            "moe_decoder_block_3/mlp/moe/moe_gate/gate_proj.input_tensor_b",
            (&[1, 1, 256, 7168], "bfloat16", None),
        ),
        (
            "moe_decoder_block_3/mlp/moe/moe_gate/e_score_correction_bias.input_tensor_b",
            (&[72, 32, 32], "bfloat16", Some([32, 32])),
        ),
        ("norm/rmsnorm.weight", (&[1, 1, 28, 32], "bfloat16", None)),
        ("lm_head/linear.input_tensor_b", (&[1, 1, 16160, 7168], "bfloat8_b", None)),
        ("mtp/hidden_norm/rmsnorm.weight", (&[1, 1, 28, 32], "bfloat16", None)),
        ("mtp/eh_proj.linear.input_tensor_b", (&[1, 1, 896, 14336], "bfloat8_b", None)),
        ("mtp/decoder_block/mla/wo.input_tensor_b", (&[1, 16384, 896], "bfloat8_b", Some([16384, 96]))),
        (
            "mtp/decoder_block/mlp/moe/moe_gate/gate_proj.input_tensor_b",
            (&[1, 1, 256, 7168], "bfloat16", None),
        ),
    ];
    for (mesh, experts, part) in [("4x8", 8, 224), ("8x8", 4, 112), ("16x8", 2, 56)] {
        let shapes = shapes(mesh);
        // Two ends and a norm; 19 files of each MoE block, 13 of a dense one; four more of MTP.
        assert_eq!(shapes.len(), 3 + 3 * 12 + 59 * 17 + 4, "{mesh}");
        let of = |path: &str| {
            let (shape, data_type, cut) = &shapes[&format!("{path}.tensorbin")];
            (&shape[..], data_type.as_str(), *cut)
        };
        for (path, expected) in per_column {
            assert_eq!(of(path), expected, "{mesh} {path}");
        }
        assert_eq!(of("embedding/embedding.weight"), (&[1, 1, 129_280, part][..], "bfloat16", None));
        for block in ["moe_decoder_block_3", "mtp/decoder_block"] {
            let of = |name: &str| of(&format!("{block}/mlp/moe/moe_experts/{name}.input_tensor_b"));
            assert_eq!(of("w1_experts"), (&[1, experts, 2048, 7168][..], "bfloat4_b", None));
            assert_eq!(of("w2_experts"), (&[1, experts, 7168, 2048][..], "bfloat8_b", None));
            assert_eq!(of("w3_experts"), (&[1, experts, 2048, 7168][..], "bfloat4_b", None));
        }
    }
}

#[test]
fn a_copy_on_each_row_is_stored_once() {
    let mesh = mesh("16x8");
    let files =
        weight_files(&with_layers(&hf(&json!({})), Some(4), false).unwrap(), mesh, Fabric::Line).unwrap();
    let buffers = |name: &str| {
        let file = files.iter().find(|file| file.path.contains(name)).unwrap();
        file.header(mesh).unwrap().buffers().len()
    };
    for (name, count) in
        [("wq_b", 8), ("mla_norm", 8), ("q_norm", 1), ("wkv_b2", 1), ("w1_experts", 128), ("embedding", 128)]
    {
        assert_eq!(buffers(name), count, "{name}");
    }
}

#[test]
fn the_full_model_takes_of_each_device_what_upstream_counts() {
    let bytes = |layers, mesh_text| {
        let hf = with_layers(&hf(&json!({})), layers, false).unwrap();
        let cache = WeightCache::new(Path::new(""), &hf, mesh(mesh_text), None).unwrap();
        (cache.device_bytes() as f64 / 1e9, cache.device_bytes() > DRAM_BYTES)
    };
    // Experts take 14.9, 7.45 and 3.7 GB. All else: MLA 1.99, shared experts 0.34, gates 0.21, dense MLPs 0.16, the head
    // 0.12, the embedding 0.06 or less; and what banks are padded with: of a layer's wo 4.5 MB, wq_kv_a 0.2, wkv_b1 0.6,
    // shared experts 2: 0.4 of all.
    for (mesh, experts, fits) in [("4x8", 14.9, false), ("8x8", 7.45, true), ("16x8", 3.72, true)] {
        let (all, is_too_large) = bytes(None, mesh);
        assert!((experts + 3.2..experts + 3.4).contains(&all), "{mesh}: {all}");
        assert_eq!(is_too_large, !fits, "{mesh}");
    }
    assert!(!bytes(Some(5), "4x8").1, "a single Galaxy takes five layers");
}

#[test]
fn what_does_not_divide_is_refused_by_name() {
    let message = |changes: Value, mesh_text: &str| {
        weight_files(&hf(&changes), mesh(mesh_text), Fabric::Line).unwrap_err().to_string()
    };
    let cases = [
        (json!({}), "3x8", "a Galaxy mesh of 3x8: hidden_size: expected a multiple of 24, got 7168"),
        (json!({}), "4x7", "num_attention_heads: expected a multiple of 7, got 128"),
        (
            json!({ "num_attention_heads": 124, "num_key_value_heads": 124 }),
            "4x8",
            "num_attention_heads: expected a multiple of 8, got 124",
        ),
        (json!({ "vocab_size": 129_281 }), "4x8", "vocab_size: expected a multiple of 8, got 129281"),
        (
            json!({ "intermediate_size": 18_436 }),
            "4x8",
            "intermediate_size: expected a multiple of 8, got 18436",
        ),
        (
            json!({ "moe_intermediate_size": 2_044 }),
            "4x8",
            "moe_intermediate_size * n_shared_experts: expected a",
        ),
        (json!({ "kv_lora_rank": 500 }), "4x8", "kv_lora_rank: expected a multiple of 32, got 500"),
        (json!({ "q_lora_rank": null }), "4x8", "q_lora_rank: expected a number, got null"),
        (json!({ "attention_bias": true }), "4x8", "attention_bias: expected false, got true"),
        (json!({ "n_shared_experts": 0 }), "4x8", "n_shared_experts: expected 1 or more, got 0"),
        (
            json!({ "n_routed_experts": 128 }),
            "4x8",
            "n_routed_experts: expected 256, which the chip's gate is made for, got 128",
        ),
    ];
    for (changes, mesh, part) in cases {
        let message = message(changes, mesh);
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    }
}

#[test]
fn the_tree_has_upstreams_keys_and_lists() {
    let files = |mtp| {
        let hf = with_layers(&hf(&json!({})), None, mtp).unwrap();
        weight_files(&hf, mesh("4x8"), Fabric::Line).unwrap()
    };
    let config = weight_config(&files(true));
    assert_eq!(config["deepseek_weight_cache_metadata"], json!({ "format_version": 2 }));
    let tree = &config["weight_config"];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let top = ["embedding", "lm_head", "mlp_decoder_block", "moe_decoder_block", "mtp", "norm"];
    assert_eq!(keys(tree), set(&top));
    assert_eq!(tree["mlp_decoder_block"].as_array().unwrap().len(), 3);
    assert_eq!(tree["moe_decoder_block"].as_array().unwrap().len(), 58);
    let block = &tree["moe_decoder_block"][57];
    assert_eq!(keys(block), set(&["mla", "mla_norm", "mlp", "mlp_norm"]));
    assert_eq!(
        keys(&block["mla"]["mla1d"]),
        set(&["kv_norm", "q_norm", "wkv_b1", "wkv_b2", "wo", "wq_b", "wq_kv_a"])
    );
    assert_eq!(
        block["mla"]["mla1d"]["wo"]["input_tensor_b"],
        json!({
            "path": "moe_decoder_block_60/mla/wo.input_tensor_b.tensorbin",
            "memory_config": {
                "memory_layout": MemoryLayout::WidthSharded.code(), "buffer_type": BufferType::Dram.code(),
                "created_with_nd_shard_spec": false,
                "shard_spec": {
                    "grid": [{"start": {"x": 0, "y": 0}, "end": {"x": 11, "y": 0}}], "shape": [16384, 96],
                    "orientation": 0,
                },
            },
        })
    );
    let gate = &block["mlp"]["moe"]["moe_gate"];
    assert_eq!(keys(gate), set(&["add_score_correction_bias", "gate_proj"]));
    let mtp = &tree["mtp"];
    let parts = ["decoder_block", "eh_proj", "embedding", "head", "head_norm", "hidden_norm", "token_norm"];
    assert_eq!(keys(mtp), set(&parts));
    assert_eq!(mtp["head"], tree["lm_head"]);
    assert_eq!(mtp["embedding"], tree["embedding"]);
    assert!(weight_config(&files(false))["weight_config"].get("mtp").is_none());
}

#[test]
fn layers_are_those_of_the_model() {
    let hf = hf(&json!({}));
    let cache = |layers: &[usize]| {
        let layers = layers.iter().copied().collect();
        WeightCache::new(Path::new("cache"), &hf, mesh("4x8"), Some(&layers))
    };
    let wanted = |layers: &[usize]| {
        let cache = cache(layers).unwrap();
        let wanted = cache.files().iter().filter(|file| file.is_wanted);
        wanted.map(|file| file.file.path.split('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(wanted(&[0]), ["embedding", "mlp_decoder_block_0"].map(str::to_owned).into());
    assert_eq!(wanted(&[60]), ["lm_head", "moe_decoder_block_60", "norm"].map(str::to_owned).into());
    assert_eq!(wanted(&[61]), ["mtp".to_owned()].into());
    assert_eq!(cache(&[62]).unwrap_err().to_string(), "layer 62: this model has the layers 0 to 61");
    let five = with_layers(&hf, Some(5), false).unwrap();
    let five = WeightCache::new(Path::new("cache"), &five, mesh("4x8"), None).unwrap();
    assert_eq!(five.dir(), Path::new("cache/5_layers/mesh_4x8"));
    assert!(with_layers(&hf, Some(62), false).is_err() && with_layers(&hf, Some(0), false).is_err());
}

/// Two experts that are packed for the fused operators, value by value: turned, tile by tile where [`RingPacking`] says, which
/// is held to TT-NN there.
#[test]
fn experts_of_a_ring_are_packed_turned_tile_by_tile() {
    let [hidden, width] = [14 * 32, 40 * 32];
    let value = |tensor: usize, index: usize| ((index * 7 + tensor * 13) % 251) as f32 - 125.0;
    let names: Vec<String> =
        (0..6).map(|tensor| format!("expert{}.w{}", tensor / 3, tensor % 3 + 1)).collect();
    let shape_of = |tensor: usize| if tensor % 3 == 1 { [hidden, width] } else { [width, hidden] };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (tensor, name) in names.iter().enumerate() {
        let start = data.len();
        data.extend(
            (0..hidden * width).flat_map(|index| half::bf16::from_f32(value(tensor, index)).to_le_bytes()),
        );
        let described =
            json!({ "dtype": "BF16", "shape": shape_of(tensor), "data_offsets": [start, data.len()] });
        header.insert(name.clone(), described);
    }
    let dir = tempfile::tempdir().unwrap();
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let packing = RingPacking::of(hidden, width).unwrap();
    for (projection, tensors, [blocks, rows]) in [
        (RingProjection::Up, &[0, 2, 3, 5][..], packing.up_blocks()),
        (RingProjection::Down, &[1, 4], packing.down_blocks()),
    ] {
        let source = |&tensor: &usize| WeightSpec {
            source: names[tensor].clone(),
            kind: None,
            shape: shape_of(tensor).to_vec(),
            placement: dsv3_mesh::Placement::Replicated,
            scale_block: None,
        };
        let shape = RingPacking::shape([blocks, rows], 2).map(|side| side as u32);
        let file = WeightFile {
            path: "packed".to_owned(),
            keys: Vec::new(),
            layer: 0,
            sources: tensors.iter().map(source).collect(),
            form: Form::Ring { packing, projection },
            split: Split::RingDevices,
            spec: TensorSpec::tiled(&shape, DataType::Bfloat4B, RingPacking::memory_config(shape)),
        };
        let header = file.header(mesh("1x1")).unwrap();
        let packer = Packer::new(&file, &header, mesh("1x1"), &checkpoint, Rounding::Host).unwrap();
        let layout = header.spec.shard_layout().unwrap();
        let mut got = vec![0; layout.bytes()];
        let mut scratch = Scratch::default();
        for task in 0..packer.tasks() {
            let packed = packer.pack(task, &mut scratch).unwrap();
            got[packed.offset as usize..][..packed.bytes.len()].copy_from_slice(packed.bytes);
        }
        let mut expected = Vec::new();
        for matrix in 0..ring::CORES * 2 * blocks {
            let (core, expert, block) = (matrix / (2 * blocks), matrix / blocks % 2, matrix % blocks);
            for (row, column) in (0..rows * 32).flat_map(|row| (0..128).map(move |column| (row, column))) {
                let at = [row / 32, column / 32];
                let tile = match projection {
                    RingProjection::Up => packing.up_tile(core, block, at),
                    RingProjection::Down => packing.down_tile(core, block, at),
                };
                expected.push(tile.map_or(0.0, |tile| {
                    let tensor = tensors[expert * (tensors.len() / 2) + tile.source];
                    let (output, input) = (tile.output * 32 + column % 32, tile.input * 32 + row % 32);
                    value(tensor, output * shape_of(tensor)[1] + input)
                }));
            }
        }
        assert!(got == layout.pack(&expected, Rounding::Host), "{projection:?}");
    }
}
