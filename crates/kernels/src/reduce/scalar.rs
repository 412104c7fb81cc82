//! The specification, in several partial sums: that is more accurate than one, and lets the compiler use vectors.

/// Partial sums.
const LANES: usize = 8;

/// `sum of a[i] * b[i]`.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `sum of x[i]^2`.
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    dot(x, x)
}
