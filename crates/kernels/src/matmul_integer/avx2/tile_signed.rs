//! Weights of 8 bits times many tokens. The processor's product of unsigned and signed bytes takes twice as many as that of 16
//! bits, but magnitudes of weights only: their signs must be the tokens'. So each pair of columns of tokens is packed with
//! all four pairs of signs, and a pair of weights, which is broadcast, says where to load.
//!
//! A pair's product fills 16 bits. Its lowest bits are dropped, so that those of a block can be added up there: of normally
//! distributed values that adds 2 to 4 % to the error that the rounding of activations makes. Every other pair is subtracted,
//! so that it is not always downwards.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::signed::{BLOCKS, PAIRS, PLACE, Row, fill};
use crate::avx2::{LANES as VECTOR, broadcast_four, in_memory, in_order, load, store};
use crate::integers::BLOCK;
use crate::lanes::avx2::{RowsAhead, pack, panels, transpose};
use crate::matmul_integer::LOST_BITS;
use crate::{IntegerRef, LANES, Lanes, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Groups of sixteen tokens in a batch: a vector each.
const GROUPS: usize = 2;
/// Rows of a panel, 14 kB: a first cache of 32 kB has room for them and 17 kB of a batch. With 24 to 48 the processor foresees
/// what comes from memory, with 132 and 264 it did not.
const ROWS: usize = 36;
/// Pairs of signs.
const SIGNS: usize = 4;
/// Lines of a pair of columns of sixteen tokens.
const PAIR_LINES: usize = SIGNS * PLACE / size_of::<Lanes>();
/// Lines of a block of sixteen tokens: one of scales, and those of pairs.
const BLOCK_LINES: usize = 1 + PAIRS * PAIR_LINES;

/// The pairs of a block of sixteen tokens.
type Pairs = [[[i8; PLACE]; SIGNS]; PAIRS];

const _: () = assert!(PLACE == 2 * LANES);

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`, of `q8_0` or FP8.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    // SAFETY: this function has the features of `Row`'s.
    unsafe { panels::matmul::<_, Row, GROUPS, ROWS>(w, x, out) }
}

impl panels::Row<IntegerRef<'_>, GROUPS> for Row {
    const COLUMNS: usize = BLOCKS * BLOCK;
    const LINES: usize = BLOCKS * BLOCK_LINES;
    const STEP: usize = BLOCKS * BLOCK;
    const EMPTY: Self = Self::EMPTY;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, next: RowsAhead, out: &mut [Self]) {
        fill(w, columns, next, out);
    }

    /// By group: the scales of all blocks, then their pairs.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: IntegerRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut [MaybeUninit<Lanes>],
    ) -> &'m [Lanes] {
        let blocks = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
        let lines = &mut memory[..tokens.len().div_ceil(LANES) * blocks.len() * BLOCK_LINES];
        let groups = lines.chunks_exact_mut(blocks.len() * BLOCK_LINES);
        for (first, lines) in tokens.clone().step_by(LANES).zip(groups) {
            let x = x.row_range(first..tokens.end.min(first + LANES));
            let (scales, pairs) = lines.split_at_mut(blocks.len());
            pack(x.all_scales().column_range(blocks.clone()), None, scales);
            for (block, lines) in blocks.clone().zip(pairs.as_chunks_mut::<PAIR_LINES>().0.as_chunks_mut().0)
            {
                pack_block(x, block, lines);
            }
        }
        // SAFETY: the scales and the pairs of each group have been written.
        unsafe { lines.assume_init_ref() }
    }

    /// Memory has been asked for the next rows while these were filled in.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        _: Option<RowsAhead>,
        sums: &mut [[Lanes; GROUPS]; R],
    ) {
        let (mut scales, mut pairs): ([&[Lanes]; V], [&[Pairs]; V]) = ([&[]; V], [&[]; V]);
        let count = batch.len() / (V * BLOCK_LINES);
        for v in 0..V {
            let lines = &batch[v * count * BLOCK_LINES..][..count * BLOCK_LINES];
            let values;
            (scales[v], values) = lines.split_at(count);
            pairs[v] = Lanes::int8(values).as_chunks().0.as_chunks().0;
        }
        for block in 0..count.min(BLOCKS) {
            let (mut block_scales, mut block_pairs) = ([&Lanes::ZERO; V], [&pairs[0][block]; V]);
            for v in 0..V {
                (block_scales[v], block_pairs[v]) = (&scales[v][block], &pairs[v][block]);
            }
            let products = products(rows, block, block_pairs);
            in_memory(sums);
            for r in 0..R {
                for v in 0..V {
                    add_scaled(&mut sums[r][v], products[r][v], rows[r].0[block].scale, block_scales[v]);
                }
            }
        }
    }
}

/// Products of a block of `R` rows with `V` groups of tokens, without their lowest bits: tokens 0 to 7 of a group in the lower
/// 16 bits of each lane, 8 to 15 in the upper ones.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products<const R: usize, const V: usize>(
    rows: &[Row; R],
    block: usize,
    tokens: [&Pairs; V],
) -> [[__m256i; V]; R] {
    let mut sums = [[_mm256_setzero_si256(); V]; R];
    // Four turns: the end of a longer loop would be predicted wrongly.
    for pair in (0..PAIRS).step_by(PAIRS / 4) {
        add_pair::<R, V, false>(rows, block, pair, tokens, &mut sums);
        add_pair::<R, V, true>(rows, block, pair + 1, tokens, &mut sums);
        add_pair::<R, V, false>(rows, block, pair + 2, tokens, &mut sums);
        add_pair::<R, V, true>(rows, block, pair + 3, tokens, &mut sums);
    }
    sums
}

/// Adds the products of a pair of columns, or subtracts them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_pair<const R: usize, const V: usize, const SUBTRACT: bool>(
    rows: &[Row; R],
    block: usize,
    pair: usize,
    tokens: [&Pairs; V],
    sums: &mut [[__m256i; V]; R],
) {
    for r in 0..R {
        let weights = &rows[r].0[block];
        let magnitudes = broadcast_four(weights.magnitudes[pair]);
        for v in 0..V {
            let start = tokens[v][pair].as_ptr().cast::<u8>();
            // SAFETY: the place is that of one of the pair's four vectors, which are aligned as lines are.
            let x = unsafe { _mm256_load_si256(start.add(weights.place(pair)).cast()) };
            let product = _mm256_srai_epi16::<LOST_BITS>(_mm256_maddubs_epi16(magnitudes, x));
            sums[r][v] = in_order(match SUBTRACT {
                false => _mm256_add_epi16(sums[r][v], product),
                true => _mm256_sub_epi16(sums[r][v], product),
            });
        }
    }
}

/// Adds products, times the scales of both sides.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_scaled(sums: &mut Lanes, products: __m256i, scale: f32, x_scales: &Lanes) {
    const UNIT: f32 = (1 << LOST_BITS) as f32;
    let halves = [_mm256_madd_epi16(products, _mm256_set1_epi32(1)), _mm256_srai_epi32::<16>(products)];
    let (sums, x_scales) = (sums.0.as_chunks_mut().0, x_scales.0.as_chunks().0);
    let scale = _mm256_set1_ps(scale * UNIT);
    for half in 0..halves.len() {
        let scale = _mm256_mul_ps(scale, load(&x_scales[half]));
        let total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(halves[half]), scale, load(&sums[half]));
        store(&mut sums[half], total);
    }
}

/// A block of at most sixteen tokens, each pair of columns with all signs; zero where there is no token.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pack_block(x: IntegerRef<'_>, block: usize, out: &mut [[MaybeUninit<Lanes>; PAIR_LINES]; PAIRS]) {
    let mut fours = [[_mm256_setzero_ps(); VECTOR]; 2];
    for token in 0..x.rows() {
        let start = x.blocks(token)[block].as_ptr().cast();
        // SAFETY: the start of 32 bytes, any of which are some f32; the load needs no alignment.
        fours[token / VECTOR][token % VECTOR] = unsafe { _mm256_loadu_ps(start) };
    }
    let [tokens, more] = fours.map(|fours| transpose(fours));
    let lower = _mm256_set1_epi32(0xffff);
    for (four, pairs) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (tokens, more) = (_mm256_castps_si256(tokens[four]), _mm256_castps_si256(more[four]));
        let first = _mm256_or_si256(_mm256_and_si256(lower, tokens), _mm256_slli_epi32::<16>(more));
        let second = _mm256_or_si256(_mm256_srli_epi32::<16>(tokens), _mm256_andnot_si256(lower, more));
        store_signs(&mut pairs[0], first);
        store_signs(&mut pairs[1], second);
    }
}

/// Sixteen tokens' pairs, with signs `+ +`, `- +`, `+ -` and `- -`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store_signs(lines: &mut [MaybeUninit<Lanes>; PAIR_LINES], pairs: __m256i) {
    let signs =
        |one: i8, other: i8| _mm256_set1_epi16(i16::from_le_bytes([one, other].map(i8::cast_unsigned)));
    let vectors = [
        pairs,
        _mm256_sign_epi8(pairs, signs(-1, 1)),
        _mm256_sign_epi8(pairs, signs(1, -1)),
        _mm256_sign_epi8(pairs, signs(-1, -1)),
    ];
    for (number, vector) in vectors.into_iter().enumerate() {
        // SAFETY: an exclusive reference to four vectors, aligned as lines are.
        unsafe { _mm256_store_si256(lines.as_mut_ptr().cast::<__m256i>().add(number), vector) }
    }
}
