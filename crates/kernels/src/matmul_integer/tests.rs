//! Every table against sums in f64 of what the integers stand for, and against products of what was quantised, on
//! shapes around every boundary of the kernels.

use super::{FEW, Few, LOST_BITS, fp8_step};
use crate::integers::LIMIT;
use crate::testing::{Random, Spec, Weights, specs, sum_error, tables};
use crate::{
    BlockScales, Format, IntegerMatrix, IntegerRef, Isa, Kernels, MatrixMut, MatrixRef, MatrixView,
    fp8_e4m3_to_f32,
};

/// What lies between the rows of a strided matrix, and must not change.
const GAP: f32 = -77.0;

/// What an integer of `x` stands for.
fn value(x: IntegerRef<'_>, token: usize, column: usize) -> f64 {
    let (block, column) = (column / 32, column % 32);
    f64::from(x.blocks(token)[block][column]) * f64::from(x.scales(token)[block])
}

/// Steps of FP8 in which a weight is rounded, in units of its scale: those of its group of 128 columns.
fn step_of(w: &MatrixView<'_>, row: usize, column: usize) -> f64 {
    let group = column / 128 * 128;
    fp8_step(w.row_bytes(row, group..w.cols().min(group + 128))).expect("no NaN").into()
}

/// A product in f64: what the integers should give, how large its terms are, what it was before they were rounded, how
/// far the two may lie apart, and what products of 16 bits may lose.
#[derive(Default)]
struct Expected {
    sum: f64,
    magnitude: f64,
    unquantized: f64,
    distance: f64,
    lost: f64,
}

/// Of the columns from `first` on.
fn expected(
    (weights, first): (&Weights, usize),
    row: usize,
    x: MatrixRef<'_>,
    integers: IntegerRef<'_>,
    token: usize,
) -> Expected {
    let mut all = Expected::default();
    let view = weights.view();
    for (column, x) in x.row(token).iter().enumerate() {
        let (x, quantized) = (f64::from(*x), value(integers, token, column));
        let w = weights.parts(row, first + column);
        let x_step = f64::from(integers.scales(token)[column / 32]);
        let w_step = if w.is_fp8 { step_of(&view, row, first + column) } else { 1.0 };
        let steps = if w.is_fp8 { (w.integer / w_step).round_ties_even() * w_step } else { w.integer };
        all.sum += (steps * w.scale - w.minimum) * quantized;
        all.magnitude += ((steps * w.scale).abs() + w.minimum.abs()) * quantized.abs();
        all.unquantized += weights.value(row, first + column) * x;
        let x_error = x_step * (0.5 + 2.0 * f64::from(f32::EPSILON) * f64::from(LIMIT));
        let w_error = (w.integer - steps).abs() * w.scale.abs();
        assert!(w_error <= 0.5 * w_step * w.scale.abs());
        all.distance += (steps * w.scale - w.minimum).abs() * x_error + w_error * x.abs();
        if view.format() != Format::Q4K && column % 4 == 0 {
            // Of two pairs each less than one of the lowest bits that stay, in opposite directions.
            all.lost += f64::from(1 << LOST_BITS) * w_step * w.scale.abs() * x_step;
        }
    }
    all
}

/// What the products of a table lose beside rounding.
fn lost(kernels: &Kernels, format: Format, tokens: usize, expected: &Expected) -> f64 {
    match kernels.isa() {
        // As many as are multiplied from the register.
        Isa::Avx2Halves if format == Format::Q8_0 && tokens <= 7 => 0.0,
        Isa::Avx2 | Isa::Avx2Halves => expected.lost,
        _ => 0.0,
    }
}

