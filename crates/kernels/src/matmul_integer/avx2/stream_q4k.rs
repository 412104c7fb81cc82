//! Few tokens and weights in blocks of `q4_K`, multiplied as they come from memory.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::load_int8;
use super::q4k::{factors_and_offsets, nibbles};
use crate::avx2::{AHEAD, ahead, load, load32, prefetch_range, sum};
use crate::integers::BLOCK;
use crate::quantized::{BlockQ4K, Q4K_COLS, Q4K_GROUPS, blocks};
use crate::view::AheadOfRow;
use crate::{IntegerRef, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// A token's part in a block of weights, in as many pieces as the block has groups.
#[derive(Clone, Copy)]
pub(in crate::matmul_integer) struct Inputs<'a> {
    pub(in crate::matmul_integer) values: &'a [Values],
    pub(in crate::matmul_integer) scales: &'a [[f32; Q4K_GROUPS]],
    pub(in crate::matmul_integer) sums: &'a [[f32; Q4K_GROUPS]],
}

/// How a block's products become sums of its groups.
pub(super) trait Sums {
    /// The eight groups' sums of products with each of `N` tokens. These take each step together, so that what waits for a
    /// result has the other's work between.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C; an implementation is compiled for these and no others.
    unsafe fn of<const N: usize>(weights: &BlockQ4K, x: [&Values; N]) -> [__m256i; N];
}

/// A token's values for a block.
pub(super) type Values = [[i8; BLOCK]; Q4K_GROUPS];

/// `out[t, r] = sum over c of x[t, c] * w[r, c]` for `T` tokens, one row after the other.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul<S: Sums, const T: usize>(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    matmul_by::<T>(|weights, ahead, x| row_totals::<S, T>(weights, ahead, x), ahead(AHEAD), w, x, out);
}

/// As [`matmul`], with a row's products from a function, a part of each in every lane, which asks memory for what is read
/// `ahead` bytes later.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(in crate::matmul_integer) fn matmul_by<const T: usize>(
    row_totals: impl Fn(&[BlockQ4K], AheadOfRow, [Inputs<'_>; T]) -> [__m256; T],
    ahead: usize,
    w: &MatrixView<'_>,
    x: IntegerRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let count = w.cols() / Q4K_COLS;
    let x: [Inputs<'_>; T] = from_fn(|token| Inputs {
        values: &x.blocks(token).as_chunks().0[..count],
        scales: &x.scales(token).as_chunks().0[..count],
        sums: &x.sums(token).as_chunks().0[..count],
    });
    let (rows, ahead) = (w.rows_bytes(0..w.cols()), w.ahead_of_rows(ahead));
    for row in 0..w.rows() {
        let weights = &blocks(rows.row(row))[..count];
        let totals = row_totals(weights, ahead.row(row), x);
        for t in 0..T {
            out.row_mut(t)[row] = sum(totals[t]);
        }
    }
}

/// A row's products, a part of each in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn row_totals<S: Sums, const T: usize>(
    weights: &[BlockQ4K],
    ahead: AheadOfRow,
    mut inputs: [Inputs<'_>; T],
) -> [__m256; T] {
    for t in 0..T {
        inputs[t] = inputs[t].first(weights.len());
    }
    let mut totals = [_mm256_setzero_ps(); T];
    for block in 0..weights.len() {
        prefetch_range(ahead.of(block * size_of::<BlockQ4K>()), size_of::<BlockQ4K>());
        let (twos, rest) = inputs.as_chunks::<2>();
        for (number, two) in twos.iter().enumerate() {
            let x = [two[0].block(block), two[1].block(block)];
            block_add::<S, 2, T>(&weights[block], x, 2 * number, &mut totals);
        }
        for last in rest {
            block_add::<S, 1, T>(&weights[block], [last.block(block)], T - 1, &mut totals);
        }
    }
    totals
}

/// A token's part in one block of weights.
type BlockInputs<'a> = (&'a Values, &'a [f32; Q4K_GROUPS], &'a [f32; Q4K_GROUPS]);

impl<'a> Inputs<'a> {
    #[inline]
    pub(in crate::matmul_integer) fn first(&self, blocks: usize) -> Self {
        Inputs { values: &self.values[..blocks], scales: &self.scales[..blocks], sums: &self.sums[..blocks] }
    }

    #[inline]
    fn block(&self, block: usize) -> BlockInputs<'a> {
        (&self.values[block], &self.scales[block], &self.sums[block])
    }
}

/// Adds the products of a block with tokens `token..token + N`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn block_add<S: Sums, const N: usize, const T: usize>(
    weights: &BlockQ4K,
    x: [BlockInputs<'_>; N],
    token: usize,
    totals: &mut [__m256; T],
) {
    // SAFETY: this function has AVX2, FMA and F16C, and implementations need no more.
    let sums = unsafe { S::of(weights, x.map(|(values, ..)| values)) };
    let [scales, offsets] = factors_and_offsets(weights);
    for n in 0..N {
        let (_, x_scales, x_sums) = x[n];
        let total = _mm256_fnmadd_ps(offsets, load(x_sums), totals[token + n]);
        let factors = _mm256_mul_ps(scales, load(x_scales));
        totals[token + n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[n]), factors, total);
    }
}

/// Sums in whole vectors.
pub(super) enum Whole {}

impl Sums for Whole {
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn of<const N: usize>(weights: &BlockQ4K, x: [&Values; N]) -> [__m256i; N] {
        let zero = _mm256_setzero_si256();
        let mut pairs = [[zero; 4]; N];
        for i in 0..4 {
            let bits = nibbles(load32(&weights.values.as_chunks::<BLOCK>().0[i]));
            for n in 0..N {
                // At most 2 * 15 * 127 in 16 bits.
                let even = _mm256_maddubs_epi16(bits[0], load_int8(&x[n][2 * i]));
                let odd = _mm256_maddubs_epi16(bits[1], load_int8(&x[n][2 * i + 1]));
                pairs[n][i] =
                    _mm256_add_epi16(_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
            }
        }
        let mut sums = [zero; N];
        for n in 0..N {
            let mut fours = [_mm_setzero_si128(); 2];
            for i in 0..2 {
                let (one, other) = (pairs[n][2 * i], pairs[n][2 * i + 1]);
                // Of each group two neighbouring lanes in either half, with 8 products each: at most 8 * 15 * 127.
                let eights =
                    _mm256_add_epi16(_mm256_unpacklo_epi64(one, other), _mm256_unpackhi_epi64(one, other));
                let halves = _mm256_madd_epi16(eights, _mm256_set1_epi16(1));
                fours[i] =
                    _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            }
            sums[n] = _mm256_set_m128i(fours[1], fours[0]);
        }
        sums
    }
}
