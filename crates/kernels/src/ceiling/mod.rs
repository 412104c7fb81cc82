//! What the machine itself can do, to hold the other kernels against: reading memory and multiplying, with nothing
//! else in the way.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;

/// Values in each chain of dependent operations: the largest vector.
pub(crate) const LANES: usize = 16;
/// Chains of [`fma_rounds`](crate::Kernels::fma_rounds): what hides an addition's latency on two ports, and fits into
/// registers.
pub(crate) const FMA_CHAINS: usize = 12;
/// Chains of [`int8_rounds`](crate::Kernels::int8_rounds).
pub(crate) const INT8_CHAINS: usize = 12;
