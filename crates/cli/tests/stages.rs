//! `dsv3 convert`, `dsv3 config` and `dsv3 inspect`.

mod support;

use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use support::{Golden, Workplace, testdata};

fn convert(place: &Workplace, model: &Path, more: &[&str]) -> support::Run {
    let model = model.to_str().unwrap();
    place.run(["convert", "--model", model].iter().chain(more))
}

/// The WeightConfig that `convert` says it made.
fn weight_config(stdout: &str) -> PathBuf {
    let line = stdout.lines().find_map(|line| line.strip_prefix("WeightConfig: "));
    PathBuf::from(line.expect("convert says where the WeightConfig lies"))
}

#[test]
fn convert_uses_a_checkpoint_in_place_and_says_so() {
    for name in ["odd-fp8", "moonlight-bf16"] {
        let place = Workplace::new();
        let model = testdata(name);
        let run = convert(&place, &model, &[]).success();
        assert!(run.stdout.starts_with("used in place: "), "{}", run.stdout);
        let written: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("written: ")).collect();
        let [written] = written[..] else { panic!("expected one line of what was written: {}", run.stdout) };
        assert!(written.starts_with("written: weight_config.json ("), "{written}");
        let path = weight_config(&run.stdout);
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["header"]["written_bytes"], 0);

        let size = |dir: &Path| -> u64 {
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
        };
        let json = fs::metadata(&path).unwrap().len();
        assert_eq!(size(path.parent().unwrap()), json, "the WeightConfig is all that was written");
        assert_eq!(config["weights"]["embedding"]["weight"]["data"]["location"], "checkpoint");

        let dir = path.parent().unwrap().to_str().unwrap();
        let counted = &place.run(["inspect", "--json", dir]).success().json()["in_place"]["weights"];
        assert!(run.stdout.starts_with(&format!("used in place: {counted} weights (")), "{}", run.stdout);

        let again = convert(&place, &model, &[]).success();
        assert!(again.stdout.contains("the cache is present"), "{}", again.stdout);
        assert_eq!(weight_config(&again.stdout), path);
        let forced = convert(&place, &model, &["--force"]).success();
        assert_eq!(forced.stdout, run.stdout);
    }
}

/// Every mesh that a model's dimensions allow: a cache for each rank whose weights differ, and between them all of the
/// checkpoint that the model needs.
#[test]
fn each_rank_of_a_mesh_has_its_weights() {
    for (model, meshes) in [
        ("tiny", &["1x2", "2x1", "2x2", "2x4", "4x8"][..]),
        ("odd-fp8", &["1x2", "2x1", "2x2", "1x4"]),
        ("moonlight-bf16", &["1x2", "2x1", "2x2", "2x4"]),
    ] {
        let place = Workplace::new();
        let model = if model == "tiny" { testdata("../models/tiny") } else { testdata(model) };
        for (&mesh, experts) in
            meshes.iter().flat_map(|mesh| ["tensor", "expert"].map(|experts| (mesh, experts)))
        {
            let options = ["--mesh", mesh, "--experts", experts];
            let run = convert(&place, &model, &options).success();
            let (rows, columns) = mesh.split_once('x').unwrap();
            let [rows, columns] = [rows, columns].map(|side| side.parse::<usize>().unwrap());
            let ranks = if experts == "expert" { rows * columns } else { columns };
            let lines = run.stdout.lines().filter(|line| line.starts_with("WeightConfig: ")).count();
            assert_eq!(lines, ranks, "{}", run.stdout);
            let first = weight_config(&run.stdout);
            let dir = first.parent().unwrap().parent().unwrap();
            let name = if experts == "expert" { format!("cpu-{mesh}-expert") } else { format!("cpu-{mesh}") };
            assert!(dir.ends_with(&name), "{}", dir.display());
            let json = place.run(["inspect", "--json", dir.to_str().unwrap()]).success().json();
            assert_eq!(json["missing"], json!([]));
            let caches = json["caches"].as_array().unwrap();
            let held: Vec<u64> = caches
                .iter()
                .map(|cache| ["in_place", "written"].map(|part| cache[part]["bytes"].as_u64().unwrap()))
                .map(|parts| parts.iter().sum())
                .collect();
            assert_eq!(held.len(), ranks);
            // Devices have equal parts but for scales: a part may begin inside a block.
            let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
            assert!(most - least < most / 100, "{held:?}");
            if experts == "tensor" && columns > 1 {
                let written = "columns that lie apart in the checkpoint, copied as they are";
                assert!(run.stdout.contains(written), "{}", run.stdout);
            }
            let again = convert(&place, &model, &options).success();
            assert!(again.stdout.contains("nothing was done"), "{}", again.stdout);
        }
    }
}

