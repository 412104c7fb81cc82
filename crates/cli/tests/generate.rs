//! `dsv3 generate` and `dsv3 logits`, against what transformers computes and in every way that prompts come in.

mod support;

use dsv3_runtime::Isa;
use serde_json::Value;
use std::{fs, io::Read, path::Path, process::Stdio};
use support::{Golden, Run, Workplace, floats, testdata, token_ids};

const CHECKPOINTS: [&str; 2] = ["odd-fp8", "moonlight-bf16"];

#[test]
fn sixty_four_greedy_tokens_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let (golden, place) = (Golden::of(name), Workplace::new());
        let expected = golden.ids("greedy.tokens");
        let prompt = golden.ids("greedy.prompt");
        let run = place.generate_ids(&testdata(name), &prompt, &["--max-new-tokens", "64"]).success();
        let record = run.json();
        // Neither text meets its end-of-sequence token (1), so that nothing else ends it.
        assert!(!expected.contains(&1));
        assert_eq!(token_ids(&record), expected, "{name}");
        assert_eq!(record["finish_reason"], "length");
        assert_eq!(record["prompt_tokens"], prompt.len());
        assert_eq!(record["text"], "", "there is no tokenizer");
        assert_eq!(record["timings"]["decode_tokens"], 63);
        assert!(run.stderr.contains("greedy") && run.stderr.contains("GB/s of weights"), "{}", run.stderr);
    }
}

/// In integers, too, where formats and instruction sets have their own ways: at least the likeliest tokens stay.
#[test]
fn every_instruction_set_generates_these_tokens() {
    let (golden, place, model) = (Golden::of("odd-fp8"), Workplace::new(), testdata("odd-fp8"));
    let (prompt, expected) = (golden.ids("greedy.prompt"), golden.ids("greedy.tokens"));
    for isa in Isa::ALL {
        let options = ["--isa", isa.name(), "--max-new-tokens", "8"];
        let run = place.generate_ids(&model, &prompt, &options);
        if !isa.is_available() {
            run.fails_with(&["this machine has no", isa.name()]);
            continue;
        }
        let run = run.success();
        assert_eq!(token_ids(&run.json()), expected[..8], "{isa}");
        assert!(run.stderr.contains(&format!("({isa})")), "{}", run.stderr);
    }
    place
        .generate_ids(&model, &prompt, &["--isa", "avx1024"])
        .is_usage_error("scalar, avx2, avx2-halves, avx512");
}

#[test]
fn a_text_ends_where_the_context_does() {
    let (golden, place) = (Golden::of("moonlight-bf16"), Workplace::new());
    let (prompt, expected) = (golden.ids("greedy.prompt"), golden.ids("greedy.tokens"));
    let record =
        place.generate_ids(&testdata("moonlight-bf16"), &prompt, &["--context", "20"]).success().json();
    assert_eq!(token_ids(&record), expected[..20 - prompt.len()]);
    assert_eq!(record["finish_reason"], "length");

    let record = place.generate_ids(&testdata("moonlight-bf16"), &prompt, &[]).success().json();
    assert_eq!(token_ids(&record).len(), 128 - prompt.len(), "the model's own end");
}

