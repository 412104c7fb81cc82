//! Every table against sums in f64, on shapes around every boundary of the kernels.

use crate::testing::{Random, Spec, Weights, specs, sum_error, tables};
use crate::{Format, IntegerMatrix, LANES, MatrixMut, MatrixRef, MatrixView, Order, f16_to_f32};

/// What lies between the rows of a strided matrix, and must not change.
const GAP: f32 = -77.0;

/// Multiplies `w` with random tokens into an output that holds something, all strided, and compares.
fn check(weights: &Weights, w: &MatrixView<'_>, tokens: usize, random: &mut Random) {
    let (x_stride, out_stride) = (w.cols() + 3, w.rows() + 2);
    let x_values = random.values(tokens * x_stride);
    let x = MatrixRef::strided(&x_values, tokens, w.cols(), x_stride);
    for kernels in tables() {
        for order in [Order::Fastest, Order::Few, Order::Many] {
            let mut out = vec![GAP; tokens * out_stride];
            for out in out.chunks_exact_mut(out_stride) {
                out[..w.rows()].fill(f32::NAN);
            }
            let target = MatrixMut::strided(&mut out, tokens, w.rows(), out_stride);
            kernels.matmul_in(order, w, x, target);
            for (token, out) in out.chunks_exact(out_stride).enumerate() {
                for (row, &got) in out[..w.rows()].iter().enumerate() {
                    let products =
                        x.row(token).iter().enumerate().map(|(c, x)| f64::from(*x) * weights.value(row, c));
                    let (sum, magnitude) =
                        products.fold((0.0, 0.0), |(sum, all), p| (sum + p, all + p.abs()));
                    let (error, bound) = ((f64::from(got) - sum).abs(), sum_error(w.cols(), magnitude));
                    assert!(
                        error <= bound,
                        "{kernels:?} {w:?} token {token} of {tokens}, row {row}: {got}, not {sum}"
                    );
                }
                assert_eq!(out[w.rows()..], [GAP; 2], "{kernels:?} wrote between the rows");
            }
        }
    }
}

#[test]
fn every_table_agrees_with_f64() {
    let mut random = Random(1);
    let rows = [1, 2, 3, 4, 5, 8, 9, 17, 40];
    for spec in specs(&rows, &[1, 7, 8, 31, 64, 65, 128, 129, 300, 511, 513]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [1, 2, 3, 4, 5, 8, 11, 17] {
            check(&weights, &weights.view(), tokens, &mut random);
        }
    }
}

#[test]
fn more_tokens_than_a_block_of_them() {
    let mut random = Random(2);
    for spec in specs(&[13], &[70, 520]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [127, 128, 129, 257] {
            check(&weights, &weights.view(), tokens, &mut random);
        }
    }
}

#[test]
fn more_rows_than_have_their_sums_in_lanes() {
    let mut random = Random(9);
    // The second block of rows begins with row 528, in a fixed order with row 512; blocks of scales are longer.
    for (format, rows) in [(Format::Fp8, 540), (Format::Bf16, 530), (Format::Q8_0, 535)] {
        let spec = Spec { format, rows, cols: 64, block: (1024, 32), first_row: 0, offset: 1 };
        let weights = Weights::random(spec, &mut random);
        check(&weights, &weights.view(), 17, &mut random);
    }
}

#[test]
fn more_rows_and_columns_of_bf16_than_are_taken_at_a_time() {
    let mut random = Random(13);
    // Groups of three rows eight at a time and a row left over, columns 1024 at a time and a few.
    let spec = Spec { format: Format::Bf16, rows: 52, cols: 2085, block: (1, 1), first_row: 0, offset: 1 };
    let weights = Weights::random(spec, &mut random);
    for tokens in [5, 7, 9, 15, 24, 25] {
        check(&weights, &weights.view(), tokens, &mut random);
    }
}

