//! Types of elements, and FP8 weights with their scales.

use super::*;
use crate::{RawTensor, validate_scales};

const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

/// A checkpoint of one weight `[3, 5]` with the given scales, as type name, shape and bytes.
fn with_scales(dtype: &str, shape: &[usize], bytes: &[u8]) -> (TempDir, Checkpoint) {
    let shard = ShardBuilder::new().fp8("w", &[3, 5], &[0x38; 15]).raw("w_scale_inv", dtype, shape, bytes);
    let dir = single(&shard.to_bytes());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn each_block_is_multiplied_by_its_scale() {
    let dir = written(&two_shards());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let scales = checkpoint.scales(WEIGHT, [2, 2]).unwrap();
    assert_eq!(checkpoint.shard(&scales.info).name(), SECOND);
    let (shape, values) = checkpoint.dequantized(WEIGHT, [2, 2]).unwrap();
    assert_eq!(shape, [3, 5]);
    // 0x38 is 1. Blocks of 2 x 2: the last row and the last column of blocks are cut off.
    let row = [1.0, 1.0, 2.0, 2.0, 3.0];
    assert_eq!(values, [row, row, [4.0, 4.0, 5.0, 5.0, 0.0]].concat());
}

#[test]
fn scales_at_an_unaligned_address_are_read() {
    let shard = ShardBuilder::new().fp8("w", &[1, 1], &[0x40]).f32("w_scale_inv", &[1, 1], &[0.5]).f32(
        "v",
        &[2],
        &[-1.5, 2.5],
    );
    // Padding the header moves everything over all residues of the alignment.
    for padding in 0..8 {
        let bytes = shard.to_bytes();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = str::from_utf8(&bytes[8..8 + header]).unwrap();
        let dir = single(&file_of(&(text.to_owned() + &" ".repeat(padding)), &bytes[8 + header..]));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.dequantized("w", [128, 128]).unwrap(), (vec![1, 1], vec![1.0]));
        assert_eq!(checkpoint.dequantized("v", [128, 128]).unwrap(), (vec![2], vec![-1.5, 2.5]));
    }
}

#[test]
fn scales_that_do_not_fit_are_refused() {
    let error = |dtype, shape: &[usize], bytes| {
        with_scales(dtype, shape, bytes).1.scales("w", [2, 2]).unwrap_err().to_string()
    };
    assert_eq!(
        error("F32", &[3, 2], &[0; 24]),
        "tensor w_scale_inv: a [3, 5] weight in blocks of [2, 2] has scales [2, 3], got [3, 2]"
    );
    assert_eq!(error("BF16", &[2, 3], &[0; 12]), "tensor w_scale_inv: scales must be F32, got BF16");
    assert_eq!(
        error("F8_E8M0", &[2, 3], &[0; 6]),
        "tensor w_scale_inv: expected F32, F16, BF16 or F8_E4M3, got F8_E8M0"
    );
}

#[test]
fn weights_without_scales_are_refused() {
    let shard = ShardBuilder::new().fp8("w", &[2, 2], &[0; 4]).fp8("v", &[2], &[0; 2]).f32("x", &[], &[1.0]);
    let dir = single(&shard.to_bytes());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = |name| checkpoint.scales(name, [128, 128]).unwrap_err().to_string();
    assert_eq!(error("w"), "tensor w: is F8_E4M3, but its scales w_scale_inv are not in the checkpoint");
    assert_eq!(error("v"), "tensor v: as F8_E4M3 must be a matrix, got shape [2]");
    assert_eq!(error("x"), "tensor x: has block scales only as F8_E4M3, got F32");
    assert_eq!(
        checkpoint.tensor("w").unwrap().to_f32().unwrap_err().to_string(),
        "tensor w: is F8_E4M3, which has values only together with its scales"
    );
}

