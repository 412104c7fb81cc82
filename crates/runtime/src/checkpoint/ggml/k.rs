//! Blocks of 256 columns, in groups of 16 or 32 whose scales are small integers, multiplied by a scale of the block in
//! half precision.

use super::{
    blocks::{self, steps},
    field, half,
};
use dsv3_kernels::k_groups;

/// Columns of a block.
pub(super) const COLS: usize = 256;

/// Where a group of 16 columns has its bits in the formats of 2, 3 and 6 bits: a block has two parts of 128 columns, a
/// part four planes of 32, that lie in the same 32 bytes at higher and higher bits, and a plane two groups.
struct Group {
    part: usize,
    plane: usize,
    side: usize,
}

impl Group {
    /// The groups' places and values, in order.
    fn all(out: &mut [f32; COLS]) -> impl Iterator<Item = (usize, Self, &mut [f32; 16])> {
        let groups = out.as_chunks_mut().0.iter_mut().enumerate();
        groups
            .map(|(group, out)| (group, Self { part: group / 8, plane: group / 2 % 4, side: group % 2 }, out))
    }
}

/// `block_q2_K`: for each group a byte, scale below and minimum above; 64 bytes of bits, two a column; `d`, `dmin`. An
/// element is `d * scale * bits - dmin * minimum`.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; COLS]) {
    let (scales, bits): (&[u8; 16], &[u8; 64]) = (field(block, 0), field(block, 16));
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (group, Group { part, plane, side }, out) in Group::all(out) {
        let scale = d * f32::from(scales[group] & 15);
        let minimum = dmin * f32::from(scales[group] >> 4);
        let bits: &[u8; 16] = field(bits, part * 32 + side * 16);
        for (value, &byte) in out.iter_mut().zip(bits) {
            *value = scale * f32::from(i16::from(byte) >> (2 * plane) & 3) - minimum;
        }
    }
}

/// `block_q3_K`: the third bits, a byte for the same column of each of the eight planes; 64 bytes of the other two; 16
/// scales of 6 bits; `d`. An element is `d * (scale - 32) * (bits - 4)`.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; COLS]) {
    let (high, low): (&[u8; 32], &[u8; 64]) = (field(block, 0), field(block, 32));
    let (scales, d) = (q3_k_scales(field(block, 96)), half(block, 108));
    for (group, Group { part, plane, side }, out) in Group::all(out) {
        let scale = d * f32::from(scales[group] - 32);
        let low: &[u8; 16] = field(low, part * 32 + side * 16);
        let high: &[u8; 16] = field(high, side * 16);
        for ((value, &low), &high) in out.iter_mut().zip(low).zip(high) {
            let high = i16::from(high) >> (part * 4 + plane) & 1;
            let bits = i16::from(low) >> (2 * plane) & 3 | high << 2;
            *value = scale * f32::from(bits - 4);
        }
    }
}

/// The lower four bits of scales 0 to 7 and 8 to 15 lie in the lower and the upper halves of bytes 0 to 7; their upper
/// two in bytes 8 to 11, those of scales 0 to 3 lowest.
fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | high << 4).cast_signed()
    })
}

/// `block_q5_K`: `d`, `dmin`, scales and minima of 8 groups of 32 as `q4_K` packs them, the fifth bits, a byte for the
/// same column of each group, then the others as in `q4_K`: 32 bytes hold a group in their lower halves and the next in
/// their upper ones. An element is `d * scale * bits - dmin * minimum`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; COLS]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (high, low): (&[u8; 32], &[u8; 128]) = (field(block, 16), field(block, 48));
    let groups = k_groups(field(block, 4));
    for (group, (out, (scale, minimum))) in out.as_chunks_mut::<32>().0.iter_mut().zip(groups).enumerate() {
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let low: &[u8; 32] = field(low, group / 2 * 32);
        for ((value, &low), &high) in out.iter_mut().zip(low).zip(high) {
            let low = i16::from(low) >> (4 * (group % 2)) & 15;
            let bits = low | (i16::from(high) >> group & 1) << 4;
            *value = scale * f32::from(bits) - minimum;
        }
    }
}

/// `block_q6_K`: 128 bytes of the lower four bits, 64 of the upper two, 16 signed scales, `d`. A part's planes 0 and 1 lie
/// in the lower halves of 64 bytes, 2 and 3 in the upper ones. An element is `d * scale * (bits - 32)`.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; COLS]) {
    let (low, high): (&[u8; 128], &[u8; 64]) = (field(block, 0), field(block, 128));
    let (scales, d): (&[u8; 16], f32) = (field(block, 192), half(block, 208));
    for (group, Group { part, plane, side }, out) in Group::all(out) {
        let scale = d * f32::from(scales[group].cast_signed());
        let low: &[u8; 16] = field(low, part * 64 + plane % 2 * 32 + side * 16);
        let high: &[u8; 16] = field(high, part * 32 + side * 16);
        for ((value, &low), &high) in out.iter_mut().zip(low).zip(high) {
            let low = i16::from(low) >> (plane / 2 * 4) & 15;
            let bits = low | (i16::from(high) >> (2 * plane) & 3) << 4;
            *value = scale * f32::from(bits - 32);
        }
    }
}

/// `block_iq4_xs`: `d`, two bits of each group's scale, the other four, then eight groups as of `iq4_nl`. An element is
/// `d * (scale - 32) * step`.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; COLS]) {
    let (d, high) = (half(block, 0), u16::from_le_bytes(*field(block, 2)));
    let low: &[u8; 4] = field(block, 4);
    for (group, out) in out.as_chunks_mut::<{ blocks::COLS }>().0.iter_mut().enumerate() {
        let low = low[group / 2] >> (4 * (group % 2)) & 15;
        let high = (high >> (2 * group) & 3) as u8;
        let scale = (low | high << 4).cast_signed() - 32;
        steps(field(block, 8 + 16 * group), d * f32::from(scale), out);
    }
}
