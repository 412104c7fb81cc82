//! Any bytes as a file of TT-NN. Nothing may panic or allocate by a number that the file only claims, and a header that
//! is taken can be written, and is the same then.
//!
//! ```sh
//! mkdir -p fuzz/corpus/tensorbin
//! cargo +nightly fuzz run tensorbin fuzz/corpus/tensorbin testdata/galaxy/golden
//! ```
#![no_main]

use dsv3_galaxy::{
    tensorbin::{Header, TensorBin},
    types::DataType,
};
use libfuzzer_sys::fuzz_target;
use std::{fs, sync::LazyLock};
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|content: &[u8]| {
    let path = DIR.path().join("weight.tensorbin");
    fs::write(&path, content).expect("a file in the temporary directory");
    let Ok(mut file) = TensorBin::open(&path) else { return };
    let header = file.header().clone();
    let encoded = header.encode();
    assert_eq!(Header::decode(&encoded[8..], header.data_bytes()).as_ref(), Ok(&header));
    let layout = header.spec.shard_layout();
    for shard in 0..header.shards.len() {
        let bytes = file.read_shard(shard).expect("bytes that opening has found");
        match (&layout, header.spec.data_type) {
            (Err(_), _) => {}
            (Ok(layout), DataType::Uint32 | DataType::Int32 | DataType::Uint16 | DataType::Uint8) => {
                assert_eq!(layout.unpack_integers(&bytes).len(), layout.elements());
            }
            (Ok(layout), _) => assert_eq!(layout.unpack(&bytes).len(), layout.elements()),
        }
    }
});
