//! Weights of 8 bits as integers of 16: `q8_0` as they are, FP8 in sixteenths.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::panel::{self, ROWS, rows_side_by_side};
use crate::avx2::{LANES, in_order, load, padded, store, watch_nan};
use crate::integers::BLOCK;
use crate::matmul_integer::FP8_STEPS;
use crate::quantized::{BlockQ8_0, blocks};
use crate::{IntegerRef, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;

/// Columns of a panel.
const COLUMNS: usize = 512;
/// Pairs of columns in a block: what a vector holds of each row.
const PAIRS: usize = BLOCK / 2;

/// A pair of columns of each row.
type Pairs = [i16; 2 * ROWS];

/// Eight rows of weights as integers, 8 kB, and their scales.
#[repr(align(64))]
pub(super) struct Panel<E> {
    blocks: [[Pairs; PAIRS]; COLUMNS / BLOCK],
    /// By block and row.
    scales: [[f32; ROWS]; COLUMNS / BLOCK],
    format: PhantomData<E>,
}

/// A format, as a type.
pub(super) trait Eight: Sized {
    /// Fills in columns `columns` of `rows`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn pack(panel: &mut Panel<Self>, w: &MatrixView<'_>, rows: [usize; ROWS], columns: Range<usize>);
}

pub(super) enum Q8_0 {}
pub(super) enum Fp8 {}

impl<E: Eight> panel::Panel for Panel<E> {
    const COLUMNS: usize = COLUMNS;

    fn new() -> Self {
        Self {
            blocks: [[[0; 2 * ROWS]; PAIRS]; COLUMNS / BLOCK],
            scales: [[0.0; ROWS]; COLUMNS / BLOCK],
            format: PhantomData,
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack(&mut self, w: &MatrixView<'_>, row: usize, columns: Range<usize>) {
        let rows = from_fn(|r| (row + r).min(w.rows() - 1));
        // SAFETY: this function has the features that are asked for.
        unsafe { E::pack(self, w, rows, columns) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn multiply<const V: usize, const T: usize>(
        panels: &[Self; V],
        columns: Range<usize>,
        x: IntegerRef<'_>,
        token: usize,
    ) -> [[__m256; T]; V] {
        let count = columns.len().div_ceil(BLOCK);
        assert!(count <= COLUMNS / BLOCK, "columns of a panel");
        let first = columns.start / BLOCK;
        let (mut values, mut scales): ([&[[i16; BLOCK]]; T], [&[f32]; T]) = ([&[]; T], [&[]; T]);
        for t in 0..T {
            values[t] = &x.int16(token + t)[first..first + count];
            scales[t] = &x.scales(token + t)[first..first + count];
        }
        let mut totals = [[_mm256_setzero_ps(); T]; V];
        for block in 0..count {
            let (mut weights, mut inputs) = ([&panels[0].blocks[block]; V], [&values[0][block]; T]);
            for v in 1..V {
                weights[v] = &panels[v].blocks[block];
            }
            for t in 1..T {
                inputs[t] = &values[t][block];
            }
            let sums = block_sums::<V, T>(weights, inputs);
            for t in 0..T {
                let x_scale = _mm256_set1_ps(scales[t][block]);
                for v in 0..V {
                    let scale = _mm256_mul_ps(load(&panels[v].scales[block]), x_scale);
                    totals[v][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[v][t]), scale, totals[v][t]);
                }
            }
        }
        totals
    }
}

/// The products of a block of columns, before their scales.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn block_sums<const V: usize, const T: usize>(
    weights: [&[Pairs; PAIRS]; V],
    x: [&[i16; BLOCK]; T],
) -> [[__m256i; T]; V] {
    let mut sums = [[_mm256_setzero_si256(); T]; V];
    for four in 0..PAIRS / 4 {
        for i in 0..4 {
            let pair = 4 * four + i;
            let mut inputs = [_mm256_setzero_si256(); T];
            for t in 0..T {
                inputs[t] = broadcast_pair(x[t], pair);
            }
            for v in 0..V {
                let weights = load_pairs(&weights[v][pair]);
                for t in 0..T {
                    sums[v][t] =
                        in_order(_mm256_add_epi32(sums[v][t], _mm256_madd_epi16(weights, inputs[t])));
                }
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_pairs(pairs: &Pairs) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(pairs.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_pairs(pairs: &mut Pairs, vector: __m256i) {
    // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), vector) }
}

/// Two neighbouring columns in every lane of 32 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn broadcast_pair(x: &[i16; BLOCK], pair: usize) -> __m256i {
    let (pairs, _) = x.as_chunks::<2>();
    // SAFETY: a reference to four bytes, any of which are an i32; the read needs no alignment.
    _mm256_set1_epi32(unsafe { pairs[pair].as_ptr().cast::<i32>().read_unaligned() })
}

impl Eight for Q8_0 {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack(panel: &mut Panel<Self>, w: &MatrixView<'_>, rows: [usize; ROWS], columns: Range<usize>) {
        let count = columns.len() / BLOCK;
        let mut weights: [&[BlockQ8_0]; ROWS] = [&[]; ROWS];
        for r in 0..ROWS {
            weights[r] = &blocks(w.row_bytes(rows[r], columns.clone()))[..count];
        }
        for (block, (to, scales)) in panel.blocks[..count].iter_mut().zip(&mut panel.scales).enumerate() {
            let (mut values, mut d) = ([&weights[0][block].values; ROWS], [0; ROWS]);
            for r in 0..ROWS {
                values[r] = &weights[r][block].values;
                d[r] = u16::from_le_bytes(weights[r][block].d);
            }
            // SAFETY: eight numbers of 16 bits are a load of 16 bytes, which needs no alignment.
            store(scales, _mm256_cvtph_ps(unsafe { _mm_loadu_si128(d.as_ptr().cast()) }));
            for (half, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let bytes = rows_of_bytes(values, half);
                for (two, to) in pairs_of_rows(bytes).into_iter().zip(to.as_chunks_mut::<2>().0) {
                    let zero = _mm256_setzero_si256();
                    store_pairs(&mut to[0], _mm256_srai_epi16::<8>(_mm256_unpacklo_epi8(zero, two)));
                    store_pairs(&mut to[1], _mm256_srai_epi16::<8>(_mm256_unpackhi_epi8(zero, two)));
                }
            }
        }
    }
}

impl Eight for Fp8 {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack(panel: &mut Panel<Self>, w: &MatrixView<'_>, rows: [usize; ROWS], columns: Range<usize>) {
        let bytes = rows.map(|row| w.row_bytes(row, columns.clone()));
        let row_scales = rows.map(|row| w.row_scales(row));
        let mut nan = [_mm256_setzero_si256(); 4];
        for scaled in w.column_blocks(columns.clone()) {
            let scales = row_scales.map(|scales| scales.of(scaled) / FP8_STEPS);
            let (start, end) = (scaled.start - columns.start, scaled.end - columns.start);
            for block in start / BLOCK..end.div_ceil(BLOCK) {
                panel.scales[block] = scales;
                let to = &mut panel.blocks[block];
                let part = block * BLOCK..end.min((block + 1) * BLOCK);
                if part.len() == BLOCK {
                    let mut whole = [&[0; BLOCK]; ROWS];
                    for r in 0..ROWS {
                        whole[r] = bytes[r][part.clone()].first_chunk().expect("a block");
                    }
                    pack_fp8(to, whole, &mut nan);
                } else {
                    let copies: [[u8; BLOCK]; ROWS] = bytes.map(|row| padded(&row[part.clone()]));
                    pack_fp8(to, copies.each_ref(), &mut nan);
                }
            }
        }
        let nan = nan.map(|seen| {
            let is_nan = _mm256_cmpeq_epi8(seen, _mm256_set1_epi8(-1));
            _mm256_movemask_epi8(is_nan).cast_unsigned()
        });
        for r in 0..ROWS {
            if nan[r % 4] >> (16 * (r / 4)) & 0xffff != 0 {
                panel.scales.iter_mut().for_each(|scales| scales[r] = f32::NAN);
            }
        }
    }
}

/// A block of eight rows of FP8. Remembers in `nan` whether there was one, as [`rows_of_bytes`] orders rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pack_fp8(to: &mut [Pairs; PAIRS], rows: [&[u8; BLOCK]; ROWS], nan: &mut [__m256i; 4]) {
    for (half, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let bytes = rows_of_bytes(rows, half);
        for (seen, bytes) in nan.iter_mut().zip(bytes) {
            *seen = watch_nan(*seen, bytes);
        }
        for (two, to) in pairs_of_rows(bytes).into_iter().zip(to.as_chunks_mut::<2>().0) {
            let sixteenths = fp8_sixteenths(two);
            store_pairs(&mut to[0], sixteenths[0]);
            store_pairs(&mut to[1], sixteenths[1]);
        }
    }
}

/// Sixteen columns, the first or the second half of a block, as [`rows_side_by_side`] orders them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_of_bytes(rows: [&[u8; BLOCK]; ROWS], half: usize) -> [__m256i; 4] {
    let mut halves = [&rows[0].as_chunks::<16>().0[half]; ROWS];
    for r in 1..ROWS {
        halves[r] = &rows[r].as_chunks::<16>().0[half];
    }
    rows_side_by_side(halves)
}

/// From [`rows_of_bytes`]: vector `i` has the columns `4 * i..4 * i + 4` of all rows. Its lower half has those of rows
/// 0 to 3: two columns of each row, then the next two; its upper half those of rows 4 to 7.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pairs_of_rows(rows: [__m256i; 4]) -> [__m256i; 4] {
    let (one, other) = (
        [_mm256_unpacklo_epi16(rows[0], rows[1]), _mm256_unpackhi_epi16(rows[0], rows[1])],
        [_mm256_unpacklo_epi16(rows[2], rows[3]), _mm256_unpackhi_epi16(rows[2], rows[3])],
    );
    [
        _mm256_unpacklo_epi32(one[0], other[0]),
        _mm256_unpackhi_epi32(one[0], other[0]),
        _mm256_unpacklo_epi32(one[1], other[1]),
        _mm256_unpackhi_epi32(one[1], other[1]),
    ]
}

/// FP8 times sixteen, rounded half away from zero: the lower, then the upper eight bytes of both halves of `bytes`.
///
/// The value in sixteenths is `(8 + mantissa) * 2^(exponent - 6)`. The processor's rounding product gives
/// `(a * b / 2^14 + 1) / 2`, so with `a = (8 + mantissa) * 2^11` it takes `b = 2^(exponent - 2)`. Below an exponent of
/// 2, where subnormals are, everything rounds to 0.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fp8_sixteenths(bytes: __m256i) -> [__m256i; 2] {
    // By exponent, the lower and the upper byte of `b`.
    let lower =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0));
    let upper = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32));
    let exponents = _mm256_and_si256(_mm256_srli_epi16::<3>(bytes), _mm256_set1_epi8(15));
    let (lower, upper) = (_mm256_shuffle_epi8(lower, exponents), _mm256_shuffle_epi8(upper, exponents));
    let mantissas = _mm256_or_si256(
        _mm256_and_si256(_mm256_slli_epi16::<3>(bytes), _mm256_set1_epi8(7 << 3)),
        _mm256_set1_epi8(8 << 3),
    );
    let zero = _mm256_setzero_si256();
    let magnitudes = [
        _mm256_mulhrs_epi16(_mm256_unpacklo_epi8(zero, mantissas), _mm256_unpacklo_epi8(lower, upper)),
        _mm256_mulhrs_epi16(_mm256_unpackhi_epi8(zero, mantissas), _mm256_unpackhi_epi8(lower, upper)),
    ];
    // The byte in the upper half has its sign bit where an i16 has it; it is zero only where the magnitude is.
    [
        _mm256_sign_epi16(magnitudes[0], _mm256_unpacklo_epi8(zero, bytes)),
        _mm256_sign_epi16(magnitudes[1], _mm256_unpackhi_epi8(zero, bytes)),
    ]
}
