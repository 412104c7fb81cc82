//! Sums and maxima of vectors.

pub(crate) mod scalar;
