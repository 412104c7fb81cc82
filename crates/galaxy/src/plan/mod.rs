//! Stage 2 for a Galaxy: the operator configs of every module, from config.json, the mesh, users and lengths.
//!
//! - [`request`]: what is asked for, and the dimensions that follow.
//! - [`rules`]: how configs are chosen, with the reason for each rule.
//! - [`operators`]: the config of each operator, by upstream's names.
//! - [`modules`]: the configs of each module, in upstream's tree.
//! - [`operations`]: the operations that a step then issues, built from the configs.
//! - [`check`]: this project's own rules for operations, which every plan has passed.
//!
//! What upstream does is told by its own documents; nothing here is its code. Numbers of issues and pull requests are
//! those of tenstorrent/tt-metal.

pub mod check;
mod document;
mod dram;
mod error;
pub mod modules;
pub mod operations;
pub mod operators;
pub mod request;
pub mod rules;
pub mod tensor;

pub use document::{Header, Model, Plan, PlanDocument, plan};
pub use dram::Dram;
pub use error::PlanError;
