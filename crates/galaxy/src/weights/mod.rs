//! Stage 1 for a Galaxy: a checkpoint's weights as the files that upstream's demo loads with `--use-weight-cache`.
//!
//! ```text
//! <N>_layers[_mtp]/mesh_<R>x<C>/config.json       the tree of the modules' weights, written when all files are there
//!                               embedding/embedding.weight.tensorbin
//!                               mlp_decoder_block_0/mla/wq_b.input_tensor_b.tensorbin
//!                               ...
//!                               .dsv3-convert.jsonl   what they were made from, and which are whole
//! ```
//!
//! - [`weight_files`]: every file as data: its tensors, how they are turned and cut, type, memory config, place.
//! - [`WeightCache`]: the files of a model on a mesh, what they take, and the conversion.
//!
//! Shapes, types, memory configs and names are upstream's. What differs is said where it is: weights that are the same in
//! all rows of devices are stored once, and values go from FP8 blocks to a file's format by way of f32, where upstream
//! first rounds them to bf16. So a value can differ from upstream's in its last bit.

mod cache;
mod config;
mod convert;
mod error;
mod experts;
mod files;
mod journal;
mod remaining;
#[cfg(test)]
mod tests;
mod values;
mod warning;

pub use cache::{CacheFile, WeightCache, with_layers};
pub use config::{CONFIG_FILE, weight_config};
pub use convert::{ConvertOptions, Progress, Report};
pub use error::{Cause, Error};
pub use files::{Form, RingProjection, Split, WeightFile, weight_files};
pub use remaining::{Measured, Remaining};
pub(crate) use values::device_bytes;
pub use warning::Warning;