#[test]
fn a_host_prepares_its_own_ranks() {
    let (place, model) = (Workplace::new(), testdata("odd-fp8"));
    let options = ["--mesh", "2x2", "--experts", "expert", "--ranks", "1,3"];
    let run = convert(&place, &model, &options).success();
    assert!(run.stdout.contains("rank 1: ") && !run.stdout.contains("rank 0: "), "{}", run.stdout);
    let dir = weight_config(&run.stdout);
    let dir = dir.parent().unwrap().parent().unwrap();
    let text = place.run([Path::new("inspect"), dir]).success().stdout;
    for part in
        ["mesh              2x2-expert", "rank 1            used in place: ", "not here          rank 0, 2"]
    {
        assert!(text.contains(part), "expected {part:?} in\n{text}");
    }
    let more = convert(&place, &model, &["--mesh", "2x2", "--experts", "expert"]).success();
    assert!(more.stdout.contains("rank 3: the cache is present"), "{}", more.stdout);
    convert(&place, &model, &["--mesh", "2x2", "--ranks", "2-4"])
        .fails_with(&["--ranks 4: a mesh of 2x2 has ranks 0 to 3"]);
}

#[test]
fn what_does_not_divide_is_refused_before_anything_is_written() {
    let place = Workplace::new();
    for (options, part) in [
        (&["--mesh", "1x8"][..], "a mesh of 1x8: num_attention_heads: 4 do not divide over 8 devices"),
        (&["--mesh", "1x3"], "a mesh of 1x3: hidden_size: 160 do not divide over 3 devices"),
        (&["--mesh", "2x4", "--experts", "expert"], "a mesh of 2x4-expert: "),
    ] {
        convert(&place, &testdata("odd-fp8"), options).fails_with(&[part]);
    }
    assert!(!place.path("cache").exists());
}

#[test]
fn formats_go_by_the_columns_that_a_device_has() {
    let (place, model) = (Workplace::new(), testdata("../models/tiny"));
    let whole = convert(&place, &model, &["--format", "q8_0"]).success();
    assert!(!whole.stdout.contains("not q8_0"), "{}", whole.stdout);
    let parts = convert(&place, &model, &["--format", "q8_0", "--mesh", "1x4"]).success();
    // A fourth of the experts' 64 intermediate features is half a block of 32.
    assert!(
        parts.stdout.contains("not q8_0 but fp8: ") && parts.stdout.contains("[128, 16]"),
        "{}",
        parts.stdout
    );
}

#[test]
fn a_stale_cache_of_a_mesh_is_refused_with_the_mesh() {
    let place = Workplace::new();
    let model = place.copy("moonlight-bf16");
    let options = ["--mesh", "1x2", "--format", "q8_0"];
    convert(&place, &model, &options).success();
    let shard = File::options().append(true).open(model.join("model-00001-of-00002.safetensors")).unwrap();
    shard.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    let advice = format!("`dsv3 convert --force --model {} --mesh 1x2 --format q8_0`", model.display());
    convert(&place, &model, &options).fails_with(&["another state", &advice]);
    convert(&place, &model, &["--mesh", "1x2", "--format", "q8_0", "--force"]).success();
}

