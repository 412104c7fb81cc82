//! `dsv3 plan`: what is planned is what is, and what cannot be is refused.

mod support;

use serde_json::Value;
use support::{Run, Workplace, testdata, tiny};

/// Nothing has to be measured.
const MACHINE: [&str; 6] = ["--bandwidth", "400", "--flops", "3000", "--memory", "768"];

fn plan(place: &Workplace, more: &[&str]) -> Run {
    place.run(["plan"].iter().chain(&MACHINE).chain(more))
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value:#}"))
}

fn large() -> String {
    testdata("configs/deepseek-v3-671b.json").to_str().unwrap().to_owned()
}

#[test]
fn the_embedded_model_is_planned_in_words() {
    let place = Workplace::new();
    let text = place.run(["plan", "--mesh", "1x2"]).success().stdout;
    for part in [
        "Each device holds",
        "experts",
        "latent cache of 1,000 tokens",
        "scratch",
        "FITS",
        "measured now",
        "A decode step at 2048 tokens",
        "moe_decoder_block.mlp.reduce_scatter: sums",
        "tokens/s",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let small = ["plan", "--bandwidth", "10", "--flops", "100", "--memory", "0.001"];
    assert!(place.run(small).success().stdout.contains("DOES NOT FIT"));
}

#[test]
fn the_671b_model_is_planned_from_its_config_alone() {
    let place = Workplace::new();
    let model = large();
    let run = plan(&place, &["--model", &model, "--mesh", "4x8", "--link", "100", "--json"]).success();
    assert!(run.stderr.contains("no weights"), "{}", run.stderr);
    let plan = run.json();
    assert_eq!(plan["devices"].as_array().unwrap().len(), 2);
    let experts = &plan["devices"][0]["weights"][0];
    assert_eq!((&experts["kind"], &experts["format"]), (&Value::from("experts"), &Value::from("fp8")));
    // 59 layers of 256 experts of three matrices of 7168 x 2048 with scales, an eighth of each.
    let expected = 59.0 * 256.0 * 3.0 * (7168.0 * 2048.0 + 4.0 * 56.0 * 16.0) / 8.0;
    assert_eq!(number(experts, "/bytes"), expected);
    // 62 layers with the MTP layer's, 576 values in bf16 and half a value before them.
    assert_eq!(number(&plan, "/cache/bytes_per_1000_tokens"), 62.0 * (576.0 + 1.0) * 2.0 * 1000.0);
    assert_eq!((number(&plan, "/host/devices"), &plan["host"]["fits"]), (1.0, &Value::from(true)));
    assert_eq!(number(&plan, "/machines/between/bytes_per_second"), 12.5e9);
    let seconds = |part: &str| number(&plan, &format!("/decode/seconds/{part}"));
    let read = (number(&plan, "/decode/weight_bytes") + number(&plan, "/decode/cache_bytes")) / 400e9;
    assert!((seconds("read") / read - 1.0).abs() < 1e-9);
    let all = seconds("read").max(seconds("compute")) + seconds("latency") + seconds("transfer");
    assert!((seconds("all") / all - 1.0).abs() < 1e-9);
    assert!((seconds("latency") / (number(&plan, "/decode/exchanges") * 30e-6) - 1.0).abs() < 1e-9);
}

#[test]
fn hosts_and_links_are_tabled() {
    let place = Workplace::new();
    let model = large();
    let options = ["--model", &model, "--scaling", "--batch", "16", "--format", "q4_K"];
    let text = plan(&place, &options).success().stdout;
    assert_eq!(text.lines().count(), 1 + 1 + 13 + 1, "{text}");
    let rows = plan(&place, &[&options[..], &["--json"]].concat()).success().json();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 13);
    let speed = |row: usize| number(&rows[row], "/decode/tokens_per_second");
    // More hosts with the best link are faster, and so is a better link.
    assert!(speed(0) < speed(4) && speed(4) < speed(8) && (1..4).all(|row| speed(row) < speed(row + 1)));
    // The same numbers as of one plan.
    let one =
        ["--model", &model, "--batch", "16", "--format", "q4_K", "--mesh", "1x4", "--link", "25", "--json"];
    let one = plan(&place, &one).success().json();
    assert_eq!(number(&one, "/decode/tokens_per_second"), speed(6));
    assert_eq!(number(&one, "/host/bytes"), number(&rows[6], "/bytes"));
}

