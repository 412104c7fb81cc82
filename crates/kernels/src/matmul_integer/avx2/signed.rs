//! Weights of 8 bits taken apart into magnitudes and signs: `q8_0` as it is, FP8 in the steps of its groups.

use crate::avx2::{half, load16_bytes, load32, store32, whole};
use crate::integers::BLOCK;
use crate::lanes::avx2::RowsAhead;
use crate::matmul_integer::{FP8_GROUP, FP8_SPAN, fp8_exponent, fp8_step, group_scales};
use crate::quantized::{BlockQ8_0, blocks};
use crate::{Format, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Pairs of columns in a block.
pub(super) const PAIRS: usize = BLOCK / 2;
/// Blocks of a row that are taken apart together: a group of FP8.
pub(super) const BLOCKS: usize = FP8_SPAN;
/// Rows between the one that is taken apart and the one that memory is asked for: of the 128 columns of a panel memory takes
/// longer than a row.
const AHEAD: usize = 8;

/// A block of a row.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Block {
    /// Each pair of columns twice: four bytes, as they are broadcast.
    pub(super) magnitudes: [[u8; 4]; PAIRS],
    /// What [`place`] says of each pair.
    places: [u8; PAIRS],
    /// What one is worth.
    pub(super) scale: f32,
}

/// Some blocks of a row.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Row(pub(super) [Block; BLOCKS]);

/// Bytes from the tokens of one pair of signs to those of the next.
pub(super) const PLACE: usize = 32;

/// Where the tokens of a pair of columns lie that have the signs of its weights: after those of `+ +`, `- +`, `+ -` and
/// `- -`. Every other pair is subtracted, so it takes both signs otherwise.
const fn place(pair: usize, signs: usize) -> usize {
    PLACE * if pair.is_multiple_of(2) { signs } else { 3 - signs }
}

impl Block {
    const EMPTY: Self = Self { magnitudes: [[0; 4]; PAIRS], places: [0; PAIRS], scale: 0.0 };

    /// Where tokens lie that have the signs of a pair of weights: a multiple of [`PLACE`], three times it at most.
    #[inline]
    pub(super) fn place(&self, pair: usize) -> usize {
        usize::from(self.places[pair])
    }

    /// Fills it in but for the scale; the sign is the upper bit of each byte of `signs`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn set(&mut self, magnitudes: __m256i, signs: __m256i) {
        // Pairs 0 to 3 and 8 to 11 in the lower halves, as the unpacking takes them.
        let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(magnitudes);
        let twice = [_mm256_unpacklo_epi16(pairs, pairs), _mm256_unpackhi_epi16(pairs, pairs)];
        for (to, pairs) in self.magnitudes.as_flattened_mut().as_chunks_mut().0.iter_mut().zip(twice) {
            store32(to, pairs);
        }
        let bits = _mm256_and_si256(_mm256_srli_epi16::<7>(signs), _mm256_set1_epi8(1));
        let weights = i16::from_le_bytes([place(0, 1) as u8, place(0, 2) as u8]);
        let places = _mm256_maddubs_epi16(bits, _mm256_set1_epi16(weights));
        let places = _mm256_xor_si256(places, _mm256_set1_epi32((place(1, 0) << 16) as i32));
        let bytes = _mm_packus_epi16(_mm256_castsi256_si128(places), _mm256_extracti128_si256::<1>(places));
        // SAFETY: an exclusive reference to sixteen bytes; the store needs no alignment.
        unsafe { _mm_storeu_si128(self.places.as_mut_ptr().cast(), bytes) }
    }
}

impl Row {
    pub(super) const EMPTY: Self = Self([Block::EMPTY; BLOCKS]);
}

/// What to ask memory for while a panel is filled in: rows of it, then the first ones of the next panel.
#[derive(Clone, Copy)]
struct Ahead {
    rows: usize,
    here: RowsAhead,
    next: RowsAhead,
}

impl Ahead {
    /// While row `number` of the panel is taken apart.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn request(self, number: usize) {
        let later = number + AHEAD;
        match later < self.rows {
            true => self.here.below(later).request::<_MM_HINT_T1, 1>(0),
            false => self.next.below(later - self.rows).request::<_MM_HINT_T1, 1>(0),
        }
    }
}

