//! Block floats: 16 values with one exponent, each a sign and a few bits.
//!
//! A value is `(-1)^sign * m * 2^(E - 127 - (W - 1))`, where `E` is the shared exponent's byte and `m` has `W` bits: 7 in
//! bfloat8_b, 3 in bfloat4_b, 1 in bfloat2_b. The leading one is explicit, so the largest of the 16 usually has the top bit
//! set. `m` = 0 is zero, and is written without a sign: the chip reads a zero with a sign as minus infinity.
//!
//! # Rounding
//!
//! [`Rounding::Host`] is TT-NN's packer on the host, bit for bit (checked with files that TT-NN 0.81.1 wrote). The bits
//! that are shifted out to reach the shared exponent are lost before the rounding to nearest, ties to even, and what
//! rounds up past all ones stays at all ones.
//!
//! [`Rounding::Device`] is what upstream reports of the packer on the chip, which converts its weights; it was not checked
//! with a chip. Ties round up in magnitude, and a bfloat4_b is a bfloat8_b whose lower 4 bits are cut off. That what
//! rounds up past all ones stays there too, and that bfloat2_b is made the same way, are our assumptions.
//!
//! bfloat2_b has no number in a file's header, so no file holds it. Its elements are packed as those of the other formats,
//! four in a byte; that is derived from upstream's description and the size of its tiles (320 bytes), not checked.

use crate::tile::{FACE_COLUMNS, Tile};
use std::ops::RangeInclusive;

#[cfg(test)]
mod tests;

/// Bits of a float32's fraction.
const FRACTION_BITS: u32 = 23;
/// Bits of a magnitude, the leading one included.
const MAGNITUDE_BITS: u32 = FRACTION_BITS + 1;
/// Bits of a bfloat8_b's `m`, through which the chip makes the smaller formats.
const DEVICE_BITS: u32 = 7;
/// What the exponents of a tile are padded to, which only tiles with less than 16 face rows need.
const EXPONENT_ALIGNMENT: usize = 16;

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFloat {
    /// bfloat8_b: a byte each.
    Eight,
    /// bfloat4_b: two in a byte.
    Four,
    /// bfloat2_b: four in a byte. No file holds it.
    Two,
}

/// How values become block floats; see [the module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To nearest, ties to even, as TT-NN's host code.
    #[default]
    Host,
    /// As upstream reports it of the chip.
    Device,
}

/// 16 values of a row.
pub type Block = [f32; FACE_COLUMNS];

