//! Weights of at most 8 bits, unsigned, times many tokens: four columns are broadcast to sixteen tokens in lanes, or eight or
//! sixteen columns to as many times fewer tokens. What is added to weights to make them unsigned is subtracted from the sums at
//! once: 128 times the sum of a token's columns.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::fill::fill;
use crate::avx2::load16_bytes;
use crate::avx512::{in_order, load, load_integers, store, store_integers};
use crate::integers::BLOCK;
use crate::lanes::avx2::{RowsAhead, pack, panels, zeros};
use crate::matmul_integer::FP8_SPAN;
use crate::{IntegerRef, LANES, Lanes, MatrixMut, MatrixRef, MatrixView};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Blocks of a panel: of `q4_K` a group of its columns is one.
pub(super) const BLOCKS: usize = 16;
/// Blocks between two requests to memory, of a line of FP8 each.
const STEP_BLOCKS: usize = 2;
/// Groups of sixteen tokens in a batch: a vector each.
const GROUPS: usize = 2;
/// Rows of a panel, 8 kB: it is still in the first cache when it is filled in anew, and the next one's bytes and some tokens
/// are, too. Of 60 rows each store waited for the second cache.
pub(super) const ROWS: usize = 12;
/// The same of FP8, whose scales are found for many rows at once, and which takes longer to bring into steps than to store.
pub(super) const FP8_ROWS: usize = 24;
/// The most fours that lie beside each other in a vector.
pub(super) const MOST_BESIDE: usize = 4;
/// Four neighbouring columns: what a lane holds of a token. There are so many in a block.
const FOURS: usize = BLOCK / 4;
/// Lines of a block of sixteen tokens: fours, a line of scales and one of offsets.
const BLOCK_LINES: usize = FOURS + 2;