/// Fills in columns of the rows of `w`, `q8_0` or FP8, and asks memory for what comes next.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fill(w: &MatrixView<'_>, columns: Range<usize>, next: RowsAhead, out: &mut [Row]) {
    let here = RowsAhead::at(w, (0, columns.start), BLOCKS * BLOCK);
    let ahead = Ahead { rows: w.rows(), here, next };
    match w.format() {
        Format::Q8_0 => fill_q8_0(w, columns, ahead, out),
        Format::Fp8 => fill_fp8(w, columns, ahead, out),
        other => unreachable!("{other} has no signs of its own"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fill_q8_0(w: &MatrixView<'_>, columns: Range<usize>, ahead: Ahead, out: &mut [Row]) {
    let bytes = w.rows_bytes(columns);
    for (row, out) in out.iter_mut().enumerate() {
        ahead.request(row);
        let weights: &[BlockQ8_0] = blocks(bytes.row(row));
        for (weights, out) in weights.iter().zip(&mut out.0) {
            let bytes = load32(&weights.values);
            out.set(_mm256_abs_epi8(bytes), bytes);
            out.scale = half(weights.d);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fill_fp8(w: &MatrixView<'_>, columns: Range<usize>, ahead: Ahead, out: &mut [Row]) {
    let bytes = w.rows_bytes(columns.clone());
    for rows in w.row_blocks() {
        let [scale] = group_scales(w, rows.start, &columns);
        for r in rows {
            ahead.request(r);
            let mut end = None;
            fill_fp8_group(whole(bytes.row(r), &mut end), scale, &mut out[r].0);
        }
    }
}

/// A group, which has steps of its own.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fill_fp8_group(bytes: &[u8; FP8_GROUP], scale: f32, out: &mut [Block; BLOCKS]) {
    let mut signed = [_mm256_setzero_si256(); BLOCKS];
    let mut magnitudes = [_mm256_setzero_si256(); BLOCKS];
    for (block, bytes) in bytes.as_chunks().0.iter().enumerate() {
        signed[block] = load32(bytes);
        magnitudes[block] = _mm256_and_si256(signed[block], _mm256_set1_epi8(0x7f));
    }
    let largest = largest(magnitudes);
    // The largest exponent becomes 15.
    let raised = _mm256_set1_epi8(((15 - fp8_exponent(largest)) << 3).cast_signed());
    let scale = scale * fp8_step(&[largest]).unwrap_or(f32::NAN);
    for block in 0..BLOCKS {
        out[block].set(in_steps(magnitudes[block], raised), signed[block]);
        out[block].scale = scale;
    }
}

/// The largest byte.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest([a, b, c, d]: [__m256i; BLOCKS]) -> u8 {
    let all = _mm256_max_epu8(_mm256_max_epu8(a, b), _mm256_max_epu8(c, d));
    let sixteen = _mm_max_epu8(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    let eight = _mm_max_epu8(sixteen, _mm_srli_si128::<8>(sixteen));
    let four = _mm_max_epu8(eight, _mm_srli_si128::<4>(eight));
    let two = _mm_max_epu8(four, _mm_srli_si128::<2>(four));
    _mm_extract_epi8::<0>(_mm_max_epu8(two, _mm_srli_si128::<1>(two))) as u8
}

/// Magnitudes of FP8 in steps: of exponents 12 to 15 `(8 + mantissa) << (exponent - 12)`, of those from 8 on that divided by
/// powers of two and rounded to even, of all below 0.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn in_steps(magnitudes: __m256i, raised: __m256i) -> __m256i {
    let table = |values| _mm256_broadcastsi128_si256(load16_bytes(&values));
    // By the lower four of six bits that are left of an exponent and a mantissa once 8 has been taken from the exponent.
    let tables = [
        table([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]),
        table([2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8]),
        table([8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30]),
        table([32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 88, 96, 104, 112, 120]),
    ];
    let index = _mm256_subs_epu8(_mm256_add_epi8(magnitudes, raised), _mm256_set1_epi8(8 << 3));
    let values = tables.map(|table| _mm256_shuffle_epi8(table, index));
    // The upper two bits, where the blend looks for them.
    let (fifth, sixth) = (_mm256_slli_epi16::<3>(index), _mm256_slli_epi16::<2>(index));
    let lower = _mm256_blendv_epi8(values[0], values[1], fifth);
    let upper = _mm256_blendv_epi8(values[2], values[3], fifth);
    _mm256_blendv_epi8(lower, upper, sixth)
}
