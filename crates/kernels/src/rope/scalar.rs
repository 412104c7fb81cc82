//! The specification: a rotation of the plane for each pair.

/// Rotates the pairs `(x[2i], x[2i + 1])`.
pub(crate) fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let [real, imaginary] = *pair;
        *pair = [real * cos - imaginary * sin, imaginary * cos + real * sin];
    }
}
