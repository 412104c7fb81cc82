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
use dsv3_kernels::{BLOCK_FLOATS, BlockElement, Kernels};

/// How values become block floats; see [the module](self).
pub use dsv3_kernels::BlockRounding as Rounding;

#[cfg(test)]
mod tests;

/// Bits of a float32's fraction.
const FRACTION_BITS: u32 = 23;
/// Bits of a magnitude, the leading one included.
const MAGNITUDE_BITS: u32 = FRACTION_BITS + 1;
/// What the exponents of a tile are padded to, which only tiles with less than 16 face rows need.
const EXPONENT_ALIGNMENT: usize = 16;

const _: () = assert!(FACE_COLUMNS == BLOCK_FLOATS);

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

/// 16 values of a row.
pub type Block = [f32; FACE_COLUMNS];

impl BlockFloat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Eight, Self::Four, Self::Two];

    /// Bits of an element, its sign included.
    pub fn element_bits(self) -> usize {
        self.element().bits()
    }

    fn element(self) -> BlockElement {
        match self {
            Self::Eight => BlockElement::Eight,
            Self::Four => BlockElement::Four,
            Self::Two => BlockElement::Two,
        }
    }

    /// Bits of `m`.
    fn magnitude_bits(self) -> u32 {
        self.element_bits() as u32 - 1
    }

    /// Bytes of a block's elements, without its exponent.
    fn block_bytes(self) -> usize {
        self.element().block_bytes()
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
        let mut exponent = 0;
        let exponents = std::slice::from_mut(&mut exponent);
        Kernels::best().pack_block_floats(
            (self.element(), rounding),
            block,
            FACE_COLUMNS,
            exponents,
            elements,
        );
        exponent
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
        let (exponents, mut elements) = bytes.split_at_mut(exponent_bytes(tile));
        let (mut exponents, padding) = exponents.split_at_mut(tile.face_rows());
        padding.fill(0);
        let (kernels, how) = (Kernels::best(), (self.element(), rounding));
        for (corner, rows) in tile.faces() {
            let (these, after) = exponents.split_at_mut(rows);
            exponents = after;
            let (out, after) = elements.split_at_mut(rows * self.block_bytes());
            elements = after;
            let values = &values[corner.row * stride + corner.column..];
            kernels.pack_block_floats(how, values, stride, these, out);
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

fn exponent_bytes(tile: Tile) -> usize {
    tile.face_rows().next_multiple_of(EXPONENT_ALIGNMENT)
}
