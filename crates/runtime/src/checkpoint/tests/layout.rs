//! Which files are read, what they are found to hold, and what is said when they contradict their index.

use super::*;

#[test]
fn an_indexed_checkpoint_is_read_whole() {
    let dir = written(&two_shards());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.dir(), dir.path());
    assert_eq!(
        checkpoint.names().collect::<Vec<_>>(),
        [
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.weight_scale_inv",
            "rotary.mask",
        ]
    );
    assert_eq!(checkpoint.total_bytes(), 15 + 10 + 1 + 24);
    assert!(checkpoint.unindexed().is_empty());
    let shards = checkpoint.shards();
    assert_eq!([shards[0].name(), shards[1].name()], [FIRST, SECOND]);
    let metadata = fs::metadata(dir.path().join(SECOND)).unwrap();
    assert_eq!(shards[1].path(), dir.path().join(SECOND));
    assert_eq!((shards[1].size(), shards[1].modified()), (metadata.len(), metadata.modified().unwrap()));

    let norm = checkpoint.tensor("model.layers.0.input_layernorm.weight").unwrap();
    assert_eq!((norm.info.dtype, &norm.info.shape[..], norm.info.length), (Dtype::Bf16, &[5][..], 10));
    assert_eq!(norm.to_f32().unwrap(), [1.0, 2.0, -0.5, 0.0, 3.5]);
    // The place that the header gives is the place in the file.
    let file = fs::read(checkpoint.shard(&norm.info).path()).unwrap();
    let (start, length) = (norm.info.offset as usize, norm.info.length as usize);
    assert_eq!(&file[start..start + length], norm.bytes.as_slice());
}

#[test]
fn a_cursor_finds_what_lies_under_it() {
    let dir = written(&two_shards());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let layer = checkpoint.cursor().enter("model").enter("layers").enter(0);
    assert_eq!(layer.prefix().as_str(), "model.layers.0");
    let mlp = layer.enter("mlp").enter("up_proj");
    assert_eq!(mlp.name("weight"), "model.layers.0.mlp.up_proj.weight");
    assert!(mlp.contains("weight") && !mlp.contains("bias"));
    assert_eq!(mlp.get("weight").unwrap().shape, [3, 5]);
    assert_eq!(mlp.tensor("weight").unwrap().bytes.as_slice(), [0x38; 15]);
    assert!(
        mlp.tensor("bias").unwrap_err().to_string().starts_with("tensor model.layers.0.mlp.up_proj.bias:")
    );
}

#[test]
fn an_absent_tensor_is_named_with_what_lies_nearby() {
    let many =
        (0..9).fold(ShardBuilder::new(), |shard, index| shard.f32(&format!("h.{index}.w"), &[], &[0.0]));
    let dir = written(&[("a.safetensors", many.f32("lm_head.weight", &[1], &[1.0]))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let message = |name| checkpoint.tensor(name).unwrap_err().to_string();
    let start =
        |name: &str| format!("tensor {name}: is not in the checkpoint {}; its ", dir.path().display());
    assert_eq!(message("lm_head.bias"), start("lm_head.bias") + "lm_head holds: weight");
    assert_eq!(message("model.x"), start("model.x") + "root holds: h, lm_head");
    assert_eq!(message("h.10.w"), start("h.10.w") + "h holds: 0, 1, 2, 3, 4, 5, 6, 7, ...");
    assert_eq!(message(""), start("") + "root holds: h, lm_head");
}

#[test]
fn without_an_index_a_lone_file_is_the_checkpoint() {
    let shard = |name: &str| ShardBuilder::new().f32(name, &[1], &[1.0]).to_bytes();
    let dir = single(&shard("lone"));
    fs::write(dir.path().join("other.safetensors"), shard("other")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["lone"]);
}

#[test]
fn without_an_index_all_files_are_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str| ShardBuilder::new().f32(name, &[1], &[1.0]).to_bytes();
    fs::write(dir.path().join("b.safetensors"), shard("first")).unwrap();
    fs::write(dir.path().join("a.safetensors"), shard("second")).unwrap();
    fs::write(dir.path().join("notes.txt"), "no tensors").unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["first", "second"]);

    fs::write(dir.path().join("b.safetensors"), shard("second")).unwrap();
    assert_eq!(open_error(dir.path()), "tensor second: occurs twice, in a.safetensors and in b.safetensors");
}

