//! `q4_K`, its bits a byte each.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::q4k::{nibbles, scales_and_minima};
use crate::avx2::{LANES, in_order, load, load16_bytes, load32, store};
use crate::integers::BLOCK;
use crate::quantized::{BlockQ4K, Q4K_COLS, Q4K_GROUPS, blocks};
use crate::{IntegerRef, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a panel: the lanes of a vector of sums.
pub(super) const ROWS: usize = LANES;
/// Four neighbouring columns: what a vector holds of each row.
const FOURS: usize = BLOCK / 4;

/// Four columns of each row.
type Fours = [u8; 4 * ROWS];

/// A block of each of eight rows, 2 kB, and what its values are worth.
#[repr(align(64))]
pub(super) struct Panel {
    groups: [[Fours; FOURS]; Q4K_GROUPS],
    /// By group and row, twice: a factor for each of two neighbours of 16 bits.
    scales: [[i16; 2 * ROWS]; Q4K_GROUPS],
    /// By group and row: `-dmin` times the minimum.
    minima: [[f32; ROWS]; Q4K_GROUPS],
    /// By row.
    d: [f32; ROWS],
}

impl Panel {
    /// One without weights.
    pub(super) fn new() -> Self {
        Self {
            groups: [[[0; 4 * ROWS]; FOURS]; Q4K_GROUPS],
            scales: [[0; 2 * ROWS]; Q4K_GROUPS],
            minima: [[0.0; ROWS]; Q4K_GROUPS],
            d: [0.0; ROWS],
        }
    }

    /// Fills in a block's columns `columns` of rows `row..row + ROWS`; where the matrix has ended, any values.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn pack(&mut self, w: &MatrixView<'_>, row: usize, columns: Range<usize>) {
        let block = |r: usize| &blocks(w.row_bytes((row + r).min(w.rows() - 1), columns.clone()))[0];
        let mut rows: [&BlockQ4K; ROWS] = [block(0); ROWS];
        for r in 1..ROWS {
            rows[r] = block(r);
        }
        self.pack_values(rows);
        self.pack_scales(rows);
    }

    /// The products of the columns of `V` panels with tokens `token..token + T`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(super) fn multiply<const V: usize, const T: usize>(
        panels: &[Self; V],
        columns: Range<usize>,
        x: IntegerRef<'_>,
        token: usize,
    ) -> [[__m256; T]; V] {
        let block = columns.start / Q4K_COLS;
        let values_of = |t: usize| &x.int8(token + t).as_chunks::<Q4K_GROUPS>().0[block];
        let scales_of = |t: usize| &x.scales(token + t).as_chunks::<Q4K_GROUPS>().0[block];
        let sums_of = |t: usize| &x.sums(token + t).as_chunks::<Q4K_GROUPS>().0[block];
        let (mut values, mut scales, mut sums) = ([values_of(0); T], [scales_of(0); T], [sums_of(0); T]);
        for t in 1..T {
            (values[t], scales[t], sums[t]) = (values_of(t), scales_of(t), sums_of(t));
        }
        let mut totals = [[_mm256_setzero_ps(); T]; V];
        for group in 0..Q4K_GROUPS {
            let (mut weights, mut inputs) = ([&panels[0].groups[group]; V], [&values[0][group]; T]);
            for v in 1..V {
                weights[v] = &panels[v].groups[group];
            }
            for t in 1..T {
                inputs[t] = &values[t][group];
            }
            let products = group_sums::<V, T>(weights, inputs);
            for t in 0..T {
                let x_scale = _mm256_set1_ps(scales[t][group]);
                for v in 0..V {
                    let scaled = _mm256_madd_epi16(products[v][t], load_scales(&panels[v].scales[group]));
                    totals[v][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(scaled), x_scale, totals[v][t]);
                }
            }
        }
        for v in 0..V {
            let d = load(&panels[v].d);
            for t in 0..T {
                totals[v][t] = _mm256_mul_ps(totals[v][t], d);
            }
        }
        for group in 0..Q4K_GROUPS {
            for t in 0..T {
                let x_sum = _mm256_set1_ps(sums[t][group]);
                for v in 0..V {
                    totals[v][t] = _mm256_fmadd_ps(load(&panels[v].minima[group]), x_sum, totals[v][t]);
                }
            }
        }
        totals
    }

    /// Bits of two groups lie in one byte and stay together while rows are interleaved.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn pack_values(&mut self, rows: [&BlockQ4K; ROWS]) {
        for (pair, groups) in self.groups.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            for half in 0..2 {
                let fours = fours_of_rows(rows, 2 * pair + half);
                for i in 0..fours.len() {
                    let bits = nibbles(fours[i]);
                    store32(&mut groups[0][4 * half + i], bits[0]);
                    store32(&mut groups[1][4 * half + i], bits[1]);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn pack_scales(&mut self, rows: [&BlockQ4K; ROWS]) {
        let (mut scales, mut minima, mut factors) = ([0; ROWS], [0; ROWS], [0; ROWS]);
        for r in 0..ROWS {
            let BlockQ4K { d: [d0, d1], dmin: [dmin0, dmin1], .. } = *rows[r];
            (scales[r], minima[r]) = scales_and_minima(rows[r]);
            factors[r] = u32::from_le_bytes([d0, d1, dmin0, dmin1]);
        }
        let (scales, minima) = (by_group(scales), by_group(minima));
        // SAFETY: eight numbers of 32 bits are a load of 32 bytes, which needs no alignment.
        let factors = unsafe { _mm256_loadu_si256(factors.as_ptr().cast()) };
        store(&mut self.d, lower_halves(factors));
        let dmin = lower_halves(_mm256_srli_epi32::<16>(factors));
        let minus_dmin = _mm256_sub_ps(_mm256_setzero_ps(), dmin);
        for group in 0..Q4K_GROUPS {
            let scale = _mm256_cvtepu8_epi32(scales[group]);
            let twice = _mm256_or_si256(scale, _mm256_slli_epi32::<16>(scale));
            // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
            unsafe { _mm256_storeu_si256(self.scales[group].as_mut_ptr().cast(), twice) }
            let minimum = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(minima[group]));
            store(&mut self.minima[group], _mm256_mul_ps(minimum, minus_dmin));
        }
    }
}

