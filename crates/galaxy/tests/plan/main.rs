//! Plans: what upstream says of DeepSeek-V3's configs, that every plan of a possible model is verified, and that what is
//! altered in one is refused.

mod lengths;
mod names;
mod random;
mod refusals;

use dsv3_deepseek::HfConfig;
use dsv3_galaxy::{
    plan::{
        Plan, PlanDocument, PlanError,
        modules::{decoder_block::MlaConfig, mla::MlaDecodeConfig, mla_prefill::MlaPrefillConfig},
        operations::OperationList,
        plan,
        request::{Fabric, Mode, Request},
    },
    types::{CoreGrid, MathFidelity, MemoryConfig, MemoryLayout, ProgramConfig},
    weights::{WeightCache, weight_files},
};
use serde_json::{Value, json};
use std::{fs, path::Path, sync::LazyLock};

fn config_text() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs/deepseek-v3-671b.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn model(changes: &Value) -> HfConfig {
    let mut config = config_text();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    HfConfig::from_json(Path::new("config.json"), &config.to_string()).unwrap()
}

static V3: LazyLock<HfConfig> = LazyLock::new(|| model(&json!({})));

fn request(mesh: &str, mode: Mode, length: u32) -> Request {
    Request {
        mesh: mesh.parse().unwrap(),
        mode,
        users_per_row: 32,
        sequence_length: length,
        max_sequence_length: length,
        fabric: Fabric::Line,
    }
}

fn decode(mesh: &str) -> Plan {
    plan(&V3, request(mesh, Mode::Decode, 2048)).unwrap()
}

fn mla(plan: &Plan) -> &MlaDecodeConfig {
    match &plan.document.model_config.moe_decoder_block[0].mla.mla1d {
        MlaConfig::Decode(mla) => mla,
        MlaConfig::Prefill(_) => panic!("of prefill"),
    }
}

fn mla_prefill(plan: &Plan) -> &MlaPrefillConfig {
    match &plan.document.model_config.moe_decoder_block[0].mla.mla1d {
        MlaConfig::Prefill(mla) => mla,
        MlaConfig::Decode(_) => panic!("of decode"),
    }
}

/// Cores and shard of what is sharded.
fn shards(config: &MemoryConfig<CoreGrid>) -> (u64, [u32; 2]) {
    let spec = config.shard_spec.as_ref().unwrap();
    (spec.grid.cores().unwrap(), spec.shape)
}

#[test]
fn decode_is_laid_out_as_upstream_has_it() {
    for mesh in ["4x8", "8x8", "16x8"] {
        let plan = decode(mesh);
        let config = &plan.document.model_config;
        let block = &config.moe_decoder_block[0];
        // "Decode input WIDTH-sharded on 4x7=28 cores, shard 32x32."
        let place = &block.mla_norm.rms_norm_post_all_gather.memory_config;
        assert_eq!((place.memory_layout, shards(place)), (MemoryLayout::WidthSharded, (28, [32, 32])));
        let mla = mla(&plan);
        let ProgramConfig::SDPAProgramConfig(flash) = &mla.flash_mla.program_config else {
            panic!("of attention")
        };
        assert_eq!((flash.q_chunk_size, flash.k_chunk_size), (0, 64));
        assert_eq!(mla.kv_cache.kv_cache_shape, [2048 / 32 * 4, 1, 32, 576]);
        assert_eq!((mla.wq_kv_a_ag_decode.dim, mla.wq_kv_a_ag_decode.cluster_axis), (1, 1));
        assert_eq!((mla.wo_ag_decode.dim, mla.wo_ag_decode.use_broadcast), (2, Some(true)));
        assert_eq!((mla.wq_a2a_decode.in_dim, mla.wq_a2a_decode.out_dim), (2, 1));
        // 192^-0.5 * (0.1 ln 40 + 1)^2.
        assert!((mla.flash_mla.scale - 0.135_234).abs() < 1e-5, "{}", mla.flash_mla.scale);
        assert_eq!(config.embedding.typecast.dtype.name(), "float32");
    }
}

#[test]
fn norms_that_run_at_once_have_other_cores() {
    let plan = decode("4x8");
    let mla = mla(&plan);
    let cores = |config: &MemoryConfig<CoreGrid>| match &config.shard_spec.as_ref().unwrap().grid {
        CoreGrid::Ranges(ranges) => ranges.0[0],
        other => panic!("{other:?}"),
    };
    let (queries, keys) = (cores(&mla.q_norm.memory_config), cores(&mla.kv_norm.memory_config));
    assert!(queries.end.y < keys.start.y, "{queries} and {keys}");
}

