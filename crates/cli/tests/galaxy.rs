//! `dsv3 convert --target galaxy`.

#![allow(clippy::print_stderr, reason = "what a test leaves out must be seen")]

#[path = "../../galaxy/tests/support/model.rs"]
mod model;
mod support;

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use support::{Run, Workplace, testdata, tiny};

/// Without MTP and with one layer: a megabyte of experts.
fn small() -> Value {
    model::config(&json!({
        "num_nextn_predict_layers": 0, "num_hidden_layers": 2, "moe_intermediate_size": 16, "hidden_size": 128,
    }))
}

fn small_model(place: &Workplace) -> PathBuf {
    let dir = place.path("model");
    model::write(&dir, &small(), 1);
    dir
}

fn args<'a>(model: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["convert", "--target", "galaxy", "--mesh", "2x4", "--output", "out", "--model"];
    [&fixed[..], &[model.to_str().unwrap()], more].concat()
}

/// All files below a directory that are no records of dsv3's, with their bytes.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else if !path.file_name().unwrap().to_str().unwrap().starts_with('.') {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn cache(place: &Workplace) -> PathBuf {
    place.path("out/2_layers/mesh_2x4")
}

#[test]
fn a_cache_is_made_once_and_told_of() {
    let place = Workplace::new();
    let model = small_model(&place);
    let run = place.run(args(&model, &[])).success();
    assert!(run.stdout.starts_with("written: 32 files ("), "{}", run.stdout);
    assert!(run.stdout.ends_with("2_layers/mesh_2x4/config.json\n"), "{}", run.stdout);
    let made = content(&cache(&place));
    assert_eq!(made.len(), 33);
    let again = place.run(args(&model, &[])).success();
    assert!(again.stdout.contains("nothing was done"), "{}", again.stdout);
    place.run(args(&model, &["--force"])).success();
    assert!(content(&cache(&place)) == made, "the same again");
    // A file that was cut off is made anew, and so is one that is missing.
    let [one, other] = ["norm/rmsnorm.weight.tensorbin", "lm_head/linear.input_tensor_b.tensorbin"];
    fs::write(cache(&place).join(one), b"short").unwrap();
    fs::remove_file(cache(&place).join(other)).unwrap();
    let run = place.run(args(&model, &[])).success();
    assert!(run.stdout.starts_with("written: 2 files ("), "{}", run.stdout);
    assert!(content(&cache(&place)) == made, "mended");
    // The binary reads what it wrote.
    let file =
        cache(&place).join("moe_decoder_block_1/mlp/moe/moe_experts/w1_experts.input_tensor_b.tensorbin");
    let shown = place.run(["inspect".as_ref(), file.as_os_str()]).success().stdout;
    assert!(shown.contains("bfloat4_b") && shown.contains("8 shards in 8 buffers"), "{shown}");
}

#[test]
fn two_do_not_write_one_cache() {
    let place = Workplace::new();
    let model = small_model(&place);
    fs::create_dir_all(cache(&place)).unwrap();
    let lock = fs::File::create(cache(&place).join(".dsv3-convert.lock")).unwrap();
    lock.lock().unwrap();
    place.run(args(&model, &[])).fails_with(&["2_layers/mesh_2x4: another process is writing this cache"]);
    drop(lock);
    place.run(args(&model, &["--layers", "0"])).success();
}

