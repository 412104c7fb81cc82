//! The blocks of ggml's quantised formats, as `ggml-common.h` lays them out.

use crate::{Format, f16_to_f32};
use half::f16;

/// Columns of a `q8_0` block.
pub(crate) const Q8_0_COLS: usize = Format::Q8_0.block_cols();
/// Columns of a `q4_K` block.
pub(crate) const Q4K_COLS: usize = Format::Q4K.block_cols();
/// Columns of a `q4_K` block that share a scale and a minimum.
pub(crate) const Q4K_GROUP: usize = 32;
/// Groups in a `q4_K` block.
pub(crate) const Q4K_GROUPS: usize = Q4K_COLS / Q4K_GROUP;

/// A `q8_0` block: element `i` is `d * values[i]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockQ8_0 {
    /// The scale, half precision, little-endian.
    pub(crate) d: [u8; 2],
    /// Signed bytes.
    pub(crate) values: [u8; Q8_0_COLS],
}

/// A `q4_K` block: element `i` of group `j` is `d * scale[j] * bits - dmin * minimum[j]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockQ4K {
    /// What the groups' scales are multiplied by, half precision, little-endian.
    pub(crate) d: [u8; 2],
    /// What the groups' minima are multiplied by, likewise.
    pub(crate) dmin: [u8; 2],
    /// Scales and minima, 6 bits each.
    pub(crate) scales: [u8; 12],
    /// Four bits an element: 32 bytes hold a group in their lower halves and the next in their upper ones.
    pub(crate) values: [u8; Q4K_COLS / 2],
}

const _: () = assert!(size_of::<BlockQ8_0>() == Format::Q8_0.block_bytes());
const _: () = assert!(size_of::<BlockQ4K>() == Format::Q4K.block_bytes());

/// A block in stored form: bytes only, so that any bytes are one and any address is aligned.
///
/// # Safety
/// The type is `repr(C)`, made of bytes only.
pub(crate) unsafe trait Block: Copy {}
// SAFETY: both are `repr(C)` structs of byte arrays.
unsafe impl Block for BlockQ8_0 {}
// SAFETY: as above.
unsafe impl Block for BlockQ4K {}

/// The blocks of a row.
///
/// # Panics
/// If `bytes` are no whole number of blocks.
pub(crate) fn blocks<B: Block>(bytes: &[u8]) -> &[B] {
    assert!(bytes.len().is_multiple_of(size_of::<B>()), "a row is stored in whole blocks");
    // SAFETY: a block is made of bytes alone, so it has no alignment and every bit pattern is one; the length is
    // that of the slice.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<B>()) }
}

/// The blocks of a row, to be written.
///
/// # Panics
/// If `bytes` are no whole number of blocks.
pub(crate) fn blocks_mut<B: Block>(bytes: &mut [u8]) -> &mut [B] {
    assert!(bytes.len().is_multiple_of(size_of::<B>()), "a row is stored in whole blocks");
    // SAFETY: as in `blocks`; the slice is borrowed exclusively, and any block that is written is bytes.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<B>()) }
}

/// The scale and the minimum, 6 bits each, of the eight groups of a block of ggml's `q4_K` or `q5_K`
/// (`get_scale_min_k4` in ggml-quants.c): the first four in the lower 6 bits of bytes 0-3 and 4-7, the last four split
/// between bytes 8-11 and what is left of the former.
pub fn k_groups(scales: &[u8; 12]) -> [(u8, u8); Q4K_GROUPS] {
    let s = scales;
    std::array::from_fn(|j| {
        if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            ((s[j + 4] & 15) | (s[j - 4] >> 6 << 4), (s[j + 4] >> 4) | (s[j] >> 6 << 4))
        }
    })
}

impl BlockQ8_0 {
    /// The scale.
    pub(crate) fn scale(&self) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.d))
    }
}

impl BlockQ4K {
    /// A block of these factors, of each group's scale and minimum (6 bits each), and of these bits.
    pub(crate) fn new(d: f16, dmin: f16, groups: [(u8, u8); Q4K_GROUPS], values: [u8; Q4K_COLS / 2]) -> Self {
        let mut scales = [0; 12];
        for (j, (scale, minimum)) in groups.into_iter().enumerate() {
            debug_assert!(scale < 64 && minimum < 64, "scales and minima have 6 bits");
            if j < 4 {
                scales[j] |= scale;
                scales[j + 4] |= minimum;
            } else {
                scales[j + 4] = scale & 15 | minimum << 4;
                scales[j - 4] |= scale >> 4 << 6;
                scales[j] |= minimum >> 4 << 6;
            }
        }
        Self { d: d.to_le_bytes(), dmin: dmin.to_le_bytes(), scales, values }
    }

    /// What the scales and what the minima are multiplied by.
    pub(crate) fn factors(&self) -> (f32, f32) {
        (f16_to_f32(u16::from_le_bytes(self.d)), f16_to_f32(u16::from_le_bytes(self.dmin)))
    }

    /// Each group's scale and minimum.
    pub(crate) fn groups(&self) -> [(u8, u8); Q4K_GROUPS] {
        k_groups(&self.scales)
    }

    /// The four bits of each element of a group.
    pub(crate) fn bits(&self, group: usize) -> [u8; Q4K_GROUP] {
        let bytes = &self.values[group / 2 * Q4K_GROUP..][..Q4K_GROUP];
        std::array::from_fn(|i| if group.is_multiple_of(2) { bytes[i] & 15 } else { bytes[i] >> 4 })
    }
}