#[test]
fn a_stale_cache_is_refused_until_it_is_made_anew() {
    let (golden, place) = (Golden::of("moonlight-bf16"), Workplace::new());
    let (prompt, model) = (golden.ids("greedy.prompt"), place.copy("moonlight-bf16"));
    convert(&place, &model, &[]).success();
    let shard = File::options().append(true).open(model.join("model-00001-of-00002.safetensors")).unwrap();
    shard.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    let advice = format!("`dsv3 convert --force --model {}`", model.display());
    let expected = ["cache ", "another state", &advice];
    convert(&place, &model, &[]).fails_with(&expected);
    let run = place.generate_ids(&model, &prompt, &["--max-new-tokens", "2"]);
    assert_eq!(run.code, 1);
    for part in expected {
        assert!(run.stderr.lines().last().unwrap().contains(part), "{}", run.stderr);
    }
    convert(&place, &model, &["--force"]).success();
    place.generate_ids(&model, &prompt, &["--max-new-tokens", "2"]).success();
}

#[test]
fn a_torn_cache_is_refused_until_it_is_made_anew() {
    let (golden, place) = (Golden::of("odd-fp8"), Workplace::new());
    let (prompt, model) = (golden.ids("greedy.prompt"), testdata("odd-fp8"));
    let path = weight_config(&convert(&place, &model, &[]).success().stdout);
    let whole = fs::read(&path).unwrap();
    for length in [0, whole.len() / 2, whole.len() - 3] {
        fs::write(&path, &whole[..length]).unwrap();
        convert(&place, &model, &["--mesh", "1x1"]).fails_with(&["damaged", "weight_config.json", "--force"]);
        let run = place.generate_ids(&model, &prompt, &["--max-new-tokens", "2"]);
        assert_eq!(run.code, 1);
        assert!(run.stderr.contains("damaged"), "{}", run.stderr);
    }
    convert(&place, &model, &["--force"]).success();
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn a_cache_that_cannot_be_written_comes_with_a_hint() {
    let place = Workplace::new();
    let file = place.file("file", "");
    let cache = file.join("cache");
    let run = convert(&place, &testdata("odd-fp8"), &["--cache", cache.to_str().unwrap()]);
    run.fails_with(&["cannot be written", "--cache", "DEEPSEEK_V3_CACHE"]);
    place.run(["convert", "--cache", cache.to_str().unwrap()]).fails_with(&["cannot be written", "--cache"]);
}

#[test]
fn a_cache_of_other_shapes_is_refused() {
    let (golden, place) = (Golden::of("odd-fp8"), Workplace::new());
    let (prompt, model) = (golden.ids("greedy.prompt"), testdata("odd-fp8"));
    let path = weight_config(&convert(&place, &model, &[]).success().stdout);
    let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // As many bytes, but not the matrix that the model multiplies with; then one expert less.
    let mut turned = whole.clone();
    turned["weights"]["lm_head"]["weight"]["shape"] = json!([160, 300]);
    let mut fewer = whole.clone();
    fewer["weights"]["moe_decoder_block"][1]["mlp"]["experts"].as_array_mut().unwrap().pop();
    for (json, part) in [(turned, "lm_head.weight"), (fewer, "moe_decoder_block.1.mlp.experts.11.w1")] {
        fs::write(&path, json.to_string()).unwrap();
        let run = place.generate_ids(&model, &prompt, &["--max-new-tokens", "2"]);
        assert_eq!(run.code, 1, "{run:#?}");
        let last = run.stderr.lines().last().unwrap();
        assert!(last.contains(part) && last.contains("--force"), "{last}");
    }
}

#[test]
fn half_precision_is_widened_and_convert_says_so() {
    let place = Workplace::new();
    let model = place.copy("moonlight-bf16");
    patch_shards(&model, |header| {
        let at = header.find("\"model.norm.weight\"")?;
        let dtype = at + header[at..].find("\"BF16\"")?;
        Some((dtype, "\"F16\" ".to_owned()))
    });
    let run = convert(&place, &model, &[]).success();
    let expected =
        "written: 1 weight (384 B, 0.1 % of the checkpoint's 654.42 kB), widened from F16 to F32, because";
    assert!(run.stdout.contains(expected), "expected {expected:?} in\n{}", run.stdout);
    let prompt = Golden::of("moonlight-bf16").ids("greedy.prompt");
    place.generate_ids(&model, &prompt, &["--max-new-tokens", "2"]).success();
    let dir = weight_config(&run.stdout);
    let text = place.run([Path::new("inspect"), dir.parent().unwrap()]).success().stdout;
    assert!(text.contains("written           1 weight, 384 B"), "{text}");
}

fn config(place: &Workplace, more: &[&str]) -> support::Run {
    let json = testdata("configs/deepseek-v3-671b.json");
    place.run(["config", "--model", json.to_str().unwrap()].iter().chain(more))
}

#[test]
fn config_needs_nothing_but_config_json() {
    let place = Workplace::new();
    let single = config(&place, &[]).success().json();
    let decode = &single["decode"];
    assert_eq!(decode["lm_head"]["linear"]["out_features"], 129_280);
    assert_eq!(single["prefill"]["mlp_decoder_block"]["mlp"]["w1"]["out_features"], 18_432);
    assert!(decode["mtp"].is_object());

    let mesh = config(&place, &["--mesh", "4x8"]).success().json();
    assert_eq!(mesh["decode"]["lm_head"]["linear"]["out_features"], 129_280 / 8);
    assert_eq!(mesh["decode"]["moe_decoder_block"]["mlp"]["experts"]["w1"]["out_features"], 2048 / 8);
    assert_eq!(config(&place, &["--mode", "decode"]).success().json(), *decode);
    assert!(!place.path("cache").exists(), "no cache is touched");
    assert!(place.run(["config"]).success().json()["prefill"].is_object());
}

#[test]
fn config_writes_a_file_a_mode() {
    let place = Workplace::new();
    let printed = config(&place, &[]).success().json();
    assert_eq!(config(&place, &["--output", "v3.json"]).success().stdout, "");
    config(&place, &["--output", "only.json", "--mode", "prefill"]).success();
    let read =
        |name: &str| -> Value { serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap() };
    assert_eq!(read("v3.prefill.json"), printed["prefill"]);
    assert_eq!(read("v3.decode.json"), printed["decode"]);
    assert_eq!(read("only.json"), printed["prefill"]);
    config(&place, &["--output", "no/such/v3.json"])
        .fails_with(&["error: no/such/v3.prefill.json: No such file"]);
}

#[test]
fn a_mesh_that_does_not_divide_is_refused_by_name() {
    let place = Workplace::new();
    config(&place, &["--mesh", "3x5"]).fails_with(&["hidden", "7168", "5 devices"]);
}

#[test]
fn inspect_shows_a_checkpoint() {
    let place = Workplace::new();
    let text = place.run([Path::new("inspect"), &testdata("odd-fp8")]).success().stdout;
    for part in [
        "1 dense, 2 MoE, 1 MTP",
        "12 in 4 groups, 3 a token from 2 of them; 2 shared",
        "YaRN x4 from 64",
        "FP8 in blocks of 128x128",
        "      323 tensors",
        "routed experts",
        "F8_E4M3",
        "not needed (the MTP layer's copies of embedding and head): 2",
        "every tensor that the model needs",
    ] {
        assert!(text.contains(part), "expected {part:?} in\n{text}");
    }
    let moonlight = testdata("moonlight-bf16");
    let json = place.run(["inspect", "--json", moonlight.to_str().unwrap()]).success().json();
    assert_eq!(json["architecture"]["attention"]["q_lora_rank"], Value::Null);
    assert_eq!(json["checkpoint"]["total"]["tensors"], 85);
    assert_eq!(json["checkpoint"]["by_kind"]["gate"]["tensors"], 4);
    assert_eq!(json["checkpoint"]["by_kind"].get("head"), None, "it is the embedding");
    assert_eq!(
        json["checkpoint"]["not_needed"]["rotary frequencies, which config.json gives"][0],
        "model.layers.0.self_attn.rotary_emb.inv_freq"
    );
    assert_eq!(json["checkpoint"]["problems"], Value::Array(Vec::new()));

    let large = testdata("configs/deepseek-v3-671b.json");
    let text = place.run([Path::new("inspect"), &large]).success().stdout;
    assert!(text.contains("3 dense, 58 MoE, 1 MTP") && text.contains("163840 tokens"), "{text}");
    place.run(["inspect"]).success();
}

#[test]
fn inspect_shows_a_cache() {
    let place = Workplace::new();
    let model = place.copy("odd-fp8");
    let path = weight_config(&convert(&place, &model, &[]).success().stdout);
    let dir = path.parent().unwrap().to_str().unwrap();
    let text = place.run(["inspect", dir]).success().stdout;
    for part in
        ["target            cpu", "mesh              1x1", "unchanged since", "written           0 weights"]
    {
        assert!(text.contains(part), "expected {part:?} in\n{text}");
    }
    fs::write(model.join("config.json"), "{}").unwrap();
    let json = place.run(["inspect", "--json", dir]).success().json();
    assert_eq!(json["checkpoint_state"], "changed");
    assert_eq!(json["written"]["bytes"], 0);
    let text = place.run(["inspect", dir]).success().stdout;
    let advice = format!("`dsv3 convert --force --model {} --mesh 1x1`", model.display());
    assert!(text.contains(&advice), "expected {advice:?} in\n{text}");
    let newer =
        fs::read_to_string(&path).unwrap().replacen(r#""format_version": 3"#, r#""format_version": 4"#, 1);
    fs::write(&path, newer).unwrap();
    place.run(["inspect", dir]).fails_with(&["format version 4", "reads 3"]);
    fs::write(&path, "{").unwrap();
    place.run(["inspect", dir]).fails_with(&["weight_config.json", "is damaged"]);
}

#[test]
fn inspect_lists_what_is_wrong_with_a_checkpoint() {
    let place = Workplace::new();
    let model = place.copy("odd-fp8");
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    // One more layer than there is, and an MLP of another width.
    let config = config.replace(r#""num_hidden_layers": 3"#, r#""num_hidden_layers": 4"#);
    let config = config.replace(r#""intermediate_size": 200"#, r#""intermediate_size": 208"#);
    fs::write(model.join("config.json"), config).unwrap();
    let run = place.run([Path::new("inspect"), &model]);
    assert_eq!(run.code, 1);
    for part in [
        "tensor model.layers.0.mlp.gate_proj.weight: expected shape [208, 160], got [200, 160]",
        "the MTP layer of config.json is not in the checkpoint",
        "problems: 3",
    ] {
        assert!(run.stdout.contains(part), "expected {part:?} in\n{}", run.stdout);
    }
    assert!(run.stderr.starts_with("dsv3: error: ") && run.stderr.contains("3 problems"), "{}", run.stderr);
}

#[test]
fn a_checkpoint_without_its_mtp_layer_runs_without_it() {
    let (golden, place) = (Golden::of("odd-fp8"), Workplace::new());
    let model = place.copy("odd-fp8");
    let index = model.join("model.safetensors.index.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let map = json["weight_map"].as_object_mut().unwrap();
    map.retain(|name, _| !name.starts_with("model.layers.3."));
    fs::write(&index, json.to_string()).unwrap();
    patch_shards(&model, |header| {
        Some((header.find("model.layers.3.eh_proj.weight")?, "model.layers.3.xx_proj.weight".to_owned()))
    });
    let prompt = golden.ids("greedy.prompt");
    let record = place.generate_ids(&model, &prompt, &["--max-new-tokens", "9"]).success().json();
    assert_eq!(support::token_ids(&record), golden.ids("greedy.tokens")[..9]);
    let text = place.run([Path::new("inspect"), &model]).success().stdout;
    assert!(text.contains("the model runs without it"), "{text}");
    assert!(text.contains("in a file, but not in the index: "), "{text}");
}

/// Overwrites a part of the one shard's header in which `find` finds it.
fn patch_shards(model: &Path, find: impl Fn(&str) -> Option<(usize, String)>) {
    let mut patched = 0;
    for shard in [1, 2] {
        let path = model.join(format!("model-0000{shard}-of-00002.safetensors"));
        let mut bytes = fs::read(&path).unwrap();
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let header = &mut bytes[8..8 + length];
        if let Some((at, text)) = find(str::from_utf8(header).unwrap()) {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
            fs::write(&path, bytes).unwrap();
            patched += 1;
        }
    }
    assert_eq!(patched, 1);
}
