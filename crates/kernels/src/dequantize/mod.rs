//! A row of weights as f32.

pub(crate) mod scalar;