#[test]
fn a_dry_run_tells_sizes_and_writes_nothing() {
    let place = Workplace::new();
    let model = small_model(&place);
    let text = place.run(args(&model, &["--dry-run"])).success().stdout;
    assert!(!place.path("out").exists(), "nothing is written");
    for part in ["  32 files in out/2_layers/mesh_2x4\n", "each device: ", "of DRAM", "\ntime: "] {
        assert!(text.contains(part), "expected {part:?} in\n{text}");
    }
    place.run(args(&model, &[])).success();
    let made = content(&cache(&place));
    for line in text.lines().filter(|line| line.contains(".tensorbin") && !line.starts_with("time: ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let bytes = made[&cache(&place).join(words[1])].len().to_string();
        assert_eq!(words[0], bytes, "{line}");
    }
    let again = place.run(args(&model, &["--dry-run"])).success().stdout;
    assert!(again.contains("             0  0 files of them left, 32 are there\n"), "{again}");
    assert!(!again.contains("time: "), "{again}");
    // What is whole is not counted again.
    let missing = "norm/rmsnorm.weight.tensorbin";
    let bytes = made[&cache(&place).join(missing)].len();
    fs::remove_file(cache(&place).join(missing)).unwrap();
    let part = place.run(args(&model, &["--dry-run"])).success().stdout;
    assert!(part.contains(&format!("{bytes:>14}  1 file of them left, 31 are there\n")), "{part}");
    let threads = std::thread::available_parallelism().unwrap().get();
    let measured = format!("what {threads} thread");
    assert!(
        part.contains(&measured) && part.contains(&format!(" packed of {missing} in a second")),
        "{part}"
    );
    assert_eq!(part.matches(", is there\n").count(), 31, "{part}");
    let anew = place.run(args(&model, &["--dry-run", "--force"])).success().stdout;
    assert!(!anew.contains("of them left"), "all is made anew: {anew}");
    let other = place.run(args(&model, &["--dry-run", "--rounding", "device"]));
    other.fails_with(&["was begun from the same with host rounding"]);
    let only = place.run(args(&model, &["--dry-run", "--layers", "0"])).success().stdout;
    assert!(only.contains("mlp_decoder_block_0") && !only.contains("moe_decoder_block_1"), "{only}");
}

#[test]
fn layers_come_one_after_the_other() {
    let place = Workplace::new();
    let model = small_model(&place);
    let run = place.run(args(&model, &["--layers", "1"])).success();
    assert!(run.stdout.contains("of the other layers are missing"), "{}", run.stdout);
    assert!(!cache(&place).join("config.json").exists());
    let run = place.run(args(&model, &["--layers", "0-0"])).success();
    assert!(run.stdout.contains("config.json\n"), "{}", run.stdout);
    place.run(args(&model, &["--layers", "0,2"])).fails_with(&["layer 2: this model has the layers 0 to 1"]);
    place.run(args(&model, &["--num-layers", "3"])).fails_with(&["3 layers: expected 1 to 2"]);
    let run = place.run(args(&model, &["--num-layers", "1"])).success();
    assert!(run.stdout.contains("out/1_layers/mesh_2x4/config.json"), "{}", run.stdout);
}

/// The limit of a file's size ends the process by a signal in the middle of a file, as `kill -9` would.
#[cfg(unix)]
#[test]
fn a_killed_conversion_goes_on_where_it_was() {
    let place = Workplace::new();
    let model = small_model(&place);
    let command = place.command(args(&model, &[]));
    let mut limited = Command::new("sh");
    // Blocks of 512 bytes, or of 1024 where sh is bash: less than the experts' 400 kB, more than what comes before.
    limited
        .args(["-c", "ulimit -f 300; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    limited.current_dir(place.path(""));
    let status = limited.output().unwrap().status;
    assert_eq!(status.code(), None, "the limit ends it by a signal: {status}");
    let whole = content(&cache(&place));
    assert!(!whole.is_empty() && whole.len() < 32, "{} files", whole.len());
    assert!(!cache(&place).join("config.json").exists());
    let run = place.run(args(&model, &[])).success();
    assert!(run.stdout.contains(" were there\n"), "{}", run.stdout);
    let resumed = content(&cache(&place));
    // What was left unfinished is gone.
    let dir = cache(&place).join("moe_decoder_block_1/mlp/moe/moe_experts");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 3);
    place.run(args(&model, &["--force"])).success();
    assert!(content(&cache(&place)) == resumed, "as if it had not been killed");
}

/// Where the limit's signal is ignored, a write fails, as on a disk that another process has filled meanwhile.
#[cfg(unix)]
#[test]
fn a_write_that_fails_keeps_what_is_whole_and_says_what_to_do() {
    let place = Workplace::new();
    let model = small_model(&place);
    let command = place.command(args(&model, &[]));
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\""]);
    limited.arg(command.get_program()).args(command.get_args()).current_dir(place.path(""));
    let run = Run::of(limited.output().unwrap());
    run.fails_with(&["moe_experts/", "File too large", "the files that are whole are kept: make room"]);
    let whole = content(&cache(&place)).len();
    assert!((1..32).contains(&whole), "{whole} files");
    let run = place.run(args(&model, &[])).success();
    assert!(run.stdout.contains(&format!("{whole} files (")), "{whole} files were kept: {}", run.stdout);
}

