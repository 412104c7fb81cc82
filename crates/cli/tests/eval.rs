//! `dsv3 eval`, on the embedded model: against logits of `dsv3 logits`, against itself, and with files that lie.

mod support;

use serde_json::{Value, json};
use std::{fs, path::PathBuf};
use support::{Run, Workplace, floats, tiny};

/// A hundred ids of the held-out stories, by the tokens of `eval divergence --save-base`.
struct Text {
    place: Workplace,
    ids: Vec<u32>,
    file: PathBuf,
}

impl Text {
    fn new() -> Self {
        let place = Workplace::new();
        let stories = tiny().join("heldout_stories.txt");
        let base = place.path("text.kld");
        let args = ["eval", "divergence", "--max-windows", "1", "--window", "96", "--text"];
        let save = [stories.to_str().unwrap(), "--save-base", base.to_str().unwrap()];
        place.run(args.iter().chain(&save)).success();
        let bytes = fs::read(&base).unwrap();
        let ids: Vec<u32> =
            bytes[20..20 + 4 * 96].as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect();
        let file = place.file("ids.json", json!(ids).to_string());
        Self { place, ids, file }
    }

    fn eval(&self, args: &[&str]) -> Run {
        self.place.run(["eval"].iter().chain(args))
    }

    fn ids(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// What `dsv3 logits` writes of these ids.
    fn logits(&self, ids: &[u32]) -> (PathBuf, Vec<Vec<f32>>) {
        let tokens = self.place.file("tokens.json", json!(ids).to_string());
        let out = self.place.path("logits.safetensors");
        let args = ["logits", "--tokens", tokens.to_str().unwrap(), "--output", out.to_str().unwrap()];
        self.place.run(args).success();
        let (shape, values) = floats(&fs::read(&out).unwrap(), "logits");
        (out, values.chunks(shape[1]).map(<[f32]>::to_vec).collect())
    }
}

/// The natural logarithm of a token's probability, without care: the model's logits are small.
fn log_prob(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    f64::from(logits[token as usize]) - sum.ln()
}

fn number(json: &Value, field: &str) -> f64 {
    json[field].as_f64().unwrap_or_else(|| panic!("{field} in {json}"))
}

/// That two sums over the same logits agree to the roundings of a thousand exponentials and 96 terms, of a size of 30.
fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1100.0 * 30.0 * f64::EPSILON, "{got} {expected}");
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let text = Text::new();
    let report = text.eval(&["perplexity", "--token-ids", text.ids(), "--window", "40", "--json"]).success();
    assert!(report.stderr.contains("window 2 of 2: perplexity "), "{}", report.stderr);
    let report = report.json();
    let mut surprises = Vec::new();
    for window in text.ids.chunks_exact(40) {
        let mut window = window.to_vec();
        window[0] = 0; // the BOS
        let (_, rows) = text.logits(&window);
        surprises.extend((20..39).map(|row| -log_prob(&rows[row], window[row + 1])));
    }
    assert_eq!(report["tokens"], 38);
    assert_eq!(
        (&report["windows"], &report["tokens_left_out"], &report["bos"]),
        (&json!(2), &json!(16), &json!(true))
    );
    let mean = surprises.iter().sum::<f64>() / 38.0;
    close(number(&report, "nats_per_token"), mean);
    close(number(&report, "perplexity"), mean.exp());
    let squares: f64 = surprises.iter().map(|surprise| (surprise - mean).powi(2)).sum();
    close(number(&report, "standard_error"), mean.exp() * (squares / 38.0 / 37.0).sqrt());
    assert!(number(&report, "tokens_per_second") > 0.0);
}