#[test]
fn four_galaxies_in_a_ring_take_the_fused_experts() {
    let ring =
        |mesh| plan(&V3, Request { fabric: Fabric::Ring, ..request(mesh, Mode::Decode, 2048) }).unwrap();
    let fused = |plan: &Plan| plan.operations.operations.iter().filter(|one| one.op == "moe_compute").count();
    assert_eq!(fused(&ring("16x8")), 2, "a layer, and the one for multi-token prediction");
    assert_eq!((fused(&ring("8x8")), fused(&decode("16x8"))), (0, 0));
    let rings = ring("4x8").operations;
    assert!(rings.operations.iter().all(|one| one.config.get("topology").is_none_or(|name| name == "Ring")));
}

/// Each weight of the configs is one that stage 1 writes, under the same names, and the other way round.
#[test]
fn stage_2_wants_what_stage_1_makes() {
    for (mesh, mode) in
        [("4x8", Mode::Decode), ("8x8", Mode::Decode), ("16x8", Mode::Decode), ("4x8", Mode::Prefill)]
    {
        let tree = json!(plan(&V3, request(mesh, mode, 2048)).unwrap().document.model_config);
        let files = weight_files(&V3, mesh.parse().unwrap(), Fabric::Line).unwrap();
        let mut compared = 0;
        for file in files {
            for path in file.keys {
                // Layers of a kind have one config.
                let names: Vec<&str> = path
                    .split('.')
                    .map(|name| if name.parse::<u32>().is_ok() { "0" } else { name })
                    .collect();
                let weight =
                    &tree.pointer(&format!("/{}", names.join("/"))).unwrap_or_else(|| panic!("no {path}"));
                assert_eq!(weight["shape"], json!(file.spec.shape), "{path}");
                assert_eq!(weight["dtype"], json!(file.spec.data_type), "{path}");
                assert_eq!(weight["memory_config"], json!(file.spec.memory_config), "{path}");
                compared += 1;
            }
        }
        assert!(compared > 1000, "{compared}");
        // The ends, a dense block, one with experts, and MTP's; in decode, the table of rotations, which is no weight.
        let table = usize::from(mode == Mode::Decode);
        assert_eq!(count_weights(&tree), 3 + 12 + 17 + (17 + 4 + 2) + table, "{mesh}");
    }
}

/// On a ring of 16x8 stage 1 makes what the fused experts of decode read, beside what those of prefill do.
#[test]
fn stage_2_wants_what_stage_1_makes_for_a_ring() {
    let decode = Request { fabric: Fabric::Ring, ..request("16x8", Mode::Decode, 2048) };
    let prefill = Request { fabric: Fabric::Ring, ..request("16x8", Mode::Prefill, 2048) };
    let trees = [decode, prefill].map(|request| json!(plan(&V3, request).unwrap().document.model_config));
    let files = weight_files(&V3, "16x8".parse().unwrap(), Fabric::Ring).unwrap();
    let mut packed = 0;
    for file in &files {
        for path in &file.keys {
            let names: Vec<&str> =
                path.split('.').map(|name| if name.parse::<u32>().is_ok() { "0" } else { name }).collect();
            let pointer = format!("/{}", names.join("/"));
            let weight = trees.iter().find_map(|tree| tree.pointer(&pointer));
            let weight = weight.unwrap_or_else(|| panic!("no {path}"));
            assert_eq!(weight["shape"], json!(file.spec.shape), "{path}");
            assert_eq!(weight["memory_config"], json!(file.spec.memory_config), "{path}");
            packed += usize::from(path.contains("quad_ring"));
        }
    }
    assert_eq!(packed, 2 * 59, "two for each of 58 layers, and for MTP's");
}

fn count_weights(tree: &Value) -> usize {
    match tree {
        Value::Object(fields) if fields.contains_key("mesh_device") && fields.contains_key("shape") => 1,
        Value::Object(fields) => fields.values().map(count_weights).sum(),
        Value::Array(items) => items.iter().map(count_weights).sum(),
        _ => 0,
    }
}