/// A file system of its own that is too small, where the user may mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing_and_says_what_to_do() {
    let place = Workplace::new();
    let model = small_model(&place);
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&out).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let run = place.run(args(&model, &[]));
    let enlarged = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&out).status().unwrap();
    let second = place.run(args(&model, &[]));
    let unmounted = Command::new("umount").arg(&out).status().unwrap();
    assert!(enlarged.success() && unmounted.success());
    run.fails_with(&["the files need ", "bytes more, the disk has ", "--layers"]);
    assert!(second.success().stdout.starts_with("written: 32 files"));
}

/// A cache that is whole is not given up for one that has no room.
#[cfg(target_os = "linux")]
#[test]
fn a_cache_is_not_made_anew_where_there_is_no_room() {
    let place = Workplace::new();
    let model = small_model(&place);
    let out = place.path("out");
    fs::create_dir(&out).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&out).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let first = place.run(args(&model, &[]));
    let read = || (content(&cache(&place)), fs::read(cache(&place).join(".dsv3-convert.jsonl")).unwrap());
    let made = read();
    let used: usize = made.0.values().map(|bytes| bytes.len().next_multiple_of(4096)).sum();
    // Room for some files, but for no cache.
    let size = format!("remount,size={}", used + (256 << 10));
    let lessened = Command::new("mount").args(["-o", &size]).arg(&out).status().unwrap();
    let forced = place.run(args(&model, &["--force"]));
    let after = read();
    let again = place.run(args(&model, &[]));
    let unmounted = Command::new("umount").arg(&out).status().unwrap();
    assert!(lessened.success() && unmounted.success());
    first.success();
    forced.fails_with(&["the files need ", "bytes more, the disk has "]);
    assert!(after == made, "all is as it was");
    assert!(again.success().stdout.contains("nothing was done"));
}

#[test]
fn some_layers_are_made_anew_beside_the_others() {
    let place = Workplace::new();
    let model = small_model(&place);
    place.run(args(&model, &[])).success();
    let made = content(&cache(&place));
    let run = place.run(args(&model, &["--layers", "1", "--force"])).success();
    assert!(run.stdout.starts_with("written: ") && run.stdout.ends_with("config.json\n"), "{}", run.stdout);
    assert!(!run.stdout.starts_with("written: 32 files"), "{}", run.stdout);
    assert!(content(&cache(&place)) == made, "the same again");
    let again = place.run(args(&model, &[])).success();
    assert!(again.stdout.contains("nothing was done"), "{}", again.stdout);
    // Of another checkpoint only all can be.
    let other = place.path("other");
    model::write(&other, &small(), 2);
    place
        .run(args(&other, &["--layers", "1", "--force"]))
        .fails_with(&["was begun from another checkpoint, ", "would mix the two; leave out --layers"]);
    assert!(content(&cache(&place)) == made, "nothing was touched");
    fs::remove_file(cache(&place).join(".dsv3-convert.jsonl")).unwrap();
    place
        .run(args(&model, &["--layers", "1", "--force"]))
        .fails_with(&["its config.json is not of this program", "leave out --layers"]);
}

