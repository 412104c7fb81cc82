//! Sixteen weights at a time. Bit for bit what the scalar code gives: the value is exact and rounded once by the
//! scale.

use super::scalar;
use crate::avx2::{Bf16, Encoding, F32, Fp8, LANES, fp8, half, load8, load16, padded, store, widen_int8};
use crate::quantized::{BlockQ4K, BlockQ8_0, Q4K_COLS, Q4K_GROUP, Q8_0_COLS, blocks};
use crate::{Format, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Weights converted at a time.
const STEP: usize = 2 * LANES;

/// Rows of f32 to write.
pub(crate) trait Rows {
    fn count(&self) -> usize;
    fn row_mut(&mut self, row: usize) -> &mut [f32];
}

impl Rows for MatrixMut<'_> {
    fn count(&self) -> usize {
        self.rows()
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        self.row_mut(row)
    }
}

impl<R: AsMut<[f32]>> Rows for [R] {
    fn count(&self) -> usize {
        self.len()
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        self[row].as_mut()
    }
}

/// All of `w`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dequantize(w: &MatrixView<'_>, mut out: MatrixMut<'_>) {
    dequantize_rows(w, 0, 0..w.cols(), &mut out);
}

/// Columns `columns` of rows of `w`, from `row` on as many as `out` has: whole blocks of the format. Rows of `out` are as long
/// at least.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dequantize_rows<O: Rows + ?Sized>(
    w: &MatrixView<'_>,
    row: usize,
    columns: Range<usize>,
    out: &mut O,
) {
    let rows = w.row_range(row..row + out.count());
    let bytes = rows.rows_bytes(columns.clone());
    match w.format() {
        Format::F32 => dequantize_as::<F32, O>(&rows, columns, out),
        Format::Bf16 => dequantize_as::<Bf16, O>(&rows, columns, out),
        Format::Fp8 => dequantize_as::<Fp8, O>(&rows, columns, out),
        Format::Q8_0 => {
            for row in 0..rows.rows() {
                let blocks = blocks(bytes.row(row));
                for (out, block) in out.row_mut(row).as_chunks_mut().0.iter_mut().zip(blocks) {
                    dequantize_q8_0(block, out);
                }
            }
        }
        Format::Q4K => {
            for row in 0..rows.rows() {
                let blocks = blocks(bytes.row(row));
                for (out, block) in out.row_mut(row).as_chunks_mut().0.iter_mut().zip(blocks) {
                    dequantize_q4k(block, out);
                }
            }
        }
    }
}

