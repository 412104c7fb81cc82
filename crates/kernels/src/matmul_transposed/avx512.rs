//! As on AVX2; more tokens than a few in tiles of eight by 32 columns, sixteen vectors of sums at ten loads for sixteen FMAs.

#![allow(clippy::needless_range_loop, reason = "a token is an index into several arrays")]

use super::avx2::matmul_transposed_by;
use super::avx2::tile::{MOST_COLUMNS, PITCH, Strip, Sums, Tiles};
use crate::avx2::with_count;
use crate::avx512::{VECTOR, load_values, store_values};
use crate::{MatrixMut, MatrixRef, MatrixView, Order, dequantize};
use std::arch::x86_64::*;
use std::array::from_fn;

/// Vectors of a row of a tile.
const VECTORS: usize = MOST_COLUMNS / VECTOR;

/// `out[t, c] = sum over r of x[t, r] * w[r, c]`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn matmul_transposed(order: Order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>) {
    const TILES: Tiles = Tiles {
        columns: MOST_COLUMNS,
        tokens: 8,
        dequantize: dequantize::avx512::dequantize_rows,
        sums: strip_sums,
    };
    // SAFETY: this function has the features of these.
    unsafe { matmul_transposed_by(&TILES, order, w, x, out) }
}

/// [`Tiles::sums`].
#[target_feature(enable = "avx512f")]
fn strip_sums(strip: &Strip<'_>, x: MatrixRef<'_>, out: &mut [Sums]) {
    with_count!(out.len(), T of [1 2 3 4 5 6 7 8], {
        for (sums, out) in tile(strip, from_fn::<_, T, _>(|t| x.row(t))).iter().zip(out) {
            for (sums, out) in sums.iter().zip(out.as_chunks_mut().0) {
                store_values(out, *sums);
            }
        }
    });
}

/// The sums over the rows of a strip for `T` tokens.
#[target_feature(enable = "avx512f")]
#[inline]
fn tile<const T: usize>(strip: &Strip<'_>, x: [&[f32]; T]) -> [[__m512; VECTORS]; T] {
    let rows = strip.panel.len();
    assert!(x.iter().all(|x| x.len() == rows), "a value of x for each row");
    assert!(strip.column + MOST_COLUMNS <= PITCH, "columns of a panel");
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; T];
    for (r, row) in strip.panel.iter().enumerate() {
        strip.ahead.request(r);
        let values = &row[strip.column..][..MOST_COLUMNS];
        let mut weights = [_mm512_setzero_ps(); VECTORS];
        for (weights, values) in weights.iter_mut().zip(values.as_chunks().0) {
            *weights = load_values(values);
        }
        for t in 0..T {
            // SAFETY: `r < rows`, the length of each token's part of x.
            let input = _mm512_set1_ps(unsafe { *x[t].get_unchecked(r) });
            for v in 0..VECTORS {
                sums[t][v] = _mm512_fmadd_ps(input, weights[v], sums[t][v]);
            }
        }
    }
    sums
}
