//! What a checkpoint is at a moment.

use crate::{Checkpoint, ShardFile};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, time::UNIX_EPOCH};

/// What a cache was made from: a hash over config.json, the index, and the name, size and time of
/// every shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub(super) String);

impl fmt::Display for Fingerprint {
    /// As many digits as tell two apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.12}", self.0)
    }
}

impl Fingerprint {
    /// The fingerprint of a checkpoint as it lies there now. Reads no weights.
    pub fn of(checkpoint: &Checkpoint, config_json: &[u8]) -> Self {
        let modified = |shard: &ShardFile| shard.modified().duration_since(UNIX_EPOCH).unwrap_or_default();
        Parts::of(checkpoint, config_json, |shard| modified(shard).as_nanos()).finish()
    }

    /// The fingerprint of all copies of a checkpoint, wherever and since whenever they lie there.
    pub fn of_copies(checkpoint: &Checkpoint, config_json: &[u8]) -> Self {
        let mut parts = Parts::of(checkpoint, config_json, |_| 0);
        // No time tells that a tensor has another type or shape at the same place.
        for tensor in checkpoint.tensors() {
            parts.add(format!("{} {:?}", tensor.dtype, tensor.shape).as_bytes());
        }
        parts.finish()
    }
}

/// What goes into a fingerprint.
struct Parts(Sha256);

impl Parts {
    /// What all fingerprints of a checkpoint begin with.
    fn of(checkpoint: &Checkpoint, config_json: &[u8], time: impl Fn(&ShardFile) -> u128) -> Self {
        let mut parts = Self(Sha256::new());
        parts.add(config_json);
        for shard in checkpoint.shards() {
            parts.add(shard.name().as_bytes());
            parts.add(&shard.size().to_le_bytes());
            parts.add(&time(shard).to_le_bytes());
        }
        // What the index says, as far as the files bear it out: opening has checked that.
        for tensor in checkpoint.tensors() {
            parts.add(tensor.name.as_bytes());
            parts.add(&(tensor.shard as u64).to_le_bytes());
            parts.add(&tensor.offset.to_le_bytes());
        }
        parts
    }

    fn add(&mut self, bytes: &[u8]) {
        // The length keeps neighbours apart.
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> Fingerprint {
        Fingerprint(hex(&self.0.finalize()))
    }
}

/// Bytes as text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ShardBuilder, write_checkpoint};

    #[test]
    fn copies_are_told_apart_by_types_and_shapes() {
        let of = |dtype: &str, shape: &[usize]| {
            let dir = tempfile::tempdir().unwrap();
            let shard = ShardBuilder::new().raw("m", dtype, shape, &[0; 12]);
            write_checkpoint(dir.path(), &[("model.safetensors", shard)]);
            Fingerprint::of_copies(&Checkpoint::open(dir.path()).unwrap(), b"{}")
        };
        assert_eq!(of("F16", &[2, 3]), of("F16", &[2, 3]));
        // Headers are as long, and values lie at the same place.
        assert_ne!(of("F16", &[2, 3]), of("F16", &[3, 2]));
        assert_ne!(of("F16", &[2, 3]), of("I16", &[2, 3]));
    }
}
