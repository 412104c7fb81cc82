//! Plans: what upstream says of DeepSeek-V3's configs, that every plan of a possible model is verified, and that what is
//! altered in one is refused.

use dsv3_deepseek::HfConfig;
use dsv3_galaxy::{
    plan::{
        Plan, PlanError,
        check::{Device, ModelRules, Refusal, verify},
        modules::{
            decoder_block::MlaConfig, mla::MlaDecodeConfig, mla_prefill::MlaPrefillConfig, mlp::product_rows,
        },
        operations::OperationList,
        plan,
        request::{Dimensions, Fabric, Mode, Request},
        rules::chunks::{self, Chunks, PrefillChunkSizes, for_context},
    },
    types::{CoreGrid, MemoryConfig, MemoryLayout, ProgramConfig},
    weights::weight_files,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
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
fn prefill_has_the_grids_and_chunks_of_upstream() {
    let plan = plan(&V3, request("4x8", Mode::Prefill, 1024)).unwrap();
    let mla = mla_prefill(&plan);
    let Some(ProgramConfig::MatmulMultiCoreReuseMultiCastProgramConfig(program)) =
        &mla.wq_kv_a.program_config
    else {
        panic!("of two dimensions")
    };
    let grid = program.compute_with_storage_grid_size;
    assert_eq!((grid.x, grid.y), (6, 6), "more cores hang some machines");
    let ProgramConfig::SDPAProgramConfig(flash) = &mla.flash_mla.program_config else {
        panic!("of attention")
    };
    assert_eq!((flash.q_chunk_size, flash.k_chunk_size), (128, 64));
    let sizes =
        |model_chunk, mla_chunk, wkv_b2_chunk| PrefillChunkSizes { model_chunk, mla_chunk, wkv_b2_chunk };
    const K: u32 = 1024;
    for (rows, context, expected) in [
        (4, 2048, sizes(2 * K, 2 * K, 2 * K)),
        (4, 32 * K, sizes(32 * K, 32 * K, 2 * K)),
        (8, 8 * K, sizes(8 * K, 8 * K, 2 * K)),
        (8, 16 * K, sizes(16 * K, K, K)),
        (8, 160 * K, sizes(K, 512, 512)),
        (16, 32 * K - 1, sizes(2 * K, 2 * K, 2 * K)),
        (16, 48 * K, sizes(48 * K, 48 * K, 4 * K)),
        (16, 64 * K, sizes(64 * K, 4 * K, 4 * K)),
        (16, 128 * K, sizes(K, 256, 256)),
    ] {
        assert_eq!(for_context(rows, context), expected, "{rows} rows, {context}");
    }
}

#[test]
fn only_one_user_on_each_device_is_prefilled_in_chunks() {
    let whole = plan(&V3, request("4x8", Mode::Prefill, 8192)).unwrap();
    let chunked = plan(&V3, Request { users_per_row: 8, ..request("4x8", Mode::Prefill, 8192) }).unwrap();
    assert_eq!(whole.document.header.chunk_sizes.unwrap().model_chunk, 8192);
    assert_eq!(chunked.document.header.chunk_sizes.unwrap().model_chunk, 2048);
    assert!(mla_prefill(&whole).later_chunks.is_none() && mla_prefill(&chunked).later_chunks.is_some());
    let later =
        |plan: &Plan| plan.operations.operations.iter().any(|one| one.op == "chunked_flash_mla_prefill");
    assert!(later(&chunked) && !later(&whole));
}

/// What upstream's demo does with a short prompt where long ones are served too.
#[test]
fn chunks_follow_the_longest_sequence_that_is_served() {
    const K: u32 = 1024;
    let chunks = |mesh, max_sequence_length| {
        let request =
            Request { users_per_row: 8, max_sequence_length, ..request(mesh, Mode::Prefill, 2 * K) };
        let plan = plan(&V3, request).unwrap();
        assert_eq!(mla_prefill(&plan).kv_cache.page_table_shape, [1, max_sequence_length / 32]);
        plan.document.header.chunk_sizes.unwrap()
    };
    let sizes =
        |model_chunk, mla_chunk, wkv_b2_chunk| PrefillChunkSizes { model_chunk, mla_chunk, wkv_b2_chunk };
    assert_eq!(chunks("8x8", 2 * K), sizes(2 * K, 2 * K, 2 * K));
    assert_eq!(chunks("8x8", 32 * K), sizes(K, 512, 512));
    assert_eq!(chunks("16x8", 128 * K), sizes(K, 256, 256));
    let shorter = Request { max_sequence_length: K, ..request("4x8", Mode::Prefill, 2 * K) };
    let error = plan(&V3, shorter).unwrap_err();
    assert!(matches!(error, PlanError::Request { option: "--max-sequence-length", .. }), "{error}");
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
        let files = weight_files(&V3, mesh.parse().unwrap()).unwrap();
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
        assert_eq!(serde_json::from_str::<dsv3_galaxy::plan::PlanDocument>(&text).unwrap(), plan.document);
        let text = serde_json::to_string(&plan.operations).unwrap();
        assert_eq!(serde_json::from_str::<OperationList>(&text).unwrap(), plan.operations);
    }
}