#[test]
fn scales_must_be_finite_and_not_negative() {
    let check = |bad: f32| {
        let mut values = [1.0_f32; 6];
        values[5] = bad;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (_dir, checkpoint) = with_scales("F32", &[2, 3], &bytes);
        let scales = checkpoint.scales("w", [2, 2]).unwrap();
        let result = validate_scales(&scales.info, scales.bytes.as_slice());
        assert_eq!(checkpoint.dequantized("w", [2, 2]).is_ok(), result.is_ok());
        result.map_err(|error| error.to_string())
    };
    let refused = |bad: &str| {
        Err(format!("tensor w_scale_inv: the scale at [1, 2] is {bad}, expected a finite number >= 0"))
    };
    assert_eq!(check(f32::NAN), refused("NaN"));
    assert_eq!(check(f32::INFINITY), refused("inf"));
    assert_eq!(check(f32::NEG_INFINITY), refused("-inf"));
    assert_eq!(check(-0.25), refused("-0.25"));
    assert_eq!([check(0.0), check(-0.0), check(f32::MIN_POSITIVE), check(f32::MAX)], [const { Ok(()) }; 4]);
}

#[test]
fn sixteen_bit_floats_widen_exactly() {
    let half = [0x3c00_u16, 0xc000, 0x0001, 0x7bff].map(u16::to_le_bytes).concat();
    let shard = ShardBuilder::new().raw("half", "F16", &[2, 2], &half).bf16("bf16", &[2], &[1.5, -3.0]);
    let dir = single(&shard.to_bytes());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let values = |name| checkpoint.tensor(name).unwrap().to_f32().unwrap();
    assert_eq!(values("half"), [1.0, -2.0, 2.0_f32.powi(-24), 65504.0]);
    assert_eq!(values("bf16"), [1.5, -3.0]);
}

#[test]
fn scalars_and_empty_tensors_are_tensors() {
    let shard = ShardBuilder::new()
        .f32("scalar", &[], &[2.5])
        .f32("empty", &[0], &[])
        .f32("flat", &[4, 0], &[])
        .fp8("rows", &[0, 5], &[])
        .f32("rows_scale_inv", &[0, 1], &[])
        .fp8("columns", &[5, 0], &[])
        .f32("columns_scale_inv", &[1, 0], &[]);
    let dir = single(&shard.to_bytes());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let values = |name| checkpoint.dequantized(name, [128, 128]).unwrap();
    assert_eq!(values("scalar"), (vec![], vec![2.5]));
    assert_eq!(values("empty"), (vec![0], vec![]));
    assert_eq!(values("flat"), (vec![4, 0], vec![]));
    assert_eq!(values("rows"), (vec![0, 5], vec![]));
    assert_eq!(values("columns"), (vec![5, 0], vec![]));
}

#[test]
fn every_type_of_the_format_is_listed_and_only_weights_are_given() {
    let types = [
        ("BOOL", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("I16", 16),
        ("U16", 16),
        ("F16", 16),
        ("BF16", 16),
        ("I32", 32),
        ("U32", 32),
        ("F32", 32),
        ("C64", 64),
        ("F64", 64),
        ("I64", 64),
        ("U64", 64),
    ];
    let shard = types.iter().fold(ShardBuilder::new(), |shard, &(name, bits)| {
        // Eight elements take as many bytes as one takes bits.
        shard.raw(name, name, &[4, 2], &vec![0; bits])
    });
    let dir = single(&shard.to_bytes());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (name, bits) in types {
        let info = checkpoint.get(name).unwrap();
        assert_eq!((info.dtype.to_string(), info.length), (name.to_owned(), bits as u64));
        let is_weight = ["F32", "F16", "BF16", "F8_E4M3"].contains(&name);
        assert_eq!(info.dtype.is_weight(), is_weight);
        let message = format!("tensor {name}: expected F32, F16, BF16 or F8_E4M3, got {name}");
        assert_eq!(
            checkpoint.tensor(name).err().map(|error| error.to_string()),
            (!is_weight).then_some(message)
        );
    }
    let info = checkpoint.get("F64").unwrap().clone();
    let error = RawTensor { info, bytes: vec![0; 64].into() }.to_f32().unwrap_err();
    assert_eq!(error.to_string(), "tensor F64: has the unsupported type F64");
}
