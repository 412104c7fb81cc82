//! Functions of the exponential: softmax's, the gate's, the MLP's.

pub(crate) mod scalar;
