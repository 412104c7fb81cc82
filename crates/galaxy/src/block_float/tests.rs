use super::*;
use proptest::prelude::*;

fn pack(format: BlockFloat, values: &[f32], rounding: Rounding) -> (u8, Vec<u8>, Block) {
    let mut block = Block::default();
    block[..values.len()].copy_from_slice(values);
    let mut elements = vec![0; format.block_bytes()];
    let exponent = format.pack_block(&block, rounding, &mut elements);
    (exponent, elements.clone(), format.unpack_block(exponent, &elements))
}

#[test]
fn tiles_have_the_sizes_that_upstream_gives() {
    let sizes = BlockFloat::ALL.map(|format| format.tile_bytes(Tile::SQUARE));
    assert_eq!(sizes, [1088, 576, 320]);
    // Two face rows, and so two exponents, padded to 16 bytes.
    assert_eq!(BlockFloat::Eight.tile_bytes(Tile::new(1, 32).unwrap()), 16 + 32);
}

#[test]
fn elements_lie_low_bits_first() {
    let values = [1.0, -1.0, 0.5, 0.0];
    let (exponent, eight, _) = pack(BlockFloat::Eight, &values, Rounding::Host);
    assert_eq!((exponent, &eight[..4]), (127, &[0x40, 0xC0, 0x20, 0][..]));
    let (exponent, four, _) = pack(BlockFloat::Four, &values, Rounding::Host);
    assert_eq!((exponent, &four[..2]), (127, &[0xC4, 0x02][..]));
    let (exponent, two, _) = pack(BlockFloat::Two, &[1.0, -1.0, 0.25, 0.0], Rounding::Host);
    assert_eq!((exponent, two[0]), (127, 0b0000_1101));
}

#[test]
fn the_chip_rounds_as_upstream_reports() {
    // The example of upstream's report: the largest value of the block is 8, this one 3.875.
    let of = |rounding| pack(BlockFloat::Four, &[8.0, 3.875], rounding).2[1];
    assert_eq!([of(Rounding::Host), of(Rounding::Device)], [4.0, 2.0]);
    // A tie between 65 and 66: to even on the host goes the same way; one between 64 and 65 does not.
    let of = |value: f32, rounding| pack(BlockFloat::Eight, &[value / 64.0], rounding).2[0] * 64.0;
    for rounding in [Rounding::Host, Rounding::Device] {
        assert_eq!(of(65.5, rounding), 66.0);
    }
    assert_eq!([of(64.5, Rounding::Host), of(64.5, Rounding::Device)], [64.0, 65.0]);
}

#[test]
fn what_rounds_past_all_ones_stays_there() {
    for rounding in [Rounding::Host, Rounding::Device] {
        let (_, _, unpacked) = pack(BlockFloat::Eight, &[7.999_9], rounding);
        assert_eq!(unpacked[0], 7.9375);
    }
}

#[test]
fn no_zero_has_a_sign() {
    for format in BlockFloat::ALL {
        for rounding in [Rounding::Host, Rounding::Device] {
            let (exponent, elements, _) = pack(format, &[-0.0, -1e-40, -1e-20, 1.0], rounding);
            assert_eq!(exponent, 127);
            let (_, zeros, _) = pack(format, &[0.0, 0.0, 0.0, 1.0], rounding);
            assert_eq!(elements, zeros, "{format:?}");
        }
    }
}

fn blocks() -> impl Strategy<Value = Block> {
    // Any bits, and values near each other.
    let any_bits = proptest::array::uniform16(any::<u32>().prop_map(f32::from_bits));
    let near = proptest::array::uniform16(-4.0_f32..4.0);
    // Few bits, for ties, at exponents down to denormals.
    let few =
        (0_u32..255, proptest::array::uniform16((any::<u16>(), 0_u32..30))).prop_map(|(top, values)| {
            values.map(|(bits, below)| {
                let (sign, fraction) = (u32::from(bits) & 1, u32::from(bits) >> 6);
                f32::from_bits(sign << 31 | top.saturating_sub(below) << FRACTION_BITS | fraction << 13)
            })
        });
    prop_oneof![any_bits, near, few]
}

proptest! {
    #[test]
    fn a_packed_block_packs_to_itself(block in blocks()) {
        for format in BlockFloat::ALL {
            let (exponent, elements, unpacked) = pack(format, &block, Rounding::Host);
            // Denormals are packed as zeros, and an exponent of 255 has no values of its own.
            if exponent > 6 && exponent < 255 {
                let (_, again, values) = pack(format, &unpacked, Rounding::Host);
                prop_assert_eq!(values.map(f32::to_bits), unpacked.map(f32::to_bits));
                // The same bytes too, unless the largest value became less than a power of two.
                if elements.iter().any(|_| unpacked.iter().any(|value| value.to_bits() >> FRACTION_BITS & 0xFF == u32::from(exponent))) {
                    prop_assert_eq!(again, elements);
                }
            }
        }
    }

    #[test]
    fn a_value_moves_by_less_than_a_step(block in proptest::array::uniform16(-4.0_f32..4.0)) {
        for format in BlockFloat::ALL {
            for rounding in [Rounding::Host, Rounding::Device] {
                let (exponent, _, unpacked) = pack(format, &block, rounding);
                let step = f32::from(exponent) - 127.0 - (format.magnitude_bits() as f32 - 1.0);
                for (value, unpacked) in block.iter().zip(unpacked) {
                    prop_assert!((value - unpacked).abs() <= step.exp2(), "{value} {unpacked}");
                }
            }
        }
    }
}