#[test]
fn no_checkpoint_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        open_error(dir.path()),
        "DIR: holds no model.safetensors.index.json and no *.safetensors file"
    );
    assert!(open_error(&dir.path().join("absent")).starts_with("DIR: No such file"));
}

#[test]
fn an_unindexed_tensor_is_listed_and_usable() {
    let [first, (name, second)] = two_shards();
    let dir = written(&[first, (name, second.clone())]);
    let extra = second.f32("model.rotary_emb.inv_freq", &[2], &[1.0, 0.5]);
    fs::write(dir.path().join(SECOND), extra.to_bytes()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.unindexed(), ["model.rotary_emb.inv_freq"]);
    assert_eq!(checkpoint.tensor("model.rotary_emb.inv_freq").unwrap().to_f32().unwrap(), [1.0, 0.5]);
}

#[test]
fn shards_that_contradict_the_index_are_refused() {
    let [(_, first), (_, second)] = two_shards();
    let dir = written(&two_shards());

    let without_mask = ShardBuilder::new().f32("other", &[1], &[0.0]);
    fs::write(dir.path().join(SECOND), without_mask.to_bytes()).unwrap();
    assert_eq!(
        open_error(dir.path()),
        format!(
            "tensor model.layers.0.mlp.up_proj.weight_scale_inv: {INDEX} places it in {SECOND}, but it lies in no shard"
        )
    );

    fs::write(dir.path().join(FIRST), second.to_bytes()).unwrap();
    fs::write(dir.path().join(SECOND), first.to_bytes()).unwrap();
    assert_eq!(
        open_error(dir.path()),
        format!(
            "tensor model.layers.0.input_layernorm.weight: {INDEX} places it in {FIRST}, but it lies in {SECOND}"
        )
    );

    fs::write(dir.path().join(FIRST), first.to_bytes()).unwrap();
    assert_eq!(
        open_error(dir.path()),
        format!("tensor model.layers.0.input_layernorm.weight: occurs twice, in {FIRST} and in {SECOND}")
    );
}

#[test]
fn a_missing_shard_is_named() {
    let dir = written(&two_shards());
    fs::remove_file(dir.path().join(SECOND)).unwrap();
    assert_eq!(open_error(dir.path()), format!("{INDEX}: of its 2 shards, {SECOND} missing"));
    fs::remove_file(dir.path().join(FIRST)).unwrap();
    assert_eq!(open_error(dir.path()), format!("{INDEX}: of its 2 shards, {FIRST} and 1 more missing"));
    fs::create_dir(dir.path().join(FIRST)).unwrap();
    fs::create_dir(dir.path().join(SECOND)).unwrap();
    assert_eq!(open_error(dir.path()), format!("{FIRST}: is not a regular file"));
}

