//! Activations times a weight matrix: sums over its rows.

pub(crate) mod scalar;