/// Some columns of a row of weights; `SPAN` blocks have one scale. With `MINIMA` what to subtract from each value of a block. Of
/// tokens `BESIDE` fours lie beside each other in a vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Row<const MINIMA: bool, const SPAN: usize, const BESIDE: usize> {
    pub(super) values: [[u8; BLOCK]; BLOCKS],
    /// What one is worth, of spans.
    pub(super) scales: [f32; BLOCKS],
    pub(super) minima: [f32; BLOCKS],
}

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`; with `MINIMA` of `q4_K`, with panels of `N` rows; of at most `LANES / BESIDE`
/// tokens, if `BESIDE` is not 1.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub(super) fn matmul<const MINIMA: bool, const SPAN: usize, const BESIDE: usize, const N: usize>(
    w: &MatrixView<'_>,
    x: IntegerRef<'_>,
    out: MatrixMut<'_>,
) {
    assert!(BESIDE == 1 || x.rows() * BESIDE <= LANES, "all tokens lie in a vector");
    // SAFETY: this function has the features of `Row`'s.
    unsafe { panels::matmul::<_, Row<MINIMA, SPAN, BESIDE>, GROUPS, N>(w, x, out) }
}

impl<const MINIMA: bool, const SPAN: usize, const BESIDE: usize> panels::Row<IntegerRef<'_>, GROUPS>
    for Row<MINIMA, SPAN, BESIDE>
{
    const COLUMNS: usize = BLOCKS * BLOCK;
    const LINES: usize = BLOCKS * BLOCK_LINES;
    const STEP: usize = STEP_BLOCKS * BLOCK;
    const EMPTY: Self = Self { values: [[0; BLOCK]; BLOCKS], scales: [0.0; BLOCKS], minima: [0.0; BLOCKS] };

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, _: RowsAhead, out: &mut [Self]) {
        fill(w, columns, out);
    }

    /// By group: the scales of all blocks, then their offsets, then their fours. Offsets are the blocks' sums or, where weights
    /// are 128 too large, what that makes of the products of each span. The last span has zeros behind its columns.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn pack<'m>(
        x: IntegerRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut [MaybeUninit<Lanes>],
    ) -> &'m [Lanes] {
        let blocks = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
        let count = blocks.len().next_multiple_of(SPAN);
        let lines = &mut memory[..tokens.len().div_ceil(LANES) * count * BLOCK_LINES];
        let groups = lines.chunks_exact_mut(count * BLOCK_LINES);
        for (first, lines) in tokens.clone().step_by(LANES).zip(groups) {
            let x = x.row_range(first..tokens.end.min(first + LANES));
            let (scales, rest) = lines.split_at_mut(count);
            let (offsets, fours) = rest.split_at_mut(count);
            spread::<true, BESIDE>(pack_padded(x.all_scales().column_range(blocks.clone()), scales));
            let columns = FOURS * blocks.start..FOURS * blocks.end;
            let fours = lay_beside::<BESIDE>(pack_padded(x.all_fours().column_range(columns), fours));
            if MINIMA {
                spread::<false, BESIDE>(pack_padded(x.all_sums().column_range(blocks.clone()), offsets));
            } else {
                let spans = fours.chunks_exact(SPAN * FOURS / BESIDE);
                for (fours, offset) in spans.zip(zeros(offsets)) {
                    store_integers(offset, minus_sums(fours));
                }
            }
        }
        // SAFETY: all three parts of each group have been written.
        unsafe { lines.assume_init_ref() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [[Lanes; GROUPS]; R],
    ) {
        let lines = batch.len() / V;
        let count = lines / BLOCK_LINES;
        let mut tokens = [Tokens { scales: &[], offsets: &[], fours: &[] }; V];
        for v in 0..V {
            let (scales, rest) = batch[v * lines..][..lines].split_at(count);
            let (offsets, fours) = rest.split_at(count);
            tokens[v] = Tokens { scales, offsets, fours };
        }
        let mut totals = [[_mm512_setzero_ps(); V]; R];
        for span in 0..count.min(BLOCKS) / SPAN {
            add_span(rows, span, &tokens, ahead, &mut totals);
        }
        for r in 0..R {
            for v in 0..V {
                let total = _mm512_add_ps(load(&sums[r][v]), by_token::<BESIDE>(totals[r][v]));
                store(&mut sums[r][v], total);
            }
        }
    }
}

/// Sixteen tokens at most: scales by block, offsets by span.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    scales: &'a [Lanes],
    offsets: &'a [Lanes],
    fours: &'a [Lanes],
}

/// Adds the products of a span of `R` rows with `V` groups of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
#[inline]
fn add_span<const MINIMA: bool, const SPAN: usize, const BESIDE: usize, const R: usize, const V: usize>(
    rows: &[Row<MINIMA, SPAN, BESIDE>; R],
    span: usize,
    tokens: &[Tokens<'_>; V],
    ahead: Option<RowsAhead>,
    totals: &mut [[__m512; V]; R],
) {
    let mut products = [[_mm512_setzero_si512(); V]; R];
    if !MINIMA {
        for v in 0..V {
            let offset = load_integers(&tokens[v].offsets[span]);
            for r in 0..R {
                products[r][v] = offset;
            }
        }
    }
    for block in span * SPAN..(span + 1) * SPAN {
        if let Some(ahead) = ahead
            && block % STEP_BLOCKS == 0
        {
            // The first cache has no room for 24 rows of FP8 beside this panel.
            match SPAN == FP8_SPAN {
                true => ahead.request::<_MM_HINT_T1, R>(block / STEP_BLOCKS),
                false => ahead.request::<_MM_HINT_T0, R>(block / STEP_BLOCKS),
            }
        }
        add_block(rows, block, tokens, &mut products);
    }
    for v in 0..V {
        let x_scales = load(&tokens[v].scales[span * SPAN]);
        for r in 0..R {
            // Not the product of both scales: the compiler takes that first, and has no registers for it.
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(products[r][v]), x_scales);
            totals[r][v] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(rows[r].scales[span]), totals[r][v]);
        }
        if MINIMA {
            let x_sums = load(&tokens[v].offsets[span]);
            for r in 0..R {
                let minima = _mm512_set1_ps(rows[r].minima[span]);
                totals[r][v] = _mm512_fnmadd_ps(minima, x_sums, totals[r][v]);
            }
        }
    }
}

/// Adds the products of a block's integers.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
#[inline]
fn add_block<const MINIMA: bool, const SPAN: usize, const BESIDE: usize, const R: usize, const V: usize>(
    rows: &[Row<MINIMA, SPAN, BESIDE>; R],
    block: usize,
    tokens: &[Tokens<'_>; V],
    products: &mut [[__m512i; V]; R],
) {
    let count = FOURS / BESIDE;
    let mut fours: [&[Lanes]; V] = [&[]; V];
    for v in 0..V {
        fours[v] = &tokens[v].fours[block * count..][..count];
    }
    for number in 0..count {
        let mut x = [_mm512_setzero_si512(); V];
        for v in 0..V {
            x[v] = load_integers(&fours[v][number]);
        }
        for r in 0..R {
            let weights = broadcast::<BESIDE>(&rows[r].values[block], number);
            for v in 0..V {
                products[r][v] = in_order(_mm512_dpbusd_epi32(products[r][v], weights, x[v]));
            }
        }
    }
}

/// [`pack`] of columns for the first lines, and lines of zeros behind them.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn pack_padded<'a>(x: MatrixRef<'_>, lines: &'a mut [MaybeUninit<Lanes>]) -> &'a mut [Lanes] {
    let (packed, padding) = lines.split_at_mut(x.cols());
    pack(x, None, packed);
    zeros(padding);
    // SAFETY: both parts have been written.
    unsafe { lines.assume_init_mut() }
}

/// Weights of `BESIDE` fours for all tokens.
#[target_feature(enable = "avx512f")]
#[inline]
fn broadcast<const BESIDE: usize>(block: &[u8; BLOCK], number: usize) -> __m512i {
    match BESIDE {
        1 => _mm512_set1_epi32(i32::from_ne_bytes(block.as_chunks().0[number])),
        2 => _mm512_set1_epi64(i64::from_ne_bytes(block.as_chunks().0[number])),
        MOST_BESIDE => _mm512_broadcast_i32x4(load16_bytes(&block.as_chunks().0[number])),
        more => unreachable!("{more} fours do not lie beside each other"),
    }
}

/// Lines of few tokens to lines of `BESIDE` fours of each.
#[target_feature(enable = "avx512f")]
#[inline]
fn lay_beside<const BESIDE: usize>(fours: &mut [Lanes]) -> &[Lanes] {
    let mut length = fours.len();
    for width in (0..BESIDE.ilog2()).map(|step| 1 << step) {
        length /= 2;
        for line in 0..length {
            let [one, other] = [load(&fours[2 * line]), load(&fours[2 * line + 1])];
            store(&mut fours[line], interleave(width, one, other));
        }
    }
    &fours[..length]
}

/// Lines of few tokens: what a lane holds to all lanes of the token, or, not `EACH`, to the first, and zeros to the others.
#[target_feature(enable = "avx512f")]
#[inline]
fn spread<const EACH: bool, const BESIDE: usize>(lines: &mut [Lanes]) {
    for width in (0..BESIDE.ilog2()).map(|step| 1 << step) {
        for line in &mut *lines {
            let once = load(line);
            let other = if EACH { once } else { _mm512_setzero_ps() };
            store(line, interleave(width, once, other));
        }
    }
}

/// The lower halves of both, `width` lanes of each in turn.
#[target_feature(enable = "avx512f")]
#[inline]
fn interleave(width: usize, one: __m512, other: __m512) -> __m512 {
    if width == 1 {
        let lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        return _mm512_permutex2var_ps(one, lanes, other);
    }
    let pairs = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    let (one, other) = (_mm512_castps_pd(one), _mm512_castps_pd(other));
    _mm512_castpd_ps(_mm512_permutex2var_pd(one, pairs, other))
}

/// The totals of tokens from those of `BESIDE` fours each.
#[target_feature(enable = "avx512f")]
#[inline]
fn by_token<const BESIDE: usize>(fours: __m512) -> __m512 {
    if BESIDE == 1 {
        return fours;
    }
    let twos = _mm512_add_ps(fours, _mm512_permute_ps::<0b10_11_00_01>(fours));
    if BESIDE == 2 {
        return _mm512_maskz_compress_ps(0x5555, twos);
    }
    let ones = _mm512_add_ps(twos, _mm512_permute_ps::<0b01_00_11_10>(twos));
    _mm512_maskz_compress_ps(0x1111, ones)
}

/// -128 times the sums of the columns of some fours.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
pub(super) fn minus_sums(fours: &[Lanes]) -> __m512i {
    let mut sums = _mm512_setzero_si512();
    for four in fours {
        sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(i8::MIN), load_integers(four));
    }
    _mm512_sub_epi32(_mm512_setzero_si512(), sums)
}
