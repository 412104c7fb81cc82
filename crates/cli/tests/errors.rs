//! Data that cannot be used, and command lines that cannot be understood: one line that names the culprit, exit code 1
//! or 2, and never a panic.

mod support;

use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::Path,
};
use support::{Golden, Workplace, find_tensor, testdata, tiny};

const SECOND_SHARD: &str = "model-00002-of-00002.safetensors";

/// A broken copy of odd-fp8: every command that reads weights must refuse it in the same words.
#[track_caller]
fn refused(break_it: impl FnOnce(&Path), parts: &[&str]) {
    let place = Workplace::new();
    let model = place.copy("odd-fp8");
    break_it(&model);
    let model_name = model.to_str().unwrap();
    place.run(["convert", "--model", model_name]).fails_with(parts);
    let ids = place.file("ids.json", "[1, 2, 3]");
    let out = place.path("logits.safetensors");
    let files = ["--tokens", ids.to_str().unwrap(), "--output", out.to_str().unwrap()];
    place.run(["logits", "--model", model_name].iter().chain(&files)).fails_with(parts);
    assert!(!out.exists());
    assert!(!place.path("cache").exists() || no_cache_is_left(&place), "nothing half-made is left");
}

fn no_cache_is_left(place: &Workplace) -> bool {
    let models = fs::read_dir(place.path("cache")).unwrap();
    models.map(|model| model.unwrap().path()).all(|model| !model.join("cpu-1x1").exists())
}

fn edit_config(model: &Path, field: &str, value: Value) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn a_missing_shard() {
    refused(
        |model| fs::remove_file(model.join(SECOND_SHARD)).unwrap(),
        &["model.safetensors.index.json", SECOND_SHARD, "missing"],
    );
}

#[test]
fn a_missing_tensor() {
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    refused(
        |model| {
            // Out of the index and, under another name of the same length, out of the shard.
            let index = model.join("model.safetensors.index.json");
            let text = fs::read_to_string(&index).unwrap();
            let other = name.replace("up_proj", "xx_proj");
            fs::write(&index, text.replace(&format!("\"{name}\""), &format!("\"{other}\""))).unwrap();
            let (path, _) = find_tensor(model, name);
            let mut bytes = fs::read(&path).unwrap();
            let quoted = format!("\"{name}\"");
            let at = bytes.windows(quoted.len()).position(|window| window == quoted.as_bytes()).unwrap();
            bytes[at + 1..at + 1 + other.len()].copy_from_slice(other.as_bytes());
            fs::write(&path, bytes).unwrap();
        },
        &["tensor model.layers.1.mlp.experts.3.up_proj.weight", "is not in the checkpoint"],
    );
}

#[test]
fn a_truncated_shard() {
    for keep in [0, 4, 1000, 1_000_000] {
        refused(
            |model| {
                let path = model.join(SECOND_SHARD);
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..keep]).unwrap();
            },
            &[SECOND_SHARD],
        );
    }
}