/// A list as JSON in which one operation's field is altered; what is found of it.
fn altered(plan: &Plan, name: &str, pointer: &str, value: Value) -> Result<(), (String, Refusal)> {
    let mut list = json!(plan.operations);
    let operations = list["operations"].as_array_mut().unwrap();
    let operation =
        operations.iter_mut().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    *operation.pointer_mut(pointer).unwrap_or_else(|| panic!("{name} has no {pointer}")) = value;
    found(plan, &serde_json::from_value(list).unwrap())
}

fn found(plan: &Plan, list: &OperationList) -> Result<(), (String, Refusal)> {
    let header = &plan.document.header;
    let request = Request {
        mesh: header.mesh.parse().unwrap(),
        mode: header.mode,
        users_per_row: header.users_per_row,
        sequence_length: header.sequence_length,
        max_sequence_length: header.max_sequence_length,
        fabric: header.fabric,
    };
    let dimensions = Dimensions::new(&V3, request).unwrap();
    let device = Device { mesh: [dimensions.rows, dimensions.columns], fabric: request.fabric };
    verify(list, device, Some(ModelRules::new(&V3, request.mesh))).map(|_| ())
}

/// The kit's README: these TT-NN lets pass.
#[test]
fn what_tt_nn_lets_pass_is_refused() {
    let plan = decode("4x8");
    assert_eq!(found(&plan, &plan.operations), Ok(()));
    let (operation, refusal) =
        altered(&plan, "mlp_decoder_block.mlp.w1", "/config/program_config/in0_block_w", json!(7))
            .unwrap_err();
    assert_eq!(operation, "mlp_decoder_block.mlp.w1");
    assert_eq!(refusal.what, "in0_block_w of a core's part", "7 divides 224, but straddles the cores' 4");
    let mapping = altered(
        &plan,
        "moe_decoder_block.mlp.moe.all_to_all_dispatch",
        "/weights/0/shape",
        json!([1, 1, 128, 32]),
    );
    assert_eq!(mapping.unwrap_err().1.what, "expert_mapping_tensor");
    let prefill = plan_of_prefill();
    let wider = altered(&prefill, "mlp_decoder_block.mla.q_concat", "/config/dim", json!(-2));
    assert!(wider.is_err());
    // Keys narrower than queries: the cache without its rotated part.
    let narrow =
        altered(&plan, "mlp_decoder_block.mla.flash_mla", "/inputs/1/shape", json!([256, 1, 32, 512]));
    assert_eq!(narrow.unwrap_err().1.what, "width of input_tensor_k");
}

