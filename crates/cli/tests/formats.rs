//! `--format` and GGUF files.

mod support;

use std::{fs, path::Path, process::Command};
use support::{
    Golden, Workplace, floats,
    gguf::{Matrices, write_gguf, write_gguf_as},
    testdata, tiny,
};

fn logits(place: &Workplace, model: &Path, format: &str) -> Vec<f32> {
    let ids = Golden::of("moonlight-bf16").ids("tokens");
    let tokens = place.file("ids.json", serde_json::to_vec(&ids).unwrap());
    let output = place.path("logits.safetensors");
    let [tokens, file, model] = [&tokens, &output, model].map(|path| path.to_str().unwrap());
    let args = ["logits", "--tokens", tokens, "--output", file, "--model", model, "--format", format];
    place.run(args).success();
    floats(&fs::read(output).unwrap(), "logits").1
}

#[test]
fn each_choice_has_a_cache_of_its_own_and_exact_ones_change_nothing() {
    let place = Workplace::new();
    let model = testdata("moonlight-bf16");
    let kept = logits(&place, &model, "keep");
    // bf16 is what the checkpoint has, and f32 holds it exactly: the same values, summed in the same order.
    assert_eq!(logits(&place, &model, "bf16"), kept);
    let widened = logits(&place, &model, "experts=f32,attention=f32");
    let largest = kept.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (got, expected) in widened.iter().zip(&kept) {
        assert!((got - expected).abs() <= 1e-4 * largest, "{got}, not {expected}");
    }
    let model = model.to_str().unwrap();
    for format in ["q8_0", "q4_K"] {
        let run = place.run(["convert", "--model", model, "--format", format]).success();
        assert!(run.stdout.contains("converted to q8_0"), "{}", run.stdout);
        assert!(run.stdout.contains(&format!("/cpu-1x1-{format}/weight_config.json")), "{}", run.stdout);
        // 96 and 32 columns are no whole blocks of q4_K, and 160 neither.
        assert_eq!(run.stdout.contains("not q4_K but q8_0: "), format == "q4_K", "{}", run.stdout);
    }
    let run = place.run(["convert", "--model", model, "--format", "q5_K"]);
    run.is_usage_error("expected a format (f32, bf16, fp8, q8_0, q4_K or keep), got `q5_K`");
}

