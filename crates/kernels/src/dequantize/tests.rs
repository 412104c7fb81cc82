//! Every table gives the exact value, rounded once.

use crate::testing::{GAP, Random, Weights, specs, tables};
use crate::{BlockScales, Format, MatrixMut, MatrixView, fp8_e4m3_to_f32};

#[test]
fn rows_are_the_values_rounded_once() {
    let mut random = Random(1);
    for spec in specs(&[1, 4, 9], &[1, 7, 15, 16, 17, 31, 128, 129, 300]) {
        let weights = Weights::random(spec, &mut random);
        let expected = |row| (0..spec.cols).map(|col| weights.value(row, col) as f32).collect::<Vec<_>>();
        for kernels in tables() {
            let stride = spec.cols + GAP;
            let mut all = vec![-77.0; spec.rows * stride];
            let out = MatrixMut::strided(&mut all, spec.rows, spec.cols, stride);
            kernels.dequantize(&weights.view(), out);
            for (row, all) in all.chunks(stride).enumerate() {
                assert_eq!(all[..spec.cols], expected(row), "{kernels:?} {spec:?} row {row}");
                assert_eq!(all[spec.cols..], [-77.0; GAP], "{kernels:?} wrote between the rows");
                let mut one = vec![f32::NAN; spec.cols];
                kernels.dequantize_row(&weights.view(), row, &mut one);
                assert_eq!(one, all[..spec.cols], "{kernels:?} {spec:?} row {row}");
            }
        }
    }
}

/// `bytes` as a row under one scale, by every table, against the product of the two values.
fn check_fp8(bytes: &[u8], scale: f32) {
    let cols = bytes.len();
    let scales = scale.to_le_bytes();
    let scales = BlockScales { bytes: &scales, block_rows: 1, block_cols: cols, grid_cols: 1, first_row: 0 };
    let w = MatrixView::from_bytes(Format::Fp8, bytes, 1, cols, Some(scales));
    for kernels in tables() {
        let mut out = vec![0.0; cols];
        kernels.dequantize_row(&w, 0, &mut out);
        for (byte, got) in bytes.iter().zip(out) {
            let expected = fp8_e4m3_to_f32(*byte) * scale;
            let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
            assert!(same, "{kernels:?} {byte:#x} times {scale}: {got}, not {expected}");
        }
    }
}

#[test]
fn every_fp8_byte_under_scales_small_and_large() {
    let all: Vec<u8> = (0..=255).collect();
    let finite: Vec<u8> = all.iter().copied().filter(|byte| byte & 0x7f != 0x7f).collect();
    for scale in [1.0, 255.0, 256.0, 3.3e-5, 1e-38, f32::from_bits(1), 1e38, -2.0, 0.0] {
        check_fp8(&all, scale);
        check_fp8(&finite, scale);
    }
}

#[test]
fn every_bf16() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let w = MatrixView::from_bytes(Format::Bf16, &bytes, 1, 1 << 16, None);
    for kernels in tables() {
        let mut out = vec![0.0; 1 << 16];
        kernels.dequantize_row(&w, 0, &mut out);
        for (upper, got) in out.into_iter().enumerate() {
            assert_eq!(got.to_bits(), (upper as u32) << 16, "{kernels:?}");
        }
    }
}
