//! Products with sixteen tokens (or queries) side by side, one lane each: an element of the other matrix, read as the row
//! that it is, is broadcast to all of them, and sums need no additions across a vector.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

#[cfg(test)]
mod tests;

/// Rows of a matrix that lie side by side.
pub const LANES: usize = 16;

/// One value of each of [`LANES`] rows: a line of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub struct Lanes(pub [f32; LANES]);

impl Lanes {
    /// Zeros.
    pub const ZERO: Self = Self([0.0; LANES]);

    /// The values one after another.
    #[inline]
    pub fn flatten(lines: &[Self]) -> &[f32] {
        let values = lines.len() * LANES;
        // SAFETY: a line is `repr(C)`, made of `LANES` f32 and nothing else (its size is a multiple of its
        // alignment), so the slice is that many f32; the result borrows it.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), values) }
    }

    /// The values one after another: lines as memory for any f32.
    #[inline]
    pub fn flatten_mut(lines: &mut [Self]) -> &mut [f32] {
        let values = lines.len() * LANES;
        // SAFETY: as for `flatten`, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), values) }
    }
}

const _: () = assert!(size_of::<Lanes>() == LANES * size_of::<f32>());
