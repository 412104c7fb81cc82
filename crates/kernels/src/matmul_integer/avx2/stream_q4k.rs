//! Few tokens and weights in blocks of `q4_K`: a few rows side by side, multiplied as they come from memory.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::q4k::{nibbles, scales_and_minima, widen};
use crate::avx2::{broadcast_half, load, load32, prefetch, sum};
use crate::integers::BLOCK;
use crate::quantized::{BlockQ4K, Q4K_COLS, Q4K_GROUPS, blocks};
use crate::{IntegerRef, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A token's part in a block of weights, in as many pieces as the block has groups.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    values: &'a [[[i8; BLOCK]; Q4K_GROUPS]],
    scales: &'a [[f32; Q4K_GROUPS]],
    sums: &'a [[f32; Q4K_GROUPS]],
}

/// `out[t, r] += sum over c of x[t, c] * w[r, c]` for `T` tokens, `R` rows at a time.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    x: IntegerRef<'_>,
    mut out: MatrixMut<'_>,
) {
    let count = w.cols() / Q4K_COLS;
    let x: [Inputs<'_>; T] = from_fn(|token| Inputs {
        values: &x.int8(token).as_chunks().0[..count],
        scales: &x.scales(token).as_chunks().0[..count],
        sums: &x.sums(token).as_chunks().0[..count],
    });
    let whole = w.rows() - w.rows() % R;
    for row in (0..whole).step_by(R) {
        rows_add::<R, T>(w, row, x, &mut out);
    }
    for row in whole..w.rows() {
        rows_add::<1, T>(w, row, x, &mut out);
    }
}

/// Rows `row..row + R` of `w`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows_add<const R: usize, const T: usize>(
    w: &MatrixView<'_>,
    row: usize,
    x: [Inputs<'_>; T],
    out: &mut MatrixMut<'_>,
) {
    let count = w.cols() / Q4K_COLS;
    let weights: [&[BlockQ4K]; R] = from_fn(|r| &blocks(w.row_bytes(row + r, 0..w.cols()))[..count]);
    let x: [Inputs<'_>; T] = from_fn(|t| x[t].first(count));
    let ahead = R * w.format().bytes(w.row_stride()); // the same columns of the next rows
    let mut totals = [[_mm256_setzero_ps(); T]; R];
    for block in 0..count {
        for r in 0..R {
            let weights = &weights[r][block];
            for line in (0..size_of::<BlockQ4K>()).step_by(LINE) {
                prefetch(weights.d.as_ptr().wrapping_add(ahead + line));
            }
            let inputs: [_; T] = from_fn(|t| x[t].block(block));
            block_add(weights, inputs, &mut totals[r]);
        }
    }
    for t in 0..T {
        let out = &mut out.row_mut(t)[row..row + R];
        for r in 0..R {
            out[r] += sum(totals[r][t]);
        }
    }
}

/// A token's part in one block of weights.
type BlockInputs<'a> = (&'a [[i8; BLOCK]; Q4K_GROUPS], &'a [f32; Q4K_GROUPS], &'a [f32; Q4K_GROUPS]);

impl<'a> Inputs<'a> {
    #[inline]
    fn first(&self, blocks: usize) -> Self {
        Inputs { values: &self.values[..blocks], scales: &self.scales[..blocks], sums: &self.sums[..blocks] }
    }

    #[inline]
    fn block(&self, block: usize) -> BlockInputs<'a> {
        (&self.values[block], &self.scales[block], &self.sums[block])
    }
}

/// Adds the products of a block of one row with each token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn block_add<const T: usize>(weights: &BlockQ4K, x: [BlockInputs<'_>; T], sums: &mut [__m256; T]) {
    let (scales, minima) = scales_and_minima(weights);
    let scales = _mm256_mul_ps(widen(scales), broadcast_half(weights.d));
    let minima = _mm256_mul_ps(widen(minima), broadcast_half(weights.dmin));
    let (pairs, _) = weights.values.as_chunks::<BLOCK>();
    let mut bits = [_mm256_setzero_si256(); Q4K_GROUPS];
    for pair in 0..pairs.len() {
        [bits[2 * pair], bits[2 * pair + 1]] = nibbles(load32(&pairs[pair]));
    }
    for t in 0..T {
        let (values, x_scales, x_sums) = x[t];
        let mut products = [_mm256_setzero_si256(); Q4K_GROUPS];
        for group in 0..Q4K_GROUPS {
            // At most 2 * 15 * 127 in 16 bits.
            products[group] = _mm256_maddubs_epi16(bits[group], load_int8(&values[group]));
        }
        let factors = _mm256_mul_ps(scales, load(x_scales));
        sums[t] = _mm256_fnmadd_ps(minima, load(x_sums), sums[t]);
        sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_groups(products)), factors, sums[t]);
    }
}

/// Each vector's sum, in their order. The sums of eight lanes must fit into 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_groups(groups: [__m256i; Q4K_GROUPS]) -> __m256i {
    let mut pairs = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        let (one, other) = (groups[2 * i], groups[2 * i + 1]);
        pairs[i] = _mm256_add_epi16(_mm256_unpacklo_epi16(one, other), _mm256_unpackhi_epi16(one, other));
    }
    let mut fours = [_mm256_setzero_si256(); 2];
    for i in 0..2 {
        let (one, other) = (pairs[2 * i], pairs[2 * i + 1]);
        fours[i] = _mm256_add_epi16(_mm256_unpacklo_epi32(one, other), _mm256_unpackhi_epi32(one, other));
    }
    // Both halves have a lane for each of the eight.
    let eight = _mm256_add_epi16(
        _mm256_unpacklo_epi64(fours[0], fours[1]),
        _mm256_unpackhi_epi64(fours[0], fours[1]),
    );
    let low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(eight));
    let high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(eight));
    _mm256_add_epi32(low, high)
}

/// 32 integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_int8(values: &[i8; BLOCK]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}