#[test]
fn rows_that_share_pages() {
    let mut random = Random(11);
    for (rows, block_rows, first_row) in [(410, 128, 130), (410, 8, 3), (100, 3, 1)] {
        for format in Format::ALL {
            let spec = Spec { format, rows, cols: 256, block: (block_rows, 64), first_row, offset: 1 };
            let weights = Weights::random(spec, &mut random);
            check(&weights, &weights.view(), 18, &mut random);
        }
    }
}

#[test]
fn rows_of_a_wider_matrix() {
    let mut random = Random(3);
    let values = random.values(9 * 50);
    let spec = Spec { format: Format::F32, rows: 9, cols: 33, block: (1, 1), first_row: 0, offset: 0 };
    for kernels in tables() {
        for tokens in [1, 4] {
            let x = random.values(tokens * spec.cols);
            let x = MatrixRef::new(&x, tokens, spec.cols);
            let narrow: Vec<f32> = values.chunks(50).flat_map(|row| row[..33].to_vec()).collect();
            let (mut strided, mut contiguous) = (vec![0.0; tokens * 9], vec![0.0; tokens * 9]);
            let w = MatrixView::f32_strided(&values, 9, 33, 50);
            kernels.matmul(&w, x, MatrixMut::new(&mut strided, tokens, 9));
            kernels.matmul(&MatrixView::f32(&narrow, 9, 33), x, MatrixMut::new(&mut contiguous, tokens, 9));
            assert_eq!(strided, contiguous, "{kernels:?}");
        }
    }
}