/// What devices send for a token is what was planned, in both modes, within 5 %.
#[test]
fn a_run_moves_what_was_planned() {
    let place = Workplace::new();
    for (mesh, experts) in [("1x2", "tensor"), ("2x4", "tensor"), ("2x2", "expert")] {
        let layout = ["--mesh", mesh, "--experts", experts, "--json"];
        let work = ["--depths", "0", "--prompt", "64", "--generate", "32", "--repeat", "1", "--batch", "1,4"];
        let bench = ["bench", "run", "--threads", "1"];
        let bench = place.run(bench.iter().chain(&work).chain(&layout)).success().json();
        for (batch, measured) in [("1", 1), ("4", 2)] {
            let work = ["--link", "10", "--batch", batch, "--context", "16", "--prompt", "64"];
            let planned = plan(&place, &[&work[..], &layout].concat()).success().json();
            for (mode, measured) in [("prefill", 0), ("decode", measured)] {
                for field in ["sent", "received"] {
                    let measured = number(&bench, &format!("/measurements/{measured}/per_token/{field}"));
                    let [bytes, tokens] =
                        [field, "tokens"].map(|field| number(&planned, &format!("/{mode}/{field}")));
                    let ratio = measured / (bytes / tokens);
                    let name = format!("{mesh} {experts} {mode} beside {batch}, {field}: {ratio}");
                    assert!((ratio - 1.0).abs() <= 0.05, "{name}");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let place = Workplace::new();
    let tiny = tiny();
    let plan = |place, more: &[&str]| plan(place, &[&["--model", tiny.to_str().unwrap()], more].concat());
    plan(&place, &["--mesh", "3x5"]).fails_with(&["hidden_size: 128 do not divide over 5 devices"]);
    plan(&place, &["--mesh", "8x8", "--experts", "expert"]).fails_with(&["n_routed_experts", "64 devices"]);
    plan(&place, &["--mesh", "2x4", "--hosts", "3"]).fails_with(&["--hosts 3", "8 devices"]);
    plan(&place, &["--context", "4096"]).fails_with(&["--context 4096", "max_position_embeddings is 2048"]);
    plan(&place, &["--batch", "0"]).is_usage_error("--batch");
    plan(&place, &["--link", "0"]).is_usage_error("--link");
    plan(&place, &["--scaling", "--mesh", "1x2"]).is_usage_error("cannot be used with");
    let of = |model: &std::path::Path| {
        let [command, option, scaling] = ["plan", "--model", "--scaling"].map(AsRef::as_ref);
        let machine = MACHINE.map(AsRef::as_ref);
        place.run([command].into_iter().chain(machine).chain([option, model.as_os_str(), scaling]))
    };
    of(&testdata("moonlight-bf16")).fails_with(&["num_attention_heads: 4 do not divide over 8 devices"]);
    of(&place.path("absent")).fails_with(&["absent"]);
    of(&place.file("broken.json", "{}")).fails_with(&["broken.json"]);
}

/// A checkpoint's own formats, and a directory with nothing but its config.json.
#[test]
fn formats_are_the_checkpoints_or_the_usual_ones() {
    let place = Workplace::new();
    let formats = |model: &str| {
        let plan = plan(&place, &["--model", model, "--json"]).success().json();
        let weights = plan["devices"][0]["weights"].as_array().unwrap();
        weights.iter().map(|weights| weights["format"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let dir = place.path("config-alone");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(tiny().join("config.json"), dir.join("config.json")).unwrap();
    assert_eq!(formats(dir.to_str().unwrap()), formats(tiny().to_str().unwrap()));
    let bf16 = formats(testdata("moonlight-bf16").to_str().unwrap());
    assert!(bf16.iter().all(|format| format == "bf16" || format == "f32"), "{bf16:?}");
}
