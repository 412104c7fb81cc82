//! The runtime: module contract, weight trees, checkpoint reader, converter, cache and operators.
//!
//! It knows no model. A model author writes modules ([`Module`]) in a crate of their own; this crate carries them
//! through the three stages.

#![deny(unsafe_code)] // one file maps files: checkpoint/map.rs

mod buffer;
mod checkpoint;
mod convert;
mod device;
mod error;
mod formats;
pub mod json_lines;
mod mapped_weights;
mod module;
pub mod ops;
mod step;
mod tensor;
mod tree;
mod weight;
mod weight_cache;
mod weight_copy;

#[cfg(any(test, feature = "testing"))]
pub use checkpoint::testing;
pub use checkpoint::{
    Bytes, Checkpoint, Cursor, Dtype, GgmlBlocks, Gguf, GgufName, GgufValue, MappedFile, Part, Prefix,
    RawTensor, ShardFile, TensorInfo, lock_limit, validate_scales, zeros_in_large_pages,
};
pub use convert::{ConvertProgress, ConvertReport, Fallback, Tally, TensorRows, WeightOutput};
pub use device::Device;
pub use dsv3_kernels::{Format, Isa, Kernels, Order};
pub use error::Error;
pub use formats::{Formats, WeightKind};
pub use mapped_weights::{MappedChunk, MappedWeights};
pub use module::{Capacity, DecodeRun, Module, PrefillRun, Run, RunConfig};
pub use step::{DecodeStep, LogitRows, Mode, PageId, PrefillStep, RowUsers, TokenId};
pub use tensor::Tensor;
pub use tree::{Leaf, LeafFn, WeightPath, WeightTree};
pub use weight::{Extent, Location, SavedScales, SavedWeight, Weight, WeightSpec};
pub use weight_cache::{
    Converted, Fingerprint, Source, WEIGHT_CONFIG_FILE, WeightCache, WeightConfigHeader, WeightLoader,
};
pub use weight_copy::{CopiedWeights, WeightCopy};
