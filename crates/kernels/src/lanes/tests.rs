//! Every table: strips of every filling, awkward counts, gaps between rows.

use super::{LANES, Lanes};
use crate::MatrixMut;
use crate::testing::{GAP, Random, Rows, sum_error, tables};

#[test]
fn rows_become_lanes() {
    let mut random = Random(1);
    for rows in 1..=LANES {
        for cols in [1, 5, 8, 9, 24, 31] {
            let x = Rows::random(rows, cols, &mut random);
            for kernels in tables() {
                let mut out = vec![Lanes([f32::NAN; LANES]); cols];
                kernels.pack_lanes(x.view(), 0.5, &mut out);
                for (c, line) in out.iter().enumerate() {
                    for (lane, &value) in line.0.iter().enumerate() {
                        let expected = if lane < rows { x.view().row(lane)[c] * 0.5 } else { 0.0 };
                        assert_eq!(value, expected, "{kernels:?} {rows} x {cols}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_with_lanes_agree_with_f64() {
    let mut random = Random(2);
    let shapes = [(1, 1, 1), (5, 7, 16), (6, 320, 3), (7, 321, 16), (13, 700, 16), (129, 64, 15)];
    for (rows, features, cols) in shapes {
        let x = Rows::random(rows, features, &mut random);
        let w: Vec<Lanes> = (0..features).map(|_| Lanes(std::array::from_fn(|_| random.value()))).collect();
        for kernels in tables() {
            let mut out = vec![f32::NAN; rows * (cols + GAP)];
            kernels.matmul_lanes(x.view(), &w, MatrixMut::strided(&mut out[..], rows, cols, cols + GAP));
            for row in 0..rows {
                for lane in 0..cols {
                    let products = || {
                        x.view().row(row).iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(w.0[lane]))
                    };
                    let expected: f64 = products().sum();
                    let error = (f64::from(out[row * (cols + GAP) + lane]) - expected).abs();
                    let bound = sum_error(features, products().map(f64::abs).sum());
                    assert!(error <= bound, "{kernels:?} {rows} x {features} x {cols}: {error} > {bound}");
                }
            }
        }
    }
}
