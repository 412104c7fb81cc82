//! A row of f32 in a storage format.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
mod q4k;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;
