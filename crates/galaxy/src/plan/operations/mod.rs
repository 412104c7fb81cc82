//! The operations that a step of the model issues, built from the configs that the planner made.

mod attention;
mod attention_prefill;
mod chain;
mod ends;
mod experts;
mod feed_forward;
mod list;
mod model;

pub use chain::{Chain, Step, Tensor};
pub use list::{AllOutputs, NewTensor, Operand, Operation, OperationList, Output, Source};
pub(super) use model::forward;