#[test]
fn columns_of_a_wider_matrix_that_another_follows() {
    let mut random = Random(12);
    for format in [Format::Fp8, Format::Q8_0, Format::Bf16] {
        let spec = Spec { format, rows: 22, cols: 512, block: (8, 64), first_row: 3, offset: 1 };
        let weights = Weights::random(spec, &mut random);
        let whole = weights.view();
        let middle = whole.column_range(128..384);
        for kernels in tables() {
            for tokens in [1, 3, 4, 6] {
                let some = random.values(tokens * 256);
                let all: Vec<f32> =
                    some.chunks(256).flat_map(|x| [&[0.0; 128][..], x, &[0.0; 128]].concat()).collect();
                let product = |w: &MatrixView<'_>, x: &[f32]| {
                    let mut out = vec![f32::NAN; tokens * 22];
                    let x = MatrixRef::new(x, tokens, w.cols());
                    kernels.matmul(w, x, MatrixMut::new(&mut out, tokens, 22));
                    out
                };
                let got = product(&middle, &some);
                let followed = product(&middle.followed_by(&whole), &some);
                assert_eq!(followed, got, "{kernels:?} {format}");
                for (index, (got, expected)) in got.iter().zip(product(&whole, &all)).enumerate() {
                    let x = &some[index / 22 * 256..][..256];
                    let magnitude = x
                        .iter()
                        .enumerate()
                        .map(|(c, x)| (f64::from(*x) * weights.value(index % 22, 128 + c)).abs())
                        .sum();
                    let (error, bound) = (f64::from(got - expected).abs(), 2.0 * sum_error(512, magnitude));
                    assert!(error <= bound, "{kernels:?} {format}: {got}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn a_product_with_a_unit_vector_is_the_weight_exactly() {
    let mut random = Random(4);
    for spec in specs(&[5], &[150]) {
        let weights = Weights::random(spec, &mut random);
        for kernels in tables() {
            for tokens in [1, 3] {
                for col in 0..spec.cols {
                    let mut x = vec![0.0; tokens * spec.cols];
                    x.chunks_exact_mut(spec.cols).for_each(|x| x[col] = 1.0);
                    let mut out = vec![f32::NAN; tokens * spec.rows];
                    let x = MatrixRef::new(&x, tokens, spec.cols);
                    kernels.matmul(&weights.view(), x, MatrixMut::new(&mut out, tokens, spec.rows));
                    for (index, got) in out.into_iter().enumerate() {
                        let expected = weights.value(index % spec.rows, col) as f32;
                        assert_eq!(got, expected, "{kernels:?} {spec:?} column {col}");
                    }
                }
            }
        }
    }
}

/// A row for each half.
#[test]
fn every_half_is_a_scale_of_q8_0() {
    let mut bytes = Vec::new();
    for scale in 0..=u16::MAX {
        bytes.extend(scale.to_le_bytes());
        bytes.extend([3; 32]);
    }
    let rows = 1 << 16;
    let w = MatrixView::from_bytes(Format::Q8_0, &bytes, rows, 32, None);
    let mut x = [0.0; 32];
    x[7] = 1.0;
    for kernels in tables() {
        let mut out = vec![0.0; rows];
        kernels.matmul(&w, MatrixRef::new(&x, 1, 32), MatrixMut::new(&mut out, 1, rows));
        for (scale, got) in out.into_iter().enumerate() {
            let expected = 3.0 * f16_to_f32(scale as u16);
            // Infinity times the zeros of x is NaN.
            let same = got == expected || !expected.is_finite() && got.is_nan();
            assert!(same, "{kernels:?} {scale:#x}: {got}, not {expected}");
        }
    }
}

/// More columns than inputs lie ready for, in blocks that do not end where these do.
#[test]
fn long_rows_agree_with_f64() {
    let mut random = Random(11);
    for block in [(128, 128), (128, 320)] {
        let spec = Spec { format: Format::Fp8, rows: 5, cols: 18_500, block, first_row: 0, offset: 1 };
        let weights = Weights::random(spec, &mut random);
        for tokens in [1, 3] {
            check(&weights, &weights.view(), tokens, &mut random);
        }
    }
}

#[test]
fn an_fp8_nan_reaches_its_row_and_no_other() {
    let mut random = Random(5);
    // Blocks that end within 32 or 64 columns take another way than those that do not.
    for block in [(4, 100), (4, 96), (4, 128)] {
        let spec = Spec { format: Format::Fp8, rows: 6, cols: 141, block, first_row: 0, offset: 1 };
        for kernels in tables() {
            for (tokens, nan) in [(1, 0x7f), (1, 0xff), (2, 0x7f), (5, 0xff), (16, 0x7f)] {
                for (row, col) in [(0, 0), (3, 63), (3, 64), (4, 99), (5, 100), (5, 140)] {
                    let mut weights = Weights::random(spec, &mut random);
                    *weights.fp8_mut(row, col) = nan;
                    let x = vec![0.0; tokens * spec.cols];
                    let x = MatrixRef::new(&x, tokens, spec.cols);
                    for order in [Order::Fastest, Order::Few] {
                        let mut out = vec![1.0; tokens * spec.rows];
                        let target = MatrixMut::new(&mut out, tokens, spec.rows);
                        kernels.matmul_in(order, &weights.view(), x, target);
                        for (index, got) in out.into_iter().enumerate() {
                            assert_eq!(
                                got.is_nan(),
                                index % spec.rows == row,
                                "{kernels:?} {tokens} {row} {col}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn no_columns_and_no_tokens() {
    for kernels in tables() {
        for format in [Format::F32, Format::Bf16, Format::Q8_0, Format::Q4K] {
            let w = MatrixView::from_bytes(format, &[], 2, 0, None);
            for tokens in [2, 5] {
                let mut out = vec![3.0; tokens * 2];
                kernels.matmul(&w, MatrixRef::new(&[], tokens, 0), MatrixMut::new(&mut out, tokens, 2));
                assert_eq!(out, vec![0.0; tokens * 2]);
            }
            kernels.matmul(&w, MatrixRef::new(&[], 0, 0), MatrixMut::new(&mut [], 0, 2));
        }
    }
}

/// What a product of `tokens` tokens gives in an order, all of them and each by itself.
fn together_and_alone(
    order: Order,
    multiply: impl Fn(Order, &MatrixView<'_>, MatrixRef<'_>, MatrixMut<'_>),
    w: &MatrixView<'_>,
    x: MatrixRef<'_>,
    out_cols: usize,
) -> [Vec<f32>; 2] {
    let tokens = x.rows();
    let (mut together, mut alone) = (vec![0.5; tokens * out_cols], vec![0.5; tokens * out_cols]);
    multiply(order, w, x, MatrixMut::new(&mut together, tokens, out_cols));
    for (token, out) in alone.chunks_exact_mut(out_cols).enumerate() {
        multiply(order, w, x.row_range(token..token + 1), MatrixMut::new(out, 1, out_cols));
    }
    [together, alone]
}

#[test]
fn long_rows_add_up_in_the_order_of_one_token() {
    let mut random = Random(8);
    // More columns than are taken at a time, by a token alone, too; blocks of scales within them and rows of another block.
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        for (cols, first_row) in [(2080, 125), (18_500, 0)] {
            let spec = Spec { format, rows: 7, cols, block: (128, 128), first_row, offset: 1 };
            let weights = Weights::random(spec, &mut random);
            let x_values = random.values(LANES * cols);
            let x = MatrixRef::new(&x_values, LANES, cols);
            for kernels in tables() {
                let multiply = |order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>| {
                    kernels.matmul_in(order, w, x, out);
                };
                let [together, alone] =
                    together_and_alone(Order::Few, multiply, &weights.view(), x, spec.rows);
                assert_eq!(together, alone, "{kernels:?} {spec:?}");
            }
        }
    }
}

#[test]
fn in_a_fixed_order_tokens_do_not_depend_on_each_other() {
    let mut random = Random(7);
    for spec in specs(&[3, 9, 40], &[31, 64, 129, 513, 1024]) {
        let weights = Weights::random(spec, &mut random);
        let w = weights.view();
        for tokens in [2, 3, 4, 5, 7, 8, 9, 12, 16, 33] {
            let x_values = random.values(tokens * w.cols().max(w.rows()));
            let x = MatrixRef::new(&x_values[..tokens * w.cols()], tokens, w.cols());
            let x_transposed = MatrixRef::new(&x_values[..tokens * w.rows()], tokens, w.rows());
            for kernels in tables() {
                for order in [Order::Few, Order::Many] {
                    let multiply = |order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>| {
                        kernels.matmul_in(order, w, x, out);
                    };
                    let [together, alone] = together_and_alone(order, multiply, &w, x, w.rows());
                    assert_eq!(together, alone, "{kernels:?} {order:?} {w:?} {tokens}");
                    let multiply = |order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>| {
                        kernels.matmul_transposed_in(order, w, x, out);
                    };
                    let [together, alone] = together_and_alone(order, multiply, &w, x_transposed, w.cols());
                    assert_eq!(together, alone, "{kernels:?} {order:?} transposed {w:?} {tokens}");
                    let multiply = |order, w: &MatrixView<'_>, x: MatrixRef<'_>, out: MatrixMut<'_>| {
                        if !kernels.takes_integers(w, usize::MAX) {
                            return;
                        }
                        let mut integers = IntegerMatrix::default();
                        kernels.quantize(x, integers.reshape(x.rows(), x.cols(), w.format()));
                        kernels.matmul_integer_in(order, w, integers.as_ref(), out);
                    };
                    let [together, alone] = together_and_alone(order, multiply, &w, x, w.rows());
                    assert_eq!(together, alone, "{kernels:?} {order:?} in integers {w:?} {tokens}");
                }
                let mut few = vec![0.0; w.rows()];
                let mut fastest = few.clone();
                let one = x.row_range(0..1);
                kernels.matmul_in(Order::Few, &w, one, MatrixMut::new(&mut few, 1, w.rows()));
                kernels.matmul(&w, one, MatrixMut::new(&mut fastest, 1, w.rows()));
                assert_eq!(few, fastest, "one token is the fewest");
            }
        }
    }
}