impl BlockFloat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Eight, Self::Four, Self::Two];

    /// Bits of an element, its sign included.
    pub fn element_bits(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
            Self::Two => 2,
        }
    }

    /// Bits of `m`.
    fn magnitude_bits(self) -> u32 {
        self.element_bits() as u32 - 1
    }

    /// Bytes of a block's elements, without its exponent.
    fn block_bytes(self) -> usize {
        FACE_COLUMNS * self.element_bits() / 8
    }

    /// Bytes of a tile: its exponents, one for each face row, then its elements.
    pub fn tile_bytes(self, tile: Tile) -> usize {
        exponent_bytes(tile) + tile.face_rows() * self.block_bytes()
    }

    /// Packs a block: gives its exponent, writes its elements.
    ///
    /// # Panics
    /// If `elements` is not as long as 16 elements are.
    pub fn pack_block(self, block: &Block, rounding: Rounding, elements: &mut [u8]) -> u8 {
        assert_eq!(elements.len(), self.block_bytes(), "bytes of a block in {self:?}");
        let exponent = block.iter().map(|value| biased_exponent(value.to_bits())).fold(0, u32::max);
        let codes = if SCALED.contains(&exponent) {
            self.scaled_elements(block, exponent, rounding)
        } else {
            block.map(|value| self.element(value.to_bits(), exponent, rounding))
        };
        match self {
            Self::Eight => elements.copy_from_slice(&codes),
            Self::Four => {
                for (byte, [low, high]) in elements.iter_mut().zip(codes.as_chunks().0) {
                    *byte = low | high << 4;
                }
            }
            Self::Two => {
                for (byte, [a, b, c, d]) in elements.iter_mut().zip(codes.as_chunks().0) {
                    *byte = a | b << 2 | c << 4 | d << 6;
                }
            }
        }
        exponent as u8
    }

    /// The elements of a block: what [`element`](Self::element) gives, without a branch, so that a compiler can take several
    /// at a time.
    fn scaled_elements(self, block: &Block, exponent: u32, rounding: Rounding) -> [u8; FACE_COLUMNS] {
        match (self, rounding) {
            (Self::Eight, Rounding::Host) => scaled_elements::<7>(block, exponent, to_even::<7>),
            (Self::Four, Rounding::Host) => scaled_elements::<3>(block, exponent, to_even::<3>),
            (Self::Two, Rounding::Host) => scaled_elements::<1>(block, exponent, to_even::<1>),
            (Self::Eight, Rounding::Device) => scaled_elements::<7>(block, exponent, up_and_cut::<7>),
            (Self::Four, Rounding::Device) => scaled_elements::<3>(block, exponent, up_and_cut::<3>),
            (Self::Two, Rounding::Device) => scaled_elements::<1>(block, exponent, up_and_cut::<1>),
        }
    }

    /// The element of a value under a shared exponent that is not less than its own.
    fn element(self, bits: u32, exponent: u32, rounding: Rounding) -> u8 {
        let own = biased_exponent(bits);
        if own == 0 {
            return 0;
        }
        let fraction = bits & ((1 << FRACTION_BITS) - 1);
        let magnitude = (1 << FRACTION_BITS | fraction).checked_shr(exponent - own).unwrap_or(0);
        let width = self.magnitude_bits();
        let m = match rounding {
            Rounding::Host => round_to_even(magnitude, width),
            Rounding::Device => round_up(magnitude, DEVICE_BITS) >> (DEVICE_BITS - width),
        };
        let sign = bits >> 31;
        if m == 0 { 0 } else { (sign << width | m) as u8 }
    }

    /// Unpacks a block.
    ///
    /// An exponent of 255 gives infinities and NaNs, as in TT-NN. Where a value is less than the smallest normal float32,
    /// it is the denormal that it stands for; TT-NN refuses those.
    ///
    /// # Panics
    /// If `elements` is not as long as 16 elements are.
    pub fn unpack_block(self, exponent: u8, elements: &[u8]) -> Block {
        assert_eq!(elements.len(), self.block_bytes(), "bytes of a block in {self:?}");
        let (bits, in_byte) = (self.element_bits(), 8 / self.element_bits());
        std::array::from_fn(|index| {
            let code = elements[index / in_byte] >> (index % in_byte * bits);
            self.value(u32::from(exponent), u32::from(code) & ((1 << bits) - 1))
        })
    }

    fn value(self, exponent: u32, code: u32) -> f32 {
        let width = self.magnitude_bits();
        let (sign, m) = (code >> width << 31, code & ((1 << width) - 1));
        if m == 0 {
            return f32::from_bits(sign);
        }
        // The leading one goes to the top of `width` bits, and then to the place where a float32 does not write it.
        let shift = width - 1 - m.ilog2();
        let magnitude = m << shift << (MAGNITUDE_BITS - width);
        if exponent > shift {
            return f32::from_bits(
                sign | (exponent - shift) << FRACTION_BITS | magnitude ^ 1 << FRACTION_BITS,
            );
        }
        // A denormal: its fraction has the exponent 1. Nothing is lost, as `m` has 7 bits at most and the shift is 6.
        f32::from_bits(sign | magnitude >> (1 + shift - exponent))
    }

    /// Packs a tile of rows that are `stride` elements apart.
    ///
    /// # Panics
    /// If `values` ends before the tile does, or `bytes` is not [`tile_bytes`](Self::tile_bytes) long.
    pub fn pack_tile(self, tile: Tile, values: &[f32], stride: usize, rounding: Rounding, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.tile_bytes(tile), "bytes of a {tile} tile in {self:?}");
        let (exponents, elements) = bytes.split_at_mut(exponent_bytes(tile));
        exponents[tile.face_rows()..].fill(0);
        let blocks = tile.in_order().zip(exponents).zip(elements.chunks_exact_mut(self.block_bytes()));
        for ((place, exponent), elements) in blocks {
            let block = values[place.row * stride + place.column..].first_chunk().expect("a whole face row");
            *exponent = self.pack_block(block, rounding, elements);
        }
    }

    /// Unpacks a tile into rows that are `stride` elements apart.
    ///
    /// # Panics
    /// If `values` ends before the tile does, or `bytes` is not [`tile_bytes`](Self::tile_bytes) long.
    pub fn unpack_tile(self, tile: Tile, bytes: &[u8], values: &mut [f32], stride: usize) {
        assert_eq!(bytes.len(), self.tile_bytes(tile), "bytes of a {tile} tile in {self:?}");
        let (exponents, elements) = bytes.split_at(exponent_bytes(tile));
        let blocks = tile.in_order().zip(exponents).zip(elements.chunks_exact(self.block_bytes()));
        for ((place, &exponent), elements) in blocks {
            let start = place.row * stride + place.column;
            values[start..start + FACE_COLUMNS].copy_from_slice(&self.unpack_block(exponent, elements));
        }
    }
}