#[test]
fn the_document_is_read_as_it_was_written() {
    for (mesh, mode) in [("4x8", Mode::Decode), ("4x8", Mode::Prefill)] {
        let plan = plan(&V3, request(mesh, mode, 2048)).unwrap();
        let text = serde_json::to_string(&plan.document).unwrap();
        assert_eq!(serde_json::from_str::<PlanDocument>(&text).unwrap(), plan.document);
        let text = serde_json::to_string(&plan.operations).unwrap();
        assert_eq!(serde_json::from_str::<OperationList>(&text).unwrap(), plan.operations);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_what_it_is() {
    let huge = model(&json!({ "moe_intermediate_size": 1 << 17 }));
    assert!(matches!(
        plan(&huge, request("4x8", Mode::Decode, 2048)),
        Err(PlanError::Dram { .. } | PlanError::L1 { .. })
    ));
    let many = model(&json!({ "num_attention_heads": 512, "num_key_value_heads": 512 }));
    let error = plan(&many, request("4x8", Mode::Decode, 2048)).unwrap_err();
    assert!(matches!(error, PlanError::Model { field: "num_attention_heads", .. }), "{error}");
}

#[test]
fn a_scale_of_the_experts_that_is_none_is_refused() {
    for scale in [0.0, -1.0, f32::NAN] {
        let mut model = V3.clone();
        model.moe.as_mut().unwrap().routed_scaling_factor = scale;
        let error = plan(&model, request("4x8", Mode::Decode, 2048)).unwrap_err();
        assert!(matches!(error, PlanError::Model { field: "routed_scaling_factor", .. }), "{error}");
    }
}

/// Upstream's compute kernel configs: fidelity, approximation, sums in 32 bits.
#[test]
fn products_compute_as_upstreams_do() {
    let plan = decode("4x8");
    let tree = json!(plan.document.model_config);
    for (pointer, fidelity, approximate, fp32) in [
        ("mlp_decoder_block/0/mla/mla1d/wq_kv_a", MathFidelity::LoFi, true, true),
        ("mlp_decoder_block/0/mla/mla1d/wo", MathFidelity::LoFi, true, true),
        ("mlp_decoder_block/0/mla/mla1d/flash_mla", MathFidelity::HiFi4, false, false),
        ("mlp_decoder_block/0/mla/mla1d/q_norm", MathFidelity::HiFi4, false, false),
        ("mlp_decoder_block/0/mlp/w1", MathFidelity::HiFi2, true, true),
        ("moe_decoder_block/0/mlp/moe/moe_gate/gate_proj", MathFidelity::HiFi2, true, true),
        ("moe_decoder_block/0/mlp/moe/moe_experts/w1_experts", MathFidelity::LoFi, false, false),
        ("moe_decoder_block/0/mlp/moe/moe_experts/w2_experts", MathFidelity::HiFi2, true, true),
        ("norm/rms_norm_post_all_gather", MathFidelity::HiFi4, false, false),
        ("lm_head/linear", MathFidelity::HiFi2, true, true),
        ("mtp/eh_proj/linear", MathFidelity::LoFi, false, false),
    ] {
        let config = &tree
            .pointer(&format!("/{pointer}/compute_kernel_config"))
            .unwrap_or_else(|| panic!("{pointer}"));
        let got = (&config["math_fidelity"], &config["math_approx_mode"], &config["fp32_dest_acc_en"]);
        assert_eq!(got, (&json!(fidelity), &json!(approximate), &json!(fp32)), "{pointer}");
    }
}

/// Stage 2 counts a device's weights as stage 1 does: with what banks are padded with, as of wkv_b2's 128 heads, and
/// without the gate's bias, which lies in L1.
#[test]
fn both_stages_count_the_same_bytes() {
    for mesh in ["4x8", "8x8", "16x8"] {
        let dram = decode(mesh).document.header.dram;
        let cache = WeightCache::new(Path::new(""), &V3, mesh.parse().unwrap(), None).unwrap();
        assert_eq!(dram.model - 62 * dram.kv_cache, cache.device_bytes(), "{mesh}");
        // 132 heads of 512 x 128 in bfloat8_b, eleven in each of twelve banks.
        let wkv_b2 = 132 * 16 * 4 * 1088;
        let alone = WeightCache::new(Path::new(""), &V3, mesh.parse().unwrap(), None).unwrap();
        let file =
            alone.files().iter().find(|file| file.file.path.ends_with("wkv_b2.input_tensor_b.tensorbin"));
        assert_eq!((file.unwrap().device_bytes(), file.unwrap().data_bytes()), (wkv_b2, 128 * 16 * 4 * 1088));
    }
}