#[test]
fn one_token_ends_the_text_where_the_configuration_says_so() {
    let (golden, place) = (Golden::of("moonlight-bf16"), Workplace::new());
    let (prompt, expected) = (golden.ids("greedy.prompt"), golden.ids("greedy.tokens"));
    let model = place.copy("moonlight-bf16");
    let end = expected[4];
    let length = expected.iter().position(|&token| token == end).unwrap();
    fs::write(model.join("generation_config.json"), format!(r#"{{"eos_token_id": [{end}, 250]}}"#)).unwrap();
    let record = place.generate_ids(&model, &prompt, &[]).success().json();
    assert_eq!(token_ids(&record), expected[..length]);
    assert_eq!(record["finish_reason"], "stop");
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let (golden, place) = (Golden::of("odd-fp8"), Workplace::new());
    let (prompt, model) = (golden.ids("greedy.prompt"), testdata("odd-fp8"));
    let ids = place.file("ids.json", serde_json::to_string(&prompt).unwrap());
    let text = |seed: &str| {
        let (model, ids) = (model.to_str().unwrap(), ids.to_str().unwrap());
        let args = ["generate", "--model", model, "--token-ids", ids, "--json", "--max-new-tokens", "24"];
        let run = place.run(args.into_iter().chain(["--temperature", "1", "--seed", seed])).success();
        assert!(run.stderr.contains(&format!("temperature 1, top-p 1, seed {seed}")), "{}", run.stderr);
        token_ids(&run.json())
    };
    assert_eq!(text("5"), text("5"));
    assert_ne!(text("5"), text("6"));
}

#[test]
fn logits_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let (golden, place) = (Golden::of(name), Workplace::new());
        let tokens = place.file("tokens.json", serde_json::to_string(&golden.ids("tokens")).unwrap());
        let out = place.path("logits.safetensors");
        let model = testdata(name);
        let args: [&Path; 7] = [
            "logits".as_ref(),
            "--model".as_ref(),
            &model,
            "--tokens".as_ref(),
            &tokens,
            "--output".as_ref(),
            &out,
        ];
        let run = place.run(args).success();
        assert_eq!(run.stdout, "");
        let (shape, values) = floats(&fs::read(&out).unwrap(), "logits");
        let (expected_shape, expected) = golden.floats("logits");
        assert_eq!(shape, expected_shape);
        let norm = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = values.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let relative = norm(&difference) / norm(&expected);
        assert!(relative < 1e-3, "{name}: {relative}");
    }
}

/// The first JSON object of a run of the embedded model.
fn embedded(place: &Workplace, args: &[&str]) -> Value {
    let fixed = ["generate", "--temperature", "0", "--json", "--max-new-tokens", "8"];
    place.run(fixed.iter().chain(args)).success().json()
}

#[test]
fn the_embedded_model_answers() {
    let place = Workplace::new();
    let run = place.run(["generate", "--temperature", "0", "--json", "What is 27 + 58?"]).success();
    let record = run.json();
    assert_eq!(record["finish_reason"], "stop");
    assert!(!record["text"].as_str().unwrap().is_empty());
    assert!(run.stderr.contains("unpacked the embedded model into"), "{}", run.stderr);
    assert!(run.stderr.contains("prepared the weights"), "{}", run.stderr);

    let again = place.run(["generate", "--temperature", "0", "--json", "What is 27 + 58?"]).success();
    assert_eq!(token_ids(&again.json()), token_ids(&record));
    assert!(!again.stderr.contains("unpacked") && !again.stderr.contains("prepared"), "{}", again.stderr);
}

#[test]
fn the_cache_may_be_stored_in_less() {
    let place = Workplace::new();
    for format in ["f32", "bf16", "q8"] {
        let args = ["--temperature", "0", "--json", "--kv-cache", format, "What is 27 + 58?"];
        let run = place.run(["generate"].iter().chain(&args)).success();
        let record = run.json();
        assert!(record["text"].as_str().unwrap().contains("85"), "{format}: {}", record["text"]);
        assert!(run.stderr.contains(&format!("cached in {format}")), "{}", run.stderr);
    }
    place.run(["generate", "--kv-cache", "q4", "x"]).is_usage_error("--kv-cache");
}

