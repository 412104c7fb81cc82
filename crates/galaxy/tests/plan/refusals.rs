//! What is altered in a plan is refused, by the name of what was altered.

use super::*;
use dsv3_galaxy::{
    plan::check::{Device, ModelRules, Refusal, verify},
    plan::operations::OperationList,
};
use dsv3_mesh::Axis;

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
    let [rows, columns] = [Axis::Rows, Axis::Columns].map(|axis| request.mesh.size(axis) as u32);
    let device = Device { mesh: [rows, columns], fabric: request.fabric };
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
    assert_eq!(mapping.unwrap_err().1.what, "shape of expert_mapping_tensor");
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

/// Refuses each, by a message that names the operation, and the field that was altered.
fn refuse_all(plan: &Plan, cases: Vec<(String, String, Value)>) {
    for (name, pointer, value) in cases {
        let altered = altered(plan, &name, &pointer, value.clone());
        let (operation, refusal) = altered.expect_err(&format!("{name}{pointer} = {value} passed"));
        assert_eq!(operation, name, "{pointer} = {value}: {refusal}");
        let field = field(&pointer);
        let message = refusal.to_string();
        assert!(message.contains(field), "{name}{pointer} = {value}: expected {field} in {message:?}");
    }
}

/// What a message must name: the argument, or the part of a tensor.
fn field(pointer: &str) -> &str {
    let parts: Vec<&str> = pointer.split('/').skip(1).collect();
    match parts[..] {
        ["config", "program_config", field]
        | ["config", field, ..]
        | ["weights", _, "memory_config", field, ..] => field,
        ["weights", _, "shape"] => "shape of ",
        ["inputs", "2" | "3", "shape"] => "page_table",
        _ => panic!("what is {pointer}?"),
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
