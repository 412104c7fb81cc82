//! The unsafe wall of dsv3: kernels that take slices and give slices, on one thread, without allocating; and the
//! [`Team`] of threads that takes their work from a [`Queue`].
//!
//! Everything above this crate is safe Rust. Here an operation has a folder and an instruction set has a file:
//! `matmul/scalar.rs` says what matmul is, `matmul/avx2.rs` says it faster. [`Kernels`] is the table of one
//! instruction set; its methods check lengths, also in release, and then jump. The operator above chooses how work
//! is split and over which threads.
//!
//! Tables today: [`Isa::Scalar`] (specification, fallback and oracle), [`Isa::Avx2`], [`Isa::Avx2Halves`] and [`Isa::Avx512`],
//! which are `Avx2` but for what they do better. NEON and AMX are not written yet; machines with the first use the scalar
//! table. A new table starts as `..SCALAR` or `..AVX512`, replaces what it does better, and is tested from the moment it is
//! registered.
//!
//! Weights are [`MatrixView`]s in one of the [`Format`]s and are turned to f32 in registers or in a buffer on the stack;
//! activations are f32 ([`MatrixRef`], [`MatrixMut`]), or, for products in integers, quantised first ([`IntegerMatrix`]). Keys
//! and values of attention are [`KeyRows`]: f32, or f32 in half of its memory.

#[cfg(target_endian = "big")]
compile_error!("weights and cached keys are read in place, and both are little-endian");

mod activation;
mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block_float;
mod ceiling;
mod dequantize;
mod elementwise;
mod format;
mod halves;
mod integers;
mod isa;
mod kernels;
mod lanes;
mod matmul;
mod matmul_integer;
mod matmul_transposed;
mod parts;
mod quantize;
mod quantized;
mod reduce;
mod rope;
mod team;
#[cfg(test)]
mod testing;
mod to_integers;
mod view;

pub use activations::{MatrixMut, MatrixRef};
pub use attention::{AttentionState, KeyValues, Queries};
pub use block_float::{BLOCK_FLOATS, BlockElement, BlockRounding};
pub use format::{Format, bf16_to_f32, f16_to_f32, f32_to_bf16, fp8_e4m3_to_f32};
pub use halves::{KeyRows, halves_bytes, read_halves, store_halves};
pub use integers::{IntegerChunks, IntegerMatrix, IntegerMut, IntegerRef};
pub use isa::{Isa, UnknownIsa};
pub use kernels::{Kernels, Order, QUANTIZE_LIMIT};
pub use lanes::{LANES, Lanes};
pub use parts::{Chunks, Cuts, Part, Parts, Pieces, Queue};
pub use quantized::k_groups;
pub use team::Team;
pub use view::{BlockScales, MatrixView};