#[test]
fn a_prompt_comes_from_an_argument_or_stdin_or_a_file() {
    let place = Workplace::new();
    let expected = embedded(&place, &["What is 2 + 3?"]);
    let args = ["generate", "--temperature", "0", "--json", "--max-new-tokens", "8"];
    let piped = place.run_with_stdin(args, b"What is 2 + 3?\n").success().json();
    assert_eq!(token_ids(&piped), token_ids(&expected));

    let file = place.file("prompts.json", r#"[{"prompt": "What is 2 + 3?"}, "What is 9 - 4?"]"#);
    let run = place.run(args.iter().chain(&["--prompts-file", file.to_str().unwrap()])).success();
    let records: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2);
    assert_eq!(token_ids(&records[0]), token_ids(&expected));
    assert!(run.stderr.contains("prompt 2 of 2: What is 9 - 4?"), "{}", run.stderr);
    let report: Value =
        serde_json::from_slice(&fs::read(place.path("prompts_output.json")).unwrap()).unwrap();
    assert_eq!(report["prompts"][1], "What is 9 - 4?");
    assert_eq!(report["generations"][0]["text"], expected["text"]);
    assert_eq!(report["model_params"]["max_new_tokens"], 8);
    assert!(report["statistics"]["decode_t/s"].as_f64().unwrap() > 0.0);

    let files = ["--prompts-file", file.to_str().unwrap(), "--output-path", "out.json"];
    let more = ["--num-prompts", "1", "--checkpoint-jsonl", "log.jsonl"];
    let run = place.run(args.iter().chain(&files).chain(&more)).success();
    assert_eq!(run.stdout.lines().count(), 1);
    assert!(place.path("out.json").exists());
    assert_eq!(fs::read_to_string(place.path("log.jsonl")).unwrap().lines().count(), 1);
}

#[test]
fn text_begins_with_the_thoughts_that_the_template_opened() {
    let place = Workplace::new();
    let prompt = "What is 2 + 3?";
    let record = embedded(&place, &[prompt]);
    let args = ["generate", "--temperature", "0", "--max-new-tokens", "8"];
    let run = place.run(args.iter().chain(&[prompt])).success();
    let text = record["text"].as_str().unwrap();
    assert_eq!(run.stdout.trim_end_matches('\n'), format!("<think>\n{text}").trim_end_matches('\n'));
    assert!(run.stdout.ends_with('\n'));

    let raw = place.run(args.iter().chain(&["--raw", prompt])).success();
    assert!(!raw.stdout.starts_with("<think>"), "{}", raw.stdout);
    assert_ne!(token_ids(&embedded(&place, &["--system", "Be brief.", prompt])), Vec::<u32>::new());
}

#[test]
fn a_stop_string_ends_the_text_and_is_no_part_of_it() {
    let place = Workplace::new();
    let whole = embedded(&place, &["What is 2 + 3?"]);
    let whole = whole["text"].as_str().unwrap();
    let middle = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[middle..].chars().take(2).collect();
    let record = embedded(&place, &["--stop", &stop, "--stop", "never this", "What is 2 + 3?"]);
    assert_eq!(record["text"], whole[..whole.find(&stop).unwrap()]);
    assert_eq!(record["finish_reason"], "stop");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Workplace::new();
    let mut command = place.command(["generate", "--temperature", "0", "What is 27 + 58?"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).unwrap();
    drop(stdout);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!run.stderr.contains("panicked") && !run.stderr.contains("error"), "{}", run.stderr);
}

#[test]
fn processes_at_once_share_an_empty_cache() {
    let place = Workplace::new();
    let children: Vec<_> = (0..4)
        .map(|_| {
            let args = ["generate", "--temperature", "0", "--json", "--max-new-tokens", "4", "2 + 2?"];
            let mut command = place.command(args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let runs: Vec<Run> =
        children.into_iter().map(|child| Run::of(child.wait_with_output().unwrap())).collect();
    let expected = token_ids(&embedded(&place, &["2 + 2?"]));
    for run in runs {
        assert!(expected.starts_with(&token_ids(&run.success().json())));
    }
    let entries = fs::read_dir(place.path("cache")).unwrap();
    assert!(
        entries
            .map(|entry| entry.unwrap().file_name())
            .all(|name| !name.as_encoded_bytes().starts_with(b"."))
    );
}
