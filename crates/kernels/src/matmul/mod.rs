//! A linear layer: activations times the transpose of a weight matrix.

pub(crate) mod scalar;