#[test]
fn a_part_needs_only_its_own_tensors() {
    let place = Workplace::new();
    let model = small_model(&place);
    // A checkpoint whose last layer is still to come.
    let mut config = small();
    config["num_hidden_layers"] = json!(3);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    place.run(args(&model, &["--layers", "0"])).success();
    place.run(args(&model, &["--layers", "2"])).fails_with(&["model.layers.2."]);
}

#[test]
fn a_type_that_no_weight_has_is_refused_before_anything_is_written() {
    let place = Workplace::new();
    let model = small_model(&place);
    let file = model.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let (mut header, data) = support::header(&bytes);
    assert_eq!(header["lm_head.weight"]["dtype"], "F32");
    header["lm_head.weight"]["dtype"] = json!("I32");
    let header = header.to_string();
    let changed = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[data..]].concat();
    fs::write(&file, changed).unwrap();
    place.run(args(&model, &[])).fails_with(&["lm_head.weight", "I32"]);
    assert!(!place.path("out").exists(), "nothing was begun");
}

#[test]
fn weights_that_do_not_fit_a_device_are_told_of_first() {
    let place = Workplace::new();
    let model = small_model(&place);
    // 139 dense layers of 107 MB on each of four columns.
    let mut config = small();
    config["num_hidden_layers"] = json!(140);
    config["first_k_dense_replace"] = json!(139);
    config["intermediate_size"] = json!(1 << 20);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let run = place.run(args(&model, &[]));
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines[0].starts_with("warning: each device would hold "), "{run:#?}");
    assert!(lines[0].ends_with("they do not fit"), "{run:#?}");
    assert!(run.code == 1 && lines[1].contains("model.layers."), "{run:#?}");
}

/// 671B's sizes; the checkpoint itself is not there, which is told after.
#[test]
fn what_is_not_known_of_a_rings_experts_is_said() {
    let place = Workplace::new();
    let model = small_model(&place);
    let full = fs::read(testdata("configs").join("deepseek-v3-671b.json")).unwrap();
    fs::write(model.join("config.json"), full).unwrap();
    let run = |mesh: &str, fabric: &str| {
        let fixed =
            ["convert", "--target", "galaxy", "--dry-run", "--mesh", mesh, "--fabric", fabric, "--model"];
        place.run([&fixed[..], &[model.to_str().unwrap()]].concat()).stderr
    };
    let warned = run("16x8", "ring");
    let line = warned.lines().next().unwrap();
    assert!(
        line.starts_with(
            "warning: 16x8 with rings: quad_ring_w0_w1_experts and quad_ring_w2_experts are packed"
        ),
        "{line}"
    );
    for (mesh, fabric) in [("16x8", "line"), ("8x8", "ring")] {
        let other = run(mesh, fabric);
        assert!(!other.contains("quad_ring"), "{other}");
    }
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::new();
    let model = small_model(&place);
    // Root may write anywhere, but not below a file.
    place.file("out", "");
    place.run(args(&model, &[])).fails_with(&["what is done is kept", "out/2_layers/mesh_2x4"]);
    fs::remove_file(place.path("out")).unwrap();
    place.run(args(&model, &["--layers", "0"])).success();
    let locked = cache(&place);
    fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).unwrap();
    let run = place.run(args(&model, &[]));
    fs::set_permissions(&locked, PermissionsExt::from_mode(0o755)).unwrap();
    match run.code {
        0 => eprintln!("skipped: this user may write anywhere"),
        _ => run.fails_with(&["what is done is kept", "ermission denied"]),
    }
}

#[test]
fn caches_of_something_else_are_not_mixed() {
    let place = Workplace::new();
    let model = small_model(&place);
    place.run(args(&model, &["--layers", "0"])).success();
    let other = place.path("other");
    model::write(&other, &small(), 2);
    place
        .run(args(&other, &[]))
        .fails_with(&["was begun from another checkpoint, ", "model; give another directory, or --force"]);
    place
        .run(args(&model, &["--rounding", "device"]))
        .fails_with(&["was begun from the same with host rounding"]);
    let run = place.run(args(&other, &["--force"])).success();
    assert!(run.stdout.starts_with("written: 32 files"), "{}", run.stdout);
    let made = content(&cache(&place));
    // A file that changed is another checkpoint.
    model::write(&other, &small(), 3);
    place.run(args(&other, &[])).fails_with(&["in another state: a file of it has changed since"]);
    assert!(content(&cache(&place)) == made, "nothing was touched");
    // Nor is a cache that upstream made.
    fs::remove_file(cache(&place).join(".dsv3-convert.jsonl")).unwrap();
    place.run(args(&other, &[])).fails_with(&["its config.json is not of this program"]);
}