#[test]
fn a_stride_counts_the_last_tokens_of_each_window() {
    let text = Text::new();
    let args = ["perplexity", "--token-ids", text.ids(), "--window", "64", "--stride", "16", "--json"];
    let report = text.eval(&args).success().json();
    let mut sum = 0.0;
    for start in [0, 16] {
        let window = &text.ids[start..start + 64];
        let (_, rows) = text.logits(window);
        sum -= (47..63).map(|row| log_prob(&rows[row], window[row + 1])).sum::<f64>();
    }
    assert_eq!((&report["tokens"], &report["bos"]), (&json!(32), &json!(false)));
    close(number(&report, "nats_per_token"), sum / 32.0);
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let text = Text::new();
    let (logits, _) = text.logits(&text.ids);
    let logits = logits.to_str().unwrap();
    let report =
        text.eval(&["divergence", "--base", logits, "--token-ids", text.ids(), "--json"]).success().json();
    let divergence = &report["divergence"];
    for field in ["mean", "max", "percentile_99", "max_probability_change", "quantisation_noise"] {
        assert_eq!(number(divergence, field), 0.0, "{field}");
    }
    assert_eq!((&divergence["tokens"], &divergence["top1_agreement"]), (&json!(95), &json!(1.0)));
    assert_eq!(divergence["model"], divergence["base"]);

    // Through 16 bits: as near as those are.
    let base = text.place.path("text.kld");
    let base = base.to_str().unwrap();
    let report = text.eval(&["divergence", "--base", base, "--json"]).success().json();
    let divergence = &report["divergence"];
    let noise = number(divergence, "quantisation_noise");
    assert!(noise > 0.0 && noise < 16.0 / 65535.0, "{noise}");
    // Five standard deviations, and as much as both logarithms' f32 roundings of 16 make.
    let bound = 5.0 * noise + 32.0 * f64::from(f32::EPSILON);
    assert!(number(divergence, "mean").abs() < bound, "{divergence}");
    assert_eq!(divergence["top1_agreement"], 1.0);
    let table = text.eval(&["divergence", "--base", base]).success().stdout;
    for part in ["mean KL divergence, nats", "99th percentile", "same likeliest token", "100.000 %"] {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn a_base_of_other_tokens_is_refused() {
    let text = Text::new();
    let base = text.place.path("text.kld");
    let mut ids = text.ids.clone();
    ids[7] += 1;
    let other = text.place.file("other.json", json!(ids).to_string());
    let [base, other] = [&base, &other].map(|path| path.to_str().unwrap());
    text.eval(&["divergence", "--base", base, "--token-ids", other])
        .fails_with(&["text.kld", "its token 7 is"]);
    let short = text.place.file("short.json", "[1, 2]");
    let short = short.to_str().unwrap();
    text.eval(&["divergence", "--base", base, "--token-ids", short])
        .fails_with(&["of 96 tokens, but the text has 2"]);

    let (logits, _) = text.logits(&text.ids[..5]);
    let logits = logits.to_str().unwrap();
    let args = ["divergence", "--base", logits, "--token-ids", text.ids()];
    text.eval(&args).fails_with(&["logits.safetensors", "of 5 tokens, but the text has 96"]);
    text.eval(&["divergence", "--base", logits]).fails_with(&["holds no tokens", "--text"]);
}

#[test]
fn bases_that_lie_are_refused_in_one_line() {
    let text = Text::new();
    let good = fs::read(text.place.path("text.kld")).unwrap();
    let refused = |bytes: &[u8], part: &str| {
        let file = text.place.file("bad", bytes);
        text.eval(&["divergence", "--base", file.to_str().unwrap()]).fails_with(&["bad", part]);
    };
    refused(&good[..good.len() / 2], "but the file has");
    refused(&good[..12], "fill whole buffer");
    refused(b"", "neither a safetensors file nor");
    let with = |at: usize, number: u32| [&good[..at], &number.to_le_bytes(), &good[at + 4..]].concat();
    refused(&with(8, u32::MAX), "but the file has");
    refused(&with(12, 7), "its vocabulary has 7 tokens, but the model's has 1024");
    refused(&with(16, u32::MAX), "but the file has");
    refused(&with(24, 1024), "prompt token 1 has id 1024");
    text.eval(&["divergence", "--base", "absent"]).fails_with(&["absent: No such file"]);
}

#[test]
fn its_own_greedy_text_is_forced_without_a_difference() {
    let place = Workplace::new();
    let prompts = place.file("prompts.json", r#"["Once upon a time", "There once was a"]"#);
    let reference = place.path("reference.json");
    let [prompts, reference] = [&prompts, &reference].map(|path| path.to_str().unwrap());
    let eval = |args: &[&str]| place.run(["eval", "teacher-forcing"].iter().chain(args));
    eval(&["--save", reference, "--prompts-file", prompts, "--max-new-tokens", "12"]).success();
    let saved: Value = serde_json::from_slice(&fs::read(reference).unwrap()).unwrap();
    assert_eq!(saved["format_version"], "multi_prompt_v1");
    assert_eq!(saved["entries"][1]["top5_tokens"].as_array().unwrap().len(), 12);

    let args = ["--reference", reference, "--min-top1", "1", "--min-top5", "1", "--json"];
    let report = eval(&args).success().json();
    assert_eq!((number(&report, "top1_accuracy"), number(&report, "top5_accuracy")), (1.0, 1.0));
    assert_eq!(report["total"]["tokens"], 24);
    assert_eq!(report["entries"][0]["first_difference"], Value::Null);

    // One token of 24 is another than the model would choose: 23 of 24 at best.
    let mut changed = saved.clone();
    let last = &mut changed["entries"][0]["generated_tokens"][11];
    *last = json!((last.as_u64().unwrap() + 1) % 1024);
    let changed_file = place.file("changed.json", changed.to_string());
    let changed_file = changed_file.to_str().unwrap();
    let run = eval(&["--reference", changed_file, "--min-top1", "0.97"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("top-1 accuracy 95.83 % (23 of 24)"), "{}", run.stdout);
    let last = run.stderr.lines().last().unwrap();
    assert_eq!(last, "dsv3: error: the accuracy of 0.9583 is below --min-top1 0.97");
    eval(&["--reference", changed_file, "--min-top1", "0.95"]).success();

    changed["entries"][1].as_object_mut().unwrap().remove("top5_tokens");
    let without = place.file("without.json", changed.to_string());
    let without = without.to_str().unwrap();
    eval(&["--reference", without, "--min-top5", "1"]).fails_with(&["entries[1] has no top5_tokens"]);
    let beyond = place.file("beyond.json", fs::read_to_string(without).unwrap().replacen('[', "[[", 1));
    eval(&["--reference", beyond.to_str().unwrap()]).fails_with(&["beyond.json"]);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Workplace::new();
    let ids = place.file("ids.json", "[1, 2, 3, 4, 5]");
    let empty = place.file("empty.txt", "");
    let [ids, empty] = [&ids, &empty].map(|path| path.to_str().unwrap());
    place.run(["convert"]).success();
    let perplexity = |args: &[&str]| place.run(["eval", "perplexity"].iter().chain(args));
    perplexity(&["--token-ids", ids]).fails_with(&["the text has 5 tokens, but 512 are needed"]);
    perplexity(&["--token-ids", ids, "--window", "2"]).fails_with(&["window is 2", "at least 3"]);
    perplexity(&["--token-ids", ids, "--window", "4", "--stride", "4"]).fails_with(&["stride is 4"]);
    perplexity(&["--token-ids", ids, "--window", "4", "--max-windows", "0"])
        .fails_with(&["max_windows is 0"]);
    perplexity(&["--text", empty]).fails_with(&["empty.txt: the text is empty"]);
    perplexity(&["--text", "absent.txt"]).fails_with(&["absent.txt: No such file"]);
    perplexity(&[]).is_usage_error("--text");
    perplexity(&["--text", empty, "--token-ids", ids]).is_usage_error("cannot be used with");
    let eval = |args: &[&str]| place.run(["eval"].iter().chain(args));
    eval(&["divergence", "--text", empty]).is_usage_error("--base");
    eval(&["divergence", "--save-base", "x"]).is_usage_error("--text");
    eval(&["divergence", "--base", "x", "--window", "9"]).is_usage_error("cannot be used with");
    eval(&["teacher-forcing", "--save", "x"]).fails_with(&["--save needs a prompt"]);
    eval(&["teacher-forcing", "--save", "x", "--token-ids", ids, "--min-top1", "1"])
        .is_usage_error("cannot be used with");
    eval(&["teacher-forcing", "--reference", "x", "--min-top1", "2"]).is_usage_error("from 0 to 1");
    assert!(eval(&["--help"]).success().stdout.contains("docs/accuracy.md"));
}
