//! Weights of 8 bits as integers of 16, `q8_0` as they are, FP8 in sixteenths: pairs of columns are broadcast to tokens in
//! lanes.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use crate::avx2::{
    half, in_order, load as load_vector, load16_bytes, load32, padded, saw_nan, store as store_vector,
    watch_nan,
};
use crate::integers::BLOCK;
use crate::lanes::avx2::panels::{self, GroupMemory, LINES, ROWS};
use crate::lanes::avx2::{RowsAhead, load, pack};
use crate::matmul_integer::FP8_STEPS;
use crate::quantized::{BlockQ8_0, blocks};
use crate::{Format, IntegerRef, LANES, Lanes, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::ops::Range;

/// Pairs of columns in a block.
const PAIRS: usize = BLOCK / 2;
/// Lines of a block of tokens: one for each pair of columns, and one of scales.
const BLOCK_LINES: usize = PAIRS + 1;
/// Blocks of a panel.
const BLOCKS: usize = 16;
/// From a row of a panel to the next one, in blocks: a line more, so that rows lie in different sets of a cache.
const PITCH: usize = BLOCKS + 1;

/// A panel of weights as integers, 13 kB, and their scales.
#[repr(align(64))]
struct Panel {
    values: [[[i16; BLOCK]; PITCH]; ROWS],
    scales: [[f32; BLOCKS]; ROWS],
}

const _: () = assert!(BLOCKS * BLOCK_LINES <= LINES);

/// `out[t, r] += sum over c of x[t, c] * w[r, c]`, of `q8_0` or FP8.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    panels::matmul_add::<_, Panel>(w, x, out);
}

impl panels::Panel<IntegerRef<'_>> for Panel {
    const COLUMNS: usize = BLOCKS * BLOCK;
    const STEP: usize = BLOCK;

    fn new() -> Self {
        Self { values: [[[0; BLOCK]; PITCH]; ROWS], scales: [[0.0; BLOCKS]; ROWS] }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(&mut self, w: &MatrixView<'_>, rows: Range<usize>, columns: Range<usize>) {
        match w.format() {
            Format::Q8_0 => self.fill_q8_0(w, rows, columns),
            _ => self.fill_fp8(w, rows, columns),
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: IntegerRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut GroupMemory,
    ) -> &'m [Lanes] {
        let count = columns.len().div_ceil(BLOCK);
        let first = columns.start / BLOCK;
        let x = x.row_range(tokens);
        let pairs = x.pairs();
        let mut scales: [&[f32]; LANES] = [&[]; LANES];
        for token in 0..x.rows() {
            scales[token] = &x.scales(token)[first..first + count];
        }
        let lines = &mut memory[..count * BLOCK_LINES];
        for (block, lines) in lines.as_chunks_mut::<BLOCK_LINES>().0.iter_mut().enumerate() {
            let (block_scales, block_pairs) = lines.split_first_mut().expect("a line of scales");
            let start = (first + block) * PAIRS;
            pack(pairs.column_range(start..start + PAIRS), None, block_pairs);
            let mut line = Lanes::ZERO;
            for token in 0..x.rows() {
                line.0[token] = scales[token][block];
            }
            block_scales.write(line);
        }
        // SAFETY: the line of scales and those of pairs have been written in each block.
        unsafe { lines.assume_init_ref() }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_rows<const R: usize, const V: usize>(
        &self,
        first: usize,
        group: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [Lanes; R],
    ) {
        const { assert!(R * V <= PAIRS, "a pair of columns for each vector that is finished meanwhile") };
        let rows: &[_; R] = self.values[first..].first_chunk().expect("rows of the panel");
        let scales: &[_; R] = self.scales[first..].first_chunk().expect("rows of the panel");
        let (group, _) = group.as_chunks::<BLOCK_LINES>();
        assert!(group.len() <= BLOCKS, "columns of a panel");
        // What a block's products still lack is done while the next one's are made, a vector at each pair of columns: done at
        // once, it would take the multiplier's turns.
        let mut last = [[_mm256_setzero_si256(); V]; R];
        for (block, lines) in group.iter().enumerate() {
            if let Some(ahead) = ahead {
                ahead.request(R, block);
            }
            let mut products = [[_mm256_setzero_si256(); V]; R];
            let mut pair = 0;
            if let Some(before) = block.checked_sub(1) {
                for r in 0..R {
                    for v in 0..V {
                        add_pair(rows, block, pair, &lines[1 + pair], &mut products);
                        add_scaled(&mut sums[r], v, last[r][v], scales[r][before], &group[before][0]);
                        pair += 1;
                    }
                }
            }
            for pair in pair..PAIRS {
                add_pair(rows, block, pair, &lines[1 + pair], &mut products);
            }
            last = products;
        }
        if let Some(block) = group.len().checked_sub(1) {
            for r in 0..R {
                for v in 0..V {
                    add_scaled(&mut sums[r], v, last[r][v], scales[r][block], &group[block][0]);
                }
            }
        }
    }
}

/// Adds the products of a pair of columns of a block with a line of tokens.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_pair<const R: usize, const V: usize>(
    rows: &[[[i16; BLOCK]; PITCH]; R],
    block: usize,
    pair: usize,
    line: &Lanes,
    products: &mut [[__m256i; V]; R],
) {
    let line = load(line).map(|half| _mm256_castps_si256(half));
    for r in 0..R {
        let value = broadcast_pair(&rows[r][block], pair);
        for v in 0..V {
            products[r][v] = in_order(_mm256_add_epi32(products[r][v], _mm256_madd_epi16(value, line[v])));
        }
    }
}

