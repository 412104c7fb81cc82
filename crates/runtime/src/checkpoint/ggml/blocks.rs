//! Blocks of 32 columns: a scale or two in half precision, then bits. Sixteen bytes hold the first half of the columns
//! in their lower four bits and the second half in their upper ones.

use super::{field, half};

/// Columns of a block.
pub(super) const COLS: usize = 32;

/// The steps of `iq4_nl` and `iq4_xs` (`kvalues_iq4nl` in `ggml-common.h`), denser near to zero.
pub(super) const STEPS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// `block_q4_0`: `d`, 16 bytes of bits. An element is `d * (bits - 8)`.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; COLS]) {
    let d = half(block, 0);
    nibbles(field(block, 2), out, |bits| d * f32::from(bits.cast_signed() - 8));
}

/// `block_q4_1`: `d`, `m`, 16 bytes of bits. An element is `d * bits + m`.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; COLS]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(field(block, 4), out, |bits| d * f32::from(bits) + m);
}

/// `block_q5_0`: `d`, the fifth bits of all columns in four bytes, 16 bytes of the other bits. An element is
/// `d * (bits - 16)`.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; COLS]) {
    let d = half(block, 0);
    five_bits(field(block, 2), field(block, 6), out, |bits| d * f32::from(bits - 16));
}

/// `block_q5_1`: `d`, `m`, then as `q5_0`. An element is `d * bits + m`.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; COLS]) {
    let (d, m) = (half(block, 0), half(block, 2));
    five_bits(field(block, 4), field(block, 8), out, |bits| d * f32::from(bits) + m);
}

/// `block_iq4_nl`: `d`, 16 bytes of bits. An element is `d * STEPS[bits]`.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; COLS]) {
    steps(field(block, 2), half(block, 0), out);
}

/// Steps by four bits each, times a scale.
pub(super) fn steps(bits: &[u8; 16], scale: f32, out: &mut [f32; COLS]) {
    let values = STEPS.map(|step| scale * step);
    nibbles(bits, out, |bits| values[usize::from(bits)]);
}

fn nibbles(bits: &[u8; 16], out: &mut [f32; COLS], value: impl Fn(u8) -> f32) {
    let (first, second) = out.split_at_mut(COLS / 2);
    for ((first, second), &byte) in first.iter_mut().zip(second).zip(bits) {
        *first = value(byte & 15);
        *second = value(byte >> 4);
    }
}

/// Bit `i` of `high` belongs to column `i`.
fn five_bits(high: &[u8; 4], low: &[u8; 16], out: &mut [f32; COLS], value: impl Fn(i16) -> f32) {
    /// As constants: instruction sets without shifts by lane compare with them.
    const MASKS: [i16; 16] = {
        let mut masks = [0; 16];
        let mut bit = 0;
        while bit < 16 {
            masks[bit] = 1 << bit;
            bit += 1;
        }
        masks
    };
    let halves = high.as_chunks().0;
    let [first_high, second_high] = [0, 1].map(|index| i16::from_le_bytes(halves[index]));
    let with = |low: u8, high: i16, mask: i16| i16::from(low) | if high & mask == 0 { 0 } else { 16 };
    let (first, second) = out.split_at_mut(COLS / 2);
    for (((first, second), &byte), mask) in first.iter_mut().zip(second).zip(low).zip(MASKS) {
        *first = value(with(byte & 15, first_high, mask));
        *second = value(with(byte >> 4, second_high, mask));
    }
}