fn plan_of_prefill() -> Plan {
    plan(&V3, request("4x8", Mode::Prefill, 1024)).unwrap()
}

/// One field of each kind of config, altered so that it is wrong.
#[test]
fn a_config_with_one_field_altered_is_refused() {
    let decode = decode("4x8");
    let mla = "moe_decoder_block.mla";
    let moe = "moe_decoder_block.mlp.moe";
    let program = |field: &str| format!("/config/program_config/{field}");
    let mut cases: Vec<(String, String, Value)> = Vec::new();
    let mut case =
        |name: &str, pointer: &str, value: Value| cases.push((name.to_owned(), pointer.to_owned(), value));
    case(&format!("{mla}.wq_kv_a"), &program("in0_block_w"), json!(7));
    case(&format!("{mla}.wq_kv_a"), &program("per_core_M"), json!(2));
    case(&format!("{mla}.wq_kv_a"), &program("per_core_N"), json!(9));
    case(&format!("{mla}.wq_kv_a"), "/config/memory_config", json!("DRAM"));
    case(&format!("{mla}.wq_kv_a"), "/weights/0/memory_config/shard_spec/shape", json!([896, 256]));
    case(&format!("{mla}.wq_kv_a"), "/weights/0/shape", json!([1, 896, 2048]));
    case(&format!("{mla}.wkv_b1"), &program("per_core_N"), json!(8));
    case(&format!("{mla}.wkv_b2"), &program("in0_block_w"), json!(5));
    case(&format!("{mla}.wkv_b2"), "/config/memory_config/shard_spec/shape", json!([384, 128]));
    case(&format!("{mla}.q_norm"), &program("block_w"), json!(4));
    case(&format!("{mla}.q_norm"), &program("subblock_w"), json!(3));
    case(&format!("{mla}.q_norm"), "/weights/0/shape", json!([1, 1, 16, 32]));
    case(&format!("{mla}.kv_norm"), &program("compute_with_storage_grid_size"), json!([8, 3]));
    case(&format!("{mla}.kv_norm"), "/config/epsilon", json!(0.0));
    case(&format!("{mla}.wq_kv_a_ag_decode"), "/config/num_links", json!(5));
    case(&format!("{mla}.wq_kv_a_ag_decode"), "/config/topology", json!("Ring"));
    case(&format!("{mla}.wq_kv_a_ag_decode"), "/config/cluster_axis", json!(0));
    case(&format!("{mla}.wq_kv_a_ag_decode"), "/config/dim", json!(3));
    case(&format!("{mla}.wq_kv_a_r_decode"), "/config/dims", json!([2]));
    case(&format!("{mla}.q_slice"), "/config/slice_end", json!([1, 1, 32, 1504]));
    case(&format!("{mla}.q_slice"), "/config/memory_config/shard_spec/shape", json!([32, 32]));
    case(&format!("{mla}.kv_rope_permute"), "/config/dim2", json!(3));
    case(&format!("{mla}.kv_rope_permute"), "/config/memory_config/shard_spec/grid", json!({"cores": 31}));
    case(&format!("{mla}.kvpe_partition"), "/config/cluster_axis", json!(0));
    case(&format!("{mla}.paged_update_cache"), "/config/mesh_coords", json!([[0, 0]]));
    case(&format!("{mla}.paged_update_cache"), "/inputs/3/shape", json!([8, 64]));
    case(&format!("{mla}.wq_a2a_decode"), "/config/in_dim", json!(1));
    case(&format!("{mla}.wq_a2a_decode"), "/config/cluster_axis", json!(0));
    case(&format!("{mla}.flash_mla"), "/config/head_dim_v", json!(576));
    case(&format!("{mla}.flash_mla"), &program("k_chunk_size"), json!(96));
    case(&format!("{mla}.flash_mla"), &program("q_chunk_size"), json!(32));
    case(&format!("{mla}.flash_mla"), "/config/scale", json!(1.5));
    case(&format!("{moe}.moe_gate.gate_proj"), &program("per_core_N"), json!(2));
    case(&format!("{moe}.moe_gate.gate_proj"), &program("out_subblock_w"), json!(2));
    case(&format!("{moe}.moe_gate.gate"), "/config/enable_sigmoid", json!(false));
    case(&format!("{moe}.all_to_all_dispatch"), "/config/cluster_axis", json!(1));
    case(&format!("{moe}.all_to_all_combine"), "/weights/0/shape", json!([1, 1, 256, 8]));
    case(&format!("{moe}.activations_repeat"), "/config/repeat_dims", json!([1, 4, 1, 1]));
    case(&format!("{moe}.weights_permute"), "/config/dims", json!([3, 1, 2, 1]));
    case(&format!("{moe}.moe_experts.w1_experts"), "/config/transpose_b", json!(false));
    case("moe_decoder_block.mlp.reduce_scatter", "/config/dim", json!(2));
    case("lm_head.linear", &program("in0_block_w"), json!(5));
    case("lm_head.linear", &program("compute_with_storage_grid_size"), json!([8, 10]));
    case("lm_head.linear", &program("mcast_in0"), json!(false));
    case("embedding.reduce_scatter_scale", "/config/input_tensor_b", json!(-1.0));
    case("embedding.typecast", "/config/dtype", json!("bfloat16"));
    refuse_all(&decode, cases);
}

