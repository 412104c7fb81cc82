//! A block at a time, in two vectors: the same integers as the scalar code has, without its branches.

use super::{
    BLOCK_FLOATS, BlockElement, BlockRounding, DEVICE_BITS, FRACTION_BITS, MAGNITUDE_BITS, write_elements,
};
use crate::avx2::{LANES, load};
use std::arch::x86_64::*;

/// Packs blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn pack_block_floats(
    (element, rounding): (BlockElement, BlockRounding),
    values: &[f32],
    stride: usize,
    exponents: &mut [u8],
    elements: &mut [u8],
) {
    match (element, rounding) {
        (BlockElement::Eight, BlockRounding::Host) => {
            pack::<7, false>(values, stride, exponents, elements);
        }
        (BlockElement::Four, BlockRounding::Host) => {
            pack::<3, false>(values, stride, exponents, elements);
        }
        (BlockElement::Two, BlockRounding::Host) => {
            pack::<1, false>(values, stride, exponents, elements);
        }
        (BlockElement::Eight, BlockRounding::Device) => {
            pack::<7, true>(values, stride, exponents, elements);
        }
        (BlockElement::Four, BlockRounding::Device) => {
            pack::<3, true>(values, stride, exponents, elements);
        }
        (BlockElement::Two, BlockRounding::Device) => {
            pack::<1, true>(values, stride, exponents, elements);
        }
    }
}

/// With `W` bits of magnitude, rounded as on the host or as on the device.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pack<const W: i32, const DEVICE: bool>(
    values: &[f32],
    stride: usize,
    exponents: &mut [u8],
    elements: &mut [u8],
) {
    let outs = elements.chunks_exact_mut(BLOCK_FLOATS * (W as usize + 1) / 8);
    for (number, (exponent, out)) in exponents.iter_mut().zip(outs).enumerate() {
        let block: &[f32; BLOCK_FLOATS] =
            values[number * stride..].first_chunk().expect("checked by the caller");
        let [low, high] = block.as_chunks::<LANES>().0 else { unreachable!("two vectors") };
        let bits = [_mm256_castps_si256(load(low)), _mm256_castps_si256(load(high))];
        let shared = shared_exponent(bits);
        // Words of 16 bits, in order.
        let codes = bits.map(|bits| codes::<W, DEVICE>(bits, shared));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(codes[0], codes[1]));
        match W {
            7 => store16(out, bytes(words)),
            3 => {
                // The second of each pair is 12 bits too high for the upper half of the first one's byte.
                let pairs = _mm256_or_si256(words, _mm256_srli_epi32::<12>(words));
                let pairs = _mm256_and_si256(pairs, _mm256_set1_epi32(0xFF));
                let pairs = _mm256_packus_epi32(pairs, _mm256_setzero_si256());
                store8(out, bytes(_mm256_permute4x64_epi64::<0b11_01_10_00>(pairs)));
            }
            _ => {
                let mut codes = [0; BLOCK_FLOATS];
                store16(&mut codes, bytes(words));
                write_elements(BlockElement::Two, &codes, out);
            }
        }
        *exponent = _mm256_extract_epi8::<0>(shared) as u8;
    }
}

/// The largest biased exponent, in each lane: that of the largest magnitude, whose bits compare as integers do.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn shared_exponent([low, high]: [__m256i; 2]) -> __m256i {
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let largest = _mm256_max_epi32(_mm256_and_si256(low, magnitude), _mm256_and_si256(high, magnitude));
    let largest = _mm256_max_epi32(largest, _mm256_permute2x128_si256::<1>(largest, largest));
    let largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32::<0b01_00_11_10>(largest));
    let largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32::<0b10_11_00_01>(largest));
    _mm256_srli_epi32::<{ FRACTION_BITS as i32 }>(largest)
}

/// Elements, each in 32 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn codes<const W: i32, const DEVICE: bool>(bits: __m256i, shared: __m256i) -> __m256i {
    let number = |number: i32| _mm256_set1_epi32(number);
    let own = _mm256_and_si256(_mm256_srli_epi32::<{ FRACTION_BITS as i32 }>(bits), number(0xFF));
    let fraction = _mm256_and_si256(bits, number((1 << FRACTION_BITS) - 1));
    // A shift by 32 or more gives zero.
    let magnitude = _mm256_srlv_epi32(
        _mm256_or_si256(fraction, number(1 << FRACTION_BITS)),
        _mm256_sub_epi32(shared, own),
    );
    let is_normal = _mm256_cmpgt_epi32(own, _mm256_setzero_si256());
    let magnitude = _mm256_and_si256(magnitude, is_normal);
    let shift = |number: i32| _mm_cvtsi32_si128(number);
    let m = if DEVICE {
        let cut = (MAGNITUDE_BITS - DEVICE_BITS) as i32;
        let rounded = _mm256_srl_epi32(_mm256_add_epi32(magnitude, number(1 << (cut - 1))), shift(cut));
        let rounded = _mm256_min_epi32(rounded, number((1 << DEVICE_BITS) - 1));
        _mm256_srl_epi32(rounded, shift(DEVICE_BITS as i32 - W))
    } else {
        // Half of a step less one is added, and that one where the bit that is kept is odd.
        let cut = MAGNITUDE_BITS as i32 - W;
        let odd = _mm256_and_si256(_mm256_srl_epi32(magnitude, shift(cut)), number(1));
        let more = _mm256_add_epi32(odd, number((1 << (cut - 1)) - 1));
        let rounded = _mm256_srl_epi32(_mm256_add_epi32(magnitude, more), shift(cut));
        _mm256_min_epi32(rounded, number((1 << W) - 1))
    };
    let sign = _mm256_sll_epi32(_mm256_srli_epi32::<31>(bits), shift(W));
    let is_there = _mm256_cmpgt_epi32(m, _mm256_setzero_si256());
    _mm256_and_si256(_mm256_or_si256(sign, m), is_there)
}

/// 16 words of less than 256 as bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn bytes(words: __m256i) -> __m128i {
    _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store16(out: &mut [u8], bytes: __m128i) {
    let out: &mut [u8; 16] = out.first_chunk_mut().expect("16 bytes of a block");
    // SAFETY: an exclusive reference to 16 bytes; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store8(out: &mut [u8], bytes: __m128i) {
    let out: &mut [u8; 8] = out.first_chunk_mut().expect("8 bytes of a block");
    // SAFETY: an exclusive reference to 8 bytes; the store needs no alignment.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), bytes) }
}