/// Columns of all rows of a matrix that is stored as `E`. Blocks of scales are looked for once for all rows: that takes
/// divisions.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dequantize_as<E: Encoding, O: Rows + ?Sized>(w: &MatrixView<'_>, columns: Range<usize>, out: &mut O) {
    let (mut nan, mut all_finite) = (_mm256_setzero_si256(), true);
    for rows in w.row_blocks() {
        let scales = w.row_scales(rows.start);
        for block in w.column_blocks(columns.clone()) {
            let factor = scales.of(block) * unit::<E>();
            all_finite &= factor.is_finite();
            let bytes = w.rows_bytes(block.start..block.end);
            for row in rows.clone() {
                let out = &mut out.row_mut(row)[block.start - columns.start..block.end - columns.start];
                nan = dequantize_block::<E>(bytes.row(row), factor, out, nan);
            }
        }
    }
    // A NaN was taken for a number, or a scale is so large that times the unit it is none, 2^8 or more, which would let
    // weights of 10^5 be: both are rare enough to start over.
    if E::FORMAT == Format::Fp8 && (fp8::saw_nan(nan) || !all_finite) {
        for row in 0..w.rows() {
            scalar::dequantize_part(w, row, columns.start, &mut out.row_mut(row)[..columns.len()]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dequantize_q8_0(block: &BlockQ8_0, out: &mut [f32; Q8_0_COLS]) {
    let scale = _mm256_set1_ps(half(block.d));
    for (out, bytes) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(block.values.as_chunks().0) {
        store(out, _mm256_mul_ps(widen_int8(bytes), scale));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dequantize_q4k(block: &BlockQ4K, out: &mut [f32; Q4K_COLS]) {
    let (d, dmin) = (half(block.d), half(block.dmin));
    let groups = block.groups();
    let (pairs, _) = out.as_chunks_mut::<{ 2 * Q4K_GROUP }>();
    for (pair, out) in pairs.iter_mut().enumerate() {
        let factor = |group: usize| {
            let (scale, minimum) = groups[2 * pair + group];
            (_mm256_set1_ps(d * f32::from(scale)), _mm256_set1_ps(dmin * f32::from(minimum)))
        };
        let factors = [factor(0), factor(1)];
        let bytes = block.values[pair * Q4K_GROUP..][..Q4K_GROUP].as_chunks().0;
        for (number, bytes) in bytes.iter().enumerate() {
            let both = _mm256_cvtepu8_epi32(load8(bytes));
            let halves = [_mm256_and_si256(both, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(both)];
            for (group, bits) in halves.into_iter().enumerate() {
                let (scale, minimum) = factors[group];
                let out = out[group * Q4K_GROUP + number * LANES..].first_chunk_mut().expect("a group");
                store(out, _mm256_sub_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(bits), scale), minimum));
            }
        }
    }
}

/// Elements that share a scale. Gives `nan` with what was met of NaN added.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dequantize_block<E: Encoding>(bytes: &[u8], factor: f32, out: &mut [f32], mut nan: __m256i) -> __m256i {
    assert_eq!(bytes.len(), out.len() * E::BYTES, "bytes of {} elements", out.len());
    let (steps, rest) = out.as_chunks_mut::<STEP>();
    let (weights, rest_bytes) = bytes.split_at(steps.len() * STEP * E::BYTES);
    for (weights, out) in weights.chunks_exact(STEP * E::BYTES).zip(steps) {
        // SAFETY: the chunk holds `STEP` elements.
        nan = unsafe { dequantize_step::<E>(weights.as_ptr(), factor, out, nan) };
    }
    if !rest.is_empty() {
        let weights: [u8; STEP * size_of::<f32>()] = padded(rest_bytes);
        let mut all = [0.0; STEP];
        // SAFETY: the buffer holds `STEP` elements of the widest format.
        nan = unsafe { dequantize_step::<E>(weights.as_ptr(), factor, &mut all, nan) };
        rest.copy_from_slice(&all[..rest.len()]);
    }
    nan
}

/// What the values that [`dequantize_step`] multiplies by the scale are multiplied by, too.
const fn unit<E: Encoding>() -> f32 {
    match E::FORMAT {
        Format::Fp8 => fp8::FIELDS_UNIT,
        _ => E::UNIT,
    }
}

/// Sixteen bytes, each to the top of a double word.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fp8_tops(both: __m256i) -> [__m256i; 2] {
    let places = |first: i8| {
        let word = |byte: i8| i32::from_le_bytes([-1_i8, -1, -1, byte].map(i8::cast_unsigned));
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|byte| word(first + byte as i8));
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    };
    [_mm256_shuffle_epi8(both, places(0)), _mm256_shuffle_epi8(both, places(8))]
}

/// Gives `nan` with what was met of NaN added.
///
/// # Safety
/// `weights` points to `STEP` readable elements.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn dequantize_step<E: Encoding>(
    weights: *const u8,
    factor: f32,
    out: &mut [f32; STEP],
    mut nan: __m256i,
) -> __m256i {
    let values = if E::FORMAT == Format::Fp8 {
        // SAFETY: `STEP` elements of FP8 are 16 bytes; the load needs no alignment.
        let bytes = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(weights.cast()) });
        nan = fp8::watch_nan(nan, bytes);
        let factor = _mm256_set1_ps(factor);
        fp8_tops(bytes).map(|tops| _mm256_mul_ps(fp8::fields(_mm256_srai_epi32::<4>(tops)), factor))
    } else {
        // SAFETY: what the caller promises is what `load16` asks for.
        unsafe { load16::<E>(weights) }
    };
    // SAFETY: `out` holds two vectors; the stores need no alignment.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), values[0]);
        _mm256_storeu_ps(out.as_mut_ptr().add(LANES), values[1]);
    }
    nan
}
