//! Weights as unsigned bytes: of `q4_K` as they are, of signed ones 128 more.

use super::tile::{BLOCKS, Row};
use crate::avx2::{half, load32, store32, whole};
use crate::avx512::{load64, store64};
use crate::integers::BLOCK;
use crate::matmul_integer::avx2::q4k::factors_and_offsets;
use crate::matmul_integer::{FP8_GROUP, LEAST_EXPONENT, group_scales};
use crate::quantized::{BlockQ4K, BlockQ8_0, Q4K_GROUPS, blocks};
use crate::{Format, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Bytes of a vector: two blocks.
pub(super) const VECTOR: usize = 2 * BLOCK;
/// Vectors of a row.
pub(super) const VECTORS: usize = BLOCKS / 2;
/// Groups of a row of FP8.
pub(super) const GROUPS: usize = VECTORS / GROUP_VECTORS;
const _: () = assert!(GROUPS == 4, "a factor for each fills a vector of four");
/// Vectors of a group.
pub(super) const GROUP_VECTORS: usize = FP8_GROUP / VECTOR;
/// Vectors of a block of `q4_K`.
const Q4K_VECTORS: usize = Q4K_GROUPS / 2;

/// Fills in columns of the rows of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub(super) fn fill<const MINIMA: bool, const SPAN: usize, const BESIDE: usize>(
    w: &MatrixView<'_>,
    columns: Range<usize>,
    out: &mut [Row<MINIMA, SPAN, BESIDE>],
) {
    if w.format() == Format::Fp8 {
        return fill_fp8(w, columns, out);
    }
    let bytes = w.rows_bytes(columns);
    for (row, out) in out.iter_mut().enumerate() {
        match w.format() {
            Format::Q8_0 => out.set_q8_0(blocks(bytes.row(row))),
            Format::Q4K => out.set_q4k(blocks(bytes.row(row))),
            other => unreachable!("{other} has no integer product"),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn fill_fp8<const MINIMA: bool, const SPAN: usize, const BESIDE: usize>(
    w: &MatrixView<'_>,
    columns: Range<usize>,
    out: &mut [Row<MINIMA, SPAN, BESIDE>],
) {
    let bytes = w.rows_bytes(columns.clone());
    for rows in w.row_blocks() {
        let scales = group_scales(w, rows.start, &columns);
        for r in rows {
            out[r].set_fp8(bytes.row(r), &scales);
        }
    }
}

impl<const MINIMA: bool, const SPAN: usize, const BESIDE: usize> Row<MINIMA, SPAN, BESIDE> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    #[inline]
    fn set_q8_0(&mut self, weights: &[BlockQ8_0]) {
        let blocks = self.values.iter_mut().zip(&mut self.scales);
        for (weights, (values, scale)) in weights.iter().zip(blocks) {
            let unsigned = _mm256_xor_si256(load32(&weights.values), _mm256_set1_epi8(i8::MIN));
            store32(values, unsigned);
            *scale = half(weights.d);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    #[inline]
    fn set_q4k(&mut self, weights: &[BlockQ4K]) {
        let groups =
            self.values.as_flattened_mut().as_chunks_mut::<VECTOR>().0.as_chunks_mut::<Q4K_VECTORS>().0;
        let scales = self.scales.as_chunks_mut::<Q4K_GROUPS>().0;
        let minima = self.minima.as_chunks_mut::<Q4K_GROUPS>().0;
        for (block, weights) in weights.iter().enumerate() {
            for (bytes, groups) in weights.values.as_chunks().0.iter().zip(&mut groups[block]) {
                // A group in the lower halves of bytes, the next in the upper ones.
                let bytes = load32(bytes);
                let both =
                    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bytes), _mm256_srli_epi16::<4>(bytes));
                store64(groups, _mm512_and_si512(both, _mm512_set1_epi8(15)));
            }
            let [factors, offsets] = factors_and_offsets(weights);
            crate::avx2::store(&mut scales[block], factors);
            crate::avx2::store(&mut minima[block], offsets);
        }
    }

    /// Each group in steps of its own. Columns that a shorter row does not have become zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    #[inline]
    fn set_fp8(&mut self, bytes: &[u8], scales: &[f32; GROUPS]) {
        let mut end = None;
        let (values, steps) = fp8_in_steps(whole(bytes, &mut end));
        for (to, values) in self.values.as_flattened_mut().as_chunks_mut().0.iter_mut().zip(values) {
            store64(to, values);
        }
        // SAFETY: a reference to four f32, and an exclusive one to more; neither needs alignment.
        unsafe {
            let scales = _mm_mul_ps(steps, _mm_loadu_ps(scales.as_ptr()));
            _mm_storeu_ps(self.scales.as_mut_ptr(), scales);
        }
    }
}

/// Some columns of FP8 in the steps of each group, and 128 more; and what one is worth, in units of the group's scale.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
#[inline]
pub(super) fn fp8_in_steps(bytes: &[u8; BLOCKS * BLOCK]) -> ([__m512i; VECTORS], __m128) {
    let mut signed = [_mm512_setzero_si512(); VECTORS];
    // 128 less, as signed bytes: what would be negative when it is raised becomes the least of them, which is zero.
    let mut magnitudes = [_mm512_setzero_si512(); VECTORS];
    for (vector, bytes) in bytes.as_chunks().0.iter().enumerate() {
        signed[vector] = load64(bytes);
        magnitudes[vector] = _mm512_or_si512(signed[vector], _mm512_set1_epi8(i8::MIN));
    }
    let (raised, steps) = raise(largest(magnitudes));
    let mut unsigned = [_mm512_setzero_si512(); VECTORS];
    for (vector, unsigned) in unsigned.iter_mut().enumerate() {
        let place = 4 * (vector / GROUP_VECTORS);
        let raised = _mm512_shuffle_epi8(raised, _mm512_set1_epi8(place as i8));
        let above = in_steps(_mm512_adds_epi8(magnitudes[vector], raised));
        let negative = _mm512_movepi8_mask(signed[vector]);
        *unsigned = _mm512_mask_sub_epi8(above, negative, _mm512_setzero_si512(), above);
    }
    (unsigned, steps)
}

/// The largest byte of each group as double words, the same in each quarter of the vector.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn largest(vectors: [__m512i; VECTORS]) -> __m512i {
    let eights =
        |one, other| _mm512_max_epu8(_mm512_unpacklo_epi64(one, other), _mm512_unpackhi_epi64(one, other));
    let fours = |one, other| {
        let (one, other) = (_mm512_castsi512_ps(one), _mm512_castsi512_ps(other));
        let lower = _mm512_shuffle_ps::<0b10_00_10_00>(one, other);
        let upper = _mm512_shuffle_ps::<0b11_01_11_01>(one, other);
        _mm512_max_epu8(_mm512_castps_si512(lower), _mm512_castps_si512(upper))
    };
    let mut groups = [_mm512_setzero_si512(); GROUPS];
    for (group, vectors) in groups.iter_mut().zip(vectors.as_chunks::<GROUP_VECTORS>().0) {
        *group = _mm512_max_epu8(vectors[0], vectors[1]);
    }
    let quarters = fours(eights(groups[0], groups[1]), eights(groups[2], groups[3]));
    let halves = _mm512_max_epu8(quarters, _mm512_shuffle_i64x2::<0b10_11_00_01>(quarters, quarters));
    let fours = _mm512_max_epu8(halves, _mm512_shuffle_i64x2::<0b01_00_11_10>(halves, halves));
    let twos = _mm512_max_epu8(fours, _mm512_srli_epi32::<16>(fours));
    let ones = _mm512_max_epu8(twos, _mm512_srli_epi32::<8>(twos));
    _mm512_and_si512(ones, _mm512_set1_epi32(0xff))
}

/// From the largest magnitude of each group, its sign set, as [`largest`] gives them: what its bytes are raised by so that the
/// largest exponent becomes 15, less [`LOWEST`], and what one is worth then, [`fp8_step`](crate::matmul_integer::fp8_step).
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn raise(largest: __m512i) -> (__m512i, __m128) {
    const MOST: i32 = 15 << 3;
    const MOST_RAISED: i32 = MOST - ((LEAST_EXPONENT as i32) << 3);
    // An exponent, bit 3 of a byte onwards, of 15 has steps of 2^2. Steps in f32 have theirs from bit 23 on.
    const STEP: i32 = (127 + 2) << 3;
    let exponents = _mm512_and_si512(largest, _mm512_set1_epi32(MOST));
    let raised = _mm512_sub_epi32(_mm512_set1_epi32(MOST - LOWEST), exponents);
    let raised = _mm512_min_epi32(raised, _mm512_set1_epi32(MOST_RAISED - LOWEST));
    let steps = _mm512_slli_epi32::<{ 23 - 3 }>(_mm512_sub_epi32(_mm512_set1_epi32(STEP - LOWEST), raised));
    let nan = _mm512_cmpeq_epi32_mask(largest, _mm512_set1_epi32(0xff));
    let steps = _mm512_mask_mov_epi32(steps, nan, _mm512_set1_epi32(-1));
    (raised, _mm512_castps512_ps128(_mm512_castsi512_ps(steps)))
}

/// The least raised magnitude that is not zero in steps: those of exponent 8 and more are not.
const LOWEST: i32 = 8 << 3;

/// What a raised magnitude of FP8, less [`LOWEST`], is in steps, and 128 more: of exponents 12 to 15
/// `(8 + mantissa) << (exponent - 12)`, of those from 8 on that divided by powers of two and rounded to even. The two upper bits
/// of a byte say nothing.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn in_steps(raised: __m512i) -> __m512i {
    /// From exponent 8 on.
    const STEPS: [u8; 64] = [
        0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, //
        2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8, //
        8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30, //
        32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 88, 96, 104, 112, 120,
    ];
    static ABOVE: [u8; 64] = {
        let mut above = STEPS;
        let mut place = 0;
        while place < above.len() {
            above[place] += 128;
            place += 1;
        }
        above
    };
    _mm512_permutexvar_epi8(raised, load64(&ABOVE))
}
