//! Values are those of llama.cpp's own package; any bytes have some.

use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;

/// Blocks and values that `tools/golden/dequantize.py` wrote.
const GOLDEN: &[u8] = include_bytes!("../../../../../testdata/dequantize/ggml.safetensors");

#[test]
fn values_are_those_of_gguf() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    assert_eq!(golden.len(), 2 * GgmlBlocks::ALL.len());
    for format in GgmlBlocks::ALL {
        let name = format.name();
        let blocks = golden.tensor(&format!("{name}.blocks")).unwrap();
        let values = golden.tensor(&format!("{name}.values")).unwrap();
        assert_eq!(blocks.shape()[1], format.block_bytes(), "{name}");
        assert_eq!(values.shape(), [blocks.shape()[0], format.block_cols()], "{name}");
        let mut decoded = vec![f32::NAN; values.data().len() / 4];
        format.decode(blocks.data(), &mut decoded);
        for (index, (got, &expected)) in decoded.iter().zip(values.data().as_chunks().0).enumerate() {
            let expected = f32::from_le_bytes(expected);
            let at = (index / format.block_cols(), index % format.block_cols());
            assert_eq!(got.to_bits(), expected.to_bits(), "{name} {at:?}: {got}, not {expected}");
        }
    }
}

#[test]
fn numbers_and_names_are_told_apart() {
    for format in GgmlBlocks::ALL {
        let (number, name) = format.number_and_name();
        assert_eq!(GgmlBlocks::from_number(number), Some(format));
        assert_eq!(GgmlBlocks::ALL.iter().filter(|other| other.name() == name).count(), 1);
    }
    assert_eq!(GgmlBlocks::from_number(16), None);
}

proptest! {
    #[test]
    fn any_bytes_have_values(
        format in prop::sample::select(&GgmlBlocks::ALL[..]),
        bytes in prop::collection::vec(any::<u8>(), 420),
    ) {
        let count = bytes.len() / format.block_bytes();
        let mut values = vec![0.0; count * format.block_cols()];
        format.decode(&bytes[..count * format.block_bytes()], &mut values);
    }
}
