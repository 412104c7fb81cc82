//! Sums over vectors.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;