/// Multiplies `weights` with random tokens into an output that holds something and is strided, and compares.
fn check(weights: &Weights, tokens: usize, random: &mut Random) {
    let w = weights.view();
    if !FEW.takes_integers(&w, usize::MAX) {
        return;
    }
    let out_stride = w.rows() + 2;
    let x_values = random.values(tokens * w.cols());
    let x = MatrixRef::new(&x_values, tokens, w.cols());
    for kernels in tables() {
        let mut integers = IntegerMatrix::default();
        kernels.quantize(x, integers.reshape(tokens, w.cols(), w.format()));
        let mut out = vec![GAP; tokens * out_stride];
        out.chunks_exact_mut(out_stride).for_each(|out| out[..w.rows()].fill(f32::NAN));
        let integers = integers.as_ref();
        kernels.matmul_integer(&w, integers, MatrixMut::strided(&mut out, tokens, w.rows(), out_stride));
        for (token, out) in out.chunks_exact(out_stride).enumerate() {
            for (row, &got) in out[..w.rows()].iter().enumerate() {
                let expected = expected((weights, 0), row, x, integers, token);
                let (got, place) = (f64::from(got), format!("token {token} of {tokens}, row {row}"));
                // Two terms for a column: of q4_K, the value and the minimum.
                let rounding = sum_error(2 * w.cols(), expected.magnitude)
                    + lost(kernels, w.format(), tokens, &expected);
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
        for tokens in [1, 2, 3, 4, 5, 6, 7, 8, 10] {
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
fn more_rows_and_columns_than_a_panel() {
    let mut random = Random(8);
    // Of 129 tokens the columns of few panels are packed at once, of 17 those of all.
    for spec in specs(&[70], &[2080]) {
        let weights = Weights::random(spec, &mut random);
        for tokens in [17, 129] {
            check(&weights, tokens, &mut random);
        }
    }
}

#[test]
fn rows_that_share_pages() {
    let mut random = Random(10);
    // Of 256 columns a panel takes one row of 16, then of fewer, where blocks of FP8 are multiples of that.
    for (rows, block_rows, first_row) in
        [(410, 128, 0), (530, 128, 130), (410, 8, 3), (300, 12, 5), (100, 3, 1)]
    {
        for format in [Format::Fp8, Format::Q8_0, Format::Q4K] {
            let spec = Spec { format, rows, cols: 256, block: (block_rows, 128), first_row, offset: 1 };
            let weights = Weights::random(spec, &mut random);
            for tokens in [7, 17] {
                check(&weights, tokens, &mut random);
            }
        }
    }
}

#[test]
fn longer_rows_than_inputs_lie_ready_for() {
    let mut random = Random(9);
    let spec = Spec { format: Format::Fp8, rows: 6, cols: 18_700, block: (4, 128), first_row: 2, offset: 0 };
    let weights = Weights::random(spec, &mut random);
    for tokens in [1, 3, 4] {
        check(&weights, tokens, &mut random);
    }
}

#[test]
fn parts_of_a_matrix() {
    let mut random = Random(3);
    for format in [Format::Fp8, Format::Q8_0, Format::Q4K] {
        let spec = Spec { format, rows: 20, cols: 1024, block: (8, 128), first_row: 3, offset: 1 };
        let weights = Weights::random(spec, &mut random);
        let whole = weights.view();
        for tokens in [1, 3, 7, 13, 21] {
            let values = random.values(tokens * 512);
            let x = MatrixRef::new(&values, tokens, 512);
            for kernels in tables() {
                let mut integers = IntegerMatrix::default();
                kernels.quantize(x, integers.reshape(tokens, 512, format));
                let mut all = vec![0.0; tokens * 20];
                let half = whole.column_range(256..768);
                kernels.matmul_integer(&half, integers.as_ref(), MatrixMut::new(&mut all, tokens, 20));
                let mut parts = vec![0.0; tokens * 20];
                let (left, right) = MatrixMut::new(&mut parts, tokens, 20).split_columns_at(11);
                kernels.matmul_integer(&half.row_range(0..11), integers.as_ref(), left);
                kernels.matmul_integer(&half.row_range(11..20), integers.as_ref(), right);
                assert_eq!(parts, all, "{kernels:?} {format}");
                let got = f64::from(all[tokens * 20 - 1]);
                let expected = expected((&weights, 256), 19, x, integers.as_ref(), tokens - 1);
                let bound = sum_error(2 * 512, expected.magnitude) + lost(kernels, format, tokens, &expected);
                assert!(
                    (got - expected.sum).abs() <= bound,
                    "{kernels:?} {format} {got}, not {}",
                    expected.sum
                );
            }
        }
    }
}

#[test]
fn largest_values_do_not_overflow() {
    for kernels in tables() {
        for tokens in [1, 5, 9, 17] {
            // An FP8 of 448 and a byte of -128; all of one sign.
            let mut q8_0 = vec![0x00, 0x3c];
            q8_0.extend([0x80; 32]);
            // More blocks than are added up together.
            let q8_0 = q8_0.repeat(5);
            let mut q4k = vec![0x00, 0x3c, 0, 0];
            q4k.extend([0xff; 140]);
            let one = 1.0_f32.to_le_bytes();
            let scales =
                BlockScales { bytes: &one, block_rows: 1, block_cols: 128, grid_cols: 1, first_row: 0 };
            let cases = [
                (Format::Fp8, 128, vec![0x7e; 128], Some(scales), 448.0),
                (Format::Q8_0, 5 * 32, q8_0, None, -128.0),
                (Format::Q4K, 256, q4k, None, 15.0 * 63.0),
            ];
            for (format, cols, bytes, scales, value) in cases {
                let expected = value * cols as f64;
                let w = MatrixView::from_bytes(format, &bytes, 1, cols, scales);
                let x = vec![1.0; tokens * cols];
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens]);
                kernels.quantize(MatrixRef::new(&x, tokens, cols), integers.reshape(tokens, cols, format));
                kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, 1));
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
    let spec = Spec { format: Format::Fp8, rows: 14, cols: 651, block: (4, 128), first_row: 0, offset: 1 };
    for kernels in tables() {
        for (tokens, nan) in [(3, 0x7f), (5, 0xff), (7, 0x7f), (17, 0xff)] {
            for (row, col) in [(0, 0), (3, 63), (6, 511), (8, 512), (13, 640), (13, 650)] {
                let mut weights = Weights::random(spec, &mut random);
                *weights.fp8_mut(row, col) = nan;
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![1.0; tokens * spec.rows]);
                let x = vec![0.5; tokens * spec.cols];
                let x = MatrixRef::new(&x, tokens, spec.cols);
                kernels.quantize(x, integers.reshape(tokens, spec.cols, Format::Fp8));
                let w = weights.view();
                kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, spec.rows));
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
    // Of q8_0 seventeen blocks: four fours that are added up together, and one.
    for (format, cols) in [(Format::Fp8, 512), (Format::Q8_0, 544), (Format::Q4K, 512)] {
        let spec = Spec { format, rows: 9, cols, block: (8, 128), first_row: 0, offset: 0 };
        let weights = Weights::random(spec, &mut random);
        let w = weights.view();
        for kernels in tables() {
            for (tokens, column) in [2, 7, 13, 21].into_iter().flat_map(|t| [(t, 300), (t, cols - 1)]) {
                let mut x = random.values(tokens * cols);
                x[cols + column] = f32::NAN;
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens * 9]);
                kernels.quantize(MatrixRef::new(&x, tokens, cols), integers.reshape(tokens, cols, format));
                kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, 9));
                for (index, got) in out.into_iter().enumerate() {
                    assert_eq!(got.is_nan(), index / 9 == 1, "{kernels:?} {format} {column} {index}");
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_no_number_reaches_its_row_and_no_other() {
    const ROWS: usize = 9;
    // Nine blocks of q8_0: two fours that are added up together, and one; two of q4_K, whose minima have a scale, too.
    for (format, cols, scale) in
        [(Format::Q8_0, 9 * 32, 0), (Format::Q4K, 2 * 256, 0), (Format::Q4K, 2 * 256, 2)]
    {
        let block = format.bytes(format.block_cols());
        for (row, column) in [(0, 0), (4, cols / 2), (8, cols - 1)] {
            // Scales of one.
            let one: Vec<u8> = [0x00, 0x3c].repeat(2).into_iter().chain([0x11; 140]).take(block).collect();
            let mut bytes = one.repeat(ROWS * cols / format.block_cols());
            let at = format.bytes(row * cols + column / format.block_cols() * format.block_cols());
            bytes[at + scale..at + scale + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
            let w = MatrixView::from_bytes(format, &bytes, ROWS, cols, None);
            for (kernels, tokens) in tables().into_iter().flat_map(|k| [1, 3, 5, 7, 9, 17].map(|t| (k, t))) {
                let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens * ROWS]);
                let x = vec![0.5; tokens * cols];
                kernels.quantize(MatrixRef::new(&x, tokens, cols), integers.reshape(tokens, cols, format));
                kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, ROWS));
                for (index, got) in out.into_iter().enumerate() {
                    assert_eq!(got.is_nan(), index % ROWS == row, "{kernels:?} {tokens} {format} {index}");
                }
            }
        }
    }
}

#[test]
fn more_rows_than_have_their_sums_in_lanes() {
    let mut random = Random(10);
    // Two panels, and a second block of rows.
    for spec in specs(&[300, 540], &[64]) {
        check(&Weights::random(spec, &mut random), 17, &mut random);
    }
}

/// Groups of columns, each with a largest magnitude of its own somewhere in it; all that are not larger come once at least, with
/// both signs.
fn groups_of_every_largest() -> Vec<Vec<u8>> {
    let mut groups = Vec::new();
    for largest in 0..0x7f_u8 {
        let all: Vec<u8> = (0..=largest).flat_map(|byte| [byte, byte | 0x80]).collect();
        for others in all.chunks(127) {
            let mut group = others.to_vec();
            group.resize(127, 0);
            group.insert(groups.len() * 37 % 128, largest);
            groups.push(group);
        }
    }
    groups
}

/// A token takes one column.
#[test]
fn every_fp8_becomes_its_steps_whatever_is_largest_in_its_group() {
    const COLS: usize = 512;
    let mut groups = groups_of_every_largest();
    groups.truncate(groups.len() / 4 * 4);
    let rows = groups.len() / 4;
    // Neighbours have largest magnitudes that are far apart.
    let bytes: Vec<u8> = (0..groups.len()).flat_map(|at| groups[at % 4 * rows + at / 4].clone()).collect();
    let ones = 1.0_f32.to_le_bytes().repeat(4);
    let scales = BlockScales { bytes: &ones, block_rows: rows, block_cols: 128, grid_cols: 4, first_row: 0 };
    let w = MatrixView::from_bytes(Format::Fp8, &bytes, rows, COLS, Some(scales));
    let columns = (0..COLS).scan(0, |next, turn| {
        // As many as each of the ways that few and many tokens go.
        let first = *next;
        *next = COLS.min(first + [4, 8, 32][turn % 3]);
        (first < COLS).then_some(first..*next)
    });
    for columns in columns {
        let tokens = columns.len();
        let one = |at: usize| if at % COLS == columns.start + at / COLS { 1.0 } else { 0.0 };
        let x: Vec<f32> = (0..tokens * COLS).map(one).collect();
        for kernels in tables() {
            let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens * rows]);
            let x = MatrixRef::new(&x, tokens, COLS);
            kernels.quantize(x, integers.reshape(tokens, COLS, Format::Fp8));
            kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, rows));
            for (row, bytes) in bytes.chunks(COLS).enumerate() {
                for (token, column) in columns.clone().enumerate() {
                    let group = &bytes[column / 128 * 128..][..128];
                    let step = fp8_step(group).expect("no NaN");
                    let byte = bytes[column];
                    let expected = (fp8_e4m3_to_f32(byte) / step).round_ties_even() * step;
                    // Of a product with 127 less than the lowest bits that stay, which does not make it another one.
                    let lost = step * (1 << LOST_BITS) as f32 / f32::from(LIMIT);
                    let error = (out[token * rows + row] - expected).abs();
                    assert!(
                        error <= lost,
                        "{kernels:?} {tokens} tokens {byte:#x} in steps of {step}: {error} off {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn sums_of_q4k_have_the_same_bits_in_halves() {
    let both: Vec<_> =
        tables().into_iter().filter(|kernels| matches!(kernels.isa(), Isa::Avx2 | Isa::Avx2Halves)).collect();
    let mut random = Random(11);
    let spec = Spec { format: Format::Q4K, rows: 9, cols: 1280, block: (1, 1), first_row: 0, offset: 1 };
    let weights = Weights::random(spec, &mut random);
    for tokens in 1..=4 {
        let values = random.values(tokens * spec.cols);
        let x = MatrixRef::new(&values, tokens, spec.cols);
        let products = |kernels: &&Kernels| {
            let (mut integers, mut out) = (IntegerMatrix::default(), vec![0.0; tokens * spec.rows]);
            kernels.quantize(x, integers.reshape(tokens, spec.cols, Format::Q4K));
            let rows = MatrixMut::new(&mut out, tokens, spec.rows);
            kernels.matmul_integer(&weights.view(), integers.as_ref(), rows);
            out
        };
        let all: Vec<Vec<f32>> = both.iter().map(products).collect();
        assert!(all.windows(2).all(|two| two[0] == two[1]), "{tokens} tokens: {all:?}");
    }
}

#[test]
fn formats_take_integers_for_as_many_tokens_as_pays() {
    for kernels in tables() {
        let few = match kernels.isa() {
            Isa::Avx512 => Few { q8_0: 3, fp8: 2 },
            Isa::Avx2Halves => Few { q8_0: 0, fp8: 12 },
            Isa::Avx2 | Isa::Scalar => Few { q8_0: 5, fp8: 12 },
        };
        // The most tokens that are multiplied in f32.
        let cases = [
            (Format::F32, (128, 128), None),
            (Format::Bf16, (128, 128), None),
            (Format::Fp8, (128, 128), Some(few.fp8)),
            // A group has two scales; but not in a matrix of one block.
            (Format::Fp8, (128, 64), None),
            (Format::Fp8, (128, 192), None),
            (Format::Fp8, (128, 256), Some(few.fp8)),
            (Format::Fp8, (128, 300), Some(few.fp8)),
            (Format::Q8_0, (1, 1), Some(few.q8_0)),
            (Format::Q4K, (1, 1), Some(0)),
        ];
        for (format, block, most) in cases {
            let spec = Spec { format, rows: 2, cols: 256, block, first_row: 0, offset: 0 };
            let weights = Weights::random(spec, &mut Random(7));
            for tokens in [1, 2, 3, 4, 5, 6, 12, 13, usize::MAX] {
                let expected = most.is_some_and(|most| tokens > most);
                let got = kernels.takes_integers(&weights.view(), tokens);
                assert_eq!(got, expected, "{kernels:?} {tokens} tokens, {format} in blocks of {block:?}");
            }
        }
    }
}

#[test]
fn no_columns_and_no_tokens() {
    let none = BlockScales { bytes: &[], block_rows: 128, block_cols: 128, grid_cols: 0, first_row: 0 };
    for (format, scales) in [(Format::Fp8, Some(none)), (Format::Q8_0, None), (Format::Q4K, None)] {
        let w = MatrixView::from_bytes(format, &[], 2, 0, scales);
        for kernels in tables() {
            let mut integers = IntegerMatrix::default();
            for tokens in [3, 6, 17] {
                let mut out = vec![3.0; 2 * tokens];
                integers.reshape(tokens, 0, format);
                kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut out, tokens, 2));
                assert_eq!(out, vec![0.0; 2 * tokens], "{kernels:?} {format}");
            }
            integers.reshape(0, 0, format);
            kernels.matmul_integer(&w, integers.as_ref(), MatrixMut::new(&mut [], 0, 2));
        }
    }
}
