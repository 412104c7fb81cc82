//! Every table against sums in f64, on shapes around every boundary of the kernels.

use crate::testing::{Random, Spec, Weights, specs, sum_error, tables};
use crate::{Format, MatrixMut, MatrixRef, MatrixView, Order};

/// What lies between the rows of a strided matrix, and must not change.
const GAP: f32 = -77.0;

/// Multiplies random tokens with `w` into an output that holds something, all strided, and compares.
fn check(weights: &Weights, w: &MatrixView<'_>, tokens: usize, random: &mut Random) {
    let (x_stride, out_stride) = (w.rows() + 3, w.cols() + 2);
    let x_values = random.values(tokens * x_stride);
    let x = MatrixRef::strided(&x_values, tokens, w.rows(), x_stride);
    let orders = [Order::Fastest, Order::Few, Order::Many];
    for (kernels, order) in tables().into_iter().flat_map(|table| orders.map(|order| (table, order))) {
        let mut out = vec![GAP; tokens * out_stride];
        for out in out.chunks_exact_mut(out_stride) {
            out[..w.cols()].fill(f32::NAN);
        }
        let target = MatrixMut::strided(&mut out, tokens, w.cols(), out_stride);
        kernels.matmul_transposed_in(order, w, x, target);
        for (token, out) in out.chunks_exact(out_stride).enumerate() {
            for (col, &got) in out[..w.cols()].iter().enumerate() {
                let products =
                    x.row(token).iter().enumerate().map(|(r, x)| f64::from(*x) * weights.value(r, col));
                let (sum, magnitude) = products.fold((0.0, 0.0), |(sum, all), p| (sum + p, all + p.abs()));
                let (error, bound) = ((f64::from(got) - sum).abs(), sum_error(w.rows(), magnitude));
                assert!(
                    error <= bound,
                    "{kernels:?} {w:?} token {token} of {tokens}, col {col}: {got}, not {sum}"
                );
            }
            assert_eq!(out[w.cols()..], [GAP; 2], "{kernels:?} wrote between the rows");
        }
    }
}

#[test]
fn every_table_agrees_with_f64() {
    let mut random = Random(1);
    for spec in specs(&[1, 2, 3, 4, 5, 8, 9, 40, 127, 129], &[1, 7, 8, 15, 16, 31, 64, 65, 128, 129, 300]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [1, 2, 3, 4, 5, 8, 17] {
            check(&weights, &weights.view(), tokens, &mut random);
        }
    }
}

#[test]
fn more_columns_than_are_taken_at_once() {
    let mut random = Random(6);
    for spec in specs(&[5, 130], &[513, 600, 1100]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [1, 4, 6] {
            check(&weights, &weights.view(), tokens, &mut random);
        }
    }
}

#[test]
fn some_columns_of_a_matrix() {
    let mut random = Random(9);
    for format in [Format::Bf16, Format::Fp8, Format::Q8_0] {
        for (cols, kept) in [(96, 0..64), (1280, 128..1152), (768, 640..768)] {
            let spec = Spec { format, rows: 9, cols, block: (4, 128), first_row: 1, offset: 1 };
            let weights = Weights::random(spec, &mut random);
            let (whole, w) = (weights.view(), weights.view().column_range(kept.clone()));
            for tokens in [1, 3, 5] {
                let x = random.values(tokens * spec.rows);
                let x = MatrixRef::new(&x, tokens, spec.rows);
                for kernels in tables() {
                    let mut all = vec![f32::NAN; tokens * cols];
                    let mut some = vec![f32::NAN; tokens * kept.len()];
                    kernels.matmul_transposed(&whole, x, MatrixMut::new(&mut all, tokens, cols));
                    kernels.matmul_transposed(&w, x, MatrixMut::new(&mut some, tokens, kept.len()));
                    for (all, some) in all.chunks(cols).zip(some.chunks(kept.len())) {
                        assert_eq!(all[kept.clone()], *some, "{kernels:?} {spec:?} {kept:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_number_of_tokens_of_a_tile() {
    let mut random = Random(2);
    for spec in specs(&[20], &[70]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in 1..30 {
            check(&weights, &weights.view(), tokens, &mut random);
        }
    }
}

#[test]
fn the_first_columns_of_a_wider_matrix() {
    let mut random = Random(3);
    let values = random.values(140 * 50);
    let narrow: Vec<f32> = values.chunks(50).flat_map(|row| row[..33].to_vec()).collect();
    for kernels in tables() {
        for tokens in [1, 2, 7] {
            let x = random.values(tokens * 140);
            let x = MatrixRef::new(&x, tokens, 140);
            let (mut strided, mut contiguous) = (vec![0.0; tokens * 33], vec![0.0; tokens * 33]);
            let w = MatrixView::f32(&values, 140, 50).column_range(0..33);
            kernels.matmul_transposed(&w, x, MatrixMut::new(&mut strided, tokens, 33));
            kernels.matmul_transposed(
                &MatrixView::f32(&narrow, 140, 33),
                x,
                MatrixMut::new(&mut contiguous, tokens, 33),
            );
            assert_eq!(strided, contiguous, "{kernels:?}");
        }
    }
}

#[test]
fn an_fp8_nan_reaches_its_column_and_no_other() {
    let mut random = Random(5);
    // Blocks that end within 32 columns take another way than those that do not; 512 columns are taken at once.
    for (cols, block) in [(141, (4, 100)), (141, (4, 96)), (600, (4, 96))] {
        let spec = Spec { format: Format::Fp8, rows: 6, cols, block, first_row: 0, offset: 1 };
        for kernels in tables() {
            for (tokens, nan) in [(1, 0x7f), (1, 0xff), (2, 0x7f), (5, 0xff)] {
                for (row, col) in [(0, 0), (3, 63), (3, 64), (4, 99), (5, 100), (5, 140), (2, cols - 1)] {
                    let mut weights = Weights::random(spec, &mut random);
                    *weights.fp8_mut(row, col) = nan;
                    let x = vec![0.0; tokens * spec.rows];
                    let x = MatrixRef::new(&x, tokens, spec.rows);
                    for order in [Order::Fastest, Order::Few] {
                        let mut out = vec![1.0; tokens * spec.cols];
                        let target = MatrixMut::new(&mut out, tokens, spec.cols);
                        kernels.matmul_transposed_in(order, &weights.view(), x, target);
                        for (index, got) in out.into_iter().enumerate() {
                            let expected = index % spec.cols == col;
                            assert_eq!(got.is_nan(), expected, "{kernels:?} {spec:?} {tokens} {row} {col}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn no_rows_and_no_tokens() {
    for kernels in tables() {
        let mut out = [3.0; 4];
        let w = MatrixView::f32(&[], 0, 2);
        kernels.matmul_transposed(&w, MatrixRef::new(&[], 2, 0), MatrixMut::new(&mut out, 2, 2));
        assert_eq!(out, [0.0; 4]);
        kernels.matmul_transposed(&w, MatrixRef::new(&[], 0, 0), MatrixMut::new(&mut [], 0, 2));
    }
}
