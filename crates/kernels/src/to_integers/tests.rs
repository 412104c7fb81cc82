//! Every table gives the same bits, and values within half a step.

use crate::integers::LIMIT;
use crate::testing::{Random, tables};
use crate::{Format, IntegerMatrix, IntegerRef, Isa, MatrixRef};

/// The integers of a row.
fn integers(x: IntegerRef<'_>, row: usize) -> &[i8] {
    x.blocks(row).as_flattened()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_table_gives_the_same_bits_within_half_a_step() {
    let mut random = Random(1);
    let mut matrices: Vec<IntegerMatrix> = tables().iter().map(|_| IntegerMatrix::default()).collect();
    let cols = [0, 1, 7, 8, 31, 32, 33, 64, 70, 128, 256, 300];
    for (cols, format) in cols.into_iter().flat_map(|cols| [(cols, Format::Q8_0), (cols, Format::Fp8)]) {
        for rows in [1, 3, 5, 2] {
            let values = random.values(rows * (cols + 3));
            let x = MatrixRef::strided(&values, rows, cols, cols + 3);
            for (kernels, matrix) in tables().into_iter().zip(&mut matrices) {
                kernels.quantize(x, matrix.reshape(rows, cols, format));
            }
            let expected = matrices[0].as_ref();
            for row in 0..rows {
                let (all, scales) = (integers(expected, row), expected.scales(row));
                let group = format.group_cols();
                for (scales, x) in scales.chunks(group / 32).zip(x.row(row).chunks(group)) {
                    let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                    assert!(scales.iter().all(|&scale| scale == most / f32::from(LIMIT)), "{scales:?}");
                }
                for (col, &value) in all.iter().enumerate() {
                    let scale = f64::from(scales[col / 32]);
                    let x = x.row(row).get(col).copied().map_or(0.0, f64::from);
                    // Two roundings of the factor and the product move the place of a tie.
                    let step = scale * (0.5 + 2.0 * f64::from(f32::EPSILON) * f64::from(LIMIT));
                    assert!((f64::from(value) * scale - x).abs() <= step, "{x} as {value} times {scale}");
                    assert!(value >= -LIMIT);
                }
                for (block, sum) in all.chunks(32).zip(expected.sums(row).iter().zip(scales)) {
                    assert_eq!(
                        *sum.0,
                        block.iter().map(|&value| i32::from(value)).sum::<i32>() as f32 * sum.1
                    );
                }
                for matrix in &matrices[1..] {
                    let got = matrix.as_ref();
                    assert_eq!(integers(got, row), all);
                    assert_eq!(bits(got.scales(row)), bits(scales));
                    assert_eq!(bits(got.sums(row)), bits(expected.sums(row)));
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_makes_its_group_nan() {
    for kernels in tables() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (format, expected) in [(Format::Q8_0, 1..2), (Format::Fp8, 0..4)] {
                let mut x = [1.0; 150];
                x[40] = value;
                let mut matrix = IntegerMatrix::default();
                kernels.quantize(MatrixRef::new(&x, 1, 150), matrix.reshape(1, 150, format));
                let got = matrix.as_ref();
                for (block, (scale, sum)) in got.scales(0).iter().zip(got.sums(0)).enumerate() {
                    let is_nan = expected.contains(&block);
                    assert_eq!((scale.is_nan(), sum.is_nan()), (is_nan, is_nan), "{kernels:?} {block}");
                }
                let columns = 32 * expected.start..32 * expected.end;
                assert!(integers(got, 0)[columns].iter().all(|&integer| integer == 0), "{kernels:?}");
            }
        }
    }
}

#[test]
fn the_smallest_and_the_largest_values() {
    for kernels in tables() {
        for (value, expected) in
            [(0.0, 0), (f32::from_bits(1), 0), (1e-30, LIMIT), (f32::MAX, LIMIT), (-3.0, -LIMIT)]
        {
            let mut matrix = IntegerMatrix::default();
            kernels.quantize(MatrixRef::new(&[value], 1, 1), matrix.reshape(1, 1, Format::Q8_0));
            let got = matrix.as_ref();
            assert_eq!(integers(got, 0)[0], expected, "{kernels:?} {value}");
            assert!(got.scales(0)[0].is_finite());
        }
    }
}

#[test]
fn rows_are_split_and_copied() {
    let kernels = crate::Kernels::for_isa(Isa::Scalar).expect("the scalar table");
    let values = Random(2).values(4 * 40);
    let (mut whole, mut parts, mut copy) = <(IntegerMatrix, IntegerMatrix, IntegerMatrix)>::default();
    let x = MatrixRef::new(&values, 4, 40);
    kernels.quantize(x, whole.reshape(4, 40, Format::Fp8));
    let (upper, lower) = parts.reshape(4, 40, Format::Fp8).split_rows_at(1);
    kernels.quantize(x.row_range(0..1), upper);
    kernels.quantize(x.row_range(1..4), lower);
    let mut to = copy.reshape(4, 40, Format::Fp8);
    for row in 0..4 {
        to.copy_row(row, parts.as_ref().row_range(row..4), 0);
    }
    for row in 0..4 {
        assert_eq!(integers(copy.as_ref(), row), integers(whole.as_ref(), row));
        assert_eq!(copy.as_ref().scales(row), whole.as_ref().scales(row));
        assert_eq!(copy.as_ref().sums(row), whole.as_ref().sums(row));
    }
}