#[test]
fn a_header_that_claims_an_exabyte() {
    refused(
        |model| {
            let path = model.join(SECOND_SHARD);
            let mut bytes = fs::read(&path).unwrap();
            bytes[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
            fs::write(&path, bytes).unwrap();
        },
        &[SECOND_SHARD, "1152921504606846976 bytes"],
    );
}

#[test]
fn a_scale_that_is_not_a_number() {
    let name = "model.layers.1.self_attn.kv_b_proj.weight_scale_inv";
    refused(
        |model| {
            let (path, offset) = find_tensor(model, name);
            let mut bytes = fs::read(&path).unwrap();
            bytes[offset..offset + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            fs::write(&path, bytes).unwrap();
        },
        &[name, "NaN"],
    );
}

#[test]
fn absurd_configurations() {
    for (field, value) in [
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("n_routed_experts", json!(-1)),
        ("vocab_size", json!(1_u64 << 60)),
        ("hidden_size", json!("wide")),
        ("quantization_config", json!({ "quant_method": "awq" })),
    ] {
        let named = if field == "quantization_config" { "quant_method" } else { field };
        refused(|model| edit_config(model, field, value), &["config.json", named, "expected"]);
    }
    refused(|model| fs::write(model.join("config.json"), "{").unwrap(), &["config.json"]);
    refused(|model| fs::remove_file(model.join("config.json")).unwrap(), &["config.json", "No such file"]);
    // Possible, but too much to list: 2048 layers of 16384 experts of 1 x 1 weights.
    refused(
        |model| {
            edit_config(model, "num_hidden_layers", json!(2048));
            edit_config(model, "n_routed_experts", json!(16_384));
            edit_config(model, "moe_intermediate_size", json!(1));
        },
        &["config.json", "num_hidden_layers", "tensors"],
    );
}

#[test]
fn no_checkpoint_at_all() {
    let place = Workplace::new();
    place.run(["generate", "--model", "/no/such/model", "x"]).fails_with(&["/no/such/model/config.json"]);
    let empty = place.path("empty");
    fs::create_dir(&empty).unwrap();
    fs::copy(testdata("odd-fp8/config.json"), empty.join("config.json")).unwrap();
    place.run([Path::new("inspect"), &empty]).fails_with(&["empty", "no model.safetensors.index.json"]);
}

#[test]
fn prompts_that_cannot_be_run() {
    let place = Workplace::new();
    // Stage 1 first: what it says is none of the errors' one line.
    place.run(["generate", "--max-new-tokens", "1", "x"]).success();
    place.run(["generate", ""]).fails_with(&["prompt 1", "empty"]);
    place.run(["generate", "fine", ""]).fails_with(&["prompt 2", "empty"]);
    place.run_with_stdin(["generate"], b"\n").fails_with(&["prompt 1", "empty"]);
    place.run_with_stdin(["generate"], b"\xff").fails_with(&["the prompt on stdin", "UTF-8"]);
    place.run(["generate", "--context", "0", "x"]).fails_with(&["--context is 0"]);
    place.run(["generate", "--context", "9999999", "x"]).fails_with(&["--context is 9999999", "2048"]);
    place.run(["generate", "--prompts-file", "no.json"]).fails_with(&["no.json", "No such file"]);
    let file = place.file("prompts.json", r#"["fine", 7]"#);
    place.run(["generate", "--prompts-file", file.to_str().unwrap()]).fails_with(&["prompts.json", "[1]"]);
    for content in ["[1, -2]", "{}", "[4294967296]", "[", "[]"] {
        let file = place.file("ids.json", content);
        place.run(["generate", "--token-ids", file.to_str().unwrap()]).fails_with(&["ids.json", "token ids"]);
    }
}

/// Before weights are read, and whichever of several prompts it is.
#[test]
fn prompts_that_do_not_fit_the_model() {
    let (place, model) = (Workplace::new(), testdata("odd-fp8"));
    for (ids, more, part) in [
        (vec![5, 300], &[][..], "prompt token 1 has id 300, but the model's vocabulary has 300 ids"),
        (vec![5; 257], &[], "the prompt has 257 tokens, but the context holds 256"),
        (vec![5; 9], &["--context", "8"], "the prompt has 9 tokens, but the context holds 8"),
    ] {
        let run = place.generate_ids(&model, &ids, more);
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:#?}");
        let last = run.stderr.lines().last().unwrap();
        assert!(last.starts_with("dsv3: error: ") && last.contains(part), "{last}");
        let out = place.path("out.safetensors");
        if more.is_empty() {
            let args = ["--tokens", "ids.json", "--output", out.to_str().unwrap()];
            place.run(["logits", "--model", model.to_str().unwrap()].iter().chain(&args)).fails_with(&[part]);
        }
    }
    assert!(!place.path("cache").exists(), "no weights were prepared");

    let model = tiny();
    let args =
        ["generate", "--model", model.to_str().unwrap(), "--context", "64", "--output-path", "out.json"];
    let long = "1 + ".repeat(64);
    place.run(args.iter().chain(&["fine", &long])).fails_with(&["prompt 2: ", "the context holds 64"]);
    assert!(!place.path("out.json").exists() && !place.path("cache").exists());
}

/// One character's embedding is NaN: a prompt with it fails, and what came before it is kept.
#[test]
fn what_is_done_is_kept_when_a_later_prompt_fails() {
    let place = Workplace::new();
    let model = place.copy_of(&tiny());
    let tokenizer: Value = serde_json::from_slice(&fs::read(model.join("tokenizer.json")).unwrap()).unwrap();
    let id = usize::try_from(tokenizer["model"]["vocab"]["#"].as_u64().unwrap()).unwrap();
    let (shard, offset) = find_tensor(&model, "model.embed_tokens.weight");
    let mut bytes = fs::read(&shard).unwrap();
    let row = 128 * 2; // bf16
    bytes[offset + id * row..offset + (id + 1) * row].fill(0xff);
    fs::write(&shard, bytes).unwrap();

    let args =
        ["generate", "--model", model.to_str().unwrap(), "--temperature", "0", "--max-new-tokens", "4"];
    let files = ["--output-path", "out.json", "--checkpoint-jsonl", "log.jsonl"];
    let run = place.run(args.iter().chain(&files).chain(&["1 + 1?", "#", "2 + 2?"]));
    assert_eq!(run.code, 1, "{run:#?}");
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with("dsv3: error: prompt 2: ") && last.contains("NaN"), "{run:#?}");
    let report: Value = serde_json::from_slice(&fs::read(place.path("out.json")).unwrap()).unwrap();
    assert_eq!(report["prompts"].as_array().unwrap().len(), 3);
    assert_eq!(report["generations"].as_array().unwrap().len(), 1);
    assert_eq!(report["generations"][0]["tokens"], 4);
    assert_eq!(fs::read_to_string(place.path("log.jsonl")).unwrap().lines().count(), 1);

    let run = place.run(args.iter().chain(&["--output-path", "none.json", "#"]));
    assert_eq!(run.code, 1);
    assert!(!place.path("none.json").exists(), "nothing is done");
}

/// `/dev/full` takes no byte.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let place = Workplace::new();
    let config =
        place.command(["config"]).stdout(File::options().write(true).open("/dev/full").unwrap()).output();
    let run = support::Run::of(config.unwrap());
    run.fails_with(&["stdout: No space left on device"]);

    let args = ["generate", "--temperature", "0", "--max-new-tokens", "4", "--json", "1 + 1?"];
    let files = ["--output-path", "out.json", "--checkpoint-jsonl", "/dev/full"];
    let run = place.run(args.iter().chain(&files));
    assert_eq!(run.code, 1);
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with("dsv3: error: /dev/full: No space left on device"), "{last}");
    let report: Value = serde_json::from_slice(&fs::read(place.path("out.json")).unwrap()).unwrap();
    assert_eq!(
        report["generations"].as_array().unwrap().len(),
        1,
        "it was done before it could not be logged"
    );
}

