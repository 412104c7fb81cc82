//! Sums and products of vectors, element by element.

pub(crate) mod scalar;
