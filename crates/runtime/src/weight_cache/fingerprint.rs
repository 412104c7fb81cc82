//! What a checkpoint is at a moment.

use crate::Checkpoint;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::UNIX_EPOCH;

/// What a cache was made from: a hash over config.json, the index, and the name, size and time of
/// every shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub(super) String);

impl Fingerprint {
    /// The fingerprint of a checkpoint as it lies there now. Reads no weights.
    pub fn of(checkpoint: &Checkpoint, config_json: &[u8]) -> Self {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // The length keeps neighbours apart.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(config_json);
        for shard in checkpoint.shards() {
            let modified = shard.modified().duration_since(UNIX_EPOCH).unwrap_or_default();
            part(shard.name().as_bytes());
            part(&shard.size().to_le_bytes());
            part(&modified.as_nanos().to_le_bytes());
        }
        // What the index says, as far as the files bear it out: opening has checked that.
        for tensor in checkpoint.tensors() {
            part(tensor.name.as_bytes());
            part(&(tensor.shard as u64).to_le_bytes());
            part(&tensor.offset.to_le_bytes());
        }
        Self(hex(&hash.finalize()))
    }
}

/// Bytes as text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
