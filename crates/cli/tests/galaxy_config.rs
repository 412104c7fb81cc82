//! `dsv3 config --target galaxy`.

mod support;

use serde_json::{Value, json};
use std::{fs, path::PathBuf};
use support::{Run, Workplace, testdata};

/// DeepSeek-V3's config.json, with some fields changed.
fn model(place: &Workplace, changes: &Value) -> PathBuf {
    let text = fs::read_to_string(testdata("configs").join("deepseek-v3-671b.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    place.file("config.json", config.to_string())
}

fn config(place: &Workplace, changes: &Value, more: &[&str]) -> Run {
    let model = model(place, changes);
    let args = ["config", "--target", "galaxy", "--model", model.to_str().unwrap()];
    place.run(args.iter().chain(more))
}

#[test]
fn the_document_has_upstreams_tree_and_says_what_it_is_for() {
    let place = Workplace::new();
    let run = config(&place, &json!({}), &["--mesh", "4x8", "--mode", "decode"]).success();
    let document = run.json();
    let header = &document["header"];
    assert_eq!(header["mesh"], "4x8");
    assert_eq!((&header["mode"], &header["fabric"]), (&json!("decode"), &json!("line")));
    assert_eq!((&header["users_per_row"], &header["sequence_length"]), (&json!(32), &json!(2048)));
    assert_eq!(header["model"]["hidden_size"], 7168);
    assert_eq!(
        header["dram"]["layers_that_fit"], 42,
        "as derived for upstream's sizes, 32.1 MB an expert and 32.7 MB the attention, with what banks are padded with"
    );
    let tree = &document["model_config"];
    assert_eq!(tree["mlp_decoder_block"].as_array().unwrap().len(), 1);
    assert_eq!(tree["moe_decoder_block"].as_array().unwrap().len(), 1);
    let wo = &tree["moe_decoder_block"][0]["mla"]["mla1d"]["wo"];
    assert_eq!(wo["input_tensor_b"]["shape"], json!([1, 16384, 896]));
    assert_eq!(wo["program_config"]["type"], "MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig");
    assert_eq!(tree["norm"]["all_gather"]["num_links"], 4);
}

#[test]
fn both_modes_go_to_two_files_and_so_do_their_operations() {
    let place = Workplace::new();
    let more = ["--mesh", "8x8", "--sequence-length", "1024", "--output", "c.json", "--operations", "o.json"];
    let run = config(&place, &json!({}), &more).success();
    assert_eq!(run.stdout, "");
    for mode in ["prefill", "decode"] {
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(place.path(&format!("{name}.{mode}.json"))).unwrap()).unwrap()
        };
        assert_eq!(read("c")["header"]["mode"], mode);
        let list = read("o");
        assert_eq!((&list["mesh"], &list["cluster"]), (&json!("8x8"), &json!("dual_8x8.yaml")));
        assert!(list["operations"].as_array().unwrap().len() > 200);
    }
    let printed =
        config(&place, &json!({}), &["--mesh", "8x8", "--sequence-length", "1024"]).success().json();
    let written: Value = serde_json::from_slice(&fs::read(place.path("c.decode.json")).unwrap()).unwrap();
    assert_eq!(printed["decode"], written);
}

#[test]
fn chunk_sizes_follow_the_longest_sequence_that_is_served() {
    let header = |more: &[&str]| {
        let fixed = ["--mesh", "8x8", "--mode", "prefill", "--users-per-row", "8"];
        let all = [&fixed[..], more].concat();
        config(&Workplace::new(), &json!({}), &all).success().json()["header"].clone()
    };
    let short = header(&[]);
    assert_eq!((&short["sequence_length"], &short["max_sequence_length"]), (&json!(2048), &json!(2048)));
    assert_eq!(short["chunk_sizes"]["model_chunk"], 2048);
    let long = header(&["--max-sequence-length", "32768"]);
    assert_eq!((&long["sequence_length"], &long["max_sequence_length"]), (&json!(2048), &json!(32768)));
    assert_eq!(
        (&long["chunk_sizes"]["model_chunk"], &long["chunk_sizes"]["mla_chunk"]),
        (&json!(1024), &json!(512))
    );
    assert_eq!(header(&["--sequence-length", "8192"])["max_sequence_length"], 8192);
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for (more, part) in [
        (&["--mesh", "1x8"][..], "--mesh: expected 2 to 16 rows, got 1x8"),
        (
            &["--mesh", "4x8", "--users-per-row", "12"],
            "--users-per-row: expected a multiple of the mesh's 8 columns",
        ),
        (&["--mesh", "4x8", "--users-per-row", "40"], "at most 32"),
        (
            &["--mesh", "4x8", "--mode", "prefill", "--sequence-length", "100"],
            "--sequence-length: expected a multiple of 128",
        ),
        (&["--mesh", "4x8", "--sequence-length", "1048576"], "max_position_embeddings, 163840"),
        (
            &["--mesh", "4x8", "--sequence-length", "2048", "--max-sequence-length", "1024"],
            "--max-sequence-length: expected a multiple of a cache block's 32 positions, at least 2048, got 1024",
        ),
        (&["--mesh", "4x8", "--max-sequence-length", "163872"], "--max-sequence-length: expected at most"),
        (&["--mesh", "auto"], "--mesh auto is for --target cpu"),
        (&["--mesh", "4x8", "--experts", "expert"], "--experts is for --target cpu"),
        (&["--mesh", "4x8", "--fabric", "torus"], "expected line or ring"),
        (
            &["--mesh", "4x8", "--output", "a.json", "--operations", "./a.json"],
            "--output and --operations are the same file",
        ),
    ] {
        let run = config(&Workplace::new(), &json!({}), more);
        assert_eq!(run.code, 2, "{more:?}: {}", run.stderr);
        assert!(run.stderr.contains(part), "expected {part:?} in {}", run.stderr);
    }
    let run = Workplace::new().run(["config", "--fabric", "ring"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("--fabric is for --target galaxy"), "{}", run.stderr);
}

#[test]
fn models_that_do_not_fit_are_refused_by_what_does_not() {
    for (changes, part) in [
        (
            json!({ "hidden_size": 7200 }),
            "hidden_size (7200) does not divide into 8 parts of whole tiles of 32",
        ),
        (
            json!({ "num_attention_heads": 12, "num_key_value_heads": 12 }),
            "num_attention_heads (12) does not divide into 8 parts",
        ),
        (json!({ "n_routed_experts": 128 }), "n_routed_experts: the modules on a Galaxy need 256"),
        (json!({ "q_lora_rank": null }), "q_lora_rank"),
        (json!({ "routed_scaling_factor": 0 }), "routed_scaling_factor"),
        (json!({ "moe_intermediate_size": 131_072 }), "needs"),
    ] {
        let run = config(&Workplace::new(), &changes, &["--mesh", "4x8", "--mode", "decode"]);
        assert_eq!(run.code, 1, "{changes}: {}", run.stderr);
        assert!(run.stderr.contains(part), "expected {part:?} in {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    }
}
