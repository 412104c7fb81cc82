//! Every table packs what the scalar one does; what that must be is tested with TT-NN's files in `dsv3-galaxy`.

use super::{BLOCK_FLOATS, BlockElement, BlockRounding};
use crate::testing::{Random, tables};
use crate::{Isa, Kernels};
use proptest::prelude::*;

const ELEMENTS: [BlockElement; 3] = [BlockElement::Eight, BlockElement::Four, BlockElement::Two];
const ROUNDINGS: [BlockRounding; 2] = [BlockRounding::Host, BlockRounding::Device];

fn pack(
    kernels: &Kernels,
    (element, rounding): (BlockElement, BlockRounding),
    values: &[f32],
    stride: usize,
    blocks: usize,
) -> (Vec<u8>, Vec<u8>) {
    let (mut exponents, mut elements) = (vec![0xA5; blocks], vec![0xA5; blocks * element.block_bytes()]);
    kernels.pack_block_floats((element, rounding), values, stride, &mut exponents, &mut elements);
    (exponents, elements)
}

#[track_caller]
fn all_agree(values: &[f32], stride: usize, blocks: usize) {
    let scalar = Kernels::for_isa(Isa::Scalar).unwrap();
    for kernels in tables() {
        for element in ELEMENTS {
            for rounding in ROUNDINGS {
                let how = (element, rounding);
                let expected = pack(scalar, how, values, stride, blocks);
                assert!(pack(kernels, how, values, stride, blocks) == expected, "{kernels:?} {how:?}");
            }
        }
    }
}

#[test]
fn a_block_is_packed_by_the_rule() {
    // 1, -1, 1/2, -0, a denormal; ties at the last bit of 3 and 7 bits; what rounds past all ones.
    let values =
        [1.0, -1.0, 0.5, -0.0, 1e-40, 0.375, 0.625, 65.5 / 64.0, 64.5 / 64.0, 1.999_999, -1e-30, 0.0];
    let mut block = [0.0; BLOCK_FLOATS];
    block[..values.len()].copy_from_slice(&values);
    for kernels in tables() {
        let (exponents, eight) = pack(kernels, (BlockElement::Eight, BlockRounding::Host), &block, 16, 1);
        assert_eq!(exponents, [127]);
        assert_eq!(eight[..12], [0x40, 0xC0, 0x20, 0, 0, 0x18, 0x28, 0x42, 0x40, 0x7F, 0, 0], "{kernels:?}");
        let (_, four) = pack(kernels, (BlockElement::Four, BlockRounding::Host), &block, 16, 1);
        assert_eq!(four[..6], [0xC4, 0x02, 0x20, 0x42, 0x74, 0], "{kernels:?}");
        let (_, four) = pack(kernels, (BlockElement::Four, BlockRounding::Device), &block, 16, 1);
        assert_eq!(four[..6], [0xC4, 0x02, 0x10, 0x42, 0x74, 0], "{kernels:?}");
    }
}

#[test]
fn blocks_lie_a_stride_apart() {
    for (stride, blocks) in [(16, 1), (16, 5), (17, 4), (40, 3), (7168, 16)] {
        let values = Random(stride as u64).values((blocks - 1) * stride + BLOCK_FLOATS);
        all_agree(&values, stride, blocks);
    }
}

proptest! {
    #[test]
    fn any_bits_are_packed_alike(bits in proptest::array::uniform16(any::<u32>())) {
        all_agree(&bits.map(f32::from_bits), BLOCK_FLOATS, 1);
    }

    /// Values near each other with few bits, for ties, at exponents down to denormals.
    #[test]
    fn ties_are_packed_alike(top in 0_u32..256, values in proptest::array::uniform16((any::<u16>(), 0_u32..30))) {
        let block = values.map(|(bits, below)| {
            let (sign, fraction) = (u32::from(bits) & 1, u32::from(bits) >> 6);
            f32::from_bits(sign << 31 | top.saturating_sub(below) << 23 | fraction << 13)
        });
        all_agree(&block, BLOCK_FLOATS, 1);
    }
}
