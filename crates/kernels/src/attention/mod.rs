//! Attention of strips of sixteen queries to a block of keys and values, with a running softmax (Milakov and
//! Gimelshein 2018).
//!
//! A strip's queries lie side by side, one lane each: a feature of a key is broadcast to all of them, sums need no
//! additions across a vector, the softmax goes down the lanes, and keys and values are read as the rows they are. What
//! a lane stands for is the caller's: the heads of one token that share their keys (absorbed latent attention), or
//! the tokens of one head (expanded).

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;
mod state;

#[cfg(test)]
mod tests;

pub use state::{AttentionState, KeyValues, Queries};
