//! Sixteen weights at a time. Bit for bit what the scalar code gives: the value is exact and rounded once by the
//! scale.

use crate::avx2::{Bf16, Encoding, F32, Fp8, LANES, load16_with_nan, padded};
use crate::{Format, MatrixView};
use std::arch::x86_64::*;

/// Weights converted at a time.
const STEP: usize = 2 * LANES;

/// Row `row` of `w`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dequantize_row(w: &MatrixView<'_>, row: usize, out: &mut [f32]) {
    match w.format() {
        Format::F32 => dequantize::<F32>(w, row, 0, out),
        Format::Bf16 => dequantize::<Bf16>(w, row, 0, out),
        Format::Fp8 => dequantize::<Fp8>(w, row, 0, out),
    }
}

/// Columns `first..first + out.len()` of row `row` of `w`, which is stored as `E`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dequantize<E: Encoding>(w: &MatrixView<'_>, row: usize, first: usize, out: &mut [f32]) {
    let scales = w.row_scales(row);
    for block in w.column_blocks(first..first + out.len()) {
        let out = &mut out[block.start - first..block.end - first];
        dequantize_block::<E>(w.row_bytes(row, block.start..block.end), scales.of(block), out);
    }
}

/// Elements that share a scale.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dequantize_block<E: Encoding>(bytes: &[u8], scale: f32, out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * E::BYTES, "bytes of {} elements", out.len());
    let (steps, rest) = out.as_chunks_mut::<STEP>();
    let (weights, rest_bytes) = bytes.split_at(steps.len() * STEP * E::BYTES);
    for (weights, out) in weights.chunks_exact(STEP * E::BYTES).zip(steps) {
        // SAFETY: the chunk holds `STEP` elements.
        unsafe { dequantize_step::<E>(weights.as_ptr(), scale, out) };
    }
    if !rest.is_empty() {
        let weights: [u8; STEP * size_of::<f32>()] = padded(rest_bytes);
        let mut all = [0.0; STEP];
        // SAFETY: the buffer holds `STEP` elements of the widest format.
        unsafe { dequantize_step::<E>(weights.as_ptr(), scale, &mut all) };
        rest.copy_from_slice(&all[..rest.len()]);
    }
}

/// # Safety
/// `weights` points to `STEP` readable elements.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn dequantize_step<E: Encoding>(weights: *const u8, scale: f32, out: &mut [f32; STEP]) {
    // SAFETY: what the caller promises is what `load16_with_nan` asks for.
    let mut values = unsafe { load16_with_nan::<E>(weights) };
    if E::FORMAT == Format::Fp8 {
        // Two products, because a scale times UNIT may overflow where the value does not.
        let [unit, scale] = [_mm256_set1_ps(E::UNIT), _mm256_set1_ps(scale)];
        values = values.map(|value| _mm256_mul_ps(_mm256_mul_ps(value, unit), scale));
    }
    // SAFETY: `out` holds two vectors; the stores need no alignment.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), values[0]);
        _mm256_storeu_ps(out.as_mut_ptr().add(LANES), values[1]);
    }
}
