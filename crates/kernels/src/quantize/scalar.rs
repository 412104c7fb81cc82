//! The specification. Plain arithmetic over fixed arrays, no fused multiply-add: what other instruction sets make of
//! it is the same, bit for bit, so that a cache does not depend on the machine that made it.

use super::q4k;
use crate::quantized::{BlockQ4K, BlockQ8_0, Q4K_COLS, Q8_0_COLS, blocks_mut};
use crate::{Format, f32_to_bf16};
use half::f16;

/// `1.5 * 2^23`: added to a number below 2^22, it leaves no bits for a fraction, so the sum is rounded to the nearest
/// integer, ties to even, which then stands in the lowest bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// `row` in `format`.
pub(crate) fn quantize_row(format: Format, row: &[f32], out: &mut [u8]) {
    quantize(format, row, out);
}

/// As [`quantize_row`], compiled into each caller for the caller's instruction set.
#[inline(always)]
pub(super) fn quantize(format: Format, row: &[f32], out: &mut [u8]) {
    match format {
        Format::F32 => {
            for (bytes, value) in out.as_chunks_mut().0.iter_mut().zip(row) {
                *bytes = value.to_le_bytes();
            }
        }
        Format::Bf16 => {
            for (bytes, &value) in out.as_chunks_mut().0.iter_mut().zip(row) {
                *bytes = f32_to_bf16(value).to_le_bytes();
            }
        }
        Format::Q8_0 => {
            for (block, values) in blocks_mut(out).iter_mut().zip(row.as_chunks().0) {
                *block = q8_0(values);
            }
        }
        Format::Q4K => {
            for (block, values) in blocks_mut::<BlockQ4K>(out).iter_mut().zip(row.as_chunks::<Q4K_COLS>().0) {
                *block = q4k::block(values);
            }
        }
        Format::Fp8 => unreachable!("FP8 has scales of its own, and no row has them"),
    }
}

/// Bit for bit what ggml's `quantize_row_q8_0_ref` gives: the scale is the largest magnitude over 127, quotients are
/// rounded half away from zero, and divide by the scale as it was before it became a half.
#[inline(always)]
fn q8_0(values: &[f32; Q8_0_COLS]) -> BlockQ8_0 {
    let mut largest = [0.0_f32; 8];
    for part in values.as_chunks::<8>().0 {
        for (largest, value) in largest.iter_mut().zip(part) {
            *largest = if value.abs() > *largest { value.abs() } else { *largest };
        }
    }
    let scale = largest.into_iter().fold(0.0_f32, f32::max) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut bytes = [0; Q8_0_COLS];
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = round_half_away(value * inverse);
    }
    BlockQ8_0 { d: f16::from_f32(scale).to_le_bytes(), values: bytes }
}

/// The nearest integer of a number between -128 and 128, half away from zero, as a signed byte.
#[inline(always)]
fn round_half_away(value: f32) -> u8 {
    let rounded = value + ROUNDER; // ties to even
    let rest = value - (rounded - ROUNDER); // exact
    let up = u32::from(value > 0.0 && rest == 0.5);
    let down = u32::from(value < 0.0 && rest == -0.5);
    rounded.to_bits().wrapping_add(up).wrapping_sub(down) as u8
}