/// Adds the products of a row's block with vector `v` of lanes, times the scales of both sides.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_scaled(sums: &mut Lanes, v: usize, products: __m256i, scale: f32, x_scales: &Lanes) {
    let x_scale = load_vector(&x_scales.0.as_chunks().0[v]);
    let scale = _mm256_mul_ps(_mm256_set1_ps(scale), x_scale);
    let total = &mut sums.0.as_chunks_mut().0[v];
    store_vector(total, _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, load_vector(total)));
}

/// Two neighbouring columns in every lane of 32 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn broadcast_pair(values: &[i16; BLOCK], pair: usize) -> __m256i {
    let (pairs, _) = values.as_chunks::<2>();
    // SAFETY: a reference to four bytes, any of which are an i32; the read needs no alignment.
    _mm256_set1_epi32(unsafe { pairs[pair].as_ptr().cast::<i32>().read_unaligned() })
}

impl Panel {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill_q8_0(&mut self, w: &MatrixView<'_>, rows: Range<usize>, columns: Range<usize>) {
        for (row, (values, scales)) in rows.zip(self.values.iter_mut().zip(&mut self.scales)) {
            let weights: &[BlockQ8_0] = blocks(w.row_bytes(row, columns.clone()));
            for (weights, (values, scale)) in weights.iter().zip(values.iter_mut().zip(scales)) {
                *scale = half(weights.d);
                for (bytes, values) in weights.values.as_chunks().0.iter().zip(values.as_chunks_mut().0) {
                    store16(values, _mm256_cvtepi8_epi16(load16_bytes(bytes)));
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill_fp8(&mut self, w: &MatrixView<'_>, rows: Range<usize>, columns: Range<usize>) {
        let first = rows.start;
        for rows in w.row_range(rows).row_blocks() {
            let mut scales = [0.0; BLOCKS];
            let row_scales = w.row_scales(first + rows.start);
            for scaled in w.column_blocks(columns.clone()) {
                let (start, end) = (scaled.start - columns.start, scaled.end - columns.start);
                scales[start / BLOCK..end.div_ceil(BLOCK)].fill(row_scales.of(scaled) / FP8_STEPS);
            }
            for r in rows {
                let bytes = w.row_bytes(first + r, columns.clone());
                let is_nan = fill_fp8_row(&mut self.values[r], bytes);
                self.scales[r] = if is_nan { [f32::NAN; BLOCKS] } else { scales };
            }
        }
    }
}

/// Gives whether there is a NaN.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fill_fp8_row(values: &mut [[i16; BLOCK]; PITCH], bytes: &[u8]) -> bool {
    let mut nan = _mm256_setzero_si256();
    let (whole, rest) = bytes.as_chunks::<BLOCK>();
    let rest = (!rest.is_empty()).then(|| padded(rest));
    for (bytes, values) in whole.iter().chain(&rest).zip(values) {
        let bytes = load32(bytes);
        nan = watch_nan(nan, bytes);
        for (values, sixteenths) in values.as_chunks_mut().0.iter_mut().zip(fp8_sixteenths(bytes)) {
            store16(values, sixteenths);
        }
    }
    saw_nan(nan)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store16(values: &mut [i16; 16], vector: __m256i) {
    // SAFETY: an exclusive reference to 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), vector) }
}

/// FP8 times sixteen, rounded half away from zero: the first, then the last sixteen bytes.
///
/// The value in sixteenths is `(8 + mantissa) * 2^(exponent - 6)`. The processor's rounding product gives
/// `(a * b / 2^14 + 1) / 2`, so with `a = (8 + mantissa) * 2^11` it takes `b = 2^(exponent - 2)`. Below an exponent of
/// 2, where subnormals are, everything rounds to 0.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fp8_sixteenths(bytes: __m256i) -> [__m256i; 2] {
    // What is taken apart below into the lower and the upper eight bytes of both halves.
    let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
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
