//! The specification. The loops are plain enough for the compiler to use vectors wherever it is allowed to, so the
//! other instruction sets compile these same bodies.

/// `out[i] = x[i] * scale * weight[i]`.
#[inline(always)]
pub(crate) fn scale_mul(x: &[f32], scale: f32, weight: &[f32], out: &mut [f32]) {
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// `x[i] += y[i]`.
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x[i] += scale * y[i]`.
#[inline(always)]
pub(crate) fn add_scaled(x: &mut [f32], scale: f32, y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += scale * y;
    }
}
