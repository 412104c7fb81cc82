//! The names of the operators in the tree of configs, a module each.

use super::*;
use std::collections::BTreeSet;

/// A module's place in the tree; the names that upstream's documents have for what is in it (keys of configs, of the weight
/// tree and of states); and other names: upstream's where it has one that is known, else this project's, for what upstream
/// calls without a config.
type Module = (&'static str, &'static [&'static str], &'static [&'static str]);

const NORM: [&str; 3] = ["rms_norm_pre_all_gather", "all_gather", "rms_norm_post_all_gather"];
const BLOCK: [&str; 8] = [
    "mla_norm",
    "mla_norm_reshard",
    "mla",
    "mla_reshard",
    "mlp_norm",
    "mlp_norm_reshard",
    "mlp",
    "mlp_reshard",
];
const MLA: [&str; 7] = ["wq_kv_a", "wq_b", "wkv_b1", "wkv_b2", "wo", "q_norm", "kv_norm"];
const EMBEDDING: [&str; 5] =
    ["embedding", "typecast", "all_gather", "reduce_scatter", "reduce_scatter_scale"];

/// Modules of both modes.
const COMMON: [Module; 21] = [
    ("embedding", &EMBEDDING, &[]),
    ("norm", &NORM, &[]),
    ("mlp_decoder_block/0", &BLOCK, &["residual"]),
    ("mlp_decoder_block/0/mla_norm", &NORM, &[]),
    ("mlp_decoder_block/0/mlp_norm", &NORM, &[]),
    ("mlp_decoder_block/0/mla", &["mla1d"], &[]),
    (
        "mlp_decoder_block/0/mlp",
        &["w1", "w2", "w3", "mul", "all_gather", "reduce_scatter"],
        &["input_memory_config", "max_rows"],
    ),
    ("moe_decoder_block/0", &BLOCK, &["residual"]),
    ("moe_decoder_block/0/mla_norm", &NORM, &[]),
    ("moe_decoder_block/0/mlp_norm", &NORM, &[]),
    ("moe_decoder_block/0/mla", &["mla1d"], &[]),
    (
        "moe_decoder_block/0/mlp",
        &["revert_tp", "moe", "shared_expert", "reduce_scatter"],
        &["add_shared_expert", "shared_expert_input_reshard", "shared_expert_reshard"],
    ),
    (
        "moe_decoder_block/0/mlp/shared_expert",
        &["w1", "w2", "w3", "mul"],
        &["input_memory_config", "max_rows"],
    ),
    (
        "moe_decoder_block/0/mlp/moe",
        &["moe_gate", "moe_experts", "all_to_all_dispatch", "all_to_all_combine", "expert_mapping_tensors"],
        &[
            "activations_repeat",
            "concat",
            "dispatch_tokens",
            "mul_experts_output_with_weights",
            "slice",
            "sum_experts",
            "to_rows",
            "to_tiles",
            "weights_permute",
        ],
    ),
    (
        "moe_decoder_block/0/mlp/moe/moe_gate",
        &["gate_proj"],
        &[
            "add_score_correction_bias",
            "bias_slice",
            "gate",
            "gate_reshard",
            "input_indices",
            "output",
            "output_indices",
            "output_reshard",
            "output_slice",
            "tokens",
        ],
    ),
    (
        "moe_decoder_block/0/mlp/moe/moe_experts",
        &["w1_experts", "w2_experts", "w3_experts"],
        &["mul_experts"],
    ),
    (
        "mtp",
        &["embedding", "hidden_norm", "token_norm", "head_norm", "eh_proj", "decoder_block"],
        &["all_gather", "concat", "eh_proj_reshard", "head"],
    ),
    ("mtp/embedding", &EMBEDDING, &[]),
    ("mtp/hidden_norm", &NORM, &[]),
    ("mtp/eh_proj", &["linear"], &["max_rows"]),
    ("mtp/decoder_block", &BLOCK, &["residual"]),
];

const MODEL: [&str; 7] =
    ["embedding", "mlp_decoder_block", "moe_decoder_block", "norm", "norm_reshard", "lm_head", "mtp"];

/// Of decode alone.
const DECODE: [Module; 3] = [
    ("", &MODEL, &["embedding_reshard", "rope"]),
    ("lm_head", &["linear"], &["all_gather"]),
    (
        "moe_decoder_block/0/mla/mla1d",
        &MLA,
        &[
            "flash_mla",
            "flash_mla_out_permute",
            "input_memory_config",
            "kv_cache",
            "kv_nope_reshard",
            "kv_nope_slice",
            "kv_rope_out_permute",
            "kv_rope_permute",
            "kv_rope_slice",
            "kvpe_concat",
            "kvpe_partition",
            "kvpe_permute",
            "paged_update_cache",
            "q_concat",
            "q_nope_out_permute",
            "q_nope_permute",
            "q_nope_slice",
            "q_reshard",
            "q_rope_out_reshard",
            "q_rope_slice",
            "q_slice",
            "q_tilize",
            "q_untilize",
            "rope",
            "v_permute",
            "v_reshard",
            "v_tilize",
            "v_untilize",
            "wo_ag_decode",
            "wo_reshard",
            "wq_a2a_decode",
            "wq_kv_a_ag_decode",
            "wq_kv_a_r_decode",
        ],
    ),
];

/// Of prefill alone.
const PREFILL: [Module; 3] = [
    ("", &MODEL, &["embedding_reshard", "last_token"]),
    ("lm_head", &["linear"], &["all_gather", "all_tokens"]),
    (
        "moe_decoder_block/0/mla/mla1d",
        &MLA,
        &[
            "all_gather",
            "chunk_concat",
            "chunk_sizes",
            "concat",
            "flash_mla",
            "kv_cache",
            "kvpe_typecast",
            "later_chunks",
            "paged_fill_cache",
            "permute",
            "reduce_scatter",
            "reduce_scatter_scale",
            "rope",
            "rope_tables",
            "slice",
            "wkv_b2_ag_prefill",
            "wq_kv_a_ag_prefill",
            "wq_kv_a_r_prefill",
        ],
    ),
];

/// Of the fused experts on a ring of 16x8, in place of those above.
const FUSED: [Module; 3] = [
    (
        "moe_decoder_block/0/mlp",
        &["revert_tp", "moe", "shared_expert"],
        &["shared_expert_input_reshard", "shared_expert_reshard"],
    ),
    (
        "moe_decoder_block/0/mlp/moe",
        &[
            "moe_gate",
            "expert_mapping_tensors",
            "all_to_all_dispatch_metadata",
            "moe_compute",
            "moe_experts",
            "deepseek_moe_post_combine_tilize",
            "deepseek_moe_fast_reduce_nc",
            "deepseek_moe_reduce_scatter",
        ],
        &[
            "choice_permute",
            "choice_reshard",
            "combined",
            "concat",
            "mul_experts_output_with_weights",
            "to_rows",
            "weights_permute",
            "weights_to_tiles",
        ],
    ),
    ("moe_decoder_block/0/mlp/moe/moe_experts", &["quad_ring_w0_w1_experts", "quad_ring_w2_experts"], &[]),
];

#[test]
fn every_module_has_upstreams_names_and_those_it_is_known_to_have_beside_them() {
    let ring = plan(&V3, Request { fabric: Fabric::Ring, ..request("16x8", Mode::Decode, 2048) }).unwrap();
    let chunked = plan(
        &V3,
        Request { users_per_row: 8, max_sequence_length: 8192, ..request("4x8", Mode::Prefill, 4096) },
    );
    for (plan, modules) in [
        (decode("4x8"), [&COMMON[..], &DECODE].concat()),
        (chunked.unwrap(), [&COMMON[..], &PREFILL].concat()),
        (ring, FUSED.to_vec()),
    ] {
        let mode = plan.document.header.mode;
        let tree = json!(plan.document.model_config);
        for (place, upstream, other) in modules {
            let pointer = if place.is_empty() { String::new() } else { format!("/{place}") };
            let module = tree.pointer(&pointer).unwrap_or_else(|| panic!("{mode} has no {place}"));
            let got: BTreeSet<&str> = module.as_object().unwrap().keys().map(String::as_str).collect();
            let names: BTreeSet<&str> = upstream.iter().chain(other).copied().collect();
            assert_eq!(got, names, "{place} in {mode}");
        }
    }
}
