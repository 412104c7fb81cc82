//! Checkpoints right and wrong, opened as users open them: from a directory.

mod fp8;
mod hostile;
mod layout;

use super::testing::{ShardBuilder, file_of, write_checkpoint};
use super::{Checkpoint, Dtype};
use std::{fs, path::Path};
use tempfile::TempDir;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An FP8 weight whose scales lie in the other shard, at an unaligned place, and a BF16 norm.
fn two_shards() -> [(&'static str, ShardBuilder); 2] {
    let first = ShardBuilder::new().fp8("model.layers.0.mlp.up_proj.weight", &[3, 5], &[0x38; 15]).bf16(
        "model.layers.0.input_layernorm.weight",
        &[5],
        &[1.0, 2.0, -0.5, 0.0, 3.5],
    );
    let second = ShardBuilder::new().raw("rotary.mask", "U8", &[1], &[7]).f32(
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        &[2, 3],
        &[1.0, 2.0, 3.0, 4.0, 5.0, 0.0],
    );
    [(FIRST, first), (SECOND, second)]
}

fn written(shards: &[(&str, ShardBuilder)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), shards);
    dir
}

/// A directory with one file, `model.safetensors`.
fn single(content: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), content).unwrap();
    dir
}

/// The message of the error that opening gives, without the directory.
fn open_error(dir: &Path) -> String {
    let message = Checkpoint::open(dir).unwrap_err().to_string();
    message.replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR")
}
