//! Opens any bytes as a checkpoint and uses all that it holds. Nothing may panic or allocate by a number that the file
//! only claims, and a file that the `safetensors` crate takes is taken, unless it names a tensor twice.
//!
//! ```sh
//! mkdir -p fuzz/corpus/checkpoint
//! cargo +nightly fuzz run checkpoint fuzz/corpus/checkpoint fuzz/seeds/checkpoint
//! ```
#![no_main]

use dsv3_runtime::Checkpoint;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use std::{fs, sync::LazyLock};
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|content: &[u8]| {
    let dir = DIR.path();
    fs::write(dir.join("model.safetensors"), content).expect("a file in the temporary directory");
    let checkpoint = match Checkpoint::open(dir) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let accepted = SafeTensors::deserialize(content).is_ok();
            assert!(!accepted || error.to_string().contains("occurs twice"), "{error}");
            return;
        }
    };
    for info in checkpoint.tensors() {
        let tensor = checkpoint.tensor(&info.name);
        assert_eq!(tensor.is_ok(), info.dtype.is_weight());
        if let Ok(tensor) = tensor {
            assert_eq!(tensor.bytes.as_slice().len() as u64, info.length);
        }
        let _ = checkpoint.dequantized(&info.name, [128, 128]);
        let _ = checkpoint.tensor(&format!("{}.absent", info.name));
    }
});
