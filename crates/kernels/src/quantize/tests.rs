//! q8_0 is ggml's, bit for bit; q4_K is at least as near as ggml's; every table writes the same bytes.

use crate::testing::{Random, tables};
use crate::{Format, Isa, Kernels, MatrixView, QUANTIZE_LIMIT, f32_to_bf16};
use proptest::prelude::*;

/// Values and blocks that `tools/golden/quantize.py` wrote with ggml's code.
const GOLDEN: &[u8] = include_bytes!("../../../../testdata/quantize/q8_0.safetensors");

fn golden(name: &str) -> &'static [u8] {
    let (length, rest) = GOLDEN.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let offset = |index: usize| header[name]["data_offsets"][index].as_u64().unwrap() as usize;
    &data[offset(0)..offset(1)]
}

fn quantize(kernels: &Kernels, format: Format, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0xa5; format.bytes(values.len())];
    kernels.quantize_row(format, values, &mut out);
    out
}

fn dequantize(format: Format, bytes: &[u8], count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Kernels::best().dequantize_row(&MatrixView::from_bytes(format, bytes, 1, count, None), 0, &mut values);
    values
}

#[test]
fn q8_0_is_that_of_ggml() {
    let values: Vec<f32> =
        golden("values").as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    for kernels in tables() {
        assert!(quantize(kernels, Format::Q8_0, &values) == golden("blocks"), "{kernels:?}");
    }
}

#[test]
fn halves_are_rounded_away_from_zero() {
    // Largest magnitude 127: the scale is 1 and quotients are the values.
    let mut values = [0.0; 32];
    let quotients = [127.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.499_999_97, -0.499_999_97, 126.5, -126.5];
    values[..quotients.len()].copy_from_slice(&quotients);
    for kernels in tables() {
        let bytes = quantize(kernels, Format::Q8_0, &values);
        for (byte, value) in bytes[2..].iter().zip(values) {
            assert_eq!(f32::from(byte.cast_signed()), value.round(), "{kernels:?}: {value}");
        }
    }
}

/// Weights of three distributions; `tools/golden/quantize.py` makes the same.
fn distributions() -> [(&'static str, Vec<f32>); 3] {
    const COUNT: usize = 1 << 16;
    let mut random = Random(2);
    let gaussian = (0..COUNT).map(|_| 0.5 * random.values(12).into_iter().reduce(|a, b| a + b).unwrap());
    let heavy = Random(3).values(COUNT).into_iter().map(|x| x * x * x * x * x);
    [
        ("uniform", Random(1).values(COUNT)),
        ("gaussian", gaussian.collect()),
        ("heavy-tailed", heavy.collect()),
    ]
}

/// The errors are those of ggml's `quantize_row_q4_K_ref` (llama.cpp 0c1e570) on these very weights, as
/// `tools/golden/quantize.py` prints them; the sums show that the weights are the same.
#[test]
fn q4k_is_nearer_than_that_of_ggml() {
    let ggml = [(-89.594_779, 9.943_807e-4), (271.906_771, 5.002_149e-3), (-144.189_211, 5.023_159e-4)];
    for ((name, values), (sum, error)) in distributions().into_iter().zip(ggml) {
        let own_sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
        assert!((own_sum - sum).abs() < 1e-6, "{name}: the weights add up to {own_sum}, not {sum}");
        let back = dequantize(Format::Q4K, &quantize(Kernels::best(), Format::Q4K, &values), values.len());
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let own = values.iter().zip(&back).map(square).sum::<f64>() / values.len() as f64;
        assert!(own <= error, "{name}: {own:e} against {error:e}");
    }
}

#[test]
fn what_a_format_holds_exactly_stays() {
    let halves: Vec<f32> = (0..512).map(|i| (i % 16) as f32 * 0.25 - 1.0).collect();
    let cases = [
        vec![0.0; 512],
        vec![-3.0; 512], // a minimum alone
        vec![2.0; 512],  // a scale alone
        halves,
    ];
    for values in cases {
        for kernels in tables() {
            for format in [Format::F32, Format::Q4K] {
                let back = dequantize(format, &quantize(kernels, format, &values), values.len());
                for (got, expected) in back.iter().zip(&values) {
                    // A half holds 63 times the scale or the minimum to 11 bits.
                    assert!(
                        (got - expected).abs() <= 2.0_f32.powi(-10) * 4.0,
                        "{format}: {got} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn bf16_is_the_nearest() {
    let values = Random(5).values(77);
    let expected: Vec<u8> = values.iter().flat_map(|&value| f32_to_bf16(value).to_le_bytes()).collect();
    for kernels in tables() {
        assert_eq!(quantize(kernels, Format::Bf16, &values), expected);
    }
}

#[test]
#[should_panic(expected = "not quantised to FP8")]
fn fp8_is_refused() {
    Kernels::best().quantize_row(Format::Fp8, &[0.0], &mut [0]);
}

#[test]
#[should_panic(expected = "bytes of 33")]
fn parts_of_blocks_are_refused() {
    Kernels::best().quantize_row(Format::Q8_0, &[0.0; 33], &mut [0; 34]);
}

fn magnitude() -> impl Strategy<Value = f32> {
    prop_oneof![
        -1.0_f32..1.0,
        Just(0.0),
        Just(QUANTIZE_LIMIT * 0.999),
        Just(-QUANTIZE_LIMIT * 0.999),
        (0..=u32::MAX).prop_map(|bits| {
            let value = f32::from_bits(bits);
            if value.abs() < QUANTIZE_LIMIT { value } else { 1.0 }
        }),
    ]
}

proptest! {
    /// Whatever finite values: finite values come back, the same from every table, no farther off than the range
    /// of their block.
    #[test]
    fn any_values_come_back_finite(values in prop::collection::vec(magnitude(), 512)) {
        for format in [Format::Q8_0, Format::Q4K] {
            let scalar = quantize(Kernels::for_isa(Isa::Scalar).unwrap(), format, &values);
            for kernels in tables() {
                prop_assert!(quantize(kernels, format, &values) == scalar, "{:?} {}", kernels, format);
            }
            let back = dequantize(format, &scalar, values.len());
            for (got, expected) in back.chunks(256).zip(values.chunks(256)) {
                let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (got, expected) in got.iter().zip(expected) {
                    prop_assert!((got - expected).abs() <= 2.0 * largest + 1e-7, "{} for {} in {}", got, expected, format);
                }
            }
        }
    }
}
