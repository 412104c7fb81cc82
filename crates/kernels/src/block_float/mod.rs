//! Blocks of 16 values that share an exponent, as Tenstorrent's chips have them. The format and its rounding are described
//! in the crate `dsv3-galaxy`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

/// Values of a block.
pub const BLOCK_FLOATS: usize = 16;

/// Bits of a float32's fraction.
const FRACTION_BITS: u32 = 23;
/// Bits of a magnitude, the leading one included.
const MAGNITUDE_BITS: u32 = FRACTION_BITS + 1;
/// Bits of the magnitude of an element of 8 bits, through which the chip makes the smaller ones.
const DEVICE_BITS: u32 = 7;

/// How values become block floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlockRounding {
    /// To nearest, ties to even, as TT-NN's host code.
    #[default]
    Host,
    /// Ties up in magnitude, to 7 bits, of which the upper ones are kept: as upstream reports it of the chip.
    Device,
}

/// Bits of an element: a sign and a magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockElement {
    /// A byte each.
    Eight,
    /// Two in a byte, the first in its lower bits.
    Four,
    /// Four in a byte.
    Two,
}

impl BlockElement {
    /// Bits of an element, its sign included.
    pub const fn bits(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
            Self::Two => 2,
        }
    }

    /// Bytes of a block's elements, without its exponent.
    pub const fn block_bytes(self) -> usize {
        BLOCK_FLOATS * self.bits() / 8
    }
}

/// Writes 16 elements, each in a byte, as they lie in a block.
fn write_elements(element: BlockElement, codes: &[u8; BLOCK_FLOATS], out: &mut [u8]) {
    match element {
        BlockElement::Eight => out.copy_from_slice(codes),
        BlockElement::Four => {
            for (byte, [low, high]) in out.iter_mut().zip(codes.as_chunks().0) {
                *byte = low | high << 4;
            }
        }
        BlockElement::Two => {
            for (byte, [a, b, c, d]) in out.iter_mut().zip(codes.as_chunks().0) {
                *byte = a | b << 2 | c << 4 | d << 6;
            }
        }
    }
}
