//! Every table against sums in f64 of what the integers stand for, and against products of what was quantised, on
//! shapes around every boundary of the kernels.

use super::{FEW, FP8_STEPS, width};
use crate::testing::{Random, Spec, Weights, specs, sum_error, tables};
use crate::{Format, IntegerMatrix, IntegerRef, IntegerWidth, MatrixMut, MatrixRef};

/// What lies between the rows of a strided matrix, and must not change.
const GAP: f32 = -77.0;

/// What an integer of `x` stands for.
fn value(x: IntegerRef<'_>, token: usize, column: usize) -> f64 {
    let (block, column) = (column / 32, column % 32);
    let integer = match x.width() {
        IntegerWidth::Int8 => f64::from(x.int8(token)[block][column]),
        IntegerWidth::Int16 => f64::from(x.int16(token)[block][column]),
    };
    integer * f64::from(x.scales(token)[block])
}

/// A product in f64: what the integers should give, how large its terms are, what it was before they were rounded, and
/// how far the two may lie apart.
#[derive(Default)]
struct Expected {
    sum: f64,
    magnitude: f64,
    unquantized: f64,
    distance: f64,
}

fn expected(
    weights: &Weights,
    row: usize,
    x: MatrixRef<'_>,
    integers: IntegerRef<'_>,
    token: usize,
) -> Expected {
    let mut all = Expected::default();
    for (column, x) in x.row(token).iter().enumerate() {
        let (x, quantized) = (f64::from(*x), value(integers, token, column));
        let w = weights.parts(row, column);
        let integer = w.integer * f64::from(FP8_STEPS);
        // The rounding of FP8 is half away from zero, as f64::round is.
        let steps = if w.is_fp8 { integer.round() / f64::from(FP8_STEPS) } else { w.integer };
        all.sum += (steps * w.scale - w.minimum) * quantized;
        all.magnitude += ((steps * w.scale).abs() + w.minimum.abs()) * quantized.abs();
        all.unquantized += weights.value(row, column) * x;
        let step = f64::from(integers.scales(token)[column / 32]);
        let x_error = step * (0.5 + 2.0 * f64::from(f32::EPSILON) * f64::from(integers.width().limit()));
        let w_error = (w.integer - steps).abs() * w.scale.abs();
        assert!(w_error <= 0.5 / f64::from(FP8_STEPS) * w.scale.abs());
        all.distance += (steps * w.scale - w.minimum).abs() * x_error + w_error * x.abs();
    }
    all
}

/// Adds `weights` times random tokens to an output that is not zero and is strided, and compares.
fn check(weights: &Weights, tokens: usize, random: &mut Random) {
    let w = weights.view();
    let Some(width) = width(&w, usize::MAX) else { return };
    let out_stride = w.rows() + 2;
    let x_values = random.values(tokens * w.cols());
    let x = MatrixRef::new(&x_values, tokens, w.cols());
    let before = 0.5;
    for kernels in tables() {
        let mut integers = IntegerMatrix::default();
        kernels.quantize(x, integers.reshape(width, tokens, w.cols()));
        let mut out = vec![GAP; tokens * out_stride];
        out.chunks_exact_mut(out_stride).for_each(|out| out[..w.rows()].fill(before));
        let integers = integers.as_ref();
        kernels.matmul_integer_add(&w, integers, MatrixMut::strided(&mut out, tokens, w.rows(), out_stride));
        for (token, out) in out.chunks_exact(out_stride).enumerate() {
            for (row, &got) in out[..w.rows()].iter().enumerate() {
                let expected = expected(weights, row, x, integers, token);
                let (got, place) =
                    (f64::from(got) - f64::from(before), format!("token {token} of {tokens}, row {row}"));
                // Two terms for a column: of q4_K, the value and the minimum.
                let rounding = sum_error(2 * w.cols() + 1, expected.magnitude + f64::from(before));
                assert!(
                    (got - expected.sum).abs() <= rounding,
                    "{kernels:?} {w:?} {place}: {got}, not {}",
                    expected.sum
                );
                let distance = (got - expected.unquantized).abs();
                assert!(
                    distance <= rounding + expected.distance,
                    "{kernels:?} {w:?} {place}: {distance} away"
                );
            }
            assert_eq!(out[w.rows()..], [GAP; 2], "{kernels:?} wrote between the rows");
        }
    }
}