/// Shared exponents for which a power of two brings the magnitudes to 24 bits.
const SCALED: RangeInclusive<u32> = 23..=254;

/// Elements with `W` bits of magnitude; see [`BlockFloat::element`].
///
/// A float32 of exponent `e` is its magnitude of 24 bits times 2^(e - 150). Times 2^(150 - E) it is that magnitude times
/// 2^(e - E), which is what a shift to the right by E - e gives once its fraction is cut off. Denormals come out as 0 or 1
/// of 24 bits and so round to 0, as they must.
fn scaled_elements<const W: u32>(
    block: &Block,
    exponent: u32,
    round: impl Fn(i32) -> i32,
) -> [u8; FACE_COLUMNS] {
    let scale = f32::from_bits((127 + 150 - exponent) << FRACTION_BITS);
    block.map(|value| {
        let m = round((value.abs() * scale) as i32);
        let sign = (value.to_bits() >> 31) as i32 & i32::from(m != 0);
        (sign << W | m) as u8
    })
}

/// As [`round_to_even`]: half of a step less one is added, and that one where the bit that is kept is odd.
fn to_even<const W: u32>(magnitude: i32) -> i32 {
    let cut = MAGNITUDE_BITS - W;
    ((magnitude + (1 << (cut - 1)) - 1 + (magnitude >> cut & 1)) >> cut).min((1 << W) - 1)
}

/// As [`round_up`] to the bits of a bfloat8_b, of which `W` are kept.
fn up_and_cut<const W: u32>(magnitude: i32) -> i32 {
    let cut = MAGNITUDE_BITS - DEVICE_BITS;
    ((magnitude + (1 << (cut - 1))) >> cut).min((1 << DEVICE_BITS) - 1) >> (DEVICE_BITS - W)
}

fn exponent_bytes(tile: Tile) -> usize {
    tile.face_rows().next_multiple_of(EXPONENT_ALIGNMENT)
}

fn biased_exponent(bits: u32) -> u32 {
    bits >> FRACTION_BITS & 0xFF
}

/// The upper bits of a magnitude, rounded to nearest, ties to even; all ones where it would be more.
fn round_to_even(magnitude: u32, bits: u32) -> u32 {
    let cut = MAGNITUDE_BITS - bits;
    let (kept, rest, tie) = (magnitude >> cut, magnitude & ((1 << cut) - 1), 1 << (cut - 1));
    let up = rest > tie || (rest == tie && kept & 1 == 1);
    (kept + u32::from(up)).min((1 << bits) - 1)
}

/// The same with ties up.
fn round_up(magnitude: u32, bits: u32) -> u32 {
    let cut = MAGNITUDE_BITS - bits;
    ((magnitude >> cut) + (magnitude >> (cut - 1) & 1)).min((1 << bits) - 1)
}
