//! FP8 and bf16, up to 64 weights at a time; the other formats as on AVX2.

use super::avx2::Rows;
use super::{avx2, scalar};
use crate::avx2::{Encoding, Fp8, load32, padded};
use crate::avx512::{VECTOR, load64, store_values};
use crate::{Format, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Weights that are turned together.
const STEP: usize = 4 * VECTOR;
/// What FP8 moved to the place of a half is worth less than as FP8.
const UNIT: f32 = Fp8::UNIT;

/// All of `w`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn dequantize(w: &MatrixView<'_>, mut out: MatrixMut<'_>) {
    dequantize_rows(w, 0, 0..w.cols(), &mut out);
}

/// Columns `columns` of rows of `w`, from `row` on as many as `out` has: whole blocks of the format. Rows of `out` are as long
/// at least.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn dequantize_rows<O: Rows + ?Sized>(
    w: &MatrixView<'_>,
    row: usize,
    columns: Range<usize>,
    out: &mut O,
) {
    let w = match w.format() {
        Format::Fp8 | Format::Bf16 => w.row_range(row..row + out.count()),
        _ => return avx2::dequantize_rows(w, row, columns, out),
    };
    if w.format() == Format::Bf16 {
        let bytes = w.rows_bytes(columns.clone());
        for row in 0..w.rows() {
            widen_bf16(bytes.row(row), &mut out.row_mut(row)[..columns.len()]);
        }
        return;
    }
    for rows in w.row_blocks() {
        let scales = w.row_scales(rows.start);
        for block in w.column_blocks(columns.clone()) {
            let (scale, bytes) = (scales.of(block), w.rows_bytes(block.start..block.end));
            let part = block.start - columns.start..block.end - columns.start;
            for row in rows.clone() {
                let (bytes, out) = (bytes.row(row), &mut out.row_mut(row)[part.clone()]);
                // What is infinite times the unit alone must not be.
                let has_nan = dequantize_fp8(bytes, scale * UNIT, out);
                if has_nan || !(scale * UNIT).is_finite() {
                    scalar::dequantize_block(Format::Fp8, bytes, scale, out);
                }
            }
        }
    }
}

/// FP8 elements times a factor, divided by [`UNIT`]; whether there is a NaN, which comes out as a number.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn dequantize_fp8(bytes: &[u8], factor: f32, out: &mut [f32]) -> bool {
    assert_eq!(bytes.len(), out.len(), "a value for each byte");
    let factor = _mm512_set1_ps(factor);
    let mut nan = _mm512_setzero_si512();
    let (steps, rest) = out.as_chunks_mut::<STEP>();
    let (whole, rest_bytes) = bytes.as_chunks::<STEP>();
    for (bytes, out) in whole.iter().zip(steps) {
        dequantize_step(load64(bytes), factor, out, &mut nan);
    }
    if !rest.is_empty() {
        let mut all = [0.0; STEP];
        dequantize_step(load64(&padded(rest_bytes)), factor, &mut all, &mut nan);
        rest.copy_from_slice(&all[..rest.len()]);
    }
    _mm512_cmpeq_epi8_mask(nan, _mm512_set1_epi8(-1)) != 0
}

/// By way of half precision, as [`load16`](crate::avx2::load16). Only a NaN makes 0xff of a byte of `nan`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn dequantize_step(bytes: __m512i, factor: __m512, out: &mut [f32; STEP], nan: &mut __m512i) {
    *nan = _mm512_max_epu8(*nan, _mm512_or_si512(bytes, _mm512_set1_epi8(i8::MIN)));
    let parts = [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)];
    for (part, out) in parts.into_iter().zip(out.as_chunks_mut::<{ 2 * VECTOR }>().0) {
        let shifted = _mm512_slli_epi16::<7>(_mm512_cvtepi8_epi16(part));
        let halves = _mm512_and_si512(shifted, _mm512_set1_epi16(0xbf80_u16.cast_signed()));
        let halves = [_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves)];
        for (halves, out) in halves.into_iter().zip(out.as_chunks_mut::<VECTOR>().0) {
            let values = _mm512_mul_ps(_mm512_cvtph_ps(halves), factor);
            store_values(out, values);
        }
    }
}

/// Elements of bf16.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn widen_bf16(bytes: &[u8], out: &mut [f32]) {
    let (vectors, rest) = out.as_chunks_mut::<VECTOR>();
    let (whole, rest_bytes) = bytes.as_chunks::<{ 2 * VECTOR }>();
    assert!(whole.len() == vectors.len() && rest_bytes.len() == 2 * rest.len(), "two bytes for each value");
    let widen = |bytes: &[u8; 2 * VECTOR], out: &mut [f32; VECTOR]| {
        let tops = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load32(bytes)));
        store_values(out, _mm512_castsi512_ps(tops));
    };
    for (bytes, out) in whole.iter().zip(vectors) {
        widen(bytes, out);
    }
    if !rest.is_empty() {
        let mut all = [0.0; VECTOR];
        widen(&padded(rest_bytes), &mut all);
        rest.copy_from_slice(&all[..rest.len()]);
    }
}
