//! What a block float is: value by value.

use super::{
    BLOCK_FLOATS, BlockElement, BlockRounding, DEVICE_BITS, FRACTION_BITS, MAGNITUDE_BITS, write_elements,
};

/// Packs blocks; see [`Kernels::pack_block_floats`](crate::Kernels::pack_block_floats).
pub(crate) fn pack_block_floats(
    (element, rounding): (BlockElement, BlockRounding),
    values: &[f32],
    stride: usize,
    exponents: &mut [u8],
    elements: &mut [u8],
) {
    let outs = elements.chunks_exact_mut(element.block_bytes());
    for (number, (exponent, out)) in exponents.iter_mut().zip(outs).enumerate() {
        let block: &[f32; BLOCK_FLOATS] =
            values[number * stride..].first_chunk().expect("checked by the caller");
        let shared = block.iter().map(|value| biased_exponent(value.to_bits())).fold(0, u32::max);
        let codes = block.map(|value| code(element, rounding, value.to_bits(), shared));
        write_elements(element, &codes, out);
        *exponent = shared as u8;
    }
}

/// The element of a value under a shared exponent that is not less than its own. Denormals count as zeros, and a zero has
/// no sign. What is shifted out to reach the shared exponent is lost before the rounding.
fn code(element: BlockElement, rounding: BlockRounding, bits: u32, shared: u32) -> u8 {
    let own = biased_exponent(bits);
    if own == 0 {
        return 0;
    }
    let fraction = bits & ((1 << FRACTION_BITS) - 1);
    let magnitude = (1 << FRACTION_BITS | fraction).checked_shr(shared - own).unwrap_or(0);
    let width = element.bits() as u32 - 1;
    let m = match rounding {
        BlockRounding::Host => round_to_even(magnitude, width),
        BlockRounding::Device => round_up(magnitude, DEVICE_BITS) >> (DEVICE_BITS - width),
    };
    let sign = bits >> 31;
    if m == 0 { 0 } else { (sign << width | m) as u8 }
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
