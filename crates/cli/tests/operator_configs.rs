//! Stage 2's files in stage 3: `generate --prefill-config` and `--decode-config`.

mod support;

use serde_json::{Value, json};
use std::{fs, path::Path};
use support::{Golden, Run, Workplace, testdata, token_ids};

/// Tokens to compare.
const TOKENS: usize = 16;

/// The configs of a checkpoint, written as `v3.prefill.json` and `v3.decode.json`.
fn write_configs(place: &Workplace, model: &Path) {
    let args = ["config", "--output", "v3.json", "--model", model.to_str().unwrap()];
    assert_eq!(place.run(args).success().stderr, "");
}

fn edit(place: &Workplace, name: &str, edit: impl FnOnce(&mut Value)) {
    let mut config: Value = serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap();
    edit(&mut config);
    place.file(name, config.to_string());
}

fn generate(place: &Workplace, model: &Path, prompt: &[u32]) -> Run {
    let files = ["--prefill-config", "v3.prefill.json", "--decode-config", "v3.decode.json"];
    let count = TOKENS.to_string();
    let args: Vec<&str> = files.into_iter().chain(["--max-new-tokens", &count]).collect();
    place.generate_ids(model, prompt, &args)
}

/// Sets every `rows_per_task`; how many there were.
fn set_rows_per_task(config: &mut Value, rows: &Value) -> usize {
    let Value::Object(fields) = config else { return 0 };
    let set = |(name, value): (&String, &mut Value)| {
        if name != "rows_per_task" {
            return set_rows_per_task(value, rows);
        }
        *value = rows.clone();
        1
    };
    fields.iter_mut().map(set).sum()
}

#[test]
fn the_files_of_stage_2_run() {
    for name in ["odd-fp8", "moonlight-bf16"] {
        let (golden, place, model) = (Golden::of(name), Workplace::new(), testdata(name));
        let prompt = golden.ids("greedy.prompt");
        let tokens = |run: Run| token_ids(&run.success().json());
        write_configs(&place, &model);
        assert_eq!(
            tokens(generate(&place, &model, &prompt)),
            golden.ids("greedy.tokens")[..TOKENS],
            "{name}"
        );
        for rows in [json!(1), json!(7), json!(64), json!(u64::MAX)] {
            for file in ["v3.prefill.json", "v3.decode.json"] {
                edit(&place, file, |config| assert!(set_rows_per_task(config, &rows) > 10));
            }
            let run = generate(&place, &model, &prompt);
            assert_eq!(tokens(run), golden.ids("greedy.tokens")[..TOKENS], "{name}, {rows} rows a task");
        }
    }
}

/// Sets every field of this name.
fn set_everywhere(config: &mut Value, field: &str, to: &Value) {
    let Value::Object(fields) = config else { return };
    for (name, value) in fields {
        if name == field {
            *value = to.clone();
        } else {
            set_everywhere(value, field, to);
        }
    }
}

#[test]
fn devices_may_exchange_less_than_f32_where_a_file_says_so() {
    let (place, model) = (Workplace::new(), testdata("odd-fp8"));
    let mesh = ["--mesh", "2x2", "--experts", "expert"];
    let config = ["config", "--output", "v3.json", "--model", model.to_str().unwrap()];
    let logits = |payload: &str| {
        place.run(config.into_iter().chain(mesh)).success();
        for file in ["v3.prefill.json", "v3.decode.json"] {
            edit(&place, file, |config| {
                let dispatch = config["moe_decoder_block"]["mlp"]["dispatch"].clone();
                set_everywhere(config, "payload", &json!(payload));
                for block in ["moe_decoder_block", "mtp"] {
                    let block = &mut config[block];
                    let block = if block["mlp"].is_object() { block } else { &mut block["decoder_block"] };
                    block["mlp"]["dispatch"] = dispatch.clone();
                }
            });
        }
        let files = ["--prefill-config", "v3.prefill.json", "--decode-config", "v3.decode.json"];
        let args: Vec<&str> = files.into_iter().chain(mesh).chain(["--max-new-tokens", "4"]).collect();
        place.generate_ids(&model, &Golden::of("odd-fp8").ids("greedy.prompt"), &args)
    };
    let expected = token_ids(&logits("f32").success().json());
    // One rounding to 8 bits of a sum is far from what it takes to change the likeliest token here.
    assert_eq!(token_ids(&logits("bf16").success().json()), expected);
    edit(&place, "v3.decode.json", |config| {
        config["moe_decoder_block"]["mlp"]["dispatch"]["all_to_all"]["payload"] = json!("bf8");
    });
    let files = ["--decode-config", "v3.decode.json", "--max-new-tokens", "2"];
    let args: Vec<&str> = files.into_iter().chain(mesh).collect();
    place
        .generate_ids(&model, &Golden::of("odd-fp8").ids("greedy.prompt"), &args)
        .fails_with(&["v3.decode.json: moe_decoder_block.mlp.dispatch.all_to_all"]);
}

/// `dsv3 config` reads config.json alone; that the checkpoint has no MTP layer is no reason to refuse its file.
#[test]
fn a_checkpoint_without_its_mtp_layer_takes_a_config_with_one() {
    let place = Workplace::new();
    let model = place.copy("moonlight-bf16");
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["num_nextn_predict_layers"] = json!(1);
    fs::write(&path, config.to_string()).unwrap();
    write_configs(&place, &model);
    let config: Value = serde_json::from_slice(&fs::read(place.path("v3.decode.json")).unwrap()).unwrap();
    assert!(config["mtp"].is_object());
    let golden = Golden::of("moonlight-bf16");
    let run = generate(&place, &model, &golden.ids("greedy.prompt")).success();
    assert_eq!(token_ids(&run.json()), golden.ids("greedy.tokens")[..TOKENS]);
}

#[test]
fn a_config_of_another_model_is_refused_by_name() {
    let (place, model) = (Workplace::new(), testdata("odd-fp8"));
    let prompt = Golden::of("odd-fp8").ids("greedy.prompt");
    let refused = |parts: &[&str]| {
        let run = generate(&place, &model, &prompt);
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:#?}");
        run.fails_with(parts);
        write_configs(&place, &model);
    };
    write_configs(&place, &model);
    edit(&place, "v3.decode.json", |config| {
        config["moe_decoder_block"]["mla"]["attention"]["heads"] = json!(3);
    });
    refused(&["v3.decode.json: moe_decoder_block.mla.attention.heads: expected ", "got 3"]);
    edit(&place, "v3.prefill.json", |config| config["warp"] = json!(9));
    refused(&["v3.prefill.json", "warp"]);
    edit(&place, "v3.prefill.json", |config| config["norm"] = json!("wide"));
    refused(&["v3.prefill.json: norm"]);
    edit(&place, "v3.prefill.json", |config| assert!(set_rows_per_task(config, &json!(0)) > 10));
    refused(&["v3.prefill.json: ", "rows_per_task", "`0`", "nonzero"]);
    edit(&place, "v3.prefill.json", |config| {
        config.as_object_mut().unwrap().remove("mtp").unwrap();
    });
    refused(&["v3.prefill.json: mtp: expected an object", "got nothing"]);
    // The other mode's file would do, as long as the two are alike; another model's never does.
    let other = testdata("moonlight-bf16");
    write_configs(&place, &other);
    refused(&["v3.prefill.json: embedding."]);
    fs::remove_file(place.path("v3.decode.json")).unwrap();
    refused(&["v3.decode.json", "No such file"]);
    assert!(!place.path("cache").exists(), "nothing was run");
}