#[test]
fn bad_tensors_are_named_before_or_as_they_are_read() {
    let place = Workplace::new();
    let model = place.path("model");
    // config.json asks for more than the checkpoint has.
    model::write(&model, &small(), 1);
    let mut config = small();
    config["vocab_size"] = json!(208);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    place.run(args(&model, &[])).fails_with(&["model.embed_tokens.weight", "[208, 128]", "[200, 128]"]);
    config = small();
    config["num_hidden_layers"] = json!(3);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    place.run(args(&model, &[])).fails_with(&["model.layers.2."]);
    assert!(!place.path("out").exists(), "nothing was begun");
    // A value that is no number, in the last tensor: all before it stays.
    fs::write(model.join("config.json"), small().to_string()).unwrap();
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let (header, data) = support::header(&bytes);
    let start = data + header["lm_head.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start + 4 * 130..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    place
        .run(args(&model, &[]))
        .fails_with(&["tensor lm_head.weight: expected finite values, got inf at [1, 2]"]);
    assert_eq!(content(&cache(&place)).len(), 31);
}

#[test]
fn what_a_galaxy_cannot_run_is_refused_by_name() {
    let place = Workplace::new();
    let refused = |model: &Path, parts: &[&str]| place.run(args(model, &[])).fails_with(parts);
    refused(
        &testdata("moonlight-bf16"),
        &["a Galaxy mesh of 2x4", "q_lora_rank: expected a number, got null"],
    );
    refused(&tiny(), &["n_routed_experts: expected 256"]);
    let model = small_model(&place);
    let mesh = [
        "convert",
        "--target",
        "galaxy",
        "--mesh",
        "4x8",
        "--output",
        "out",
        "--model",
        model.to_str().unwrap(),
    ];
    place.run(mesh).fails_with(&["a Galaxy mesh of 4x8: hidden_size: expected a multiple of 256, got 128"]);
    place.run(args(&model, &["--mtp"])).fails_with(&["the checkpoint has no MTP layer"]);
}

#[test]
fn options_of_the_other_target_are_usage_errors() {
    let place = Workplace::new();
    let usage = |args: &[&str], part: &str| Run::is_usage_error(&place.run(args), part);
    let galaxy = ["convert", "--target", "galaxy"];
    usage(&galaxy, "--target galaxy needs --output DIR");
    for more in [&["--output", "out"][..], &["--dry-run"]] {
        usage(&[&galaxy[..], more].concat(), "--target galaxy needs --mesh RxC");
    }
    for (option, value) in
        [("--format", "q8_0"), ("--ranks", "0"), ("--experts", "expert"), ("--from-gguf", "x.gguf")]
    {
        let args = [&galaxy[..], &["--output", "out", option, value]].concat();
        usage(&args, &format!("{option} is for --target cpu"));
    }
    usage(&[&galaxy[..], &["--output", "out", "--mesh", "auto"]].concat(), "--mesh auto is for --target cpu");
    usage(
        &[&galaxy[..], &["--output", "out", "--layers", "2-1"]].concat(),
        "expected layers and ranges of them",
    );
    for args in [
        &["--output", "out"][..],
        &["--layers", "0"],
        &["--num-layers", "5"],
        &["--dry-run"],
        &["--rounding", "host"],
        &["--fabric", "ring"],
    ] {
        usage(&[&["convert"], args].concat(), &format!("{} is for --target galaxy", args[0]));
    }
}
