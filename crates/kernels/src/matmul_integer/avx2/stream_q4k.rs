//! Few tokens and weights in blocks of `q4_K`: a few rows side by side, multiplied as they come from memory.

#![allow(clippy::needless_range_loop, reason = "a row or a token is an index into several arrays")]

use super::q4k::{nibbles, scales_and_minima, widen};
use crate::avx2::{broadcast_half, load, load32, prefetch, store, sum};
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
    let weights: [&[BlockQ4K]; R] = from_fn(|r| blocks(w.row_bytes(row + r, 0..w.cols())));
    let ahead = R * w.format().bytes(w.row_stride()); // the same columns of the next rows
    let mut totals = [[_mm256_setzero_ps(); R]; T];
    for block in 0..w.cols() / Q4K_COLS {
        for r in 0..R {
            let weights = &weights[r][block];
            for line in (0..size_of::<BlockQ4K>()).step_by(LINE) {
                prefetch(weights.d.as_ptr().wrapping_add(ahead + line));
            }
            let inputs: [_; T] = from_fn(|t| x[t].block(block));
            let mut sums: [_; T] = from_fn(|t| totals[t][r]);
            block_add(weights, inputs, &mut sums);
            for t in 0..T {
                totals[t][r] = sums[t];
            }
        }
    }
    for t in 0..T {
        let out = &mut out.row_mut(t)[row..row + R];
        for r in 0..R {
            out[r] += sum(totals[t][r]);
        }
    }
}

/// A token's part in one block of weights.
type BlockInputs<'a> = (&'a [[i8; BLOCK]; Q4K_GROUPS], &'a [f32; Q4K_GROUPS], &'a [f32; Q4K_GROUPS]);

impl<'a> Inputs<'a> {
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
    // By token and group, what an integer sum is worth.
    let mut factors = [[0.0; Q4K_GROUPS]; T];
    for t in 0..T {
        let (_, x_scales, x_sums) = x[t];
        store(&mut factors[t], _mm256_mul_ps(scales, load(x_scales)));
        sums[t] = _mm256_fnmadd_ps(minima, load(x_sums), sums[t]);
    }
    let (pairs, _) = weights.values.as_chunks::<BLOCK>();
    for (pair, bytes) in pairs.iter().enumerate() {
        let halves = nibbles(load32(bytes));
        for half in 0..2 {
            let group = 2 * pair + half;
            for t in 0..T {
                // At most 2 * 15 * 127 in 16 bits.
                let products = _mm256_maddubs_epi16(halves[half], load_int8(&x[t].0[group]));
                let wide = _mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
                sums[t] = _mm256_fmadd_ps(wide, _mm256_set1_ps(factors[t][group]), sums[t]);
            }
        }
    }
}

/// 32 integers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_int8(values: &[i8; BLOCK]) -> __m256i {
    // SAFETY: a reference to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}