#[test]
fn every_table_agrees_with_f64() {
    let mut random = Random(1);
    let rows = [1, 2, 7, 8, 9, 16, 17, 40];
    for spec in specs(&rows, &[1, 31, 32, 33, 64, 129, 300, 511, 513, 1030]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [1, 2, 3, 4, 5, 6, 8, 10] {
            check(&weights, tokens, &mut random);
        }
    }
}

#[test]
fn more_tokens_than_a_block_of_them() {
    let mut random = Random(2);
    for spec in specs(&[21], &[70, 520, 600, 32]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [127, 129, 257] {
            check(&weights, tokens, &mut random);
        }
    }
}

#[test]
fn parts_of_a_matrix() {
    let mut random = Random(3);
    for format in [Format::Fp8, Format::Q8_0, Format::Q4K] {
        let spec = Spec { format, rows: 20, cols: 1024, block: (8, 64), first_row: 3, offset: 1 };
        let weights = Weights::random(spec, &mut random);
        let whole = weights.view();
        for tokens in [1, 3, 7] {
            let values = random.values(tokens * 512);
            let x = MatrixRef::new(&values, tokens, 512);
            for kernels in tables() {
                let mut integers = IntegerMatrix::default();
                let width = width(&whole, usize::MAX).expect("a format with an integer product");
                kernels.quantize(x, integers.reshape(width, tokens, 512));
                let mut all = vec![0.0; tokens * 20];
                let half = whole.column_range(256..768);
                kernels.matmul_integer_add(&half, integers.as_ref(), MatrixMut::new(&mut all, tokens, 20));
                let mut parts = vec![0.0; tokens * 20];
                let (left, right) = MatrixMut::new(&mut parts, tokens, 20).split_columns_at(11);
                kernels.matmul_integer_add(&half.row_range(0..11), integers.as_ref(), left);
                kernels.matmul_integer_add(&half.row_range(11..20), integers.as_ref(), right);
                assert_eq!(parts, all, "{kernels:?} {format}");
                let got = f64::from(all[tokens * 20 - 1]);
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for column in 0..512 {
                    let w = weights.parts(19, 256 + column);
                    let quantized = value(integers.as_ref(), tokens - 1, column);
                    sum += weights.value(19, 256 + column) * quantized;
                    let rounding = if w.is_fp8 { 0.5 / f64::from(FP8_STEPS) * w.scale.abs() } else { 0.0 };
                    magnitude += ((w.integer * w.scale).abs() + w.minimum.abs())
                        * quantized.abs()
                        * f64::from(f32::EPSILON);
                    magnitude += rounding * quantized.abs();
                }
                assert!((got - sum).abs() <= 1024.0 * magnitude, "{kernels:?} {format} {got}, not {sum}");
            }
        }
    }
}