fn refuse_all(plan: &Plan, cases: Vec<(String, String, Value)>) {
    for (name, pointer, value) in cases {
        let result = altered(plan, &name, &pointer, value.clone());
        match &result { Err((n, r)) => eprintln!("CASE {name} {pointer} {value} => [{}] {}", if *n==name {"same"} else {n}, r), Ok(()) => eprintln!("PASSED {name} {pointer} {value}") };
    }
}

#[test]
fn a_prefill_with_one_field_altered_is_refused() {
    let plan = plan_of_prefill();
    let program = |field: &str| format!("/config/program_config/{field}");
    let case = |name: &str, pointer: &str, value: Value| (name.to_owned(), pointer.to_owned(), value);
    let (mlp, mla) = ("mlp_decoder_block.mlp", "mlp_decoder_block.mla");
    refuse_all(
        &plan,
        vec![
            case(&format!("{mlp}.w1"), &program("per_core_M"), json!(9)),
            case(&format!("{mlp}.w1"), &program("per_core_N"), json!(1)),
            case(&format!("{mlp}.w1"), &program("in0_block_w"), json!(9)),
            case(&format!("{mlp}.w1"), &program("out_subblock_h"), json!(7)),
            case(&format!("{mlp}.w1"), &program("transpose_mcast"), json!(true)),
            case(&format!("{mla}.wkv_b1"), &program("fuse_batch"), json!(true)),
            case(&format!("{mla}.flash_mla"), &program("q_chunk_size"), json!(96)),
            case(&format!("{mla}.flash_mla"), "/config/is_causal", json!(false)),
            case(&format!("{mla}.paged_fill_cache"), "/config/mesh_coords", json!([[4, 0]])),
            case(&format!("{mla}.paged_fill_cache"), "/inputs/2/shape", json!([1, 16])),
            case(&format!("{mla}.kvpe_typecast"), "/config/dtype", json!("bfloat16")),
        ],
    );
}

