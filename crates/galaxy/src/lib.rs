//! What TT-NN on a Tenstorrent Galaxy takes, made on any computer.
//!
//! - [`block_float`]: the number formats in which 16 values share an exponent.
//! - [`tile`] and [`shard`]: how the numbers of a tensor lie in the bytes of a shard.
//! - [`tensorbin`]: the files that `ttnn.dump_tensor` writes and `ttnn.load_tensor` reads.
//! - [`hardware`]: the chip, and how weights lie in its DRAM.
//! - [`ring`]: how experts are packed for the fused operators.
//! - [`plan`]: the operator configs of every module, and the operations that they are for.
//! - [`types`]: TT-NN's own types under its own names, as JSON has them.
//! - [`weights`]: stage 1, a checkpoint's weights as the files that upstream's demo loads.
//!
//! Nothing here runs on a device or needs TT-NN. What is held to files that TT-NN 0.81.1 wrote says so; those files and
//! where they come from: `testdata/galaxy/README.md`.

#![forbid(unsafe_code)]

pub mod block_float;
pub mod hardware;
pub mod plan;
pub mod ring;
pub mod shard;
pub mod tensorbin;
pub mod tile;
pub mod types;
pub mod weights;
