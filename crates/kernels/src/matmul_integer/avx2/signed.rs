//! Weights of 8 bits taken apart into magnitudes and signs: `q8_0` as it is, FP8 in the steps of its groups.

use crate::avx2::{half, load16_bytes, load32, store32, whole};
use crate::integers::BLOCK;
use crate::lanes::avx2::RowsAhead;
use crate::matmul_integer::{FP8_GROUP, FP8_SPAN, LOST_BITS, fp8_exponent, fp8_step, group_scales};
use crate::quantized::{BlockQ8_0, blocks};
use crate::{Format, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Blocks of a row that are taken apart together: a group of FP8.
pub(super) const BLOCKS: usize = FP8_SPAN;
/// Rows between the one that is read and the one that memory is asked for: of the 128 columns of a panel memory takes
/// longer than a row.
const AHEAD: usize = 8;
/// Rows of FP8 whose largest magnitudes are found before they are taken apart: enough for their chains of instructions to go on
/// beside each other.
const TOGETHER: usize = 12;
/// Fours of columns in a block.
pub(super) const FOURS: usize = BLOCK / 4;
/// Bytes of a vector of tokens.
pub(super) const VECTOR: usize = 32;

/// Some blocks of a row, for products with `G` times eight tokens in a vector, of `4 / G` columns: a step.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Row<const G: usize> {
    /// What is broadcast in each step of a block: four columns, or two columns twice.
    magnitudes: [[[[u8; 4]; FOURS]; G]; BLOCKS],
    /// What [`place`](Self::place) says of each step of a block; where steps are of four columns, in every other one.
    places: [[u16; 2 * FOURS]; BLOCKS],
    /// What one of a sum is worth in each block.
    scales: [f32; BLOCKS],
}

impl<const G: usize> Row<G> {
    pub(super) const EMPTY: Self = Self {
        magnitudes: [[[[0; 4]; FOURS]; G]; BLOCKS],
        places: [[0; 2 * FOURS]; BLOCKS],
        scales: [0.0; BLOCKS],
    };
    /// Steps of a block.
    pub(super) const STEPS: usize = G * FOURS;
    /// What a step's signs can be.
    pub(super) const SIGNS: usize = 1 << (4 / G);
    /// What sums must be multiplied by: their lowest bits are lost, and where there are two in 32 bits, each is read in the
    /// upper half.
    const UNIT: f32 = (1 << LOST_BITS) as f32 / if G == 2 { 65536.0 } else { 1.0 };

    /// What is broadcast in a step.
    #[inline]
    pub(super) fn magnitudes(&self, block: usize, step: usize) -> [u8; 4] {
        self.magnitudes[block].as_flattened()[step]
    }

    /// Where the vector of tokens lies that has the signs of a step: after those of `+ +`, `- +`, `+ -` and `- -`. Every other
    /// pair of columns is subtracted, so it takes both signs otherwise. In steps of two pairs there are these four for each
    /// of the second pair. A multiple of [`VECTOR`], less than [`SIGNS`](Self::SIGNS) times it.
    #[inline]
    pub(super) fn place(&self, block: usize, step: usize) -> usize {
        usize::from(self.places[block][step * (2 / G)])
    }

    /// What one of a sum is worth in a block.
    #[inline]
    pub(super) fn scale(&self, block: usize) -> f32 {
        self.scales[block]
    }

    /// Fills in a block, one of which is worth `scale`; the sign is the upper bit of each byte of `signs`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn set(&mut self, block: usize, magnitudes: __m256i, signs: __m256i, scale: f32) {
        let mut broadcast = [magnitudes; G];
        if G == 2 {
            // Pairs 0 to 3 and 8 to 11 in the lower halves, as the unpacking takes them.
            let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(magnitudes);
            broadcast[0] = _mm256_unpacklo_epi16(pairs, pairs);
            broadcast[1] = _mm256_unpackhi_epi16(pairs, pairs);
        }
        for (to, vector) in self.magnitudes[block].iter_mut().zip(broadcast) {
            store32(to.as_flattened_mut().try_into().expect("a vector"), vector);
        }
        let bits = _mm256_and_si256(_mm256_srli_epi16::<7>(signs), _mm256_set1_epi8(1));
        let weights = i16::from_le_bytes([VECTOR as u8, 2 * VECTOR as u8]);
        let places = _mm256_maddubs_epi16(bits, _mm256_set1_epi16(weights));
        let mut places = _mm256_xor_si256(places, _mm256_set1_epi32((3 * VECTOR as i32) << 16));
        if G == 1 {
            // Four times the second pair's.
            places = _mm256_or_si256(places, _mm256_srli_epi32::<14>(places));
        }
        // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(self.places[block].as_mut_ptr().cast(), places) }
        self.scales[block] = scale * Self::UNIT;
    }
}

/// What to ask memory for while a panel is filled in: rows of it, then the first ones of the next panel.
#[derive(Clone, Copy)]
struct Ahead {
    rows: usize,
    here: RowsAhead,
    next: RowsAhead,
}