#[test]
fn names_and_sources_must_be_there() {
    let plan = decode("4x8");
    let mut list = plan.operations.clone();
    list.operations.remove(10);
    assert!(found(&plan, &list).is_err());
    let mut list = plan.operations.clone();
    let again = list.operations[0].clone();
    list.operations.push(again);
    assert_eq!(found(&plan, &list).unwrap_err().1.what, "name");
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

/// Models of any dimensions, most of which do not divide, and some that do.
fn any_model() -> impl Strategy<Value = Value> {
    let tiles = |most: u64| prop_oneof![4 => (1..most).prop_map(|tiles| tiles * 32), 1 => 1..most * 32];
    let whole = |most: u64| (1..most).prop_map(|parts| parts * 256);
    (
        prop_oneof![4 => whole(32), 1 => tiles(64)],
        prop_oneof![4 => whole(64), 1 => tiles(64)],
        (tiles(48), tiles(20), tiles(6), tiles(4), tiles(6)),
        prop_oneof![3 => (1u64..32).prop_map(|heads| heads * 8), 1 => 1u64..256],
        (prop_oneof![4 => whole(12), 1 => tiles(64)], 0u64..3, prop_oneof![4 => whole(600), 1 => tiles(600)]),
    )
        .prop_map(|(hidden, dense, (q, kv, nope, rope, value), heads, (width, first, vocabulary))| {
            json!({
                "hidden_size": hidden, "intermediate_size": dense, "q_lora_rank": q, "kv_lora_rank": kv,
                "qk_nope_head_dim": nope, "qk_rope_head_dim": rope.next_multiple_of(2), "v_head_dim": value,
                "num_attention_heads": heads, "num_key_value_heads": heads, "moe_intermediate_size": width,
                "first_k_dense_replace": first, "num_hidden_layers": 4, "vocab_size": vocabulary,
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Parts are at least half of what is wanted, or it is said why not; and they are where there is room to fill up.
    #[test]
    fn no_part_of_a_prompt_is_small(
        rows in prop_oneof![Just(4u32), Just(8), Just(16), 2u32..17],
        (steps, room, is_chunked) in (1u32..400, 0u32..9000, any::<bool>()),
    ) {
        let sequence_length = steps * 32 * rows;
        let max_sequence_length = sequence_length + room * 32;
        let request = Request {
            mesh: format!("{rows}x8").parse().unwrap(),
            mode: Mode::Prefill,
            users_per_row: if is_chunked { 8 } else { 32 },
            sequence_length,
            max_sequence_length,
            fabric: Fabric::Line,
        };
        let Chunks { sizes, padded_length, reason } = chunks::of(&request);
        let wanted = for_context(rows, max_sequence_length);
        prop_assert!(padded_length >= sequence_length && padded_length <= max_sequence_length);
        prop_assert!(padded_length.is_multiple_of(sizes.model_chunk) && sizes.model_chunk.is_multiple_of(32 * rows));
        prop_assert!(sizes.model_chunk.is_multiple_of(sizes.mla_chunk));
        prop_assert!(2 * sizes.wkv_b2_chunk >= wanted.wkv_b2_chunk.min(sizes.mla_chunk));
        if !is_chunked {
            prop_assert_eq!((sizes.model_chunk, sizes.mla_chunk), (sequence_length, sequence_length));
        } else if reason.is_none() {
            prop_assert!(sizes.model_chunk <= wanted.model_chunk && sizes.mla_chunk <= wanted.mla_chunk);
            prop_assert!(2 * sizes.model_chunk >= wanted.model_chunk.min(sequence_length));
            prop_assert!(2 * sizes.mla_chunk >= wanted.mla_chunk.min(sizes.model_chunk));
        } else {
            let whole = sequence_length.next_multiple_of(wanted.model_chunk / (32 * rows) * 32 * rows);
            prop_assert!(whole > max_sequence_length, "there was room for {}", whole);
        }
        let tokens = sizes.model_chunk / rows;
        prop_assert!(2 * product_rows(tokens) >= tokens.min(1024));
        prop_assert!(product_rows(tokens) * tokens.div_ceil(product_rows(tokens)) < tokens + 32 * tokens.div_ceil(1024).max(1));
    }

    /// A plan that is made has passed the rules, and passes them again as data; else there is a reason, never a panic.
    #[test]
    fn every_model_has_a_verified_plan_or_a_reason(
        changes in any_model(),
        (rows, columns) in (2u32..17, 2u32..9),
        (users, tiles, more) in (1u32..33, 1u32..80, 0u32..80),
        (is_decode, is_ring) in any::<(bool, bool)>(),
    ) {
        let (rows, columns) = if users % 2 == 0 { (4, 8) } else { (rows, columns) };
        let users_per_row = if users % 4 == 0 { users / 4 * 8 } else { users }.min(32);
        let mode = if is_decode { Mode::Decode } else { Mode::Prefill };
        let fabric = if is_ring { Fabric::Ring } else { Fabric::Line };
        let mesh = format!("{rows}x{columns}").parse().unwrap();
        let sequence_length = tiles * 32 * rows;
        let max_sequence_length = sequence_length + more * 32;
        let request = Request { mesh, mode, users_per_row, sequence_length, max_sequence_length, fabric };
        let hf = model(&changes);
        match plan(&hf, request) {
            Ok(plan) => {
                let device = Device { mesh: [rows, columns], fabric };
                let rules = ModelRules::new(&hf, request.mesh);
                prop_assert!(verify(&plan.operations, device, Some(rules)).is_ok());
            }
            Err(error) => {
                let is_ours = matches!(error, PlanError::Refused { .. });
                prop_assert!(!is_ours, "the planner wrote what the rules refuse: {error}");
            }
        }
    }
}

/// 1952 tokens of a device are 61 tiles, a prime number: products fill up a tile, experts take a last part of 160.
#[test]
fn parts_of_odd_lengths_stay_large() {
    let whole = plan(&V3, request("4x8", Mode::Prefill, 7808)).unwrap();
    let config = &whole.document.model_config;
    assert_eq!(
        (config.mlp_decoder_block[0].mlp.max_rows, mla_prefill(&whole).chunk_sizes.wkv_b2_chunk),
        (992, 1952)
    );
    let shape = |name: &str| {
        let operation = whole.operations.operations.iter().find(|one| one.name == name);
        operation.unwrap_or_else(|| panic!("no {name}")).expect[0].shape.clone()
    };
    assert_eq!(shape("mlp_decoder_block.mlp.w1_pad"), [1, 1, 1984, 7168]);
    assert_eq!(shape("mlp_decoder_block.mlp.w1_unpad"), [1, 1, 1952, 2304]);
    assert_eq!(shape("moe_decoder_block.mlp.moe.slice"), [1, 1, 256, 7168]);
    assert_eq!(shape("moe_decoder_block.mlp.moe.rest.slice"), [1, 1, 160, 7168]);
    assert_eq!(shape("moe_decoder_block.mlp.moe.concat"), [1, 1, 1952, 7168]);
    // In chunks: filled up to four times 2048 where there is room, else a word of it.
    let chunked = |max_sequence_length| {
        let request =
            Request { users_per_row: 8, max_sequence_length, ..request("4x8", Mode::Prefill, 7808) };
        plan(&V3, request).unwrap().document.header
    };
    let filled = chunked(8192);
    assert_eq!((filled.chunk_sizes.unwrap().model_chunk, filled.padded_length), (2048, Some(8192)));
    assert_eq!(filled.chunk_sizes_reason, None);
    let tight = chunked(7808);
    assert_eq!((tight.chunk_sizes.unwrap().model_chunk, tight.padded_length), (128, Some(7808)));
    assert!(tight.chunk_sizes_reason.unwrap().contains("no room to fill them up"));
}

/// That random models are not all refused: else nothing would be verified.
#[test]
fn some_random_models_have_a_plan() {
    let mut runner = TestRunner::deterministic();
    let has_plan = |changes: &Value| {
        let request = Request { users_per_row: 8, ..request("4x8", Mode::Decode, 1024) };
        plan(&model(changes), request).is_ok()
    };
    let models = (0..200).map(|_| any_model().new_tree(&mut runner).unwrap().current());
    let plans = models.filter(has_plan).count();
    assert!(plans >= 5, "{plans} plans for 200 models");
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