/// A limit on the size of files stands in for a full disk.
#[cfg(unix)]
#[test]
fn a_file_that_cannot_grow_is_named_and_leaves_nothing() {
    let (place, model) = (Workplace::new(), testdata("odd-fp8"));
    let ids = place.file("ids.json", "[1, 2, 3]");
    let out = place.path("out.safetensors");
    place.run([Path::new("convert"), "--model".as_ref(), &model]).success();
    let mut command = std::process::Command::new("sh");
    command.args([
        "-c",
        r#"trap "" XFSZ; ulimit -f 1; exec "$@""#,
        "sh",
        env!("CARGO_BIN_EXE_dsv3"),
        "logits",
    ]);
    command.arg("--model").arg(&model).arg("--tokens").arg(ids).arg("--output").arg(&out);
    command.env("DEEPSEEK_V3_CACHE", place.path("cache")).current_dir(place.path("."));
    let run = support::Run::of(command.output().unwrap());
    run.fails_with(&[&format!("error: {}: File too large", out.display())]);
    assert!(!out.exists());
    let names = fs::read_dir(place.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 2, "the cache and the ids");
}

#[test]
fn a_checkpoint_without_a_tokenizer_takes_ids_only() {
    let place = Workplace::new();
    let model = testdata("moonlight-bf16");
    let model = model.to_str().unwrap();
    place.run(["generate", "--model", model, "x"]).fails_with(&["tokenizer.json is missing", "--token-ids"]);
    let prompt = Golden::of("moonlight-bf16").ids("greedy.prompt");
    place.generate_ids(&testdata("moonlight-bf16"), &prompt, &["--stop", "x"]).fails_with(&["--stop"]);
}

#[test]
fn command_lines_that_cannot_be_understood() {
    let place = Workplace::new();
    for (args, part) in [
        (&["dance"][..], "unrecognized subcommand 'dance'"),
        (&["generate", "--warp", "x"], "unexpected argument '--warp'"),
        (&["generate", "--temperature", "-1", "x"], "expected a number, 0 or more"),
        (&["generate", "--top-p", "0", "x"], "above 0 and at most 1"),
        (&["generate", "--max-new-tokens", "many", "x"], "--max-new-tokens"),
        (&["generate", "--threads", "0", "x"], "--threads"),
        (&["generate", "--stop", "", "x"], "--stop"),
        (&["generate", "--raw", "--system", "s", "x"], "cannot be used with"),
        (&["generate", "--prompts-file", "f", "x"], "cannot be used with"),
        (&["generate", "--num-prompts", "1"], "--prompts-file <FILE>"),
        (&["generate", "--num-prompts", "1", "x"], "cannot be used with"),
        (&["generate", "--token-ids", "f", "x"], "cannot be used with"),
        (&["convert", "--mesh", "0x1"], "a mesh is written RxC"),
        (&["config", "--mode", "both"], "prefill, decode"),
        (&["logits", "--output", "x"], "--tokens"),
    ] {
        place.run(args).is_usage_error(part);
    }
    assert_eq!(place.run([""; 0]).code, 2);
}

#[test]
fn help_names_what_there_is() {
    let place = Workplace::new();
    let main = place.run(["--help"]).success().stdout;
    for word in ["generate", "convert", "config", "logits", "inspect", "Examples:", "three stages"] {
        assert!(main.contains(word), "{word}");
    }
    for (command, words) in [
        ("generate", &["--prompts-file", "--temperature", "--stop", "--json", "DEEPSEEK_V3_HF_MODEL"][..]),
        ("generate", &["--prefill-config", "--decode-config", "rows_per_task"]),
        ("convert", &["--force", "--mesh", "DEEPSEEK_V3_CACHE", "stage 1"]),
        ("config", &["--mode", "--output", "prefill", "stage 2"]),
        ("logits", &["--tokens", "safetensors"]),
        ("inspect", &["--json", "[PATH]"]),
    ] {
        let help = place.run([command, "--help"]).success().stdout;
        for word in words {
            assert!(help.contains(word), "{word:?} in\n{help}");
        }
    }
    assert!(place.run(["--version"]).success().stdout.starts_with("dsv3 "));
}
