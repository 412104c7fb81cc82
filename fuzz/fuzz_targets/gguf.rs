//! Opens any bytes as a GGUF file and uses all that it holds. Nothing may panic or allocate by a number that the file
//! only claims.
//!
//! ```sh
//! mkdir -p fuzz/corpus/gguf
//! cargo +nightly fuzz run gguf fuzz/corpus/gguf
//! ```
#![no_main]

use dsv3_deepseek::{HfConfig, gguf};
use dsv3_runtime::{Dtype, Gguf};
use libfuzzer_sys::fuzz_target;
use std::{fs, sync::LazyLock};
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|content: &[u8]| {
    let path = DIR.path().join("model.gguf");
    fs::write(&path, content).expect("a file in the temporary directory");
    let Ok(file) = Gguf::open(&path) else { return };
    if let Ok(config) = gguf::config_json(&file) {
        let _ = HfConfig::from_json(&path, &config);
    }
    let Ok(checkpoint) = gguf::checkpoint(file) else { return };
    for info in checkpoint.tensors() {
        let tensor = checkpoint.tensor(&info.name);
        assert_eq!(tensor.is_ok(), info.dtype.is_weight());
        if let Ok(tensor) = tensor {
            let bytes = tensor.bytes.as_slice();
            assert_eq!(bytes.len() as u64, info.length);
            if let Dtype::Ggml(blocks) = info.dtype {
                let mut values = vec![0.0; bytes.len() / blocks.block_bytes() * blocks.block_cols()];
                blocks.decode(bytes, &mut values);
            }
        }
    }
});
