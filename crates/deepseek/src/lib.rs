//! deepseek

pub mod hf;
pub mod reference;
