//! The runtime: module contract, weight trees, checkpoint reader, converter, cache and operators.
//!
//! It knows no model. A model author writes modules ([`Module`]) in a crate of their own; this crate carries them
//! through the three stages.

mod error;
mod step;
mod tensor;

pub use error::Error;
pub use step::{DecodeStep, LogitRows, PageId, PrefillStep, TokenId};
pub use tensor::Tensor;
