//! FP8 numbers as f32, in registers, at two instructions for eight of them.
//!
//! The bits of an FP8 number, moved to the right place, are those of an f32 that is 2^120 times smaller, subnormals
//! included. A vector of 32 bytes, a unit, is taken apart into four of f32, one for each byte of its double words: shifts
//! bring a byte's bits to the top of the double word, an `and` cuts them out.
//!
//! What multiplies them is multiplied by 2^60 before, so that products stay far from the ends of f32's range, and sums by
//! the other 2^60; an input times its scale must stay below 2^68.

use super::{LANES, load, load32, padded, store};
use crate::MatrixView;
use std::arch::x86_64::*;

/// Columns that are taken apart at a time: a vector of bytes.
pub(crate) const UNIT: usize = 32;
/// Vectors of f32 of a unit: bytes of a double word.
pub(crate) const PARTS: usize = UNIT / LANES;
/// 2^60: what inputs are multiplied by, and sums.
pub(crate) const HALF_UNIT: f32 = f32::from_bits((127 + 60) << 23);

/// Whether the matrix is cut into blocks only where units end, or not at all, and no scale is beyond all reason.
pub(crate) fn fits(w: &MatrixView<'_>) -> bool {
    let mut blocks = w.column_blocks(0..w.cols());
    let aligned = blocks.next().is_some_and(|block| block.end.is_multiple_of(UNIT) || block.end == w.cols());
    aligned && w.has_moderate_scales()
}

/// Where the input of a unit's column goes: `PARTS * i + k` to `LANES * k + i`.
pub(crate) fn place(column: usize) -> usize {
    LANES * (column % PARTS) + column / PARTS
}

/// The values of a unit at their [`place`]s.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn by_part(x: &[f32; UNIT]) -> [__m256; PARTS] {
    let x = x.as_chunks::<LANES>().0;
    // Columns 0 to 15 in the lower halves, 16 to 31 in the upper ones.
    let (low, high) = ([load(&x[0]), load(&x[1])], [load(&x[2]), load(&x[3])]);
    transpose_halves([
        _mm256_permute2f128_ps::<0x20>(low[0], high[0]),
        _mm256_permute2f128_ps::<0x31>(low[0], high[0]),
        _mm256_permute2f128_ps::<0x20>(low[1], high[1]),
        _mm256_permute2f128_ps::<0x31>(low[1], high[1]),
    ])
}

/// The columns of a unit, from their [`place`]s.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn by_column(parts: [__m256; PARTS]) -> [__m256; PARTS] {
    let [a, b, c, d] = transpose_halves(parts);
    [
        _mm256_permute2f128_ps::<0x20>(a, b),
        _mm256_permute2f128_ps::<0x20>(c, d),
        _mm256_permute2f128_ps::<0x31>(a, b),
        _mm256_permute2f128_ps::<0x31>(c, d),
    ]
}

/// Two transpositions of 4 x 4 side by side.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn transpose_halves([a, b, c, d]: [__m256; PARTS]) -> [__m256; PARTS] {
    let (ab, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    [
        _mm256_shuffle_ps::<0x44>(ab, cd),
        _mm256_shuffle_ps::<0xee>(ab, cd),
        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

/// Remembers in `seen` whether a byte of `bytes` is an FP8 NaN: only those are 0xff once the sign bit is set.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn watch_nan(seen: __m256i, bytes: __m256i) -> __m256i {
    _mm256_max_epu8(seen, _mm256_or_si256(bytes, _mm256_set1_epi8(i8::MIN)))
}

/// Whether [`watch_nan`] has met an FP8 NaN.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn saw_nan(seen: __m256i) -> bool {
    _mm256_movemask_epi8(_mm256_cmpeq_epi8(seen, _mm256_set1_epi8(-1))) != 0
}

/// What the values that [`fields`] gives must be multiplied by: 2^120.
pub(crate) const FIELDS_UNIT: f32 = f32::from_bits((127 + 120) << 23);

/// The values, divided by 2^120, of FP8 numbers that begin at the top of each double word but for their signs, which are
/// there five times. A NaN comes out as 480 divided by it. What is subnormal in FP8 is so in f32, too, which costs some
/// processors time; of weights scaled by their blocks' largest few are.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn fields(words: __m256i) -> __m256 {
    const FIELDS: i32 = 0x87f0_0000_u32.cast_signed();
    _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(FIELDS)))
}

/// The values of 32 FP8 numbers divided by 2^120, by their place in the double word, the lowest byte first. A NaN
/// comes out as 480 divided by it.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(crate) fn take_apart(bytes: __m256i) -> [__m256; PARTS] {
    // A word's upper byte, its sign repeated on the left; of the lower bytes the same, moved up before. What lies
    // beside them is cut off. Whole bytes are moved by shuffles, which more ports do than shifts by bits.
    let upper = _mm256_srai_epi16::<4>(bytes);
    let lower = _mm256_srai_epi16::<4>(_mm256_bslli_epi128::<1>(bytes));
    [
        fields(_mm256_bslli_epi128::<2>(lower)),
        fields(_mm256_bslli_epi128::<2>(upper)),
        fields(lower),
        fields(upper),
    ]
}

/// The values of some columns of a row divided by 2^120, each at its input's [`place`], with zeros to the end of the last unit;
/// whether there is a NaN, which comes out as 480.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn take_row_apart(weights: &[u8], out: &mut [f32]) -> bool {
    let mut nan = _mm256_setzero_si256();
    let (units, rest) = weights.as_chunks::<UNIT>();
    let last: [u8; UNIT] = padded(rest);
    let all = units.iter().chain((!rest.is_empty()).then_some(&last));
    for (unit, out) in all.zip(out.as_chunks_mut::<LANES>().0.as_chunks_mut::<PARTS>().0) {
        let bytes = load32(unit);
        nan = watch_nan(nan, bytes);
        for (out, part) in out.iter_mut().zip(take_apart(bytes)) {
            store(out, part);
        }
    }
    saw_nan(nan)
}