#[test]
fn largest_values_do_not_overflow() {
    for kernels in tables() {
        for tokens in [1, 5] {
            // An FP8 of 448 and a byte of -128; all of one sign.
            let mut q8_0 = vec![0x00, 0x3c];
            q8_0.extend([0x80; 32]);
            let mut q4k = vec![0x00, 0x3c, 0, 0];
            q4k.extend([0xff; 140]);
            let one = 1.0_f32.to_le_bytes();
            let scales =
                crate::BlockScales { bytes: &one, block_rows: 1, block_cols: 32, grid_cols: 1, first_row: 0 };
            let cases = [
                (Format::Fp8, vec![0x7e; 32], Some(scales), 448.0 * 32.0),
                (Format::Q8_0, q8_0, None, -128.0 * 32.0),
                (Format::Q4K, q4k, None, 15.0 * 63.0 * 256.0),
            ];
            for (format, bytes, scales, expected) in cases {
                let cols = if format == Format::Q4K { 256 } else { 32 };
                let w = crate::MatrixView::from_bytes(format, &bytes, 1, cols, scales);
                let width = width(&w, usize::MAX).expect("a format with an integer product");
                let x = vec![1.0; tokens * cols];
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens]);
                kernels.quantize(MatrixRef::new(&x, tokens, cols), integers.reshape(width, tokens, cols));
                kernels.matmul_integer_add(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, 1));
                for got in out {
                    let error = (f64::from(got) - expected).abs();
                    assert!(
                        error <= sum_error(cols, expected.abs()),
                        "{kernels:?} {format}: {got}, not {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_fp8_nan_reaches_its_row_and_no_other() {
    let mut random = Random(5);
    let spec = Spec { format: Format::Fp8, rows: 14, cols: 651, block: (4, 96), first_row: 0, offset: 1 };
    for kernels in tables() {
        for (tokens, nan) in [(5, 0x7f), (7, 0xff)] {
            for (row, col) in [(0, 0), (3, 63), (6, 511), (8, 512), (13, 640), (13, 650)] {
                let mut weights = Weights::random(spec, &mut random);
                *weights.fp8_mut(row, col) = nan;
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![1.0; tokens * spec.rows]);
                let x = vec![0.5; tokens * spec.cols];
                let x = MatrixRef::new(&x, tokens, spec.cols);
                kernels.quantize(x, integers.reshape(IntegerWidth::Int16, tokens, spec.cols));
                let w = weights.view();
                kernels.matmul_integer_add(
                    &w,
                    integers.as_ref(),
                    MatrixMut::new(&mut out, tokens, spec.rows),
                );
                for (index, got) in out.into_iter().enumerate() {
                    assert_eq!(got.is_nan(), index % spec.rows == row, "{kernels:?} {tokens} {row} {col}");
                }
            }
        }
    }
}

#[test]
fn a_nan_of_a_token_reaches_it_and_no_other() {
    let mut random = Random(6);
    for format in [Format::Fp8, Format::Q8_0, Format::Q4K] {
        let spec = Spec { format, rows: 9, cols: 512, block: (8, 64), first_row: 0, offset: 0 };
        let weights = Weights::random(spec, &mut random);
        let w = weights.view();
        let width = width(&w, usize::MAX).expect("a format with an integer product");
        for kernels in tables() {
            for tokens in [2, 7] {
                let mut x = random.values(tokens * 512);
                x[512 + 300] = f32::NAN;
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens * 9]);
                kernels.quantize(MatrixRef::new(&x, tokens, 512), integers.reshape(width, tokens, 512));
                kernels.matmul_integer_add(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, 9));
                for (index, got) in out.into_iter().enumerate() {
                    assert_eq!(got.is_nan(), index / 9 == 1, "{kernels:?} {format} {index}");
                }
            }
        }
    }
}

#[test]
fn more_rows_than_have_their_sums_in_lanes() {
    let mut random = Random(10);
    for spec in specs(&[300], &[64]) {
        check(&Weights::random(spec, &mut random), 17, &mut random);
    }
}

#[test]
fn formats_have_the_integers_that_they_should() {
    let (int8, int16) = (Some(IntegerWidth::Int8), Some(IntegerWidth::Int16));
    let cases = [
        (Format::F32, (128, 128), None, None),
        (Format::Bf16, (128, 128), None, None),
        (Format::Fp8, (128, 128), None, int16),
        // A block of 32 columns has two scales; but not in a matrix of one block.
        (Format::Fp8, (128, 48), None, None),
        (Format::Fp8, (128, 300), None, int16),
        (Format::Q8_0, (1, 1), None, int16),
        (Format::Q4K, (1, 1), int8, int8),
    ];
    for (format, block, few, many) in cases {
        let spec = Spec { format, rows: 2, cols: 256, block, first_row: 0, offset: 0 };
        let weights = Weights::random(spec, &mut Random(7));
        let got = (width(&weights.view(), FEW), width(&weights.view(), FEW + 1));
        assert_eq!(got, (few, many), "{format} in blocks of {block:?}");
    }
}

#[test]
fn no_columns_and_no_tokens() {
    for kernels in tables() {
        let w = crate::MatrixView::from_bytes(Format::Q8_0, &[], 2, 0, None);
        let (mut integers, mut out) = (IntegerMatrix::default(), [3.0; 12]);
        integers.reshape(IntegerWidth::Int16, 6, 0);
        kernels.matmul_integer_add(&w, integers.as_ref(), MatrixMut::new(&mut out, 6, 2));
        assert_eq!(out, [3.0; 12]);
        integers.reshape(IntegerWidth::Int16, 0, 0);
        kernels.matmul_integer_add(&w, integers.as_ref(), MatrixMut::new(&mut [], 0, 2));
    }
}