/// The products of a group of columns, two neighbours for each row: 16 products of at most 15 * 127 each.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn group_sums<const V: usize, const T: usize>(
    weights: [&[Fours; FOURS]; V],
    x: [&[i8; BLOCK]; T],
) -> [[__m256i; T]; V] {
    let mut sums = [[_mm256_setzero_si256(); T]; V];
    for four in 0..FOURS {
        let mut inputs = [_mm256_setzero_si256(); T];
        for t in 0..T {
            inputs[t] = broadcast_four(x[t], four);
        }
        for v in 0..V {
            let weights = load32(&weights[v][four]);
            for t in 0..T {
                sums[v][t] = in_order(_mm256_add_epi16(sums[v][t], _mm256_maddubs_epi16(weights, inputs[t])));
            }
        }
    }
    sums
}

/// Four neighbouring columns in every lane of 32 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn broadcast_four(x: &[i8; BLOCK], four: usize) -> __m256i {
    let (fours, _) = x.as_chunks::<4>();
    // SAFETY: a reference to four bytes, any of which are an i32; the read needs no alignment.
    _mm256_set1_epi32(unsafe { fours[four].as_ptr().cast::<i32>().read_unaligned() })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_scales(scales: &[i16; 2 * ROWS]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store32(bytes: &mut [u8; 32], vector: __m256i) {
    // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
}

/// Bytes `16 * part..16 * part + 16` of the values of all rows, four of each row in each vector.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fours_of_rows(rows: [&BlockQ4K; ROWS], part: usize) -> [__m256i; 4] {
    let mut parts = [&rows[0].values.as_chunks::<16>().0[part]; ROWS];
    for r in 1..ROWS {
        parts[r] = &rows[r].values.as_chunks::<16>().0[part];
    }
    let pairs = rows_side_by_side(parts);
    let (one, other) = (
        [_mm256_unpacklo_epi32(pairs[0], pairs[1]), _mm256_unpackhi_epi32(pairs[0], pairs[1])],
        [_mm256_unpacklo_epi32(pairs[2], pairs[3]), _mm256_unpackhi_epi32(pairs[2], pairs[3])],
    );
    [
        _mm256_unpacklo_epi64(one[0], other[0]),
        _mm256_unpackhi_epi64(one[0], other[0]),
        _mm256_unpacklo_epi64(one[1], other[1]),
        _mm256_unpackhi_epi64(one[1], other[1]),
    ]
}

/// From a byte for each group of each row: by group, the rows' bytes in the lower eight.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_group(rows: [u64; ROWS]) -> [__m128i; Q4K_GROUPS] {
    let zero = _mm_setzero_si128();
    let (mut pairs, mut groups) = ([zero; 4], [zero; Q4K_GROUPS]);
    for i in 0..pairs.len() {
        let [one, other] = [rows[2 * i], rows[2 * i + 1]].map(u64::cast_signed);
        pairs[i] = _mm_unpacklo_epi8(_mm_cvtsi64_si128(one), _mm_cvtsi64_si128(other));
    }
    for half in 0..2 {
        let unpack = |one, other| {
            if half == 0 { _mm_unpacklo_epi16(one, other) } else { _mm_unpackhi_epi16(one, other) }
        };
        let (upper, lower) = (unpack(pairs[0], pairs[1]), unpack(pairs[2], pairs[3]));
        let two = [_mm_unpacklo_epi32(upper, lower), _mm_unpackhi_epi32(upper, lower)];
        for i in 0..two.len() {
            groups[4 * half + 2 * i] = two[i];
            groups[4 * half + 2 * i + 1] = _mm_unpackhi_epi64(two[i], two[i]);
        }
    }
    groups
}

/// The halves in the lower 16 bits of each lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn lower_halves(lanes: __m256i) -> __m256 {
    let lanes = _mm256_and_si256(lanes, _mm256_set1_epi32(0xffff));
    let (low, high) = (_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
    _mm256_cvtph_ps(_mm_packus_epi32(low, high))
}

/// Sixteen bytes of each of eight rows: row `r` in the lower, row `r + 4` in the upper half of vector `r`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_side_by_side(rows: [&[u8; 16]; ROWS]) -> [__m256i; 4] {
    let mut pairs = [_mm256_setzero_si256(); 4];
    for r in 0..pairs.len() {
        pairs[r] = _mm256_set_m128i(load16_bytes(rows[r + 4]), load16_bytes(rows[r]));
    }
    pairs
}