impl Ahead {
    /// When row `number` of the panel is read.
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
pub(super) fn fill<const G: usize>(
    w: &MatrixView<'_>,
    columns: Range<usize>,
    next: RowsAhead,
    out: &mut [Row<G>],
) {
    let here = RowsAhead::at(w, (0, columns.start), BLOCKS * BLOCK);
    let ahead = Ahead { rows: w.rows(), here, next };
    match w.format() {
        Format::Q8_0 => fill_q8_0(w, columns, ahead, out),
        Format::Fp8 => fill_fp8(w, columns, ahead, out),
        other => unreachable!("{other} has no signs of its own"),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fill_q8_0<const G: usize>(w: &MatrixView<'_>, columns: Range<usize>, ahead: Ahead, out: &mut [Row<G>]) {
    let bytes = w.rows_bytes(columns);
    for (row, out) in out.iter_mut().enumerate() {
        ahead.request(row);
        let weights: &[BlockQ8_0] = blocks(bytes.row(row));
        for (block, weights) in weights.iter().enumerate().take(BLOCKS) {
            let bytes = load32(&weights.values);
            out.set(block, _mm256_abs_epi8(bytes), bytes, half(weights.d));
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fill_fp8<const G: usize>(w: &MatrixView<'_>, columns: Range<usize>, ahead: Ahead, out: &mut [Row<G>]) {
    let bytes = w.rows_bytes(columns.clone());
    for rows in w.row_blocks() {
        let [scale] = group_scales(w, rows.start, &columns);
        for first in rows.clone().step_by(TOGETHER) {
            let rows = first..rows.end.min(first + TOGETHER);
            // First of all of them, for in each it is known only after a chain of instructions.
            let mut all_largest = [0; TOGETHER];
            for (largest, r) in all_largest.iter_mut().zip(rows.clone()) {
                ahead.request(r);
                let mut end = None;
                *largest = largest_magnitude(whole(bytes.row(r), &mut end));
            }
            for (largest, r) in all_largest.into_iter().zip(rows) {
                let mut end = None;
                fill_fp8_group(whole(bytes.row(r), &mut end), largest, scale, &mut out[r]);
            }
        }
    }
}

/// A group, which has steps of its own.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fill_fp8_group<const G: usize>(bytes: &[u8; FP8_GROUP], largest: u8, scale: f32, out: &mut Row<G>) {
    let scale = scale * fp8_step(&[largest]).unwrap_or(f32::NAN);
    // The largest exponent becomes 15; 8 are taken from it.
    let raised = ((15 - fp8_exponent(largest)) << 3).cast_signed() - (8 << 3);
    let mut raised = [_mm256_set1_epi8(raised); 4];
    for number in 1..4 {
        raised[number] = _mm256_sub_epi8(raised[0], _mm256_set1_epi8(16 * number as i8));
    }
    for (block, bytes) in bytes.as_chunks().0.iter().enumerate() {
        let signed = load32(bytes);
        let magnitudes = _mm256_and_si256(signed, _mm256_set1_epi8(0x7f));
        out.set(block, in_steps(magnitudes, raised), signed, scale);
    }
}

/// The largest byte but for the signs.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest_magnitude(bytes: &[u8; FP8_GROUP]) -> u8 {
    let mut all = _mm256_setzero_si256();
    for bytes in bytes.as_chunks().0 {
        all = _mm256_max_epu8(all, _mm256_and_si256(load32(bytes), _mm256_set1_epi8(0x7f)));
    }
    let sixteen = _mm_max_epu8(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
    let eight = _mm_max_epu8(sixteen, _mm_srli_si128::<8>(sixteen));
    let four = _mm_max_epu8(eight, _mm_srli_si128::<4>(eight));
    let two = _mm_max_epu8(four, _mm_srli_si128::<2>(four));
    _mm_extract_epi8::<0>(_mm_max_epu8(two, _mm_srli_si128::<1>(two))) as u8
}

/// Magnitudes of FP8 in steps: of exponents 12 to 15 `(8 + mantissa) << (exponent - 12)`, of those from 8 on that divided by
/// powers of two and rounded to even, of all below 0. `raised` brings the group's largest exponent to 15 and takes 8 from
/// it, for each table 16 more.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn in_steps(magnitudes: __m256i, raised: [__m256i; 4]) -> __m256i {
    // By an exponent and a mantissa once 8 has been taken from the exponent: sixteen for each two exponents.
    const STEPS: [[u8; 16]; 4] = [
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2],
        [2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8],
        [8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 26, 28, 30],
        [32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 88, 96, 104, 112, 120],
    ];
    // The instruction takes the lower four bits, whatever is above them, but gives 0 for what is negative: so an index finds
    // something in its table and in all before that. Each holds what it has more than the one before; all four are added.
    const MORE: [[u8; 16]; 4] = {
        let mut more = STEPS;
        let mut place = 0;
        while place < 3 * 16 {
            more[1 + place / 16][place % 16] -= STEPS[place / 16][place % 16];
            place += 1;
        }
        more
    };
    let mut sum = _mm256_setzero_si256();
    for (table, raised) in MORE.iter().zip(raised) {
        let table = _mm256_broadcastsi128_si256(load16_bytes(table));
        sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table, _mm256_add_epi8(magnitudes, raised)));
    }
    sum
}
