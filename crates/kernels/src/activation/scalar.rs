//! The specification, with the exponential of the standard library.

/// `gate[i] = silu(gate[i]) * up[i]`.
pub(crate) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// `x[i] = 1 / (1 + exp(-x[i]))`.
pub(crate) fn sigmoid(x: &mut [f32]) {
    for x in x {
        *x = 1.0 / (1.0 + (-*x).exp());
    }
}
