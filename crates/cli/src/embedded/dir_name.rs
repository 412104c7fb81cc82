//! The name of the embedded model's directory in a cache. The build script computes it.

use sha2::{Digest, Sha256};

/// `embedded-` and a hash over the files' names and contents: another model gets another directory.
pub(crate) fn dir_name<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in files {
        for part in [name.as_bytes(), bytes] {
            // The length keeps neighbours apart.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let hex: String = hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("embedded-{hex}")
}
