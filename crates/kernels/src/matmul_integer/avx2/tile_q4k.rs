//! `q4_K` times many tokens: four columns are broadcast to eight tokens in lanes, whose products of a group are added up in
//! 16 bits.

#![allow(clippy::needless_range_loop, reason = "a row is an index into several arrays")]

use super::q4k::{nibbles, scales_and_minima, widen};
use crate::avx2::{broadcast_four, half, in_memory, in_order, load as load_vector, load32, store, store32};
use crate::integers::BLOCK;
use crate::lanes::avx2::{RowsAhead, load, pack, panels};
use crate::quantized::{BlockQ4K, Q4K_COLS, Q4K_GROUPS, blocks};
use crate::{IntegerRef, Lanes, MatrixMut, MatrixView};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Four neighbouring columns: what a lane holds of a token. There are so many in a group.
const FOURS: usize = BLOCK / 4;
/// Lines of a group of columns of sixteen tokens: fours, a line of scales and one of sums.
const GROUP_LINES: usize = FOURS + 2;
/// Blocks of a panel.
const BLOCKS: usize = 2;
/// Groups of columns of a panel.
const GROUPS: usize = BLOCKS * Q4K_GROUPS;

/// Two blocks of a row of weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Row {
    values: [[[u8; 4]; FOURS]; GROUPS],
    /// Twice: a factor for each of two neighbours of 16 bits.
    scales: [i32; GROUPS],
    /// `-dmin` times the minimum.
    minima: [f32; GROUPS],
    d: [f32; BLOCKS],
}

/// `out[t, r] = sum over c of x[t, c] * w[r, c]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(w: &MatrixView<'_>, x: IntegerRef<'_>, out: MatrixMut<'_>) {
    // SAFETY: this function has the features of `Row`'s.
    unsafe { panels::matmul::<_, Row, 1, { panels::FEW_ROWS }>(w, x, out) }
}

impl panels::Row<IntegerRef<'_>, 1> for Row {
    const COLUMNS: usize = BLOCKS * Q4K_COLS;
    const LINES: usize = GROUPS * GROUP_LINES;
    const STEP: usize = Q4K_COLS;
    const EMPTY: Self = Self {
        values: [[[0; 4]; FOURS]; GROUPS],
        scales: [0; GROUPS],
        minima: [0.0; GROUPS],
        d: [0.0; BLOCKS],
    };

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(w: &MatrixView<'_>, columns: Range<usize>, _: RowsAhead, out: &mut [Self]) {
        let bytes = w.rows_bytes(columns);
        for (row, out) in out.iter_mut().enumerate() {
            let weights: &[BlockQ4K] = blocks(bytes.row(row));
            for (block, weights) in weights.iter().enumerate() {
                out.set(block, weights);
            }
        }
    }

    /// The scales of all groups, then their sums, then their fours.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pack<'m>(
        x: IntegerRef<'_>,
        tokens: Range<usize>,
        columns: Range<usize>,
        memory: &'m mut [MaybeUninit<Lanes>],
    ) -> &'m [Lanes] {
        let x = x.row_range(tokens);
        let groups = columns.start / BLOCK..columns.end / BLOCK;
        let lines = &mut memory[..groups.len() * GROUP_LINES];
        let (scales, rest) = lines.split_at_mut(groups.len());
        let (sums, fours) = rest.split_at_mut(groups.len());
        pack(x.all_scales().column_range(groups.clone()), None, scales);
        pack(x.all_sums().column_range(groups.clone()), None, sums);
        pack(x.all_fours().column_range(FOURS * groups.start..FOURS * groups.end), None, fours);
        // SAFETY: all three parts have been written.
        unsafe { lines.assume_init_ref() }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn add_rows<const R: usize, const V: usize>(
        rows: &[Self; R],
        batch: &[Lanes],
        ahead: Option<RowsAhead>,
        sums: &mut [[Lanes; 1]; R],
    ) {
        let groups = batch.len() / GROUP_LINES;
        let (x_scales, rest) = batch.split_at(groups);
        let (x_sums, fours) = rest.split_at(groups);
        let (x_scales, x_sums) = (x_scales.as_chunks::<Q4K_GROUPS>().0, x_sums.as_chunks::<Q4K_GROUPS>().0);
        let fours = fours.as_chunks::<FOURS>().0.as_chunks::<Q4K_GROUPS>().0;
        for block in 0..(groups / Q4K_GROUPS).min(BLOCKS) {
            if let Some(ahead) = ahead {
                ahead.request::<_MM_HINT_T1, R>(block);
            }
            let mut totals = [[_mm256_setzero_ps(); V]; R];
            for group in 0..Q4K_GROUPS {
                let at = block * Q4K_GROUPS + group;
                let products = products::<R, V>(rows, at, &fours[block][group]);
                in_memory(&mut totals);
                let x_scales = load(&x_scales[block][group]);
                for r in 0..R {
                    let scale = _mm256_set1_epi32(rows[r].scales[at]);
                    for v in 0..V {
                        let scaled = _mm256_madd_epi16(products[r][v], scale);
                        totals[r][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(scaled), x_scales[v], totals[r][v]);
                    }
                }
            }
            in_memory(&mut totals);
            for r in 0..R {
                let minima = &rows[r].minima.as_chunks::<Q4K_GROUPS>().0[block];
                let d = _mm256_set1_ps(rows[r].d[block]);
                for v in 0..V {
                    let sum = &mut sums[r][0].0.as_chunks_mut().0[v];
                    let mut total = _mm256_fmadd_ps(totals[r][v], d, load_vector(sum));
                    for group in 0..Q4K_GROUPS {
                        let minimum = _mm256_set1_ps(minima[group]);
                        let x_sum = load_vector(&x_sums[block][group].0.as_chunks().0[v]);
                        total = _mm256_fmadd_ps(minimum, x_sum, total);
                    }
                    store(sum, total);
                }
            }
        }
    }
}

