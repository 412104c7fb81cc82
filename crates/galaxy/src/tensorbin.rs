//! `.tensorbin` files, as `ttnn.dump_tensor` writes and `ttnn.load_tensor` reads them.
//!
//! ```text
//! 0        u64 little endian: H, the bytes of header that follow
//! 8        a FlatBuffer (root table Tensor, no identifier), then zeros
//! 8 + H    every distinct buffer once, in order of first use
//! ```
//!
//! A file holds one tensor: what all shards have in common ([`TensorSpec`]), and for each device of a mesh where its shard
//! lies. Devices that hold the same share a buffer. Readers go by the recorded offsets; [`Header::new`] puts the data, and
//! each buffer in it, at a multiple of 64 bytes with zeros between, as TT-NN 0.81.1 does.
//!
//! Headers are written with the `flatbuffers` crate. They are read by `flat`, which checks each step against the header's
//! length: that crate's own access is `unsafe`, and its verifier gives no field's name.

mod decode;
mod encode;
mod error;
mod flat;
mod header;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use error::{Error, HeaderError};
pub use header::{
    Header, MAX_DEVICES, PageConfig, Placement, Shard, Span, TensorSpec, TensorTopology, UnsupportedLayout,
};
pub use read::TensorBin;
pub use write::Writer;

/// What files of this format are named.
pub const EXTENSION: &str = "tensorbin";

/// The multiple of bytes at which the data and each buffer in it start.
pub const ALIGNMENT: u64 = 64;
