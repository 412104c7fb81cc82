//! FP8 numbers as f32, in registers: the two upper bytes of each are looked up. Unlike bits moved to their places these are
//! never subnormal, which costs Intel's processors a hundred cycles and more, and a NaN is one.

use super::{load_values, load64};
use crate::MatrixView;
use crate::format::FP8_VALUES;
use std::arch::x86_64::*;

/// Numbers that are taken apart together.
pub(crate) const UNIT: usize = 64;
/// Vectors of a unit.
pub(crate) const PARTS: usize = 4;
/// Magnitudes.
const COUNT: usize = 128;

/// A byte of the value of each magnitude, the highest being byte 3.
const fn bytes(number: usize) -> [u8; COUNT] {
    let mut all = [0; COUNT];
    let mut magnitude = 0;
    while magnitude < COUNT {
        all[magnitude] = FP8_VALUES[magnitude].to_bits().to_le_bytes()[number];
        magnitude += 1;
    }
    all
}

static UPPER: [u8; COUNT] = bytes(3);
static LOWER: [u8; COUNT] = bytes(2);

/// Whether units of `w` have one scale each, and no scale is beyond all reason.
pub(crate) fn fits(w: &MatrixView<'_>) -> bool {
    let mut blocks = w.column_blocks(0..w.cols());
    let aligned = blocks.next().is_some_and(|block| block.end.is_multiple_of(UNIT) || block.end == w.cols());
    aligned && w.has_moderate_scales()
}

/// The tables in registers.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    upper: [__m512i; 2],
    lower: [__m512i; 2],
}

impl Tables {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(crate) fn load() -> Self {
        let halves = |table: &[u8; COUNT]| {
            let halves = table.as_chunks().0;
            [load64(&halves[0]), load64(&halves[1])]
        };
        Self { upper: halves(&UPPER), lower: halves(&LOWER) }
    }

    /// The values of a unit: of each four numbers in a line of eight, the first and third in part 0, the second and fourth in
    /// part 1, of the next four likewise in parts 2 and 3.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    pub(crate) fn take_apart(self, bytes: __m512i) -> [__m512; PARTS] {
        /// `a | b & c`.
        const OR_AND: i32 = 0xf8;
        let upper = _mm512_permutex2var_epi8(self.upper[0], bytes, self.upper[1]);
        let lower = _mm512_permutex2var_epi8(self.lower[0], bytes, self.lower[1]);
        let upper = _mm512_ternarylogic_epi32::<OR_AND>(upper, bytes, _mm512_set1_epi8(i8::MIN));
        let words = [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)];
        let even = words.map(|words| _mm512_slli_epi32::<16>(words));
        let odd = words.map(|words| _mm512_and_si512(words, _mm512_set1_epi32(!0xffff)));
        [even[0], odd[0], even[1], odd[1]].map(|part| _mm512_castsi512_ps(part))
    }
}

/// The values of a unit as [`Tables::take_apart`] gives those of weights.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn by_part(x: &[f32; UNIT]) -> [__m512; PARTS] {
    // In each sixteen numbers the parts' four lie two apart.
    let in_turn = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    let mut rows = [_mm512_setzero_ps(); PARTS];
    for (row, x) in rows.iter_mut().zip(x.as_chunks().0) {
        *row = _mm512_permutexvar_ps(in_turn, load_values(x));
    }
    // Quarters of rows become rows.
    let [a, b, c, d] = rows;
    let lower = [_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d)];
    let upper = [_mm512_shuffle_f32x4::<0b11_10_11_10>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d)];
    [
        _mm512_shuffle_f32x4::<0b10_00_10_00>(lower[0], lower[1]),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(lower[0], lower[1]),
        _mm512_shuffle_f32x4::<0b10_00_10_00>(upper[0], upper[1]),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(upper[0], upper[1]),
    ]
}
