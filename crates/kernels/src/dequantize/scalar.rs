//! The specification: the value of an element is its stored value times its block's scale.

use crate::quantized::{BlockQ4K, BlockQ8_0, Q4K_COLS, Q4K_GROUP, Q8_0_COLS, blocks};
use crate::{Format, MatrixMut, MatrixView, bf16_to_f32, fp8_e4m3_to_f32};

/// All of `w`.
pub(crate) fn dequantize(w: &MatrixView<'_>, mut out: MatrixMut<'_>) {
    for row in 0..w.rows() {
        dequantize_part(w, row, 0, out.row_mut(row));
    }
}

/// Columns `first..first + out.len()` of row `row` of `w`: whole blocks of the format.
pub(crate) fn dequantize_part(w: &MatrixView<'_>, row: usize, first: usize, out: &mut [f32]) {
    let scales = w.row_scales(row);
    for block in w.column_blocks(first..first + out.len()) {
        let out = &mut out[block.start - first..block.end - first];
        dequantize_block(w.format(), w.row_bytes(row, block.start..block.end), scales.of(block), out);
    }
}

/// Elements that share a scale; the scale is 1 unless the format is FP8.
pub(crate) fn dequantize_block(format: Format, bytes: &[u8], scale: f32, out: &mut [f32]) {
    match format {
        Format::F32 => {
            for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(bytes);
            }
        }
        Format::Bf16 => {
            for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16_to_f32(u16::from_le_bytes(bytes));
            }
        }
        Format::Fp8 => {
            for (value, &byte) in out.iter_mut().zip(bytes) {
                *value = fp8_e4m3_to_f32(byte) * scale;
            }
        }
        Format::Q8_0 => {
            for (out, block) in out.chunks_exact_mut(Q8_0_COLS).zip(blocks::<BlockQ8_0>(bytes)) {
                let scale = block.scale();
                for (value, byte) in out.iter_mut().zip(block.values) {
                    *value = f32::from(byte.cast_signed()) * scale;
                }
            }
        }
        Format::Q4K => {
            for (out, block) in out.chunks_exact_mut(Q4K_COLS).zip(blocks::<BlockQ4K>(bytes)) {
                dequantize_q4k(block, out);
            }
        }
    }
}

/// Rounded once, in the difference: a half times 6 bits times 4 bits is exact in f32.
fn dequantize_q4k(block: &BlockQ4K, out: &mut [f32]) {
    let (d, dmin) = block.factors();
    for (group, (out, (scale, minimum))) in out.chunks_exact_mut(Q4K_GROUP).zip(block.groups()).enumerate() {
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (value, bits) in out.iter_mut().zip(block.bits(group)) {
            *value = scale * f32::from(bits) - minimum;
        }
    }
}
