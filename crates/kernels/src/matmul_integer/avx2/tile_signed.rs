//! Weights of 8 bits times many tokens. The processor's product of unsigned and signed bytes takes twice as many as that of 16
//! bits, but magnitudes of weights only: their signs must be the tokens'. So a vector holds two columns of sixteen tokens and
//! is packed with all four pairs of signs; the two weights, which are broadcast, say where to load. Up to eight tokens, for
//! which half of it would be empty, lie in it with four columns and all sixteen signs, and have the same sums.
//!
//! A pair's product fills 16 bits. Its lowest bits are dropped, so that those of a block can be added up there: of normally
//! distributed values that adds 2 to 4 % to the error that the rounding of activations makes. Every other pair is subtracted,
//! so that it is not always downwards.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::signed::{BLOCKS, FOURS, Row, VECTOR, fill};
use crate::avx2::{LANES as HALF, broadcast_four, in_memory, in_order, in_register, load, store};
use crate::integers::BLOCK;
use crate::lanes::avx2::{RowsAhead, pack, panels, transpose};
use crate::matmul_integer::LOST_BITS;
use crate::{IntegerRef, LANES, Lanes, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of a panel, 10 or 15 kB: a first cache of 32 kB has room for them and 17 kB of a batch. With 24 to 48 the processor
/// foresees what comes from memory, with 132 and 264 it did not.
const ROWS: usize = 36;
/// Turns of the loop through the steps of a block; the end of a longer one would be predicted wrongly.
const TURNS: usize = 4;
/// Tokens up to which vectors hold eight of them. Two such vectors with all signs would fill a first cache of 32 kB.
const FEW: usize = HALF;

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`, of `q8_0` or FP8.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    // SAFETY: this function has the features of `Row`'s.
    unsafe {
        match x.rows() <= FEW {
            true => panels::matmul::<_, Row<1>, 1, ROWS>(w, x, out),
            false => panels::matmul::<_, Row<2>, 2, ROWS>(w, x, out),
        }
    }
}

impl<const G: usize> panels::Row<IntegerRef<'_>, G> for Row<G> {
    const COLUMNS: usize = BLOCKS * BLOCK;
    const LINES: usize = BLOCKS * (1 + 2 / G * Self::BLOCK_LINES);
    const STEP: usize = BLOCKS * BLOCK;
    const EMPTY: Self = Self::EMPTY;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, next: RowsAhead, out: &mut [Self]) {
        fill(w, columns, next, out);
    }

    /// The scales of each group of sixteen tokens, then by block and step the vectors of all tokens.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: IntegerRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut [MaybeUninit<Lanes>],
    ) -> &'m [Lanes] {
        let blocks = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
        let (groups, vectors) = (tokens.len().div_ceil(LANES), tokens.len().div_ceil(G * HALF));
        let lines = &mut memory[..blocks.len() * (groups + vectors * Self::BLOCK_LINES)];
        let (scales, values) = lines.split_at_mut(groups * blocks.len());
        for (group, scales) in scales.chunks_exact_mut(blocks.len()).enumerate() {
            let first = tokens.start + group * LANES;
            let x = x.row_range(first..tokens.end.min(first + LANES));
            pack(x.all_scales().column_range(blocks.clone()), None, scales);
        }
        for vector in 0..vectors {
            let first = tokens.start + vector * G * HALF;
            let x = x.row_range(first..tokens.end.min(first + G * HALF));
            for (block, values) in blocks.clone().zip(values.chunks_exact_mut(vectors * Self::BLOCK_LINES)) {
                pack_block::<G>(x, block, values, (vector, vectors));
            }
        }
        // SAFETY: the scales and all vectors have been written.
        unsafe { lines.assume_init_ref() }
    }

    /// Memory has been asked for the next rows while these were filled in.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        _: Option<RowsAhead>,
        sums: &mut [[Lanes; G]; R],
    ) {
        let groups = V.div_ceil(2 / G);
        let blocks = batch.len() / (groups + V * Self::BLOCK_LINES);
        let (scales, values) = batch.split_at(groups * blocks);
        let values = Lanes::int8(values);
        for block in 0..blocks.min(BLOCKS) {
            let vectors = V * Self::STEPS * Self::SIGNS;
            let products = products::<R, V, G>(rows, block, &values[block * vectors..][..vectors]);
            in_memory(sums);
            for r in 0..R {
                let scale = rows[r].scale(block);
                for v in 0..V {
                    let (group, half) = (v * G / 2, v * G % 2);
                    let x_scales = &scales[group * blocks + block].0.as_chunks().0[half..][..G];
                    let sums = &mut sums[r][group].0.as_chunks_mut().0[half..][..G];
                    add_scaled::<G>(sums, products[r][v], scale, x_scales);
                }
            }
        }
    }
}

impl<const G: usize> Row<G> {
    /// Lines of a vector with all signs.
    const STEP_LINES: usize = Self::SIGNS * VECTOR / size_of::<Lanes>();
    /// Lines of a block of a vector of tokens.
    const BLOCK_LINES: usize = Self::STEPS * Self::STEP_LINES;
}

/// Products of a block of `R` rows with `V` vectors of tokens, without their lowest bits: of two columns in each 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products<const R: usize, const V: usize, const G: usize>(
    rows: &[Row<G>; R],
    block: usize,
    tokens: &[[i8; VECTOR]],
) -> [[__m256i; V]; R] {
    let mut sums = [[_mm256_setzero_si256(); V]; R];
    let steps = Row::<G>::STEPS / TURNS;
    for turn in 0..TURNS {
        let first = turn * steps;
        let tokens = &tokens[first * V * Row::<G>::SIGNS..][..steps * V * Row::<G>::SIGNS];
        add_step::<R, V, G, 0>(rows, (block, first), tokens, &mut sums);
        add_step::<R, V, G, 1>(rows, (block, first), tokens, &mut sums);
        if G == 2 {
            add_step::<R, V, G, 2>(rows, (block, first), tokens, &mut sums);
            add_step::<R, V, G, 3>(rows, (block, first), tokens, &mut sums);
        }
    }
    sums
}

/// Adds the products of step number `STEP` of a turn, or subtracts them. The turn's first step is the block's step `first`, and
/// `tokens` are those of the turn.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_step<const R: usize, const V: usize, const G: usize, const STEP: usize>(
    rows: &[Row<G>; R],
    (block, first): (usize, usize),
    tokens: &[[i8; VECTOR]],
    sums: &mut [[__m256i; V]; R],
) {
    assert_eq!(tokens.len(), Row::<G>::STEPS / TURNS * V * Row::<G>::SIGNS, "vectors of a turn");
    for r in 0..R {
        let magnitudes = broadcast_four(rows[r].magnitudes(block, first + STEP));
        let start = in_register(tokens.as_ptr().wrapping_byte_add(rows[r].place(block, first + STEP)));
        for v in 0..V {
            // SAFETY: a turn has vectors for all of its steps, asserted above, and the place is that of one of those that this step
            // has for its signs; they lie in lines, so each is aligned.
            let x = unsafe { _mm256_load_si256(start.add((STEP * V + v) * Row::<G>::SIGNS).cast()) };
            let product = _mm256_srai_epi16::<LOST_BITS>(_mm256_maddubs_epi16(magnitudes, x));
            sums[r][v] = in_order(match G == 2 && STEP % 2 == 1 {
                false => _mm256_add_epi16(sums[r][v], product),
                true => _mm256_sub_epi16(sums[r][v], product),
            });
        }
    }
}

/// Adds the products of a vector, times the scales of both sides.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_scaled<const G: usize>(
    sums: &mut [[f32; HALF]],
    products: __m256i,
    scale: f32,
    x_scales: &[[f32; HALF]],
) {
    let mut halves = [products; G];
    if G == 1 {
        // The second pair of four columns is to be subtracted.
        let pairs = _mm256_set1_epi32(i32::from_le_bytes([1, 0, 0xff, 0xff]));
        halves[0] = _mm256_madd_epi16(products, pairs);
    } else {
        // Tokens 0 to 7 lie in the lower 16 bits; 8 to 15 in the upper ones, where all are read, so that these need no shift.
        halves[0] = _mm256_slli_epi32::<16>(products);
        halves[1] = _mm256_and_si256(products, _mm256_set1_epi32(-1 << 16));
    }
    for half in 0..G {
        let scale = _mm256_mul_ps(_mm256_set1_ps(scale), load(&x_scales[half]));
        let total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(halves[half]), scale, load(&sums[half]));
        store(&mut sums[half], total);
    }
}

/// A block of the tokens of a vector, with all signs of each step; zero where there is no token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pack_block<const G: usize>(
    x: IntegerRef<'_>,
    block: usize,
    lines: &mut [MaybeUninit<Lanes>],
    (vector, vectors): (usize, usize),
) {
    let mut fours = [[_mm256_setzero_ps(); HALF]; G];
    for token in 0..x.rows() {
        let start = x.blocks(token)[block].as_ptr().cast();
        // SAFETY: the start of 32 bytes, any of which are some f32; the load needs no alignment.
        fours[token / HALF][token % HALF] = unsafe { _mm256_loadu_ps(start) };
    }
    for half in 0..G {
        fours[half] = transpose(fours[half]);
    }
    let lower = _mm256_set1_epi32(0xffff);
    for four in 0..FOURS {
        let mut steps = [_mm256_castps_si256(fours[0][four]); G];
        if G == 2 {
            let (tokens, more) = (steps[0], _mm256_castps_si256(fours[1][four]));
            steps[0] = _mm256_or_si256(_mm256_and_si256(lower, tokens), _mm256_slli_epi32::<16>(more));
            steps[1] = _mm256_or_si256(_mm256_srli_epi32::<16>(tokens), _mm256_andnot_si256(lower, more));
        }
        for (step, columns) in steps.into_iter().enumerate() {
            let place = (four * G + step) * vectors + vector;
            let lines = &mut lines[place * Row::<G>::STEP_LINES..][..Row::<G>::STEP_LINES];
            store_signs::<G>(lines, columns);
        }
    }
}

/// The columns of a step of the tokens of a vector, with all signs: bit by bit, a vector's number says whether a
/// column has the other sign.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_signs<const G: usize>(lines: &mut [MaybeUninit<Lanes>], columns: __m256i) {
    assert_eq!(lines.len(), Row::<G>::STEP_LINES, "a vector for all signs");
    for number in 0..Row::<G>::SIGNS {
        let sign = |column: usize| if number >> (column % (4 / G)) & 1 == 1 { 0xff } else { 1 };
        let signs = _mm256_set1_epi32(i32::from_le_bytes([sign(0), sign(1), sign(2), sign(3)]));
        let vector = _mm256_sign_epi8(columns, signs);
        // SAFETY: an exclusive reference to so many vectors, aligned as lines are.
        unsafe { _mm256_store_si256(lines.as_mut_ptr().cast::<__m256i>().add(number), vector) }
    }
}
