//! Every table against the specification, exactly.

use super::{FMA_CHAINS, INT8_CHAINS, LANES, scalar};
use crate::testing::{Random, tables};

#[test]
fn words_are_joined_at_every_length_and_alignment() {
    let mut random = Random(3);
    let bytes: Vec<u8> = (0..2000).map(|_| random.bits() as u8).collect();
    for kernels in tables() {
        for length in (0..600).chain([1999]) {
            for bytes in [&bytes[..length], &bytes[1..=length]] {
                let mut words = [0; 8];
                for (index, byte) in bytes.iter().enumerate() {
                    words[index % 8] ^= byte;
                }
                assert_eq!(kernels.xor_words(bytes), u64::from_le_bytes(words), "{kernels:?} {length}");
            }
        }
    }
}

#[test]
fn every_round_is_computed() {
    for kernels in tables() {
        for rounds in [0, 1, 2, 1000] {
            // The lanes count the rounds, exactly.
            let expected = (rounds * FMA_CHAINS * LANES) as f32;
            assert_eq!(kernels.fma_rounds(rounds), expected, "{kernels:?} {rounds}");
            assert_eq!(kernels.int8_rounds(rounds), scalar::int8_rounds(rounds), "{kernels:?} {rounds}");
        }
        // 1 becomes 2, 4, .. 128, and then 256, whose bytes add up to 1 again.
        let lanes = (INT8_CHAINS * LANES) as u32;
        assert_eq!(kernels.int8_rounds(8), 256 * lanes);
        assert_eq!(kernels.int8_rounds(9), 257 * lanes);
    }
}