/// The limit of a file's size ends the process by a signal in the middle of the data file, as `kill -9` would.
#[cfg(unix)]
#[test]
fn a_killed_conversion_goes_on_where_it_was() {
    let place = Workplace::new();
    let model = tiny();
    let args = ["convert", "--model", model.to_str().unwrap(), "--format", "q8_0"];
    let command = place.command(args);
    let mut limited = Command::new("sh");
    // Blocks of 512 bytes, or of 1024 where sh is bash.
    limited
        .args(["-c", "ulimit -f 2000; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let status = limited.output().unwrap().status;
    assert_eq!(status.code(), None, "the limit ends it by a signal: {status}");

    let resumed = place.run(args).success();
    assert!(resumed.stderr.contains("an interrupted conversion is there"), "{}", resumed.stderr);
    assert!(resumed.stdout.contains("were there from an interrupted run"), "{}", resumed.stdout);
    let whole = Workplace::new();
    let at_once = whole.run(args).success();
    let data = |run: &support::Run| {
        let path = run.stdout.lines().find_map(|line| line.strip_prefix("WeightConfig: ")).unwrap();
        fs::read(Path::new(path).with_file_name("weights.bin")).unwrap()
    };
    assert!(data(&resumed) == data(&at_once), "the same bytes as of a conversion in one go");
}

/// Of blocks that no kernel reads, what is computed with is their values in q8_0, and it is said.
#[test]
fn blocks_that_no_kernel_reads_are_converted() {
    let place = Workplace::new();
    let checkpoint = testdata("moonlight-bf16");
    let [blocks, of_values] = ["blocks.gguf", "values.gguf"].map(|name| place.path(name));
    write_gguf_as(&checkpoint, &blocks, Matrices::InBlocks);
    write_gguf_as(&checkpoint, &of_values, Matrices::ValuesOfBlocks);
    let args = ["convert", "--model", blocks.to_str().unwrap()];
    let run = place.run(args).success();
    for expected in
        ["from q4_1 to q8_0, which kernels read", "from q5_0 to q8_0", "from BF16 and q5_0 to q8_0"]
    {
        assert!(run.stdout.contains(expected), "{}", run.stdout);
    }
    assert!(!run.stdout.contains("converted to"), "{}", run.stdout);
    // Of what a row is looked up in, q8_0 alone says nothing.
    let [got, expected] = [&blocks, &of_values].map(|file| logits(&place, file, "*=q8_0"));
    assert!(got == expected, "the values of the blocks, in q8_0");
    assert!(logits(&place, &blocks, "keep") == expected, "which they get where nothing is asked for");
    let run = place.run([&args[..], &["--format", "experts=bf16"]].concat()).success();
    assert!(run.stdout.contains("from q4_1 to bf16, which kernels read"), "{}", run.stdout);
}

#[test]
fn kv_b_proj_is_read_where_a_gguf_file_has_it_whole_and_in_halves() {
    let place = Workplace::new();
    let checkpoint = testdata("moonlight-bf16");
    let file = place.path("model.gguf");
    write_gguf_as(&checkpoint, &file, Matrices::KeptWhole);
    let path = file.to_str().unwrap();
    let report = place.run(["inspect", path]).success().stdout;
    assert!(report.contains("the checkpoint has every tensor that the model needs"), "{report}");
    assert!(!report.contains("not needed"), "{report}");
    let run = place.run(["convert", "--from-gguf", path]).success();
    assert!(!run.stdout.contains("converted to"), "{}", run.stdout);
    assert_eq!(logits(&place, &file, "keep"), logits(&place, &checkpoint, "keep"));
}

#[test]
fn a_gguf_file_computes_what_its_checkpoint_does() {
    let place = Workplace::new();
    let checkpoint = testdata("moonlight-bf16");
    let file = place.path("model.gguf");
    write_gguf(&checkpoint, &file);
    let path = file.to_str().unwrap();
    let run = place.run(["convert", "--from-gguf", path]).success();
    assert!(run.stdout.contains("written: 3 weights ("), "{}", run.stdout);
    assert!(run.stdout.contains("converted to bf16"), "{}", run.stdout);
    assert_eq!(logits(&place, &file, "keep"), logits(&place, &checkpoint, "keep"));

    let bytes = fs::read(&file).unwrap();
    // The last layer's halves of kv_b in another type: its number stands behind the name, the number of sides and three
    // sides.
    let name = b"blk.2.attn_k_b.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 3 * 8;
    let with_type = |number: u8| [&bytes[..at], &[number], &bytes[at + 1..]].concat();
    place.file("model.gguf", with_type(16));
    let anew = ["convert", "--force", "--from-gguf", path];
    place.run(anew).fails_with(&[
        "self_attn.k_b.0.weight",
        "BF16, q4_0, q4_1",
        "iq4_xs, q4_K or q8_0, got iq2_xxs",
    ]);
    let is_begun = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("tmp");
    let caches = fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let mut inside = caches.filter(|path| path.is_dir()).flat_map(|path| fs::read_dir(path).unwrap());
    assert!(!inside.any(|entry| is_begun(entry.unwrap())), "refused before anything is written");
    // Rows of 16 columns.
    place.file("model.gguf", with_type(6));
    place.run(anew).fails_with(&["blk.2.attn_k_b.weight", "in q5_0 has no whole blocks"]);
    place.file("model.gguf", with_type(1));
    assert!(place.run(anew).success().stdout.contains("converted to f32"));
    let report = place.run(["inspect", path]).success().stdout;
    assert!(report.contains("the checkpoint has every tensor that the model needs"), "{report}");
    assert!(report.contains("F16") && !report.contains("not needed"), "{report}");
    let name = b"blk.2.attn_kv_a_norm.weight";
    let mut lacking = with_type(1);
    let at = lacking.windows(name.len()).position(|bytes| bytes == name).unwrap();
    lacking[at + "blk.".len()] = b'7';
    place.file("model.gguf", lacking);
    let problem = "tensor model.layers.2.self_attn.kv_a_layernorm.weight: missing";
    let inspected = place.run(["inspect", path]);
    assert!(inspected.code == 1 && inspected.stdout.contains(problem), "{inspected:#?}");
    assert!(inspected.stderr.contains("model.gguf: the checkpoint has a problem"), "{inspected:#?}");

    place.file("model.gguf", &bytes[..bytes.len() - 100]);
    place.run(["convert", "--from-gguf", path]).fails_with(&["model.gguf", "ends past the file's"]);
    let other = String::from_utf8_lossy(&bytes[..200]).find("deepseek2").unwrap();
    let mut bytes = bytes;
    bytes[other] = b'x';
    place.file("model.gguf", &bytes);
    let expected = "general.architecture: expected deepseek2, got xeepseek2";
    place.run(["convert", "--from-gguf", path]).fails_with(&["model.gguf", expected]);
}