impl Row {
    /// Fills in a block.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn set(&mut self, block: usize, weights: &BlockQ4K) {
        let values = self.values.as_chunks_mut::<Q4K_GROUPS>().0[block].as_chunks_mut::<2>().0;
        for (bytes, groups) in weights.values.as_chunks().0.iter().zip(values) {
            for (group, bits) in groups.iter_mut().zip(nibbles(load32(bytes))) {
                store32(group.as_flattened_mut().try_into().expect("a group's columns"), bits);
            }
        }
        let (scales, minima) = scales_and_minima(weights);
        for (to, scale) in
            self.scales.as_chunks_mut::<Q4K_GROUPS>().0[block].iter_mut().zip(scales.to_le_bytes())
        {
            *to = i32::from(scale) * 0x1_0001;
        }
        let minus_dmin = _mm256_set1_ps(-half(weights.dmin));
        store(&mut self.minima.as_chunks_mut().0[block], _mm256_mul_ps(widen(minima), minus_dmin));
        self.d[block] = half(weights.d);
    }
}

/// Products of a group of columns of `R` rows with `V` vectors of tokens, two neighbours in each lane: 16 products of at most
/// 15 * 127 each.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products<const R: usize, const V: usize>(
    rows: &[Row; R],
    group: usize,
    lines: &[Lanes; FOURS],
) -> [[__m256i; V]; R] {
    let mut sums = [[_mm256_setzero_si256(); V]; R];
    // Eight turns of a loop would end in a misprediction.
    add_four(rows, group, 0, lines, &mut sums);
    add_four(rows, group, 1, lines, &mut sums);
    add_four(rows, group, 2, lines, &mut sums);
    add_four(rows, group, 3, lines, &mut sums);
    add_four(rows, group, 4, lines, &mut sums);
    add_four(rows, group, 5, lines, &mut sums);
    add_four(rows, group, 6, lines, &mut sums);
    add_four(rows, group, 7, lines, &mut sums);
    sums
}

/// Adds the products of four columns.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_four<const R: usize, const V: usize>(
    rows: &[Row; R],
    group: usize,
    four: usize,
    lines: &[Lanes; FOURS],
    sums: &mut [[__m256i; V]; R],
) {
    let tokens = load(&lines[four]).map(|vector| _mm256_castps_si256(vector));
    for r in 0..R {
        let weights = broadcast_four(rows[r].values[group][four]);
        for v in 0..V {
            let product = in_order(_mm256_maddubs_epi16(weights, tokens[v]));
            sums[r][v] = in_order(_mm256_add_epi16(sums[r][v], product));
        }
    }
}
