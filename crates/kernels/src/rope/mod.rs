//! Rotary position embedding.

pub(crate) mod scalar;