#[test]
fn a_malformed_index_is_refused() {
    let dir = written(&two_shards());
    let error = |index: &str| {
        fs::write(dir.path().join(INDEX), index).unwrap();
        open_error(dir.path())
    };
    assert_eq!(
        error("{"),
        format!("{INDEX}: malformed index: EOF while parsing an object at line 1 column 1")
    );
    assert_eq!(
        error("{}"),
        format!("{INDEX}: malformed index: missing field `weight_map` at line 1 column 2")
    );
    assert_eq!(error(r#"{"weight_map": {}}"#), format!("{INDEX}: its weight_map names no tensor"));
    assert!(error(r#"{"weight_map": {"a": 3}}"#).contains("malformed index: invalid type: integer `3`"));
}

#[test]
fn an_index_cannot_lead_out_of_the_directory() {
    let dir = written(&two_shards());
    for name in ["../model.safetensors", "/etc/passwd", "", "a/../../b", "./model.safetensors", ".."] {
        fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#)).unwrap();
        let expected = format!("{INDEX}: names the shard {name:?}, which is no path inside the directory");
        assert_eq!(open_error(dir.path()), expected);
    }
}

#[cfg(unix)]
#[test]
fn symbolic_links_are_followed() {
    // As in the Hugging Face cache: snapshots/<commit>/NAME -> ../../blobs/<hash>.
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    write_checkpoint(&blobs, &two_shards());
    for (blob, name) in [(FIRST, FIRST), (SECOND, SECOND), (INDEX, INDEX)] {
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), snapshot.join(name)).unwrap();
    }
    assert_eq!(Checkpoint::open(&snapshot).unwrap().names().len(), 4);
    fs::remove_file(blobs.join(FIRST)).unwrap();
    assert_eq!(open_error(&snapshot), format!("{INDEX}: of its 2 shards, {FIRST} missing"));
}

/// The size of DeepSeek-V3: as many shards, tensors and bytes, in files without content. Opening such a checkpoint
/// allocates for the headers only and reads no weight, or this test would not end.
#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_of_700_gb_opens_by_its_headers() {
    const SHARDS: usize = 163;
    const TENSORS: usize = 561;
    const SIDE: usize = 2770;
    let dir = tempfile::tempdir().unwrap();
    let mut weight_map = serde_json::Map::new();
    for shard in 0..SHARDS {
        let file = format!("model-{:05}-of-{SHARDS:05}.safetensors", shard + 1);
        let mut header = serde_json::Map::new();
        for tensor in 0..TENSORS {
            let name = format!("model.layers.{shard}.mlp.experts.{tensor}.down_proj.weight");
            let offsets = [tensor * SIDE * SIDE, (tensor + 1) * SIDE * SIDE];
            let info =
                serde_json::json!({ "dtype": "F8_E4M3", "shape": [SIDE, SIDE], "data_offsets": offsets });
            weight_map.insert(name.clone(), file.clone().into());
            header.insert(name, info);
        }
        let head = file_of(&serde_json::Value::Object(header).to_string(), &[]);
        fs::write(dir.path().join(&file), &head).unwrap();
        let sparse = fs::OpenOptions::new().write(true).open(dir.path().join(&file)).unwrap();
        sparse.set_len((head.len() + TENSORS * SIDE * SIDE) as u64).unwrap();
    }
    fs::write(dir.path().join(INDEX), serde_json::json!({ "weight_map": weight_map }).to_string()).unwrap();

    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().len(), SHARDS * TENSORS);
    assert_eq!(checkpoint.total_bytes(), (SHARDS * TENSORS * SIDE * SIDE) as u64);
    assert!(checkpoint.total_bytes() > 700_000_000_000);
    let last = checkpoint.tensor("model.layers.162.mlp.experts.560.down_proj.weight").unwrap();
    assert!(last.info.offset > u64::from(u32::MAX));
    assert_eq!(last.bytes.as_slice()[SIDE * SIDE - 1], 0);
}

/// The checkpoints that the model's tests run on: every tensor has values, FP8 ones through their scales.
#[test]
fn the_test_checkpoints_are_readable() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    for (name, has_fp8) in [("odd-fp8", true), ("moonlight-bf16", false)] {
        let checkpoint = Checkpoint::open(&testdata.join(name)).unwrap();
        assert_eq!((checkpoint.shards().len(), checkpoint.unindexed()), (2, &[][..]), "{name}");
        for info in checkpoint.tensors() {
            let (shape, values) = checkpoint.dequantized(&info.name, [128, 128]).unwrap();
            assert_eq!(shape.iter().product::<usize>(), values.len(), "{}", info.name);
            assert!(values.iter().all(|value| value.is_finite()), "{}", info.name);
        }
        assert_eq!(checkpoint.tensors().iter().any(|info| info.dtype == Dtype::F8E4M3), has_fp8, "{name}");
    }
}
