//! Activations to integers.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;

/// Groups without a larger value are zeros: the factor that a smaller one is divided by would not be finite.
const SMALLEST: f32 = f32::from_bits((127 - 100) << 23); // 2^-100
