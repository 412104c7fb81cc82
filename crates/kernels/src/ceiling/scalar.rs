//! The specification.

use super::{FMA_CHAINS, INT8_CHAINS, LANES};
use std::hint::black_box;

/// The exclusive or of all 64-bit words, little-endian; a last part of a word is filled up with zeros.
pub(crate) fn xor_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let all = words.iter().fold(0, |sum, &word| sum ^ u64::from_le_bytes(word));
    all ^ u64::from_le_bytes(last)
}

/// `a = a * x + y` in every lane of every chain, `rounds` times, from 0 with `x = y = 1`; the sum of all lanes.
pub(crate) fn fma_rounds(rounds: usize) -> f32 {
    let (x, y) = black_box((1.0_f32, 1.0_f32));
    let mut chains = [[0.0_f32; LANES]; FMA_CHAINS];
    for _ in 0..rounds {
        for lane in chains.as_flattened_mut() {
            *lane = *lane * x + y;
        }
    }
    chains.as_flattened().iter().sum()
}

/// In every lane of every chain, `rounds` times from 1: to the 32-bit lane the products of its four bytes, unsigned,
/// with 1 are added. The sum of all lanes, wrapping.
///
/// The first addition, of two products, is of 16 bits and cannot saturate: they are 255 at most.
pub(crate) fn int8_rounds(rounds: usize) -> u32 {
    let weight = black_box(1_u32);
    let mut chains = [[1_u32; LANES]; INT8_CHAINS];
    for _ in 0..rounds {
        for lane in chains.as_flattened_mut() {
            let products: u32 = lane.to_le_bytes().iter().map(|&byte| u32::from(byte) * weight).sum();
            *lane = lane.wrapping_add(products);
        }
    }
    chains.as_flattened().iter().fold(0, |sum, &lane| sum.wrapping_add(lane))
}
